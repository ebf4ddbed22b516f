package statuswriter_test

import (
	"context"
	"fmt"
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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
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

// discard drops what is published.
type discard struct{}

func (discard) Publish(registry.Update) {}
func (discard) Synced()                 {}

func newWorld(t *testing.T) *world {
	return &world{t, kubetest.Start(t), registry.New(tables.Options{WriteBack: true}, discard{})}
}

func (w *world) event(kind *source.Kind, ns, name string, obj metav1.Object) {
	w.r.Apply([]source.Event{{Key: source.Key{Kind: kind, Namespace: ns, Name: name}, Object: obj}})
}

func (w *world) service(name string, labels map[string]string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels}}
	s.Spec.ClusterIP = "10.0.0.1"
	w.s.Add(s)
	w.event(source.Service.Kind, "shop", name, s)
	return s
}

func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := statuswriter.Run(ctx, statuswriter.Options{Dynamic: w.s.Client().Dynamic, Reports: w.r.Reports.Follow(status.Unnamed), Logger: slog.New(slog.DiscardHandler)}); err != nil {
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
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "wp"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio-waypoint"}}
	if ready {
		g.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: "10.0.0.9"}}
	}
	w.event(source.Gateway.Kind, "shop", "wp", g)
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
	w.event(source.Service.Kind, "shop", "before", s)
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
	w.r = registry.New(tables.Options{WriteBack: true}, discard{})
	w.waypoint(true)
	list, err := w.s.Client().Kube.CoreV1().Services("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		w.event(source.Service.Kind, "shop", list.Items[i].Name, kube.Trim(&list.Items[i]))
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
	e := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "wild", Generation: 1}, Spec: networkingapi.ServiceEntry{Hosts: []string{"*.example.com"}, Resolution: networkingapi.ServiceEntry_STATIC}}
	w.s.Add(&unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"namespace": "shop", "name": "wild", "generation": int64(1)},
		"spec":     map[string]any{"hosts": []any{"*.example.com"}, "resolution": "STATIC"},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "Mine", "status": "True", "reason": "Yes"}}},
	}})
	w.event(source.ServiceEntry.Kind, "shop", "wild", e)
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

// TestRouteBesideAnotherController: the entry of a route's parent is written
// next to that of another controller, and taken back with the parent.
func TestRouteBesideAnotherController(t *testing.T) {
	w := newWorld(t)
	routes := schema.GroupVersionResource{Group: source.HTTPRoute.Group, Version: "v1", Resource: source.HTTPRoute.Plural}
	route := &gatewayv1.HTTPRoute{
		TypeMeta:   metav1.TypeMeta{APIVersion: source.HTTPRoute.APIVersion(), Kind: source.HTTPRoute.Name},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "r"},
	}
	route.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: "edge"}, {Name: "wp"}}
	route.Status.Parents = []gatewayv1.RouteParentStatus{{
		ParentRef: gatewayv1.ParentReference{Name: "edge"}, ControllerName: "example.org/edge",
		Conditions: []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted", LastTransitionTime: metav1.Unix(1, 0)}},
	}}
	w.s.Add(route)
	parents := func() string {
		o, err := w.s.Client().Dynamic.Resource(routes).Namespace("shop").Get(context.Background(), "r", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// As the watch delivers it.
		seen := &gatewayv1.HTTPRoute{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, seen); err != nil {
			t.Fatal(err)
		}
		w.event(source.HTTPRoute.Kind, "shop", "r", seen)
		var out []string
		for _, p := range seen.Status.Parents {
			out = append(out, fmt.Sprintf("%s %s %s", p.ControllerName, p.ParentRef.Name, p.Conditions[0].Reason))
		}
		return strings.Join(out, ", ")
	}
	w.run()
	w.waypoint(true)
	const theirs = "example.org/edge edge Accepted"
	for _, step := range []struct {
		waypoint bool
		want     string
	}{{true, theirs + ", istio.io/mesh-controller wp NotAllowedByListeners"}, {false, theirs}} {
		if !step.waypoint {
			w.event(source.Gateway.Kind, "shop", "wp", nil)
		}
		for deadline := time.Now().Add(30 * time.Second); parents() != step.want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("parents are %q, not %q", parents(), step.want)
			}
		}
	}
}
