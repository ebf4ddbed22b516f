package registry

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

func routeYAML(parents string) string {
	return fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  parentRefs: [%s]\n  rules: [{matches: [{path: {type: PathPrefix, value: /}}], backendRefs: [{name: web, port: 80}]}]\n", parents)
}

func TestParentsOfRoutes(t *testing.T) {
	around := demo + "---\n" + fmt.Sprintf(gateway, "", "", "{value: 10.0.0.7}") +
		"---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: other, namespace: shop}\nspec: {gatewayClassName: other, listeners: [{name: a, port: 80, protocol: HTTP}]}\n---\n" +
		"apiVersion: v1\nkind: Service\nmetadata: {name: of-other, namespace: shop, labels: {istio.io/use-waypoint: other}}\nspec: {ports: [{port: 80}]}\n---\n"
	for name, tt := range map[string]struct {
		parents string
		want    string // key of the section and reason of Accepted
	}{
		"a waypoint":                      {"{name: wp}", `{"group":"gateway.networking.k8s.io","kind":"Gateway","name":"wp"} NotAllowedByListeners`},
		"a Service and a port":            {`{group: "", kind: Service, name: web, port: 80}`, `{"group":"","kind":"Service","name":"web","port":80} Accepted`},
		"a Gateway of another class":      {"{name: other}", ""},
		"a Gateway that does not exist":   {"{name: gone}", ""},
		"a Service that does not exist":   {`{group: "", kind: Service, name: web, namespace: elsewhere}`, `{"group":"","kind":"Service","name":"web","namespace":"elsewhere"} NoMatchingParent`},
		"a Service of another controller": {`{group: "", kind: Service, name: of-other}`, ""},
		"a kind of another controller":    {"{group: example.org, kind: Mesh, name: wp}", ""},
		"a kind that is never a parent":   {`{group: "", kind: Pod, name: web-1}`, ""},
		"two, of which one is the mesh's": {"{name: other}, {name: wp, sectionName: mesh}", `{"group":"gateway.networking.k8s.io","kind":"Gateway","name":"wp","sectionName":"mesh"} NotAllowedByListeners`},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(tables.Options{}, newRecorder())
			r.Apply(events(t, around+routeYAML(tt.parents)))
			var got []string
			for _, s := range r.sections(source.HTTPRoute.Key("shop", "r")) {
				c, _ := s.Condition(status.Accepted)
				got = append(got, s.Key+" "+c.Reason)
			}
			if s := strings.Join(got, "; "); s != tt.want {
				t.Errorf("%s\nwant %s", s, tt.want)
			}
		})
	}
}

// A route gets its section when the waypoint appears, and loses it with it.
func TestReportOnARouteFollowsItsParents(t *testing.T) {
	r := New(tables.Options{WriteBack: true}, newRecorder())
	f := r.Reports.Follow(status.Unnamed)
	r.Apply(events(t, routeYAML("{name: wp}")))
	key := source.HTTPRoute.Key("shop", "r")
	if report, ok := f.Of(key); !ok || len(report.Sections) > 0 || !report.Written {
		t.Fatalf("without a waypoint: %+v", report)
	}
	r.Apply(events(t, fmt.Sprintf(gateway, "", "", "{value: 10.0.0.7}")))
	report, _ := f.Of(key)
	if len(report.Sections) != 1 || report.Written || !slices.Contains(f.Take(), key) {
		t.Fatalf("with a waypoint: %+v", report)
	}
	route := events(t, routeYAML("{name: wp}"))[0].Object.(*gatewayv1.HTTPRoute).DeepCopy()
	group, kind := gatewayv1.Group(source.Gateway.Group), gatewayv1.Kind("Gateway")
	foreign := gatewayv1.RouteParentStatus{ParentRef: gatewayv1.ParentReference{Name: "other"}, ControllerName: "example.org/other"}
	own := gatewayv1.RouteParentStatus{ParentRef: gatewayv1.ParentReference{Group: &group, Kind: &kind, Name: "wp"}, ControllerName: routes.Controller}
	for _, c := range report.Sections[0].Conditions {
		own.Conditions = append(own.Conditions, metav1.Condition{Type: c.Type, Status: metav1.ConditionStatus(c.Status), Reason: c.Reason, Message: c.Message})
	}
	route.Status.Parents = []gatewayv1.RouteParentStatus{foreign, own}
	r.Apply([]source.Event{{Key: key, Object: route}})
	if report, _ := f.Of(key); !report.Written {
		t.Errorf("the object has it: %+v", report)
	}
	r.Apply([]source.Event{{Key: source.Gateway.Key("shop", "wp")}})
	if report, _ := f.Of(key); len(report.Sections) > 0 || report.Written {
		t.Errorf("the waypoint is gone, and its entry is still there: %+v", report)
	}
}

// TestRoutesFollowTheBinding: the gateway that a Service is bound to is sent its
// routes, also before it has an address, and only it. A gateway that the Service
// may not use is sent none.
func TestRoutesFollowTheBinding(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {%s}}\nspec: {ports: [{port: 80}]}\n---\n"
	const use = "istio.io/use-waypoint: wp"
	mesh := fmt.Sprintf(gateway, "", "", "") + strings.Replace(fmt.Sprintf(gateway, "", "", "{value: 10.0.0.8}"), "namespace: shop", "namespace: market", 1)
	for name, tt := range map[string]struct {
		labels string
		want   string // groups of the rule
		says   string // ResolvedWaypoints
	}{
		"none":             {"", "", "False AncestorNotBound"},
		"without address":  {use, "gateway/Kubernetes/shop/wp", "False WaypointIsNotReady"},
		"not admitted":     {use + ", istio.io/use-waypoint-namespace: market", "", "False AncestorNotBound"},
		"does not exist":   {"istio.io/use-waypoint: other", "", "False AncestorNotBound"},
		"opted out":        {"istio.io/use-waypoint: none", "", "False AncestorNotBound"},
		"bound in advance": {use + ", x: y", "gateway/Kubernetes/shop/wp", "False WaypointIsNotReady"},
	} {
		rec := newRecorder()
		r := New(tables.Options{}, rec)
		r.Apply(events(t, mesh+fmt.Sprintf(service, tt.labels)+routeYAML(`{group: "", kind: Service, name: web}`)))
		var groups []string
		for _, res := range rec.set(wellknown.TypeRoute) {
			for _, g := range res.Groups {
				groups = append(groups, string(g))
			}
		}
		if got := strings.Join(groups, ", "); got != tt.want {
			t.Errorf("%s: sent to %q, want %q", name, got, tt.want)
		}
		for _, s := range r.sections(source.HTTPRoute.Key("shop", "r")) {
			if c, _ := s.Condition(status.ResolvedWaypoints); c.Status+" "+c.Reason != tt.says {
				t.Errorf("%s: %+v, want %s", name, c, tt.says)
			}
		}
	}
}

// TestAChangeOfAServiceWithoutMeaningForRoutes costs no route.
func TestAChangeOfAServiceWithoutMeaningForRoutes(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp%s}}\nspec: {clusterIP: %s, ports: [{port: %d}]}\n---\n"
	r.Apply(events(t, fmt.Sprintf(gateway, "", "", "{value: 10.0.0.7}")+fmt.Sprintf(service, "", "10.1.0.1", 80)+routeYAML(`{group: "", kind: Service, name: web}`)))
	results := 0
	r.t.Routes.HTTP.OnChange(func(c []collection.Change[tables.Ref, *routes.Result]) { results += len(c) })
	r.Apply(events(t, fmt.Sprintf(service, ", a: b", "10.1.0.2", 80)))
	if results != 0 || len(rec.set(wellknown.TypeAddress)) != 1 {
		t.Errorf("%d routes were made again, %d addresses", results, len(rec.set(wellknown.TypeAddress)))
	}
	r.Apply(events(t, fmt.Sprintf(service, "", "10.1.0.2", 81)))
	if results != 1 {
		t.Errorf("%d routes were made again", results)
	}
	// The port that the route sends to is gone, the one that it is for is new.
	set := rec.set(wellknown.TypeRoute)
	if len(set) != 1 {
		t.Fatalf("%d rules were sent", len(set))
	}
	rule, err := wire.Decode(set[0].Body)
	if err != nil || rule.Parents[0].Port.Port != 81 || rule.Rule.Backends[0].Invalid == "" {
		t.Errorf("%+v, %v", rule, err)
	}
}
