package objects

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestCaptured(t *testing.T) {
	pod := func(mode string, host bool) *corev1.Pod {
		p := &corev1.Pod{}
		p.Spec.HostNetwork = host
		if mode != "" {
			p.Labels = map[string]string{"istio.io/dataplane-mode": mode}
		}
		return p
	}
	in, out := map[string]string{"istio.io/dataplane-mode": "ambient"}, map[string]string{}
	for i, tc := range []struct {
		p    *corev1.Pod
		ns   map[string]string
		want bool
	}{
		{pod("", false), in, true}, {pod("", false), out, false}, {pod("none", false), in, false},
		{pod("ambient", false), out, true}, {pod("", true), in, false},
	} {
		if captured(tc.p, tc.ns) != tc.want {
			t.Errorf("case %d", i)
		}
	}
}

func TestParse(t *testing.T) {
	docs, err := ParseText("f.yaml", `# comment

---
# what it is
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
--- # another
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 1}]}}
- {apiVersion: x/v1, kind: Thing, metadata: {name: t, namespace: a}}
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range docs {
		got = append(got, d.Origin+" "+d.Key().String())
	}
	want := []string{"f.yaml:5 namespace/a", "f.yaml:10 service/s (namespace default)", "f.yaml:10 thing/t (namespace a)"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for _, bad := range []string{
		"kind: Pod\nmetadata: {name: a}", "apiVersion: v1\nmetadata: {name: a}", "apiVersion: v1\nkind: Pod", "a: [",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, args: [x]}]}",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a}, {name: a}]}",
	} {
		if _, err := ParseText("f.yaml", bad); err == nil || !strings.HasPrefix(err.Error(), "f.yaml:1: ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzParse: YAML comes from users.
func FuzzParse(f *testing.F) {
	f.Add("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n---\n")
	f.Add("apiVersion: v1\nkind: List\nitems: []")
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := ParseText("f", text)
		if err != nil {
			return
		}
		all := map[Key]Document{}
		for _, d := range docs {
			if strings.Contains(d.Key().File(), "/") {
				t.Errorf("%q leads out of the directory", d.Key().File())
			}
			all[d.Key()] = d
		}
		_, _ = Plan(all, []string{"node1"}, Proxies{Path: "/waypoint"})
	})
}

func TestDeployment(t *testing.T) {
	docs, err := ParseText("f", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, command: [web], ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: node2, containers: [{name: client}]}
`)
	if err != nil {
		t.Fatal(err)
	}
	all := map[Key]Document{}
	for _, d := range docs {
		all[d.Key()] = d
	}
	d, err := Plan(all, []string{"node1", "node2"}, Proxies{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for k, p := range d.Pods {
		names = append(names, k.Name)
		if strings.HasPrefix(k.Name, "web-") {
			if p.Labels["app"] != "web" || p.OwnerReferences[0].Kind != "ReplicaSet" || d.Generated[k.File()] == "" {
				t.Errorf("pod: %+v", p.ObjectMeta)
			}
		}
	}
	if len(names) != 3 || len(d.Services) != 1 {
		t.Errorf("pods: %v", names)
	}
}

func TestLabels(t *testing.T) {
	docs, err := ParseText("f", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: '1', k: '2'}}")
	if err != nil {
		t.Fatal(err)
	}
	v := "true" // must stay a text
	d, err := docs[0].Relabel(map[string]*string{"x": nil, "z": &v})
	if err != nil {
		t.Fatal(err)
	}
	o, err := d.Decode()
	if err != nil {
		t.Fatal(err)
	}
	if got := o.(*corev1.Namespace).Labels; len(got) != 2 || got["k"] != "2" || got["z"] != "true" {
		t.Errorf("labels: %v", got)
	}
}
