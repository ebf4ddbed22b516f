package install

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/source"
)

var update = flag.Bool("update", false, "rewrite testdata/golden")

func specFile(t *testing.T, name string) *Spec {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "values", name))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse([][]byte{raw}, nil)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

// kindsMatter reports whether a set of values says something about kinds. They
// are megabytes: the others are rendered without.
func kindsMatter(name string) bool { return name == "default.yaml" || name == "minimal.yaml" }

func withoutBase(s *Spec) *Spec {
	off := false
	if s.Components == nil {
		s.Components = map[string]ComponentSpec{}
	}
	s.Components["base"] = ComponentSpec{Enabled: &off}
	return s
}

func valueFiles(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal("no value files", err)
	}
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	return names
}

// Each set of values gives the objects of its golden file; of kinds, only the
// names are written down, and of boards as well.
func TestGolden(t *testing.T) {
	for _, name := range valueFiles(t) {
		t.Run(name, func(t *testing.T) {
			spec := specFile(t, name)
			if !kindsMatter(name) {
				withoutBase(spec)
			}
			parts, err := Render(spec, RenderOptions{Version: "v1.2.3"})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range parts {
				for _, obj := range p.Objects {
					if obj.GetKind() == "CustomResourceDefinition" {
						obj.Object = map[string]any{"apiVersion": obj.GetAPIVersion(), "kind": obj.GetKind(), "metadata": map[string]any{"name": obj.GetName()}}
					}
					for _, name := range boardsIn(obj) {
						_ = unstructured.SetNestedField(obj.Object, "(as in the chart)", "data", name)
					}
				}
			}
			var got bytes.Buffer
			if err := Manifest(&got, parts); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "golden", name)
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v; go test ./internal/install -update writes it", err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("differs from %s (- want, + got); go test ./internal/install -update rewrites it\n%s", file, diff)
			}
		})
	}
}

// Values that only upstream's charts know change nothing but the environment
// variable that was asked for.
func TestUpstreamValuesChangeNothing(t *testing.T) {
	render := func(name string) string {
		parts, err := Render(withoutBase(specFile(t, name)), RenderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := Manifest(&b, parts); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	env := "        - name: PILOT_ENABLE_AMBIENT\n          value: \"true\"\n"
	got := render("upstream.yaml")
	if !strings.Contains(got, env) {
		t.Error("the variable in pilot.env is missing")
	}
	if diff := cmp.Diff(render("default.yaml"), strings.Replace(got, env, "", 1)); diff != "" {
		t.Error(diff)
	}
}

// helmTemplate renders a chart directory as `helm template` does, from disk.
func helmTemplate(t *testing.T, c Component, values map[string]any, namespace string) []*unstructured.Unstructured {
	t.Helper()
	ch, err := loader.Load(filepath.Join("..", "..", "charts", string(c)))
	if err != nil {
		t.Fatal(err)
	}
	vals, err := chartutil.ToRenderValues(ch, values, chartcommon.ReleaseOptions{Name: release[c], Namespace: namespace, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	texts, err := engine.Render(ch, vals)
	if err != nil {
		t.Fatal(err)
	}
	var all []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if strings.HasSuffix(name, "NOTES.txt") {
			continue
		}
		objects, err := decode([]byte(texts[name]))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, objects...)
	}
	slices.SortStableFunc(all, compareObjects)
	return all
}

// What `helm install` of the directories would apply is what `ambit install`
// applies, but for the label that says who did.
func TestSameAsHelm(t *testing.T) {
	for _, name := range valueFiles(t) {
		s := specFile(t, name)
		if !kindsMatter(name) {
			withoutBase(s)
		}
		parts, err := Render(s, RenderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			want := helmTemplate(t, p.Component, s.chartValues(p.Component), s.Namespace)
			for _, obj := range p.Objects {
				l := obj.GetLabels()
				if l[labelManagedBy] != managedByUs {
					t.Errorf("%s: %s is not labelled as ours: it could not be removed", name, title(obj))
				}
				delete(l, labelManagedBy)
				obj.SetLabels(l)
			}
			if len(want) != len(p.Objects) {
				t.Fatalf("%s: %s: helm has %d objects, we have %d", name, p.Component, len(want), len(p.Objects))
			}
			for i := range want {
				if diff := cmp.Diff(want[i].Object, p.Objects[i].Object); diff != "" {
					t.Errorf("%s: %s (- helm, + ambit)\n%s", name, title(want[i]), diff)
				}
			}
		}
	}
}

// The charts are installed with nothing but their own defaults, each alone.
func TestChartsAlone(t *testing.T) {
	for _, c := range slices.Concat(phases...) {
		if objects := helmTemplate(t, c, nil, "istio-system"); len(objects) == 0 {
			t.Errorf("%s: no objects", c)
		}
	}
}

func TestLint(t *testing.T) {
	for _, c := range slices.Concat(phases...) {
		result := lint.RunAll(filepath.Join("..", "..", "charts", string(c)), nil, "istio-system")
		for _, m := range result.Messages {
			if strings.Contains(m.Error(), "icon is recommended") {
				continue
			}
			t.Errorf("%s: %s", c, m.Error())
		}
	}
}

// Helm keeps a release with its chart in one Secret, which may have a mebibyte.
func TestReleaseFitsIntoASecret(t *testing.T) {
	ch, err := loader.Load("../../charts/base")
	if err != nil {
		t.Fatal(err)
	}
	for _, channel := range []string{"standard", "experimental"} {
		var manifest bytes.Buffer
		if err := Manifest(&manifest, []Part{{Base, helmTemplate(t, Base, gatewayChannel(channel), "istio-system")}}); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(map[string]any{"chart": ch, "manifest": manifest.String()})
		if err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression) // as Helm's storage does
		if _, err := z.Write(raw); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		const limit = 1 << 20
		size := base64.StdEncoding.EncodedLen(packed.Len())
		t.Logf("release: %d KiB", size>>10)
		if size > limit*9/10 {
			t.Errorf("a release of base (%s) takes %d KiB of the 1024 that a Secret has: leave something out", channel, size>>10)
		}
	}
}

// Selectors of workloads can never be changed: they must not depend on what
// an upgrade changes.
func TestSelectorsDoNotChange(t *testing.T) {
	selectors := func(version string, settings ...string) map[string]any {
		s, err := Parse(nil, settings)
		if err != nil {
			t.Fatal(err)
		}
		parts, err := Render(withoutBase(s), RenderOptions{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]any{}
		for _, p := range parts {
			for _, obj := range p.Objects {
				if obj.GetKind() == "Deployment" || obj.GetKind() == "DaemonSet" {
					sel, _, _ := unstructured.NestedMap(obj.Object, "spec", "selector", "matchLabels")
					labels, _, _ := unstructured.NestedStringMap(obj.Object, "spec", "template", "metadata", "labels")
					for k, v := range sel {
						if labels[k] != v {
							t.Errorf("%s: its pods are not labelled %s=%v", title(obj), k, v)
						}
					}
					found[title(obj)] = sel
				}
			}
		}
		return found
	}
	before := selectors("v1.0.0")
	after := selectors("v1.1.0", "hub=example.org/x", "values.ztunnel.podLabels.a=b", "values.cni.podLabels.a=b", "values.pilot.podLabels.a=b")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
	if len(before) != 3 {
		t.Errorf("%d workloads, want 3", len(before))
	}
}

// Who may do what is held down: no wildcard verbs, no Secrets by other names
// than ours, and the control plane runs without rights on its node.
func TestRights(t *testing.T) {
	parts, err := Render(withoutBase(specFile(t, "revision.yaml")), RenderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		for _, obj := range p.Objects {
			rules, _, _ := unstructured.NestedSlice(obj.Object, "rules")
			if strings.HasSuffix(obj.GetKind(), "Role") {
				for _, r := range rules {
					rightsOf(t, title(obj), r.(map[string]any))
				}
			}
			if strings.HasSuffix(obj.GetKind(), "Binding") && p.Component == Ztunnel {
				t.Errorf("%s: the node proxy needs nothing of the API", title(obj))
			}
			if obj.GetKind() == "Deployment" || obj.GetKind() == "DaemonSet" {
				containerRights(t, obj)
			}
		}
	}
}

// TestRolesCoverTheKinds compares the control plane's rights on objects with the
// kinds that it reads: one right less and it does not see them, one more is a
// right without need.
func TestRolesCoverTheKinds(t *testing.T) {
	type right struct{ group, resource, verb string }
	want := map[right]bool{}
	groups := map[string]bool{}
	for _, k := range source.Kinds() {
		groups[k.Group] = true
		for _, verb := range []string{"get", "list", "watch"} {
			want[right{k.Group, k.Plural, verb}] = true
		}
		if k.StatusWritten {
			want[right{k.Group, k.Plural + "/status", "patch"}] = true
			want[right{k.Group, k.Plural + "/status", "update"}] = true
		}
	}
	// What it needs of these groups for other duties.
	delete(groups, "")
	want[right{"gateway.networking.k8s.io", "gatewayclasses", "create"}] = true
	parts, err := Render(withoutBase(specFile(t, "revision.yaml")), RenderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		for _, obj := range p.Objects {
			if p.Component != Ambitd || obj.GetKind() != "ClusterRole" {
				continue
			}
			rules, _, _ := unstructured.NestedSlice(obj.Object, "rules")
			for _, r := range rules {
				rule := r.(map[string]any)
				in, _, _ := unstructured.NestedStringSlice(rule, "apiGroups")
				resources, _, _ := unstructured.NestedStringSlice(rule, "resources")
				verbs, _, _ := unstructured.NestedStringSlice(rule, "verbs")
				for _, g := range in {
					for _, resource := range resources {
						for _, verb := range verbs {
							have := right{g, resource, verb}
							if groups[g] && !want[have] {
								t.Errorf("%s: %v is no right of a kind", title(obj), have)
							}
							delete(want, have)
						}
					}
				}
			}
		}
	}
	for missing := range want {
		t.Errorf("no role has %v", missing)
	}
}

func rightsOf(t *testing.T, who string, rule map[string]any) {
	t.Helper()
	has := func(field string, either ...string) bool {
		list, _, _ := unstructured.NestedStringSlice(rule, field)
		return slices.ContainsFunc(list, func(s string) bool { return slices.Contains(either, s) })
	}
	_, limited := rule["resourceNames"]
	switch {
	case has("verbs", "*"):
		t.Errorf("%s: %v: every verb", who, rule)
	case has("apiGroups", "*"):
		t.Errorf("%s: %v: every group", who, rule)
	case has("resources", "secrets") && !limited && (has("verbs", "get", "list", "watch", "update", "patch", "delete")):
		t.Errorf("%s: %v: Secrets of any name", who, rule)
	case has("resources", "*") && has("verbs", "create", "update", "patch", "delete", "deletecollection"):
		t.Errorf("%s: %v: writes anything of a group", who, rule)
	case has("verbs", "escalate", "bind", "impersonate"):
		t.Errorf("%s: %v: becomes somebody else", who, rule)
	}
}

func containerRights(t *testing.T, obj *unstructured.Unstructured) {
	t.Helper()
	containers, _, _ := unstructured.NestedSlice(obj.Object, "spec", "template", "spec", "containers")
	for _, c := range containers {
		sec, _ := c.(map[string]any)["securityContext"].(map[string]any)
		drop, _, _ := unstructured.NestedStringSlice(sec, "capabilities", "drop")
		add, _, _ := unstructured.NestedStringSlice(sec, "capabilities", "add")
		if !slices.Equal(drop, []string{"ALL"}) || sec["readOnlyRootFilesystem"] != true || sec["privileged"] == true {
			t.Errorf("%s: %v", title(obj), sec)
		}
		want := map[string][]string{
			"Deployment istio-system/ambitd-canary": nil,
			"DaemonSet istio-system/ambit-cni":      {"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "DAC_OVERRIDE"},
			"DaemonSet istio-system/ztunnel":        {"NET_ADMIN", "SYS_ADMIN", "NET_RAW", "CHOWN"},
		}
		if !slices.Equal(add, want[title(obj)]) {
			t.Errorf("%s: capabilities %v, want %v", title(obj), add, want[title(obj)])
		}
	}
}

// TestNull: a value that is taken away with null is refused by its name, or the
// chart is rendered without it; a template never stumbles over it.
func TestNull(t *testing.T) {
	for _, c := range slices.Concat(phases...) {
		ch, err := loadChart(c)
		if err != nil {
			t.Fatal(err)
		}
		render := func(values map[string]any) ([]*unstructured.Unstructured, error) {
			return renderChart(c, values, "istio-system", RenderOptions{Version: "v1"})
		}
		whole, err := render(nil)
		if err != nil {
			t.Fatal(err)
		}
		above := [][]string{nil}
		if key := chartKey[c]; key != "" {
			above = append(above, []string{key})
		}
		refused := 0
		for path, def := range leaves(ch.Values, nil) {
			for _, root := range above {
				full := slices.Concat(root, path)
				name := string(c) + " " + strings.Join(full, ".")
				got, err := render(nulled(full))
				switch {
				case err != nil:
					refused++
					if !strings.Contains(err.Error(), full[len(full)-1]+"'") || strings.Contains(err.Error(), "nil pointer") {
						t.Errorf("%s: %v", name, err)
					}
				case empty(def) && !cmp.Equal(got, whole):
					t.Errorf("%s: null is not the same as nothing", name)
				case len(got) == 0:
					t.Errorf("%s: nothing is left", name)
				}
			}
		}
		if refused == 0 {
			t.Errorf("%s does without all of its values", c)
		}
	}
}

// TestNoResources: limits and requests that are null, all or one of them, are
// not there, as in upstream's charts; neither are variables made from them.
func TestNoResources(t *testing.T) {
	for _, c := range []Component{Ambitd, CNI, Ztunnel} {
		for text, want := range map[string]map[string]any{
			`{resources: {limits: null}}`:                                                       {"requests": true},
			`{resources: {requests: null}}`:                                                     nil,
			`{resources: null}`:                                                                 nil,
			`{KEY: {resources: {requests: null}}}`:                                              nil,
			`{KEY: {resources: {requests: null, limits: null}}}`:                                nil,
			`{KEY: {resources: {limits: {memory: null, cpu: '1'}, requests: null}}}`:            {"limits": map[string]any{"cpu": "1"}},
			`{KEY: {resources: {requests: {cpu: null, memory: null}, limits: {memory: null}}}}`: nil,
		} {
			text := strings.ReplaceAll(text, "KEY", chartKey[c])
			var values map[string]any
			if err := yaml.Unmarshal([]byte(text), &values); err != nil {
				t.Fatal(err)
			}
			objects, err := renderChart(c, values, "istio-system", RenderOptions{Version: "v1"})
			if err != nil {
				t.Errorf("%s %s: %v", c, text, err)
				continue
			}
			got := firstContainer(t, objects)
			resources, _ := got["resources"].(map[string]any)
			if requests, ok := resources["requests"].(map[string]any); ok && len(requests) == 2 && want["requests"] == true {
				resources["requests"] = true
			}
			if !cmp.Equal(resources, want, cmpopts.EquateEmpty()) {
				t.Errorf("%s %s: %v", c, text, resources)
			}
			env := fmt.Sprint(got["env"])
			if strings.Contains(env, "limits.memory") || strings.Contains(env, "requests.cpu") != (c == Ztunnel && want["requests"] != nil) {
				t.Errorf("%s %s: %s", c, text, env)
			}
		}
	}
}

// TestLargePackets: large packets on the pods' interfaces are by choice, and nothing else
// than yes or no is a choice.
func TestLargePackets(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "", `{bigTCP: false}`: "", `{cni: {bigTCP: false}}`: "", `{bigTCP: true}`: "--large-packets=pod", `{cni: {bigTCP: true}}`: "--large-packets=pod",
		`{bigTCP: "false"}`: "refused", `{cni: {bigTCP: 1}}`: "refused",
	} {
		var values map[string]any
		if err := yaml.Unmarshal([]byte(text), &values); err != nil {
			t.Fatal(err)
		}
		objects, err := renderChart(CNI, values, "istio-system", RenderOptions{Version: "v1"})
		if err != nil || want == "refused" {
			if want != "refused" || err == nil || !strings.Contains(err.Error(), "bigTCP") {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		args := fmt.Sprint(firstContainer(t, objects)["args"])
		if got := strings.Contains(args, "--large-packets"); got != (want != "") || !strings.Contains(args, want) {
			t.Errorf("%s: %s", text, args)
		}
	}
}

// firstContainer is that of the workload among objects.
func firstContainer(t *testing.T, objects []*unstructured.Unstructured) map[string]any {
	t.Helper()
	for _, obj := range objects {
		if obj.GetKind() == "Deployment" || obj.GetKind() == "DaemonSet" {
			containers, _, _ := unstructured.NestedSlice(obj.Object, "spec", "template", "spec", "containers")
			return containers[0].(map[string]any)
		}
	}
	t.Fatal("there is no workload")
	return nil
}

// leaves yields all paths of values, those of maps as well, with the value.
func leaves(values map[string]any, above []string) iter.Seq2[[]string, any] {
	return func(yield func([]string, any) bool) {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			path := append(slices.Clone(above), key)
			if !yield(path, values[key]) {
				return
			}
			inner, _ := values[key].(map[string]any)
			for p, v := range leaves(inner, path) {
				if !yield(p, v) {
					return
				}
			}
		}
	}
}

// nulled are values with null at a path.
func nulled(path []string) map[string]any {
	if len(path) == 1 {
		return map[string]any{path[0]: nil}
	}
	return map[string]any{path[0]: nulled(path[1:])}
}

// empty reports whether a value says nothing.
func empty(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return v == nil || v == "" || v == false
}
