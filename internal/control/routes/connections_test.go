package routes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/source"
)

// connect adds a TCPRoute or a TLSRoute from the YAML of its spec.
func (w *world) connect(kind, ns, name, spec string) {
	w.t.Helper()
	meta := metav1.ObjectMeta{Namespace: ns, Name: name}
	var err error
	if kind == "TLSRoute" {
		o := &gatewayv1.TLSRoute{ObjectMeta: meta}
		err = yaml.UnmarshalStrict([]byte(spec), &o.Spec)
		w.tls.Set(source.Ref{Namespace: ns, Name: name}, o)
	} else {
		o := &gatewayv1.TCPRoute{ObjectMeta: meta}
		err = yaml.UnmarshalStrict([]byte(spec), &o.Spec)
		w.tcp.Set(source.Ref{Namespace: ns, Name: name}, o)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.g.Settle()
}

// came returns the conditions of a route as text, and its rules.
func (w *world) came(kind, ns, name string) (conditions []string, rules []*wire.Rule) {
	w.t.Helper()
	table := w.tables.TCP
	if kind == "TLSRoute" {
		table = w.tables.TLS
	}
	res, ok := table.Get(source.Ref{Namespace: ns, Name: name})
	if !ok {
		w.t.Fatalf("%s %s/%s has no result", kind, ns, name)
	}
	for _, p := range res.Parents {
		for _, c := range p.Conditions {
			conditions = append(conditions, fmt.Sprintf("%s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message))
		}
	}
	for _, r := range res.resources {
		d, err := wire.Decode(r.Body)
		if err != nil {
			w.t.Fatalf("a waypoint rejects %s: %v", r.Name, err)
		}
		rules = append(rules, d)
	}
	return conditions, rules
}

func TestConnectionRoutes(t *testing.T) {
	const onTCP = `parentRefs: [{group: "", kind: Service, name: tcp}]`
	for name, tc := range map[string]struct {
		kind, spec string
		conditions []string
		carries    route.Carries
		hosts      string
		backends   string
		dropped    bool
	}{
		"weights": {
			kind: "TCPRoute", spec: onTCP + "\nrules: [{backendRefs: [{name: v1, port: 80, weight: 3}, {name: gone, port: 80}]}]",
			conditions: []string{"Accepted=True Accepted: attached to Service shop/tcp, port 80, 90", "ResolvedRefs=False BackendNotFound: rule 0: there is no Service shop/gone; the share of these backends is refused", "ResolvedWaypoints=True"},
			carries:    route.Anything, backends: "3*shop/v1.shop.svc:80 1*",
		},
		"no rules": {kind: "TCPRoute", spec: onTCP, conditions: []string{"Accepted=True", "ResolvedRefs", "ResolvedWaypoints"}, carries: route.Anything},
		"a second rule": {
			kind: "TCPRoute", spec: onTCP + "\nrules: [{backendRefs: [{name: v1, port: 80}]}, {backendRefs: [{name: v2, port: 80}]}]",
			conditions: []string{"Accepted=True", "ResolvedRefs", "PartiallyInvalid=True UnsupportedValue: Dropped Rule 1: a TCPRoute has one rule; its connections take other routes, or are refused", "ResolvedWaypoints"},
			carries:    route.Anything, backends: "1*shop/v1.shop.svc:80",
		},
		"a port with HTTP": {
			kind: "TCPRoute", spec: `parentRefs: [{group: "", kind: Service, name: spoken}]` + "\nrules: [{backendRefs: [{name: v1, port: 80}]}]",
			conditions: []string{"without effect on port 80, which is declared to carry HTTP (see appProtocol)", "ResolvedRefs", "ResolvedWaypoints"},
			carries:    route.Anything, backends: "1*shop/v1.shop.svc:80",
		},
		"names": {
			kind: "TLSRoute", spec: onTCP + "\nhostnames: [A.example.org, '*.b']\nrules: [{backendRefs: [{name: v1, port: 80}]}]",
			conditions: []string{"Accepted=True", "ResolvedRefs", "ResolvedWaypoints"}, carries: route.TLS, hosts: "a.example.org *.b", backends: "1*shop/v1.shop.svc:80",
		},
		"a name that is none": {
			kind: "TLSRoute", spec: onTCP + "\nhostnames: ['a.*.b']\nrules: [{backendRefs: [{name: v1, port: 80}]}]",
			conditions: []string{"Accepted=False UnsupportedValue: no rule can be executed: Dropped Rule 0: connections.names[0]", "ResolvedRefs", "ResolvedWaypoints"}, carries: route.TLS, dropped: true,
		},
		"a backend of another namespace": {
			kind: "TLSRoute", spec: onTCP + "\nrules: [{backendRefs: [{name: v1, namespace: market, port: 80}]}]",
			conditions: []string{"Accepted=True", "ResolvedRefs=False RefNotPermitted", "from TLSRoute of namespace shop"}, carries: route.TLS, backends: "1*",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.service("shop", "spoken", func(d *Destination) { d.Ports = []Port{{Number: 80, Name: "http", Requests: true}} })
			w.connect(tc.kind, "shop", "r", tc.spec)
			conditions, rules := w.came(tc.kind, "shop", "r")
			all := strings.Join(conditions, "\n")
			for _, part := range tc.conditions {
				if !strings.Contains(all, part) {
					t.Errorf("the conditions have no %q:\n%s", part, all)
				}
			}
			r := rules[slices.IndexFunc(rules, func(r *wire.Rule) bool { return r.Origin.Rule == 0 })]
			var backends []string
			for _, b := range r.Rule.Backends {
				backends = append(backends, fmt.Sprintf("%d*%s", b.Weight, b.Name))
			}
			if r.Rule.Carries != tc.carries || strings.Join(r.Rule.Hosts, " ") != tc.hosts || strings.Join(backends, " ") != tc.backends || (r.Dropped != "") != tc.dropped {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestConflicts: of routes for the same connections the status says which has precedence,
// and gateways agree. It follows changes.
func TestConflicts(t *testing.T) {
	w := newWorld(t)
	on := func(port int, more string) string {
		return fmt.Sprintf("parentRefs: [{group: \"\", kind: Service, name: tcp, namespace: shop, port: %d}]\n%s\nrules: [{backendRefs: [{name: v1, port: 80}]}]", port, more)
	}
	accepted := func(kind, ns, name, want string) {
		t.Helper()
		if c, _ := w.came(kind, ns, name); !strings.Contains(c[0], want) {
			t.Errorf("%s %s/%s: %s, want %s", kind, ns, name, c[0], want)
		}
	}
	w.connect("TCPRoute", "shop", "b", on(90, ""))
	accepted("TCPRoute", "shop", "b", "Accepted=True")
	w.connect("TCPRoute", "shop", "a", on(90, ""))
	accepted("TCPRoute", "shop", "a", "Accepted=True")
	accepted("TCPRoute", "shop", "b", "Accepted=False Conflicted: TCPRoute shop/a, which is older, has port 90")
	w.connect("TCPRoute", "market", "0", on(90, "")) // for other clients
	accepted("TCPRoute", "market", "0", "Accepted=True")
	accepted("TCPRoute", "shop", "a", "Accepted=True")
	w.connect("TLSRoute", "shop", "0", on(90, "")) // for other connections
	accepted("TCPRoute", "shop", "a", "Accepted=True")
	w.connect("TCPRoute", "shop", "a", on(80, ""))
	accepted("TCPRoute", "shop", "b", "Accepted=True")
	w.tcp.Delete(source.Ref{Namespace: "shop", Name: "a"})
	w.g.Settle()
	accepted("TCPRoute", "shop", "b", "Accepted=True")

	w.connect("TLSRoute", "shop", "x", on(90, "hostnames: [one, '*.two']"))
	w.connect("TLSRoute", "shop", "y", on(90, "hostnames: [one, three]"))
	w.connect("TLSRoute", "shop", "z", on(90, "hostnames: ['*.two', one]"))
	accepted("TLSRoute", "shop", "x", "Accepted=True")
	accepted("TLSRoute", "shop", "y", "Accepted=True Accepted: attached to Service shop/tcp, port 90; TLSRoute shop/x, which is older, has one of port 90")
	accepted("TLSRoute", "shop", "z", "Accepted=False Conflicted")
	// One that is older and cannot be executed has nothing.
	w.connect("TLSRoute", "shop", "v", on(90, "hostnames: [four, 'a.*']"))
	w.connect("TLSRoute", "shop", "w", on(90, "hostnames: [four]"))
	accepted("TLSRoute", "shop", "v", "Accepted=False UnsupportedValue")
	accepted("TLSRoute", "shop", "w", "Accepted=True Accepted: attached to Service shop/tcp, port 90")
}

// TestConflictsAgree: of any TLSRoutes, one whose parents are all taken by older ones gets
// no connection, and one that is accepted gets those of one of its names.
func TestConflictsAgree(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		names := map[string][]string{}
		for i := range rapid.IntRange(1, 5).Draw(rt, "routes") {
			r := string(rune('a' + i))
			hosts := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"one", "two", "x.three", "no.*"}), 1, 3, rapid.ID).Draw(rt, "names")
			names[r] = hosts
			w.connect("TLSRoute", "shop", r, fmt.Sprintf("parentRefs: [{group: \"\", kind: Service, name: tcp, port: 90}]\nhostnames: ['%s']\nrules: [{backendRefs: [{name: v1, port: 80}]}]", strings.Join(hosts, "', '")))
		}
		var rules []*wire.Rule
		for r := range names {
			_, of := w.came("TLSRoute", "shop", r)
			rules = append(rules, of...)
		}
		_, table := wire.Compile(rules)
		for r, hosts := range names {
			c, _ := w.came("TLSRoute", "shop", r)
			gets := slices.ContainsFunc(hosts, func(h string) bool {
				t := table.Lookup(h)
				return t != nil && t.Rule.Route == "shop/"+r
			})
			if gets != strings.HasPrefix(c[0], "Accepted=True") {
				rt.Fatalf("%s gets connections: %v; %s", r, gets, c[0])
			}
		}
	})
}
