package routes

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/source"
)

// drawn is a route with parts that waypoints do not execute.
type drawn struct {
	spec gatewayv1.HTTPRouteSpec
	// bad are the rules that must not lead to a backend.
	bad map[int]bool
}

func pointer[T any](v T) *T { return &v }

// draw makes a route whose backends tell which rule a request has taken: rule i
// sends to port 100+i.
func draw(t *rapid.T) drawn {
	d := drawn{bad: map[int]bool{}}
	service := gatewayv1.Kind("Service")
	d.spec.ParentRefs = []gatewayv1.ParentReference{{Group: pointer(gatewayv1.Group("")), Kind: &service, Name: "web", Port: pointer(gatewayv1.PortNumber(80))}}
	for i := range rapid.IntRange(1, 5).Draw(t, "rules") {
		r := gatewayv1.HTTPRouteRule{BackendRefs: []gatewayv1.HTTPBackendRef{{}}}
		r.BackendRefs[0].Name, r.BackendRefs[0].Port = "many", pointer(gatewayv1.PortNumber(100+i))
		m := gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{
			Type:  pointer(rapid.SampledFrom([]gatewayv1.PathMatchType{"Exact", "PathPrefix", "RegularExpression", "Glob"}).Draw(t, "type")),
			Value: pointer(rapid.SampledFrom([]string{"/", "/a", "/a/b", "(", "a"}).Draw(t, "path")),
		}}
		r.Matches = []gatewayv1.HTTPRouteMatch{m}
		if *m.Path.Type == "Glob" || *m.Path.Type != "RegularExpression" && !strings.HasPrefix(*m.Path.Value, "/") || *m.Path.Type == "RegularExpression" && *m.Path.Value == "(" {
			d.bad[i] = true
		}
		switch rapid.IntRange(0, 6).Draw(t, "spoil") {
		case 0:
			r.Filters = []gatewayv1.HTTPRouteFilter{{Type: rapid.SampledFrom([]gatewayv1.HTTPRouteFilterType{"ExternalAuth", "ExtensionRef", "New", "CORS"}).Draw(t, "filter")}}
			d.bad[i] = true
		case 1:
			r.Filters = []gatewayv1.HTTPRouteFilter{{Type: "RequestHeaderModifier", RequestHeaderModifier: &gatewayv1.HTTPHeaderFilter{Remove: []string{"connection"}}}}
			d.bad[i] = true
		case 2:
			r.BackendRefs[0].Filters = []gatewayv1.HTTPRouteFilter{{Type: "ExternalAuth"}}
			d.bad[i] = true
		case 3:
			r.BackendRefs[0].Namespace = pointer(gatewayv1.Namespace("market"))
			d.bad[i] = true
		case 4:
			r.Timeouts = &gatewayv1.HTTPRouteTimeouts{Request: pointer(gatewayv1.Duration("soon"))}
			d.bad[i] = true
		}
		d.spec.Rules = append(d.spec.Rules, r)
	}
	return d
}

// TestNoRuleIsWidened: of any route, a waypoint accepts every message, and a
// request never reaches a backend by a rule with a part that is not executed. A
// service with a route has a table, whatever is wrong with the route.
func TestNoRuleIsWidened(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		for _, ns := range []string{"shop", "market"} {
			w.service(ns, "many", func(d *Destination) {
				d.Ports = nil
				for i := range 5 {
					d.Ports = append(d.Ports, Port{Number: uint16(100 + i)})
				}
			})
		}
		d := draw(rt)
		o := &gatewayv1.HTTPRoute{Spec: d.spec}
		o.Namespace, o.Name = "shop", "r"
		w.http.Set(source.Ref{Namespace: "shop", Name: "r"}, o)
		w.g.Settle()
		store := wire.NewStore()
		res, _ := w.tables.HTTP.Get(source.Ref{Namespace: "shop", Name: "r"})
		if len(res.resources) != len(d.spec.Rules) {
			rt.Fatalf("%d resources of %d rules", len(res.resources), len(d.spec.Rules))
		}
		for _, r := range res.resources {
			if err := store.Set(r.Name, r.Body); err != nil {
				rt.Fatalf("a waypoint rejects %s: %v", r.Name, err)
			}
		}
		table := store.Config().Port(route.PortKey{Namespace: "shop", Hostname: "web.shop.svc", Port: 80}).TableFor("")
		if table == nil {
			rt.Fatal("the service has no table")
		}
		for _, path := range []string{"/", "/a", "/a/b", "/b"} {
			hit := table.Lookup(&message.Head{Method: []byte("GET"), Path: []byte(path)})
			if hit == nil {
				continue
			}
			b, failure := hit.Pick(0)
			if failure != route.OK {
				continue
			}
			k, err := wire.ParseUpstream(b.Name)
			if err != nil || d.bad[int(k.Port)-100] {
				rt.Fatalf("%s takes a rule that is not executed: %s, %v", path, b.Name, err)
			}
		}
		checkStatus(rt, res, d)
	})
}

// checkStatus requires that a route with a bad rule says so.
func checkStatus(t *rapid.T, res *Result, d drawn) {
	var said []string
	for _, c := range res.Parents[0].Conditions {
		if c.Type == "PartiallyInvalid" || c.Type != "ResolvedWaypoints" && c.Status == "False" {
			said = append(said, c.Message)
		}
	}
	all := strings.Join(said, "; ")
	for i := range d.bad {
		if !strings.Contains(all, fmt.Sprintf("ule %d", i)) && !strings.Contains(all, " more") {
			t.Fatalf("nothing is said of rule %d: %s", i, all)
		}
	}
	if len(d.bad) == 0 && len(said) > 0 {
		t.Fatalf("there is nothing wrong, and the status says %s", all)
	}
}

// TestOrderOfChanges: whatever came first, the result is the same.
func TestOrderOfChanges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := draw(rt)
		grant := &gatewayv1.ReferenceGrant{Spec: gatewayv1.ReferenceGrantSpec{
			From: []gatewayv1.ReferenceGrantFrom{{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: "shop"}},
			To:   []gatewayv1.ReferenceGrantTo{{Kind: "Service"}},
		}}
		render := func(order []int) string {
			w := newWorld(t)
			steps := []func(){
				func() {
					o := &gatewayv1.HTTPRoute{Spec: d.spec}
					o.Namespace, o.Name = "shop", "r"
					w.http.Set(source.Ref{Namespace: "shop", Name: "r"}, o)
				},
				func() { w.grants.Set(source.Ref{Namespace: "market", Name: "g"}, grant) },
				func() { w.service("shop", "many", func(d *Destination) { d.Ports = []Port{{Number: 100}} }) },
				func() { w.dests.Delete(Target{source.Service.Kind, source.Ref{Namespace: "shop", Name: "v1"}}) },
			}
			for _, i := range order {
				steps[i]()
				w.g.Settle()
			}
			conditions, rules := w.says(w.tables.HTTP, "shop")
			return strings.Join(append(conditions, rules...), "\n")
		}
		if a, b := render([]int{0, 1, 2, 3}), render(rapid.Permutation([]int{0, 1, 2, 3}).Draw(rt, "order")); a != b {
			rt.Fatalf("%s\nin another order\n%s", a, b)
		}
	})
}
