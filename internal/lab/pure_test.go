package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

func TestAddresses(t *testing.T) {
	seen := map[string]string{}
	add := func(what string, d dual) {
		for _, a := range d.strings(true) {
			if was, ok := seen[a]; ok {
				t.Fatalf("%s is %s and %s", a, was, what)
			}
			seen[a] = what
		}
	}
	add("lan", hostAddr(0, lanHost))
	for n := 1; n <= maxNodes; n++ {
		add(nodeName(n), nodeAddr(n))
		p4, p6 := podNetworks(n)
		for h := podGateway4; h <= lastHost; h++ {
			a := hostAddr(n, h)
			if !p4.Contains(a.v4) || !p6.Contains(a.v6) {
				t.Fatalf("%v is not in %v, %v", a, p4, p6)
			}
			add(fmt.Sprint(n, "/", h), a)
		}
	}
	for i := firstVIP; i <= lastVIP; i++ {
		if a := serviceAddr(i); !serviceNetwork4.Contains(a.v4) || !serviceNetwork6.Contains(a.v6) {
			t.Fatalf("%v is no service address", a)
		}
	}
}

// TestPool: a number that was given back is the last to be used again.
func TestPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPool(10, 14)
		held := map[int]bool{}
		var order []int // numbers not held, longest unused first
		for i := 10; i <= 14; i++ {
			order = append(order, i)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "give") {
				var all []int
				for n := range held {
					all = append(all, n)
				}
				slices.Sort(all)
				n := rapid.SampledFrom(all).Draw(t, "which")
				p.give(n)
				delete(held, n)
				order = append(order, n)
				continue
			}
			n, ok := p.take()
			if ok != (len(order) > 0) {
				t.Fatalf("take: %v with %d free", ok, len(order))
			}
			if !ok {
				continue
			}
			if n != order[0] {
				t.Fatalf("%d was given, %d was free for longer", n, order[0])
			}
			held[n] = true
			order = order[1:]
		}
	})
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 8 {
		got = append(got, b.next(time.Second))
	}
	if got[0] != firstDelay || got[7] != lastDelay || !slices.IsSorted(got) {
		t.Errorf("delays: %v", got)
	}
	if d := b.next(resetAfter); d != firstDelay {
		t.Errorf("after a long run: %v", d)
	}
}

func TestExpand(t *testing.T) {
	env := map[string]string{"A": "x", "B": ""}
	for in, want := range map[string]string{
		"$(A)": "x", "a$(A)b$(A)": "axbx", "$(B)": "", "$(C)": "$(C)", "$$(A)": "$(A)", "$": "$", "$(A": "$(A", "$A": "$A", "$(": "$(",
	} {
		if got := expand(in, env); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

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
	docs, err := parseText("f.yaml", `# comment

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
		got = append(got, d.Origin+" "+d.key().String())
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
		if _, err := parseText("f.yaml", bad); err == nil || !strings.HasPrefix(err.Error(), "f.yaml:1: ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzParse: YAML comes from users.
func FuzzParse(f *testing.F) {
	f.Add("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n---\n")
	f.Add("apiVersion: v1\nkind: List\nitems: []")
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := parseText("f", text)
		if err != nil {
			return
		}
		objects := map[key]document{}
		for _, d := range docs {
			if strings.Contains(d.key().file(), "/") {
				t.Errorf("%q leads out of the directory", d.key().file())
			}
			objects[d.key()] = d
		}
		_, _ = plan(objects, []string{"node1"}, proxies{path: "/waypoint"})
	})
}

func TestDeployment(t *testing.T) {
	docs, err := parseText("f", demoYAML())
	if err != nil {
		t.Fatal(err)
	}
	objects := map[key]document{}
	for _, d := range docs {
		objects[d.key()] = d
	}
	d, err := plan(objects, []string{"node1", "node2"}, proxies{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for k, p := range d.pods {
		names = append(names, k.Name)
		if strings.HasPrefix(k.Name, "web-") {
			if p.Labels["app"] != "web" || p.OwnerReferences[0].Kind != "ReplicaSet" || d.generated[k.file()] == "" {
				t.Errorf("pod: %+v", p.ObjectMeta)
			}
		}
	}
	if len(names) != 3 || len(d.services) != 1 {
		t.Errorf("pods: %v", names)
	}
}

// TestLogBounded: a program that prints without end fills two files, no more.
func TestLogBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	chunk := bytes.Repeat([]byte("x"), maxLog/4)
	for i := range 20 {
		if n, err := l.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(i, n, err)
		}
	}
	if _, err := l.Write([]byte("the end")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".1"} {
		if st, err := os.Stat(p); err != nil || st.Size() > maxLog {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
	if got := tail(path, 7); got != "the end" {
		t.Errorf("tail: %q", got)
	}
}

func TestLabels(t *testing.T) {
	docs, err := parseText("f", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: '1', k: '2'}}")
	if err != nil {
		t.Fatal(err)
	}
	v := "true" // must stay a text
	d, err := docs[0].relabel(map[string]*string{"x": nil, "z": &v})
	if err != nil {
		t.Fatal(err)
	}
	o, err := d.decode()
	if err != nil {
		t.Fatal(err)
	}
	if got := o.(*corev1.Namespace).Labels; len(got) != 2 || got["k"] != "2" || got["z"] != "true" {
		t.Errorf("labels: %v", got)
	}
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := claim(dirs{dir}, Config{Name: "x"}); err == nil || !strings.Contains(err.Error(), "neither empty") {
		t.Errorf("claimed a directory of somebody else: %v", err)
	}
	if err := Down(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		t.Error(err)
	}
}
