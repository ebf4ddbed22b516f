package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var httpRoutes = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}

// parentsOf renders the entries of a route's status: controller, parent, status
// and reason of the condition Accepted.
func parentsOf(u *unstructured.Unstructured) string {
	var out []string
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "parents")
	for _, p := range list {
		entry, _ := p.(map[string]any)
		name, _, _ := unstructured.NestedString(entry, "parentRef", "name")
		conditions, _, _ := unstructured.NestedSlice(entry, "conditions")
		said := "nothing"
		for _, c := range conditions {
			if m, _ := c.(map[string]any); m["type"] == "Accepted" {
				said = fmt.Sprint(m["status"], " ", m["reason"])
			}
		}
		out = append(out, fmt.Sprintf("%s of %s: %s", name, entry["controllerName"], said))
	}
	return strings.Join(out, ", ")
}

// TestRouteStatus: the parents of a route that the mesh answers for have an
// entry each, next to those of other controllers, which stay as they are.
func TestRouteStatus(t *testing.T) {
	n := mesh.Namespace(t, "routes", nil)
	route := written{n, t, httpRoutes, "r"}
	says := func(want string) {
		t.Helper()
		kit.Eventually(t, fmt.Sprintf("parents of %s are %q", route, want), func(ctx context.Context) error {
			u, err := route.get(ctx)
			if err != nil {
				return err
			}
			if got := parentsOf(u); got != want {
				return fmt.Errorf("they are %q", got)
			}
			return nil
		})
	}
	n.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: edge}, {name: wp}, {group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`)
	const ours = "istio.io/mesh-controller: "
	says("web of " + ours + "True Accepted")
	const edge = `{"parentRef": {"name": "edge"}, "controllerName": "example.org/edge", "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}`
	route.patch(`{"status": {"parents": [`+edge+`]}}`, "status")
	// The entry that the other controller has dropped is written again when
	// something changes.
	n.MustApply(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`)
	const theirs = "edge of example.org/edge: True Accepted"
	says(theirs + ", wp of " + ours + "False NotAllowedByListeners, web of " + ours + "True Accepted")
	before := route.version()
	time.Sleep(restTime)
	if now := route.version(); now != before {
		t.Errorf("%s was written again, from version %s to %s", route, before, now)
	}
	written{n, t, gateways, "wp"}.remove()
	says(theirs + ", web of " + ours + "True Accepted")
	written{n, t, services, "web"}.remove()
	says(theirs + ", web of " + ours + "False NoMatchingParent")
}
