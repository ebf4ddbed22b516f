package install

import (
	"maps"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
)

func gatewayChannel(name string) map[string]any {
	return map[string]any{"gatewayAPI": map[string]any{"channel": name}, "base": map[string]any{"enableCRDTemplates": false}}
}

// gatewayKinds are the definitions that the base chart has for a channel, by name.
func gatewayKinds(t *testing.T, values map[string]any, config *rest.Config) (map[string]*unstructured.Unstructured, error) {
	t.Helper()
	objects, err := renderChart(Base, values, "istio-system", RenderOptions{Config: config})
	all := map[string]*unstructured.Unstructured{}
	for _, obj := range objects {
		all[obj.GetName()] = obj
	}
	return all, err
}

// routeFields are the fields of a rule, and of a filter, of an HTTPRoute.
func routeFields(t *testing.T, crd *unstructured.Unstructured) (rule, filter []string) {
	t.Helper()
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	for _, v := range versions {
		version := v.(map[string]any)
		if version["name"] != "v1" {
			continue
		}
		const rules, filters = "schema openAPIV3Schema properties spec properties rules items properties", "filters items properties"
		ofRule, _, _ := unstructured.NestedMap(version, strings.Fields(rules)...)
		ofFilter, _, _ := unstructured.NestedMap(ofRule, strings.Fields(filters)...)
		return slices.Sorted(maps.Keys(ofRule)), slices.Sorted(maps.Keys(ofFilter))
	}
	t.Fatal("HTTPRoute has no version v1")
	return nil, nil
}

// TestGatewayChannels: a channel has its kinds with its fields, and none has none.
func TestGatewayChannels(t *testing.T) {
	const routes, meshes = "httproutes.gateway.networking.k8s.io", "xmeshes.gateway.networking.x-k8s.io"
	for channel, experimental := range map[string]bool{"standard": false, "experimental": true} {
		kinds, err := gatewayKinds(t, gatewayChannel(channel), nil)
		if err != nil || kinds[routes] == nil {
			t.Fatalf("%s: %v, %v", channel, slices.Sorted(maps.Keys(kinds)), err)
		}
		for name, crd := range kinds {
			if got := crd.GetAnnotations()["gateway.networking.k8s.io/channel"]; got != channel {
				t.Errorf("%s: %s is of channel %q", channel, name, got)
			}
			if crd.GetAnnotations()["helm.sh/resource-policy"] != "keep" || crd.GetLabels()[labelPartOf] != partOf {
				t.Errorf("%s: %s is not kept, or is not marked as ours", channel, name)
			}
		}
		rule, filter := routeFields(t, kinds[routes])
		if slices.Contains(rule, "sessionPersistence") != experimental || slices.Contains(filter, "externalAuth") != experimental || (kinds[meshes] != nil) != experimental {
			t.Errorf("%s: rules have %v, filters %v, XMesh: %v", channel, rule, filter, kinds[meshes] != nil)
		}
	}
	for _, values := range []map[string]any{gatewayChannel("none"), {"gatewayAPI": map[string]any{"enabled": false, "channel": "experimental"}, "base": map[string]any{"enableCRDTemplates": false}}} {
		if kinds, err := gatewayKinds(t, values, nil); err != nil || len(kinds) > 0 {
			t.Errorf("%v: %v, %v", values, slices.Sorted(maps.Keys(kinds)), err)
		}
	}
	for _, wrong := range []string{"", "Experimental", "beta"} {
		if _, err := gatewayKinds(t, gatewayChannel(wrong), nil); err == nil || !strings.Contains(err.Error(), "channel") {
			t.Errorf("channel %q: %v", wrong, err)
		}
	}
}

// TestGatewayChannelOfOthers: kinds of another owner are never touched. The channel that
// they lack is refused; nothing is installed in the belief that it is there.
func TestGatewayChannelOfOthers(t *testing.T) {
	const routes = "httproutes.gateway.networking.k8s.io"
	s := kubetest.Start(t)
	found := func(channel string, labels map[string]any) {
		definitions := s.Client().Dynamic.Resource(named("CustomResourceDefinition").GroupVersionResource)
		if err := definitions.Delete(t.Context(), routes, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		_, err := definitions.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
			"metadata": map[string]any{"name": routes, "labels": labels, "annotations": map[string]any{"gateway.networking.k8s.io/channel": channel}},
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	kinds := func(channel string) (bool, error) {
		all, err := gatewayKinds(t, gatewayChannel(channel), s.Client().Config)
		return all[routes] != nil, err
	}
	found("standard", map[string]any{})
	if has, err := kinds("standard"); err != nil || has {
		t.Errorf("standard over another owner's: %v, %v", has, err)
	}
	if _, err := kinds("experimental"); err == nil || !strings.Contains(err.Error(), routes) || !strings.Contains(err.Error(), "gatewayAPI.channel=none") {
		t.Errorf("experimental over another owner's standard: %v", err)
	}
	found("experimental", map[string]any{})
	if has, err := kinds("experimental"); err != nil || has {
		t.Errorf("experimental over another owner's: %v, %v", has, err)
	}
	found("standard", map[string]any{labelPartOf: partOf})
	if has, err := kinds("experimental"); err != nil || !has {
		t.Errorf("experimental over our standard: %v, %v", has, err)
	}
}
