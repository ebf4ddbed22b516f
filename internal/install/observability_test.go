package install

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
)

// boardsIn returns the keys of an object that are boards.
func boardsIn(obj *unstructured.Unstructured) (keys []string) {
	data, _, _ := unstructured.NestedStringMap(obj.Object, "data")
	for key := range data {
		if strings.HasSuffix(key, ".json") {
			keys = append(keys, key)
		}
	}
	return keys
}

func rendered(t *testing.T, c Component, text string) []*unstructured.Unstructured {
	t.Helper()
	var values map[string]any
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	objects, err := renderChart(c, values, "istio-system", RenderOptions{Version: "v1"})
	if err != nil {
		t.Fatal(c, text, err)
	}
	return objects
}

// TestBoards: each board of the chart is in a ConfigMap, byte for byte, with the label that
// the sidecar of Grafana looks for. Without them there is nothing.
func TestBoards(t *testing.T) {
	objects := rendered(t, Observability, `{dashboards: {labels: {team: mesh}}}`)
	if len(objects) != 5 {
		t.Fatalf("%d objects", len(objects))
	}
	for _, obj := range objects {
		keys := boardsIn(obj)
		if l := obj.GetLabels(); obj.GetKind() != "ConfigMap" || l["grafana_dashboard"] != "1" || l["team"] != "mesh" || len(keys) != 1 {
			t.Fatalf("%s: %v %v", title(obj), obj.GetLabels(), keys)
		}
		want, err := charts.FS.ReadFile(path.Join(charts.Boards, keys[0]))
		if err != nil {
			t.Fatal(err)
		}
		got, _, _ := unstructured.NestedString(obj.Object, "data", keys[0])
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s: %s", title(obj), diff)
		}
	}
	if more := rendered(t, Observability, `{dashboards: {enabled: false}}`); len(more) != 0 {
		t.Errorf("%d objects without boards", len(more))
	}
}

// TestRules: the object of the operator has the rules of the file, but for those that are
// left out; a name that no alert has is refused.
func TestRules(t *testing.T) {
	text, err := charts.FS.ReadFile(charts.Rules)
	if err != nil {
		t.Fatal(err)
	}
	var want struct{ Groups []any }
	if err := yaml.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	all := rendered(t, Observability, `{dashboards: {enabled: false}, rules: {enabled: true, labels: {release: p}}}`)
	if len(all) != 1 || all[0].GetLabels()["release"] != "p" {
		t.Fatalf("%d objects", len(all))
	}
	got, _, _ := unstructured.NestedSlice(all[0].Object, "spec", "groups")
	if diff := cmp.Diff(want.Groups, got); diff != "" {
		t.Error(diff)
	}
	fewer := rendered(t, Observability, `{dashboards: {enabled: false}, observability: {rules: {enabled: true, disabled: [AmbitEgressRefused]}}}`)
	if text := fmt.Sprint(fewer[0].Object); strings.Contains(text, "AmbitEgressRefused") || !strings.Contains(text, "AmbitConnectionsFail") {
		t.Error("an alert is not left out, or too many are")
	}
	_, err = renderChart(Observability, map[string]any{"rules": map[string]any{"enabled": true, "disabled": []any{"Nothing"}}}, "istio-system", RenderOptions{Version: "v1"})
	if err == nil || !strings.Contains(err.Error(), `no alert is called "Nothing"`) {
		t.Error(err)
	}
}

// TestMonitorsSelectThePrograms: each monitor selects the pods of one program by labels that
// its chart gives them, and scrapes a port that the pods have under that name.
func TestMonitorsSelectThePrograms(t *testing.T) {
	monitors := rendered(t, Observability, `{dashboards: {enabled: false}, monitors: {enabled: true}}`)
	if len(monitors) != 4 {
		t.Fatalf("%d monitors", len(monitors))
	}
	waypoint, ok, err := deploy.For(&gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Name: "w", Namespace: "shop"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio-waypoint"},
	}, deploy.Settings{Image: "waypoint"})
	if err != nil || !ok {
		t.Fatal(err)
	}
	made, err := runtime.DefaultUnstructuredConverter.ToUnstructured(waypoint.Deployment)
	if err != nil {
		t.Fatal(err)
	}
	made["kind"] = "Deployment"
	programs := map[Component][]*unstructured.Unstructured{"waypoint": {{Object: made}}}
	for _, c := range []Component{Ambitd, CNI, Ztunnel} {
		programs[c] = rendered(t, c, `{}`)
	}
	for c, objects := range programs {
		selected := 0
		for _, w := range objects {
			if w.GetKind() != "Deployment" && w.GetKind() != "DaemonSet" {
				continue
			}
			labels, _, _ := unstructured.NestedStringMap(w.Object, "spec", "template", "metadata", "labels")
			containers, _, _ := unstructured.NestedSlice(w.Object, "spec", "template", "spec", "containers")
			for _, m := range monitors {
				want, _, _ := unstructured.NestedStringMap(m.Object, "spec", "selector", "matchLabels")
				if slices.ContainsFunc(keys(want), func(k string) bool { return labels[k] != want[k] }) {
					continue
				}
				selected++
				ends, _, _ := unstructured.NestedSlice(m.Object, "spec", "podMetricsEndpoints")
				container := containers[0].(map[string]any)
				if port := ends[0].(map[string]any)["port"]; !slices.ContainsFunc(container["ports"].([]any), func(p any) bool { return p.(map[string]any)["name"] == port }) {
					t.Errorf("%s: no port %v: %v", title(w), port, container["ports"])
				}
			}
		}
		if selected != 1 {
			t.Errorf("%d monitors select the pods of %s", selected, c)
		}
	}
}

func keys(m map[string]string) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}

// TestOperatorIsMissing: where the kinds of the Prometheus operator are missing, nothing is
// installed, and the error names the kind and the value. Where they are, rules are installed,
// and go when they are not wanted any more.
func TestOperatorIsMissing(t *testing.T) {
	s, _ := start(t)
	settings := []string{"profile=empty", "components.observability.enabled=true", "values.observability.rules.enabled=true"}
	err := installer(t, s, settings...).Install(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no kind PrometheusRule") || !strings.Contains(err.Error(), "values.observability.rules.enabled=false") {
		t.Fatal(err)
	}
	c := cluster{s.Client()}
	board := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "ambit-mesh-board", "namespace": "istio-system"}}}
	if live, err := c.get(t.Context(), board); err != nil || live != nil {
		t.Errorf("a board is there: %v, %v", live, err)
	}
	s.Define(operatorGroup, "PrometheusRule", "prometheusrules", true, "v1")
	if err := installer(t, s, settings...).Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	rule := &unstructured.Unstructured{Object: map[string]any{"apiVersion": operatorGroup + "/v1", "kind": "PrometheusRule", "metadata": map[string]any{"name": "ambit", "namespace": "istio-system"}}}
	for _, obj := range []*unstructured.Unstructured{board, rule} {
		if live, err := c.get(t.Context(), obj); err != nil || live == nil {
			t.Errorf("%s: %v, %v", title(obj), live, err)
		}
	}
	if err := installer(t, s, settings[:2]...).Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if live, err := c.get(t.Context(), rule); err != nil || live != nil {
		t.Errorf("the rules stay: %v, %v", live, err)
	}
}
