package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// What has a status that the mesh writes, and waypoints.
var (
	services        = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	serviceEntries  = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
	workloadEntries = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
	peers           = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	gateways        = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
)

// written is an object whose status the mesh writes.
type written struct {
	*kit.Namespace
	t    *testing.T
	gvr  schema.GroupVersionResource
	name string
}

func (w written) String() string { return w.gvr.Resource + " " + w.name }

func (w written) get(ctx context.Context) (*unstructured.Unstructured, error) {
	return mesh.Dynamic.Resource(w.gvr).Namespace(w.Name).Get(ctx, w.name, metav1.GetOptions{})
}

// says waits until a condition is STATUS REASON and its message has all parts;
// an empty one is waited for to go. What the mesh says is about the object as it
// is.
func (w written) says(typ, want string, parts ...string) {
	w.t.Helper()
	kit.Eventually(w.t, fmt.Sprintf("%s of %s is %q", typ, w, want), func(ctx context.Context) error {
		u, err := w.get(ctx)
		if err != nil {
			return err
		}
		c := conditionOf(u, typ)
		if c == nil {
			if want == "" {
				return nil
			}
			return errors.New("there is none")
		}
		if got := fmt.Sprint(c["status"], " ", c["reason"]); got != want {
			return fmt.Errorf("it is %s: %s", got, c["message"])
		}
		for _, part := range parts {
			if !strings.Contains(fmt.Sprint(c["message"]), part) {
				return fmt.Errorf("%q is not in: %s", part, c["message"])
			}
		}
		if seen, ok := c["observedGeneration"].(int64); u.GetGeneration() != 0 && (!ok || seen != u.GetGeneration()) {
			return fmt.Errorf("it is about generation %v of %d", c["observedGeneration"], u.GetGeneration())
		}
		return nil
	})
}

func conditionOf(u *unstructured.Unstructured, typ string) map[string]any {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range list {
		if m, _ := c.(map[string]any); m["type"] == typ {
			return m
		}
	}
	return nil
}

func (w written) patch(text string, subresource ...string) {
	w.t.Helper()
	if _, err := mesh.Dynamic.Resource(w.gvr).Namespace(w.Name).Patch(w.t.Context(), w.name, types.MergePatchType, []byte(text), metav1.PatchOptions{}, subresource...); err != nil {
		w.t.Fatal(err)
	}
}

func (w written) version() string {
	w.t.Helper()
	u, err := w.get(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return u.GetResourceVersion()
}

func (w written) remove() {
	w.t.Helper()
	if err := mesh.Dynamic.Resource(w.gvr).Namespace(w.Name).Delete(w.t.Context(), w.name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// Objects say what became of them, and say something else when that changes,
// also because of another object. Nothing is written without a change, and
// what somebody else says of an object stays.
func TestStatus(t *testing.T) {
	n := mesh.Namespace(t, "status", nil)
	of := func(gvr schema.GroupVersionResource, name string) written { return written{n, t, gvr, name} }
	web, wild, db, vm := of(services, "web"), of(serviceEntries, "wild"), of(serviceEntries, "db"), of(workloadEntries, "vm")
	policy, strict, second := of(policies, "target"), of(peers, "strict"), of(peers, "strict-too")
	wp := of(gateways, "wp")
	n.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec: {hosts: ["*.example.com"], ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: 192.0.2.9}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec: {hosts: [db.example.com], exportTo: ["."], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, labels: {istio.io/use-waypoint: wp}}
spec: {address: 192.0.2.7}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: target}
spec: {targetRefs: [{group: "", kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	web.patch(`{"status": {"conditions": [{"type": "example.org/Mine", "status": "True", "reason": "Mine", "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}}`, "status")
	web.patch(`{"metadata": {"labels": {"istio.io/use-waypoint": "wp"}}}`)

	const bound, missing, visible = "istio.io/WaypointBound", "istio.io/WaypointMissing", "istio.io/VisibilityApplied"
	web.says(bound, "False TargetNotFound", "there is no waypoint "+n.Name+"/wp", "create a Gateway")
	wild.says(missing, "True NoWaypointForWildcardService", "istio.io/use-waypoint")
	wild.says(visible, "")
	db.says("Accepted", "True Accepted", "db.example.com")
	db.says(visible, "True Namespace", n.Name)
	vm.says("Accepted", "True Accepted")
	vm.says(bound, "False TargetNotFound")
	policy.says("WaypointAccepted", "False AncestorNotBound", "Service "+n.Name+"/web", "no proxy enforces")
	strict.says("Accepted", "True Accepted")

	// A waypoint comes: what asks for it learns of each step.
	n.MustApply(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`)
	web.says(bound, "False WaypointIsNotReady")
	since := conditionOf(must(t)(web.get(t.Context())), bound)["lastTransitionTime"]
	vm.says(bound, "False UnsupportedTrafficType", "istio.io/waypoint-for")
	wp.patch(`{"status": {"addresses": [{"type": "IPAddress", "value": "192.0.2.99"}]}}`, "status")
	web.says(bound, "True WaypointAccepted", n.Name+"/wp")
	if now := conditionOf(must(t)(web.get(t.Context())), bound)["lastTransitionTime"]; fmt.Sprint(now) < fmt.Sprint(since) {
		t.Errorf("the transition to True was at %v, that to False at %v", now, since)
	}
	policy.says("WaypointAccepted", "True Accepted", "Service "+n.Name+"/web")
	wp.patch(`{"metadata": {"labels": {"istio.io/waypoint-for": "all"}}}`)
	vm.says(bound, "True WaypointAccepted")
	wild.patch(`{"metadata": {"labels": {"istio.io/use-waypoint": "wp"}}}`)
	wild.says(bound, "True WaypointAccepted")
	wild.says(missing, "")

	// What cannot be done is said, with what to do.
	web.patch(`{"metadata": {"labels": {"istio.io/use-waypoint-canary": "new"}, "annotations": {"istio.io/use-waypoint-canary-weight": "10"}}}`)
	web.says(bound, "True CanaryNotHonoured", n.Name+"/new", "istio.io/use-waypoint")
	web.patch(`{"metadata": {"annotations": {"istio.io/use-waypoint-canary-weight": "all"}}}`)
	web.says(bound, "True CanaryInvalidWeight", `"all"`)
	vm.patch(`{"spec": {"address": "unix:///run/vm.sock"}}`)
	vm.says("Accepted", "False UnsupportedEndpoint", "give an IP address")
	db.patch(`{"spec": {"exportTo": ["elsewhere"]}}`)
	db.says(visible, "True Public", "is not kept")
	n.MustApply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict-too}\nspec: {mtls: {mode: PERMISSIVE}}\n")
	second.says("Accepted", "False Superseded", "keep one")

	// The command line shows it.
	says(t, []string{"WorkloadEntry", "vm", "unix:///run/vm.sock", "Superseded", "CanaryInvalidWeight", "WaypointAccepted"}, "status", "-n", n.Name)
	says(t, []string{bound + "=True (CanaryInvalidWeight)", n.Name + "/target", "waypoint " + n.Name + "/wp"}, "describe", "service", "web", "-n", n.Name)

	// Nothing is written while nothing changes, whatever else does.
	all := []written{web, wild, db, vm, policy, strict, second}
	before := map[written]string{}
	for _, w := range all {
		before[w] = w.version()
	}
	n.MustApply("apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {ports: [{port: 80}]}\n")
	wp.patch(`{"metadata": {"annotations": {"example.org/touched": "yes"}}}`)
	time.Sleep(restTime)
	for _, w := range all {
		if now := w.version(); now != before[w] {
			t.Errorf("%s was written again, from version %s to %s", w, before[w], now)
		}
	}

	// The causes go, and so does what was said.
	strict.remove()
	second.says("Accepted", "True Accepted")
	vm.patch(`{"metadata": {"labels": {"istio.io/use-waypoint": null}}, "spec": {"address": "192.0.2.8"}}`)
	vm.says("Accepted", "True Accepted")
	vm.says(bound, "")
	db.patch(`{"spec": {"exportTo": null}}`)
	db.says(visible, "")
	wp.remove()
	wild.says(bound, "False TargetNotFound")
	wild.says(missing, "True NoWaypointForWildcardService")
	policy.says("WaypointAccepted", "False AncestorNotBound")
	web.patch(`{"metadata": {"labels": {"istio.io/use-waypoint": null}}}`)
	web.says(bound, "")
	if mine := conditionOf(must(t)(web.get(t.Context())), "example.org/Mine"); mine["lastTransitionTime"] != "2020-01-01T00:00:00Z" {
		t.Errorf("what somebody else said of the service is now %v", mine)
	}
	web.remove()
	policy.says("WaypointAccepted", "False TargetNotFound", "there is no Service")
}

// must unwraps what cannot fail without the test being over.
func must(t *testing.T) func(*unstructured.Unstructured, error) *unstructured.Unstructured {
	return func(u *unstructured.Unstructured, err error) *unstructured.Unstructured {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
}
