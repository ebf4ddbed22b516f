package statuswriter_test

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/kube/statuswriter"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/kube"
)

var (
	services = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	entries  = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
)

type world struct {
	t *testing.T
	s *kubetest.Server
	r *registry.Registry
}

type nobody struct{}

func (nobody) Publish(registry.Update) {}
func (nobody) Synced()                 {}

func newWorld(t *testing.T) *world {
	return &world{t, kubetest.Start(t), registry.New(registry.Options{WriteBack: true}, nobody{})}
}

func (w *world) event(kind, ns, name string, obj metav1.Object) {
	w.r.Apply([]source.Event{{Key: source.Key{Kind: kind, Namespace: ns, Name: name}, Object: obj}})
}

func (w *world) service(name string, labels map[string]string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels}}
	s.Spec.ClusterIP = "10.0.0.1"
	w.s.Add(s)
	w.event(source.KindService, "shop", name, s)
	return s
}

func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := statuswriter.Run(ctx, statuswriter.Options{Dynamic: w.s.Client().Dynamic, Verdicts: w.r.Verdicts, Logger: slog.New(slog.DiscardHandler)}); err != nil {
			w.t.Error(err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	w.t.Cleanup(stop)
	return stop
}

// condition returns status and reason of a condition as the API has it.
func (w *world) condition(gvr schema.GroupVersionResource, name, typ string) string {
	o, err := w.s.Client().Dynamic.Resource(gvr).Namespace("shop").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range list {
		if m, ok := c.(map[string]any); ok && m["type"] == typ {
			return m["status"].(string) + " " + m["reason"].(string)
		}
	}
	return ""
}

func (w *world) eventually(gvr schema.GroupVersionResource, name, typ, want string) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := w.condition(gvr, name, typ)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s of %s is %q, not %q", typ, name, got, want)
		}
	}
}

func (w *world) waypoint(ready bool) {
	g := &source.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "wp"}, Spec: source.GatewaySpec{GatewayClassName: "istio-waypoint"}}
	if ready {
		g.Status.Addresses = []source.GatewayAddress{{Value: "10.0.0.9"}}
	}
	w.event(source.KindGateway, "shop", "wp", g)
}

func TestWaypointBound(t *testing.T) {
	w := newWorld(t)
	w.waypoint(true)
	asks := map[string]string{wellknown.LabelUseWaypoint: "wp"}
	w.service("before", asks)
	w.service("plain", nil)
	stop := w.run()
	w.eventually(services, "before", status.WaypointBound, "True WaypointAccepted")
	w.service("after", asks)
	w.eventually(services, "after", status.WaypointBound, "True WaypointAccepted")
	w.waypoint(false) // a change elsewhere is a change of what depends on it
	w.eventually(services, "before", status.WaypointBound, "False WaypointIsNotReady")
	w.eventually(services, "after", status.WaypointBound, "False WaypointIsNotReady")
	// The label goes, and the condition with it.
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "before"}}
	w.event(source.KindService, "shop", "before", s)
	w.eventually(services, "before", status.WaypointBound, "")
	patches := w.s.Requests()["patch services/status"]
	if patches != 5 {
		t.Errorf("%d writes for 5 changes", patches)
	}
	stop()
	// The next leader finds nothing to do.
	w.run()
	time.Sleep(500 * time.Millisecond)
	if again := w.s.Requests()["patch services/status"]; again != patches {
		t.Errorf("the next leader wrote %d times", again-patches)
	}
	if got := w.condition(services, "plain", status.WaypointBound); got != "" {
		t.Errorf("a service that asks for nothing has %q", got)
	}
}

// TestStartCostsWhatIsToWrite: who begins to lead reads nothing of what is as it
// should be, takes back what is over, and leaves the rest alone.
func TestStartCostsWhatIsToWrite(t *testing.T) {
	w := newWorld(t)
	w.waypoint(true)
	asks := map[string]string{wellknown.LabelUseWaypoint: "wp"}
	w.service("written", asks)
	stop := w.run()
	w.eventually(services, "written", status.WaypointBound, "True WaypointAccepted")
	stop()
	said := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "written"}}
	if !w.s.Get(said) {
		t.Fatal("the service is gone")
	}
	over := said.DeepCopy()
	over.Name, over.Labels = "over", nil
	w.s.Add(over)
	for i := range 100 {
		w.service("plain-"+strconv.Itoa(i), nil)
	}
	// Another replica knows what the API has.
	w.r = registry.New(registry.Options{WriteBack: true}, nobody{})
	w.waypoint(true)
	list, err := w.s.Client().Kube.CoreV1().Services("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		w.event(source.KindService, "shop", list.Items[i].Name, kube.Trim(&list.Items[i]))
	}
	var reads atomic.Int32
	w.s.OnObject(func(verb, resource, name string) int {
		if verb == "get" && resource == "services" && strings.HasPrefix(name, "plain-") {
			reads.Add(1)
		}
		return 0
	})
	before := w.s.Requests()
	w.run()
	w.eventually(services, "over", status.WaypointBound, "")
	w.service("late", asks)
	w.eventually(services, "late", status.WaypointBound, "True WaypointAccepted")
	after := w.s.Requests()
	if n := reads.Load(); n != 0 {
		t.Errorf("%d reads of services that are as they should be", n)
	}
	if lists := after["list services"] - before["list services"]; lists != 0 {
		t.Errorf("%d listings", lists)
	}
	if n := after["patch services/status"] - before["patch services/status"]; n != 2 {
		t.Errorf("%d writes for 2 changes", n)
	}
	if got := w.condition(services, "written", status.WaypointBound); got != "True WaypointAccepted" {
		t.Errorf("what was written is now %q", got)
	}
}

// TestTroubled: conflicts and refusals are tried again, and what is not ours
// stays.
func TestTroubled(t *testing.T) {
	w := newWorld(t)
	e := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "wild", Generation: 1}, Spec: networkingapi.ServiceEntry{Hosts: []string{"*.example.com"}}}
	w.s.Add(&unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"namespace": "shop", "name": "wild", "generation": int64(1)},
		"spec":     map[string]any{"hosts": []any{"*.example.com"}},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "Mine", "status": "True", "reason": "Yes"}}},
	}})
	w.event(source.KindServiceEntry, "shop", "wild", e)
	var failures atomic.Int32
	w.s.OnRequest(func(verb, resource string) int {
		if verb == "patch" && failures.Add(1) <= 3 {
			return []int{http.StatusConflict, http.StatusForbidden, http.StatusServiceUnavailable}[failures.Load()-1]
		}
		return 0
	})
	w.run()
	w.eventually(entries, "wild", status.WaypointMissing, "True NoWaypointForWildcardService")
	if got := w.condition(entries, "wild", "Mine"); got != "True Yes" {
		t.Errorf("the foreign condition is %q", got)
	}
}
