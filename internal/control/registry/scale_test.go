package registry

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func event(obj metav1.Object) source.Event {
	k, _ := source.KeyOf(obj)
	return source.Event{Key: k, Object: obj, Origin: "test.yaml:1"}
}

// synthetic is a pod of a mesh with five pods a service, twenty services a
// namespace.
func synthetic(i int, version string) *corev1.Pod {
	svc := i / 5
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("svc-%d-6d4cf56db6-%05d", svc, i), Namespace: fmt.Sprintf("ns-%d", svc/20), UID: "u",
		Labels: map[string]string{
			"app": fmt.Sprintf("svc-%d", svc), "version": version, "pod-template-hash": "6d4cf56db6", "team": fmt.Sprintf("t%d", svc%10),
		},
		Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"},
	}}
	p.Spec.NodeName = fmt.Sprintf("node-%d", i%100)
	p.Spec.ServiceAccountName = fmt.Sprintf("svc-%d", svc)
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "example/image:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
	ip := fmt.Sprintf("10.%d.%d.%d", 1+i/62500, i/250%250, 1+i%250)
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	return p
}

func syntheticMesh(pods int) []source.Event {
	var all []source.Event
	for i := range 100 {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i)}}
		all = append(all, event(n))
	}
	for i := range pods / 100 {
		all = append(all, event(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns-%d", i)}}))
	}
	for i := range pods / 5 {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("svc-%d", i), Namespace: fmt.Sprintf("ns-%d", i/20)}}
		s.Spec.Selector = map[string]string{"app": s.Name}
		s.Spec.ClusterIPs = []string{fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250)}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}}
		all = append(all, event(s))
	}
	for i := range pods {
		all = append(all, event(synthetic(i, "v1")))
	}
	return all
}

func TestOnePodOneResource(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	r.Apply(syntheticMesh(10_000))
	if len(rec.addresses) != 12_000 {
		t.Fatalf("%d resources", len(rec.addresses))
	}
	r.Apply([]source.Event{event(synthetic(4321, "v2"))})
	if u := rec.last; len(u) != 1 || u[0].TypeURL != wellknown.TypeAddress || len(u[0].Set) != 1 || len(u[0].Removed) != 0 {
		t.Fatalf("update: %+v", u)
	}
	t.Logf("10,000 pods, 2,000 services; a label of one pod: 1 resource, %d bytes", len(rec.last[0].Set[0].Body))
	before := rec.updates
	beat := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Annotations: map[string]string{"heartbeat": "1"}}}
	r.Apply([]source.Event{event(beat)})
	r.Apply([]source.Event{event(synthetic(4321, "v2"))})
	if rec.updates != before {
		t.Error("nothing changed for proxies, and they are told so")
	}
}

// BenchmarkPodChange is one pod's label in a mesh of that many pods: the time
// must not depend on it. heap-MB is the registry with its inputs.
func BenchmarkPodChange(b *testing.B) {
	for _, pods := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			r := New(tables.Options{}, nothing{})
			r.Apply(syntheticMesh(pods))
			runtime.GC()
			runtime.ReadMemStats(&after)
			var edits [2][]source.Event
			for i := range edits {
				edits[i] = []source.Event{event(synthetic(pods/2, fmt.Sprintf("v%d", 2+i)))}
			}
			b.ReportAllocs()
			turn := 0
			for b.Loop() {
				r.Apply(edits[turn%2])
				turn++
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "heap-MB")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(pods), "B/pod")
			runtime.KeepAlive(r)
		})
	}
}

// BenchmarkFirstState is reading a mesh of 10,000 pods for the first time.
func BenchmarkFirstState(b *testing.B) {
	mesh := syntheticMesh(10_000)
	for b.Loop() {
		New(tables.Options{}, nothing{}).Apply(mesh)
	}
}

type nothing struct{}

func (nothing) Publish(Update) {}
func (nothing) Synced()        {}

// TestIncrementalEqualsFromScratch edits a small mesh at random and compares
// with a registry that only ever saw the end.
func TestIncrementalEqualsFromScratch(t *testing.T) {
	pool := fragments(t)
	rapid.Check(t, func(t *rapid.T) {
		rec := newRecorder()
		r := New(tables.Options{WriteBack: true}, rec)
		joinEast(t, r)
		tracked := trackReports(r, pool)
		now := map[source.Key]source.Event{}
		for range rapid.IntRange(1, 8).Draw(t, "turns") {
			var batch []source.Event
			for range rapid.IntRange(1, 6).Draw(t, "edits") {
				e := rapid.SampledFrom(pool).Draw(t, "object")
				if rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
					e.Object = nil
					delete(now, e.Key)
				} else {
					now[e.Key] = e
				}
				batch = append(batch, e)
			}
			r.Apply(batch)
		}
		fresh := newRecorder()
		r2 := New(tables.Options{WriteBack: true}, fresh)
		joinEast(t, r2)
		for _, e := range now {
			r2.Apply([]source.Event{e})
		}
		compare(t, "addresses", fresh.addresses, rec.addresses)
		compare(t, "policies", fresh.policies, rec.policies)
		if diff := cmp.Diff(r2.Status(), r.Status()); diff != "" {
			t.Fatalf("status (-fresh +incremental):\n%s", diff)
		}
		if diff := cmp.Diff(r2.Reports.All(), r.Reports.All()); diff != "" {
			t.Fatalf("reports (-fresh +incremental):\n%s", diff)
		}
		for k := range now {
			if have, _ := tracked.Get(k); !slices.EqualFunc(have, r.sections(k), status.Section.Equal) {
				t.Fatalf("the report on %s, kept up to date, is\n%+v\nnot\n%+v", k, have, r.sections(k))
			}
		}
		if diff := cmp.Diff(r2.Nodes.Identities(), r.Nodes.Identities()); diff != "" {
			t.Fatalf("nodes (-fresh +incremental):\n%s", diff)
		}
	})
}

func joinEast(t *rapid.T, r *Registry) {
	if err := r.Join(source.ClusterOf("east"), ClusterOptions{}); err != nil {
		t.Fatal(err)
	}
}

// trackReports keeps the reports on objects of all kinds up to date, also of
// those that are computed only on demand. A report that reads something in a way
// that is not remembered goes stale.
func trackReports(r *Registry, pool []source.Event) *collection.Collection[source.Key, []status.Section] {
	keys := collection.NewInput[source.Key](r.graph, "keys", tables.Same[bool])
	for _, e := range pool {
		keys.Set(e.Key, true)
	}
	return collection.Map(keys.Collection, "all reports", tables.Never[[]status.Section],
		func(rd *collection.Reader, k source.Key, _ bool) ([]status.Section, bool) {
			return r.describe(describer{r.t, &r.in, rd}, k), true
		})
}

func compare(t *rapid.T, what string, want, got map[string][]byte) {
	t.Helper()
	if !maps.EqualFunc(want, got, bytes.Equal) {
		t.Fatalf("%s differ (-fresh +incremental):\n%s", what, cmp.Diff(want, got))
	}
}

// fragments are objects that touch each other, several of a key.
func fragments(t *testing.T) []source.Event {
	texts := []string{
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: wp}}\n",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {topology.istio.io/network: far}}\n",
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}\n",
		"apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z2}}\n",
		pod("p", ", labels: {app: web}"), pod("p", ", labels: {app: web, v: a}"), pod("p", ", labels: {app: db}"), pod("q", ", labels: {app: web}"),
		"apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {selector: {v: a, app: web}, ports: [{port: 81}]}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {ports: [{port: 80, name: x}]}\n",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e, namespace: shop, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{name: x, port: 7}]\nendpoints: [{addresses: [1.2.3.4]}, {addresses: [10.0.0.9], targetRef: {kind: Pod, name: p}}]\n",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: f, namespace: shop, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{name: x, port: 8}]\nendpoints: [{addresses: [10.0.0.9], targetRef: {kind: Pod, name: p}}]\n",
		"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [x.y, z.y], resolution: STATIC, ports: [{number: 80, name: h}], endpoints: [{address: 9.9.9.9}]}\n",
		"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: b, namespace: shop}\nspec: {hosts: [x.y], addresses: [5.5.5.5], resolution: STATIC, ports: [{number: 81, name: h}], workloadSelector: {labels: {app: web}}}\n",
		"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: b, namespace: shop}\nspec: {hosts: ['*.y', s.shop.svc.cluster.local], resolution: NONE, ports: [{number: 81, name: h}]}\n",
		"apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w, namespace: shop}\nspec: {address: 7.7.7.7, labels: {app: web}, ports: {h: 9}}\n",
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}}\n",
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: DENY, rules: [{}]}\n",
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: istio-system}\nspec: {selector: {matchLabels: {v: a}}}\n",
		"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n",
		"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n",
		"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}}\n",
		"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: b, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}\n",
		fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: all}", "", "{value: 10.0.0.7}"),
		routeYAML(`{name: wp}, {group: "", kind: Service, name: s, port: 80}`), routeYAML("{name: wp, sectionName: a}"),
		fmt.Sprintf(gateway, "", "", "{type: Hostname, value: wp.shop.svc.cluster.local}"),
	}
	var all []source.Event
	for _, text := range texts {
		dir := t.TempDir()
		writeFile(t, dir+"/x.yaml", text)
		list, problems := file.Load(file.Options{ConfigDirs: []string{dir}})
		if len(problems) > 0 || len(list) != 1 {
			t.Fatalf("%s: %v", text, problems)
		}
		e := list[0]
		e.Origin = "x.yaml:1"
		all = append(all, e)
		if e.Key.Kind.Builtin { // another cluster has the same
			e.Key.Cluster = source.ClusterOf("east")
			all = append(all, e)
		}
	}
	return all
}
