package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/source"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const pods = `# two pods
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
spec:
  containers:
  - name: c
    image: x
    ports: [{name: web, containerPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata:
  name: b
spec: {containers: [{name: c, image: x}]}
`

func keys(events []source.Event) []string {
	var out []string
	for _, e := range events {
		s := e.Key.String()
		if e.Object == nil {
			s = "-" + s
		}
		out = append(out, s)
	}
	return out
}

func texts(dir string, problems []Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, strings.TrimPrefix(p.String(), dir+"/"))
	}
	return out
}

func TestLoadReadsEveryShapeOfManifest(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/pods.yaml", pods)
	write(t, dir+"/deeper/list.yml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n")
	write(t, dir+"/svc.json", `{"apiVersion":"v1","kind":"ServiceList","items":[{"metadata":{"name":"s","namespace":"shop"},"spec":{"ports":[{"port":80}]}}]}`)
	write(t, dir+"/policy.yaml", "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  action: DENY\n  rules:\n  - from: [{source: {namespaces: [x]}}]\n")
	write(t, dir+"/other.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: e}\n")
	write(t, dir+"/.hidden.yaml", "nonsense")
	events, problems := Load(Options{ConfigDirs: []string{dir}})
	want := []string{"AuthorizationPolicy/default/p", "Namespace/shop", "Node/n1", "Pod/default/b", "Pod/shop/a", "Service/shop/s"}
	if diff := cmp.Diff(want, keys(events)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"other.yaml:1: apps/v1 Deployment is not a kind the mesh reads; ignored"}, texts(dir, problems)); diff != "" {
		t.Error(diff)
	}
	if got := events[0].Object.(*securityv1.AuthorizationPolicy).Spec.Action.String(); got != "DENY" {
		t.Errorf("action %s", got)
	}
	if got := events[4].Origin; got != dir+"/pods.yaml:2" {
		t.Errorf("origin %s", got)
	}
	svc := events[5].Object.(*corev1.Service)
	if p := svc.Spec.Ports[0]; p.Protocol != corev1.ProtocolTCP || p.TargetPort.IntVal != 80 {
		t.Errorf("defaults not set: %+v", p)
	}
}

func TestMistakesAreNamedByFileLineAndField(t *testing.T) {
	tests := map[string]struct {
		text string
		want []string
	}{
		"unknown field": {
			"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - prot: 80\n    port: 80\n",
			[]string{"f.yaml:6: spec.ports[0].prot: Service/default/s: there is no such field"},
		},
		"wrong type": {
			"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - name: web\n    port: eighty\n",
			[]string{"f.yaml:7: spec.ports[0].port: Service/default/s: expected a whole number, found string"},
		},
		"unknown field of a policy": {
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  rules:\n  - from:\n    - source:\n        principal: [a]\n",
			[]string{"f.yaml:8: spec.rules[0].from[0].source.principal: AuthorizationPolicy/default/p: there is no such field"},
		},
		"wrong enum of a policy": {
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  action: REFUSE\n",
			[]string{`f.yaml:5: spec.action: AuthorizationPolicy/default/p: invalid value for enum field action: "REFUSE"`},
		},
		"metadata of a policy": {
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  lables: {}\n",
			[]string{"f.yaml:5: metadata.lables: AuthorizationPolicy/default/p: there is no such field"},
		},
		"syntax in the second document": {
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [\n",
			[]string{"f.yaml:5: not YAML: did not find expected node content"},
		},
		"no name": {"apiVersion: v1\nkind: Namespace\n", []string{"f.yaml:1: metadata.name: the object has no name"}},
		"bad name": {
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: a/b}\n",
			[]string{"f.yaml:1: metadata.name: \"a/b\": "},
		},
		"key twice": {
			"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  name: b\n",
			[]string{"f.yaml:5: metadata.name: the key is there twice"},
		},
		"same object twice": {
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n",
			[]string{"f.yaml:5: metadata.name: Namespace/a is already defined at"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/f.yaml", tt.text)
			_, problems := Load(Options{ConfigDirs: []string{dir}})
			got := texts(dir, problems)
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) {
					t.Errorf("got %q, want %q", got[i], tt.want[i])
				}
			}
		})
	}
}

func TestABadDocumentKeepsItsLastGoodStateAndNoOther(t *testing.T) {
	const good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n"
	s := newState()
	s.put("f", false, []byte(good))
	if diff := cmp.Diff([]string{"Namespace/a", "Namespace/b"}, keys(s.flush())); diff != "" {
		t.Fatal(diff)
	}
	// b is misspelt, a is gone, c is new.
	s.put("f", false, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: b, lables: {}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: c}\n"))
	if diff := cmp.Diff([]string{"-Namespace/a", "Namespace/c"}, keys(s.flush())); diff != "" {
		t.Error(diff)
	}
	if len(s.problems()) != 1 {
		t.Errorf("problems: %v", s.problems())
	}
	// Nothing can be named: everything stays.
	s.put("f", false, []byte("{{{"))
	if got := s.flush(); len(got) != 0 {
		t.Errorf("changed: %v", keys(got))
	}
	s.put("f", false, []byte(good))
	if diff := cmp.Diff([]string{"Namespace/a", "-Namespace/c"}, keys(s.flush())); diff != "" {
		t.Error(diff)
	}
	if len(s.problems()) != 0 {
		t.Errorf("problems: %v", s.problems())
	}
	s.drop("f", false)
	if got := s.flush(); len(got) != 2 || got[0].Object != nil {
		t.Errorf("after the file went: %v", keys(got))
	}
}

func TestTheFirstFileOwnsAKey(t *testing.T) {
	s := newState()
	ns := func(v string) []byte {
		return []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {from: " + v + "}}\n")
	}
	s.put("2", false, ns("two"))
	s.put("1", false, ns("one"))
	from := func() string { return s.flush()[0].Object.GetLabels()["from"] }
	if got := from(); got != "one" {
		t.Errorf("from %s", got)
	}
	if p := s.problems(); len(p) != 1 || p[0].File != "2" {
		t.Errorf("problems %v", p)
	}
	s.drop("1", false)
	if got := from(); got != "two" {
		t.Errorf("from %s", got)
	}
	if p := s.problems(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

func TestOverlaysFillInWhatThereIsNoServerFor(t *testing.T) {
	config, status := t.TempDir(), t.TempDir()
	write(t, config+"/pods.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, annotations: {keep: me}}\nspec: {containers: [{name: c}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: h}\nspec: {clusterIP: None, ports: [{port: 1}]}\n")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "shop", UID: "u1"}}
	pod.Spec.NodeName = "n1"
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}}
	agent := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "shop", Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}}}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "h", Namespace: "default"}}
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "10.96.0.1", []string{"10.96.0.1"}
	orphan := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "ghost", Namespace: "shop"}}
	for _, o := range []struct {
		writer string
		obj    metav1.Object
	}{{"lab", pod}, {"cni", agent}, {"lab", svc}, {"lab", orphan}} {
		if err := WriteOverlay(status, o.writer, o.obj); err != nil {
			t.Fatal(err)
		}
	}
	events, problems := Load(Options{ConfigDirs: []string{config}, StatusDir: status})
	if len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	if diff := cmp.Diff([]string{"Pod/shop/a", "Service/default/h"}, keys(events)); diff != "" {
		t.Fatal(diff)
	}
	got := events[0].Object.(*corev1.Pod)
	if got.UID != "u1" || got.Spec.NodeName != "n1" || got.Status.PodIP != "10.0.0.1" || got.Status.Phase != corev1.PodRunning {
		t.Errorf("pod %+v", got)
	}
	if diff := cmp.Diff(map[string]string{"keep": "me", "ambient.istio.io/redirection": "enabled"}, got.Annotations); diff != "" {
		t.Error(diff)
	}
	if s := events[1].Object.(*corev1.Service); s.Spec.ClusterIP != "None" || len(s.Spec.ClusterIPs) != 1 || s.Spec.ClusterIPs[0] != "None" {
		t.Errorf("a headless service got addresses: %+v", s.Spec)
	}
	if err := RemoveOverlay(status, "cni", events[0].Key); err != nil {
		t.Fatal(err)
	}
	if err := RemoveOverlay(status, "cni", events[0].Key); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}

// sink hands every batch to the test.
type sink struct {
	batches chan []source.Event
	synced  chan struct{}
}

func (s *sink) Apply(e []source.Event) { s.batches <- e }
func (s *sink) Synced()                { close(s.synced) }

func TestRunFollowsTheDisk(t *testing.T) {
	t.Run("with notifications", func(t *testing.T) { followsTheDisk(t, time.Hour, fsnotify.NewWatcher) })
	t.Run("without", func(t *testing.T) {
		followsTheDisk(t, 10*time.Millisecond, func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE })
	})
}

func followsTheDisk(t *testing.T, rescan time.Duration, notifications func() (*fsnotify.Watcher, error)) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := New(Options{ConfigDirs: []string{dir}, Debounce: 5 * time.Millisecond, Rescan: rescan})
	s.notifications = notifications
	out := &sink{make(chan []source.Event, 16), make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, out) }()
	expect := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, keys(<-out.batches)); diff != "" {
			t.Error(diff)
		}
	}
	expect("Namespace/a")
	<-out.synced
	write(t, dir+"/b.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n")
	expect("Namespace/b")
	write(t, dir+"/new/dir/c.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: c}\n")
	expect("Namespace/c")
	if err := os.Remove(dir + "/a.yaml"); err != nil {
		t.Fatal(err)
	}
	expect("-Namespace/a")
	write(t, dir+"/b.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: b, labels: {x: y}}\n")
	expect("Namespace/b")
	if err := os.RemoveAll(dir + "/new"); err != nil {
		t.Fatal(err)
	}
	expect("-Namespace/c")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAnUnreadableDirectoryKeepsItsObjects(t *testing.T) {
	parent := t.TempDir()
	dir := parent + "/config"
	write(t, dir+"/a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
	r := newReader(Options{ConfigDirs: []string{dir}}.withDefaults())
	r.scan()
	r.state.flush()
	if err := os.Rename(dir, parent+"/away"); err != nil {
		t.Fatal(err)
	}
	r.scan()
	if e := r.state.flush(); len(e) != 0 {
		t.Errorf("dropped %v", keys(e))
	}
	if len(r.state.problems()) != 1 {
		t.Errorf("problems %v", r.state.problems())
	}
	if err := os.Rename(parent+"/away", dir); err != nil {
		t.Fatal(err)
	}
	r.scan()
	if e, p := r.state.flush(), r.state.problems(); len(e) != 0 || len(p) != 0 {
		t.Errorf("back again: %v, %v", keys(e), p)
	}
}

// An editor that truncates before it writes must not lift a policy.
func TestAnEmptyFileKeepsItsObjects(t *testing.T) {
	dir := t.TempDir()
	const namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"
	write(t, dir+"/a.yaml", namespace)
	write(t, dir+"/empty.yaml", "\n")
	r := newReader(Options{ConfigDirs: []string{dir}}.withDefaults())
	r.scan()
	if e, p := r.state.flush(), r.state.problems(); len(e) != 1 || len(p) != 0 {
		t.Fatalf("%v, %v", keys(e), p)
	}
	write(t, dir+"/a.yaml", " \n")
	r.scan()
	if e, p := r.state.flush(), r.state.problems(); len(e) != 0 || len(p) != 1 || !strings.Contains(p[0].Message, "empty") {
		t.Errorf("empty: %v, %v", keys(e), p)
	}
	write(t, dir+"/a.yaml", namespace+"---\n"+strings.Replace(namespace, "a}", "b}", 1))
	r.scan()
	if e, p := r.state.flush(), r.state.problems(); len(e) != 1 || len(p) != 0 {
		t.Errorf("written: %v, %v", keys(e), p)
	}
	if err := os.Remove(dir + "/a.yaml"); err != nil {
		t.Fatal(err)
	}
	r.scan()
	if e := r.state.flush(); len(e) != 2 {
		t.Errorf("removed: %v", keys(e))
	}
}

func TestAPolicyOutlivesARestartWithABrokenFile(t *testing.T) {
	dir, keep := t.TempDir(), t.TempDir()+"/keep"
	const policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: DENY, rules: [{}]}\n"
	boot := func() ([]source.Event, []Problem) {
		return Load(Options{ConfigDirs: []string{dir}, KeepDir: keep})
	}
	kept := func() int {
		list, err := os.ReadDir(keep)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	write(t, dir+"/p.yaml", policy)
	write(t, dir+"/n.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
	boot()
	if kept() != 1 {
		t.Errorf("%d files kept, want that of the policy", kept())
	}
	for name, broken := range map[string]string{"a field": strings.Replace(policy, "rules", "rulez", 1), "the syntax": "{{{"} {
		write(t, dir+"/p.yaml", broken)
		events, problems := boot()
		if len(events) != 2 || len(problems) != 1 {
			t.Errorf("%s: events %v, problems %v", name, keys(events), problems)
		}
	}
	if err := os.Remove(dir + "/p.yaml"); err != nil {
		t.Fatal(err)
	}
	if events, _ := boot(); len(events) != 1 || kept() != 0 {
		t.Errorf("the file is gone: events %v, %d kept", keys(events), kept())
	}
}

func TestABrokenOverlayLeavesTheObjectAsWritten(t *testing.T) {
	config, status := t.TempDir(), t.TempDir()
	write(t, config+"/p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c}]}\n")
	for name, overlay := range map[string]string{
		"syntax":     "{{{",
		"wrong type": "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: [1]}\n",
		"not a map":  "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: 7\nspec: x\n",
	} {
		write(t, status+"/w/pod.default.a.yaml", overlay)
		events, problems := Load(Options{ConfigDirs: []string{config}, StatusDir: status})
		if len(events) != 1 || events[0].Object.(*corev1.Pod).Status.PodIP != "" {
			t.Errorf("%s: events %v", name, keys(events))
		}
		if (len(problems) == 1) != (name != "not a map") {
			t.Errorf("%s: problems %v", name, problems)
		}
	}
}

func TestBounds(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/big.yaml", "# "+strings.Repeat("x", 200)+"\n")
	write(t, dir+"/one.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
	_, problems := Load(Options{ConfigDirs: []string{dir}, MaxFileBytes: 100})
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "larger than 100 bytes") {
		t.Errorf("problems %v", problems)
	}
	write(t, dir+"/two.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n")
	events, problems := Load(Options{ConfigDirs: []string{dir}, MaxFiles: 2})
	if len(events) != 1 || len(problems) != 1 {
		t.Errorf("events %v problems %v", keys(events), problems)
	}
	bomb := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations:\n    x: &a [l,l,l,l,l,l,l,l,l]\n"
	for c := 'b'; c < 'k'; c++ {
		prev := string(c - 1)
		bomb += "    " + string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+prev+",", 9) + "*" + prev + "]\n"
	}
	merges := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations: &a\n    <<: [*a, *a, *a, *a]\n"
	for text, want := range map[string]string{bomb: "repeat too much", merges: "nested deeper"} {
		p := parse("f", []byte(text))
		if len(p.failures) != 1 || !strings.Contains(p.failures[0].problem.Message, want) {
			t.Errorf("failures %v", p.failures)
		}
	}
}

func TestServiceEntryKeepsItsStatus(t *testing.T) {
	_, problems := Load(Options{})
	if len(problems) != 0 {
		t.Errorf("no directories, but %v", problems)
	}
	s := newState()
	s.put("f", false, []byte("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [x.y], resolution: STATIC, endpoints: [{address: 1.2.3.4, ports: {web: 80}}]}\nstatus: {addresses: [{value: 240.240.0.1, host: x.y}], newer: 1}\n"))
	e := s.flush()
	if len(e) != 1 {
		t.Fatalf("problems: %v", s.problems())
	}
	if got := e[0].Object.(*networkingv1.ServiceEntry); got.Status.Addresses[0].Value != "240.240.0.1" {
		t.Errorf("status %v", &got.Status)
	}
}

// yamlBreak is what ends a line in YAML 1.1, which the parser reads.
var yamlBreak = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

func FuzzParse(f *testing.F) {
	f.Add([]byte("\"00\r\r"))
	f.Add([]byte(pods))
	f.Add([]byte("a: &a [*a]\n---\n<<: {a: b}\n"))
	f.Add([]byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {rules: [{from: [{source: {x: 1}}]}]}\n"))
	f.Add([]byte("kind: List\nitems: [{kind: List, items: []}, 1]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newState()
		s.put("f", false, data)
		lines := len(yamlBreak.FindAll(data, -1)) + 1
		for _, p := range s.problems() {
			if p.Line < 0 || p.Line > lines+1 || p.Message == "" {
				t.Errorf("problem outside the file of %d lines: %+v", lines, p)
			}
		}
		for _, e := range s.flush() {
			if e.Object == nil || e.Key.Name == "" {
				t.Errorf("event %+v", e)
			}
		}
		s.put("f", false, data)
		if again := s.flush(); len(again) != 0 {
			t.Errorf("the same content changed %v", keys(again))
		}
	})
}

// TestGatewaysHaveAllFieldsOfTheirAPI reads one with fields that the mesh does
// not use, and one with a field that does not exist.
func TestGatewaysHaveAllFieldsOfTheirAPI(t *testing.T) {
	text := `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {labels: {a: b}}
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {kinds: [{kind: HTTPRoute}], namespaces: {from: All}}%s}
`
	p := parse("g.yaml", []byte(fmt.Sprintf(text, "good", "")+"---\n"+fmt.Sprintf(text, "bad", ", port2: 1")))
	if len(p.docs) != 2 {
		t.Fatalf("%+v", p)
	}
	if f := check("g.yaml", &p.docs[0], false); len(f) > 0 {
		t.Errorf("%+v", f)
	}
	if f := check("g.yaml", &p.docs[1], false); len(f) != 1 || f[0].problem.Field != "spec.listeners[0].port2" {
		t.Errorf("%+v", f)
	}
}
