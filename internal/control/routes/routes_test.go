package routes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/testutil/eqtest"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// world is a graph with some destinations, to which tests add routes.
type world struct {
	t      testing.TB
	g      *collection.Graph
	http   collection.Input[source.Ref, *gatewayv1.HTTPRoute]
	grpc   collection.Input[source.Ref, *gatewayv1.GRPCRoute]
	tls    collection.Input[source.Ref, *gatewayv1.TLSRoute]
	tcp    collection.Input[source.Ref, *gatewayv1.TCPRoute]
	grants collection.Input[source.Ref, *gatewayv1.ReferenceGrant]
	dests  collection.Input[Target, *Destination]
	tables *Tables
}

func different[T any](_, _ T) bool { return false }

func newWorld(t testing.TB) *world {
	g := collection.NewGraph()
	w := &world{
		t: t, g: g,
		http:   collection.NewInput[source.Ref](g, "http", different[*gatewayv1.HTTPRoute]),
		grpc:   collection.NewInput[source.Ref](g, "grpc", different[*gatewayv1.GRPCRoute]),
		tls:    collection.NewInput[source.Ref](g, "tls", different[*gatewayv1.TLSRoute]),
		tcp:    collection.NewInput[source.Ref](g, "tcp", different[*gatewayv1.TCPRoute]),
		grants: collection.NewInput[source.Ref](g, "grants", different[*gatewayv1.ReferenceGrant]),
		dests:  collection.NewInput[Target](g, "destinations", (*Destination).Equal),
	}
	w.tables = New(Inputs{
		HTTPRoutes: w.http.Collection, GRPCRoutes: w.grpc.Collection, TLSRoutes: w.tls.Collection, TCPRoutes: w.tcp.Collection, Grants: w.grants.Collection, Destinations: w.dests.Collection,
		Waypoint: func(_ *collection.Reader, k source.Ref) bool { return k.Name == "wp" }, Cluster: "Kubernetes",
	})
	for _, ns := range []string{"shop", "market"} {
		for _, name := range []string{"web", "v1", "v2"} {
			w.service(ns, name, func(d *Destination) {
				if ns == "market" {
					d.Gateway = source.Ref{Namespace: "market", Name: "wp"}
				}
			})
		}
	}
	w.service("shop", "free", func(d *Destination) {
		d.Gateway, d.Ready, d.Unbound = source.Ref{}, false, "it has no waypoint"
	})
	w.service("shop", "early", func(d *Destination) { d.Ready, d.Unbound = false, "waypoint shop/wp has no address yet" })
	w.service("shop", "tcp", func(d *Destination) { d.Ports = []Port{{80, "http", false, false}, {90, "tcp", true, false}} })
	w.service("shop", "theirs", func(d *Destination) { d.Gateway, d.Foreign = source.Ref{}, true })
	w.dests.Set(Target{source.ServiceEntry.Kind, source.Ref{Namespace: "shop", Name: "ext"}}, &Destination{
		Hosts: []string{"a.example.org", "b.example.org"}, Ports: []Port{{443, "web", false, false}}, Gateway: source.Ref{Namespace: "shop", Name: "wp"}, Ready: true,
	})
	w.dests.Set(Target{source.ServiceEntry.Kind, source.Ref{Namespace: "shop", Name: "one"}}, &Destination{
		Hosts: []string{"one.example.org"}, Ports: []Port{{443, "web", false, false}}, Unbound: "it has no waypoint",
	})
	return w
}

// service adds one with ports 80 and 81, bound to shop/wp.
func (w *world) service(ns, name string, edit func(*Destination)) {
	d := &Destination{Hosts: []string{name + "." + ns + ".svc"}, Ports: []Port{{80, "http", false, false}, {81, "admin", false, false}}, Gateway: source.Ref{Namespace: "shop", Name: "wp"}, Ready: true}
	edit(d)
	w.dests.Set(Target{source.Service.Kind, source.Ref{Namespace: ns, Name: name}}, d)
}

// put adds an HTTPRoute named r to a namespace, from the YAML of its spec.
func (w *world) put(ns, spec string) {
	w.t.Helper()
	o := &gatewayv1.HTTPRoute{}
	o.Namespace, o.Name = ns, "r"
	if err := yaml.UnmarshalStrict([]byte(spec), &o.Spec); err != nil {
		w.t.Fatalf("%v\n%s", err, spec)
	}
	w.http.Set(source.Ref{Namespace: ns, Name: "r"}, o)
	w.g.Settle()
}

// says returns the conditions of the route's parents, and its rules as gateways
// are sent them.
func (w *world) says(results *collection.Collection[source.Ref, *Result], ns string) (conditions, rules []string) {
	w.t.Helper()
	res, _ := results.Get(source.Ref{Namespace: ns, Name: "r"})
	for _, p := range res.Parents {
		for _, c := range p.Conditions {
			conditions = append(conditions, fmt.Sprintf("%s %s: %s=%s %s: %s", value(p.Ref.Kind), p.Ref.Name, c.Type, c.Status, c.Reason, c.Message))
		}
	}
	for _, r := range res.resources {
		d, err := wire.Decode(r.Body)
		if err != nil {
			w.t.Fatalf("a gateway rejects %s: %v", r.Name, err)
		}
		rules = append(rules, r.Name+": "+show(d))
	}
	slices.Sort(rules)
	return conditions, rules
}

// show renders a rule for comparisons.
func show(r *wire.Rule) string {
	var out []string
	for _, p := range r.Parents {
		s := p.Port.UpstreamName()
		if p.Clients != "" {
			s += "<" + p.Clients
		}
		out = append(out, s)
	}
	if r.Dropped != "" {
		return strings.Join(out, ",") + " dropped: " + r.Dropped
	}
	out = []string{strings.Join(out, ",")}
	for _, m := range r.Rule.Matches {
		out = append(out, fmt.Sprintf("%v%s %s%v%v", m.Path.Kind, m.Path.Value, m.Method, m.Headers, m.Query))
	}
	if r.Rule.Guarded {
		out = append(out, "guarded")
	}
	if s := r.Rule.Session; s != nil {
		text := "session cookie " + s.Name
		if s.Header {
			text = "session header " + s.Name
		}
		if s.Absolute > 0 {
			text += " " + s.Absolute.String()
		}
		if s.Permanent {
			text += " permanent"
		}
		out = append(out, text)
	}
	if p := r.Rule.Filters.ExternalAuth; p != nil {
		out = append(out, fmt.Sprintf("auth %s %s/%s:%d", map[bool]string{false: "HTTP", true: "gRPC"}[p.GRPC], p.Namespace, p.Hostname, p.Port))
	}
	for _, b := range r.Rule.Backends {
		if b.Invalid != "" {
			out = append(out, fmt.Sprintf("%d*invalid", b.Weight))
			continue
		}
		out = append(out, fmt.Sprintf("%d*%s", b.Weight, b.Name))
	}
	return strings.Join(out, " | ")
}

const onWeb = `parentRefs: [{group: "", kind: Service, name: web}]`

// parts holds what each test expects: parts of the conditions in order, and of
// the rules in order.
type parts struct {
	ns         string // of the route; default shop
	spec       string
	conditions []string
	rules      []string
}

var cases = map[string]parts{
	"two weights": {
		spec:       onWeb + "\nrules: [{backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 81}]}]",
		conditions: []string{"Accepted=True Accepted: attached to Service shop/web, port 80, 81", "ResolvedRefs=True", "ResolvedWaypoints=True ResolvedWaypoints: waypoint shop/wp executes the route"},
		rules:      []string{"shop/wp/HTTPRoute/shop/r/0: shop/web.shop.svc:80,shop/web.shop.svc:81 | 2/ [][] | 9*shop/v1.shop.svc:80 | 1*shop/v2.shop.svc:81"},
	},
	"one port":     {spec: `parentRefs: [{group: "", kind: Service, name: web, port: 81}]`, conditions: []string{"port 81", "ResolvedRefs", "ResolvedWaypoints"}, rules: []string{": shop/web.shop.svc:81 | 2/"}},
	"a named port": {spec: `parentRefs: [{group: "", kind: Service, name: web, sectionName: admin}]`, conditions: []string{"port 81", "ResolvedRefs", "ResolvedWaypoints"}, rules: []string{": shop/web.shop.svc:81 | 2/"}},
	"no such port": {
		spec: `parentRefs: [{group: "", kind: Service, name: web, port: 82}]`, conditions: []string{"Accepted=False NoMatchingParent: Service shop/web has no such port: its TCP ports are 80, 81", "ResolvedRefs"},
	},
	"a port that carries no HTTP": {
		spec:       `parentRefs: [{group: "", kind: Service, name: tcp}]`,
		conditions: []string{"attached to Service shop/tcp, port 80, 90; without effect on port 90, which is declared to carry no HTTP", "ResolvedRefs", "ResolvedWaypoints"},
		rules:      []string{": shop/tcp.shop.svc:80,shop/tcp.shop.svc:90 | 2/"},
	},
	"no such parent":              {spec: `parentRefs: [{group: "", kind: Service, name: gone}]`, conditions: []string{"Accepted=False NoMatchingParent: there is no Service shop/gone", "ResolvedRefs"}},
	"a waypoint as a parent":      {spec: `parentRefs: [{name: wp}]`, conditions: []string{"Gateway wp: Accepted=False NotAllowedByListeners", "ResolvedRefs"}},
	"other controllers' parents":  {spec: `parentRefs: [{name: edge}, {group: a, kind: Mesh, name: m}, {group: "", kind: Pod, name: p}, {group: "", kind: Service, name: theirs}]`},
	"a parent without a waypoint": {spec: `parentRefs: [{group: "", kind: Service, name: free}]`, conditions: []string{"Accepted=True", "ResolvedRefs", "ResolvedWaypoints=False AncestorNotBound: the route has no effect: it has no waypoint"}},
	"a parent with an early waypoint": {
		spec:       `parentRefs: [{group: "", kind: Service, name: early, port: 80}]`,
		conditions: []string{"Accepted=True", "ResolvedRefs", "ResolvedWaypoints=False WaypointIsNotReady: the route has no effect yet: waypoint shop/wp has no address yet"},
		rules:      []string{"shop/wp/HTTPRoute/shop/r/0: shop/early.shop.svc:80 |"},
	},
	"an entry with two hosts": {
		spec:       `parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: ext}]`,
		conditions: []string{"ServiceEntry ext: Accepted=True Accepted: attached to ServiceEntry shop/ext, port 443", "ResolvedRefs", "ResolvedWaypoints"},
		rules:      []string{"shop/wp/HTTPRoute/shop/r/0: shop/a.example.org:443,shop/b.example.org:443 |"},
	},
	"parents of two gateways": {
		spec:       `parentRefs: [{group: "", kind: Service, name: web, port: 80}, {group: "", kind: Service, name: web, namespace: market, port: 80}]`,
		conditions: []string{"shop/web", "ResolvedRefs", "ResolvedWaypoints", "market/web, port 80; for clients of namespace shop only, because the Service is of another namespace", "ResolvedRefs", "ResolvedWaypoints"},
		rules:      []string{"market/wp/HTTPRoute/shop/r/0: market/web.market.svc:80<shop |", "shop/wp/HTTPRoute/shop/r/0: shop/web.shop.svc:80 |"},
	},
	"a consumer sends back to the service": {
		ns:         "market",
		spec:       `parentRefs: [{group: "", kind: Service, name: web, namespace: shop, port: 80}]` + "\nrules: [{backendRefs: [{name: web, namespace: shop, port: 80}]}]",
		conditions: []string{"for clients of namespace market only", "ResolvedRefs=True", "ResolvedWaypoints"},
		rules:      []string{"shop/wp/HTTPRoute/market/r/0: shop/web.shop.svc:80<market | 2/ [][] | 1*shop/web.shop.svc:80"},
	},
	"a backend of another namespace": {
		spec:       onWeb + "\nrules: [{backendRefs: [{name: v1, namespace: market, port: 80}, {name: v1, port: 80}]}]",
		conditions: []string{"Accepted=True", "ResolvedRefs=False RefNotPermitted: rule 0: Service market/v1 is of another namespace", "ResolvedWaypoints"},
		rules:      []string{"| 1*invalid | 1*shop/v1.shop.svc:80"},
	},
	"backends that are refused": {
		spec: onWeb + "\nrules: [{backendRefs: [{name: gone, port: 80}, {name: v1, port: 82}, {name: v1}, {kind: Pod, name: v1, port: 80}, {group: networking.istio.io, kind: ServiceEntry, name: ext, port: 443}, {group: networking.istio.io, kind: ServiceEntry, name: one, port: 443, weight: 0}]}]",
		conditions: []string{"Accepted=True", "ResolvedRefs=False BackendNotFound: rule 0: there is no Service shop/gone; rule 0: Service shop/v1 has no port 82: its TCP ports are 80, 81; rule 0: Service shop/v1: no port is given; " +
			`rule 0: kind Pod of group "" is no backend: name a Service or a ServiceEntry; rule 0: ServiceEntry shop/ext has the hosts a.example.org, b.example.org: a backend has one, without a wildcard; the share`, "ResolvedWaypoints"},
		rules: []string{"1*invalid | 1*invalid | 1*invalid | 1*invalid | 1*invalid | 0*shop/one.example.org:443"},
	},
	"hostnames": {spec: onWeb + "\nhostnames: [a.b]", conditions: []string{"hostnames have no meaning for a Service", "ResolvedRefs", "ResolvedWaypoints"}, rules: []string{"2/ "}},
	"all matches": {
		spec: onWeb + `
rules:
- matches:
  - {path: {type: Exact, value: /a}, method: POST, headers: [{name: x, value: "1"}, {type: RegularExpression, name: z, value: "a|b"}]}
  - {path: {type: RegularExpression, value: "/a.*"}, queryParams: [{name: q, value: "1"}, {type: RegularExpression, name: r, value: .}]}
  - {method: GET}
`,
		conditions: []string{"Accepted=True", "ResolvedRefs=True", "ResolvedWaypoints"},
		rules:      []string{"| 1/a POST[{x 1 1 false} {z 4 a|b false}][] | 4/a.* [][{q 1 1 false} {r 4 . false}] | 2/ GET[][]"},
	},
	"a match that cannot be evaluated": {
		spec: onWeb + `
rules:
- {matches: [{path: {type: RegularExpression, value: "("}}], backendRefs: [{name: v1, port: 80}]}
- {matches: [{path: {type: Glob, value: "/*"}}]}
- {matches: [{headers: [{type: Glob, name: x, value: ""}]}]}
- {backendRefs: [{name: v1, port: 80}]}
`,
		conditions: []string{
			"Accepted=True", "ResolvedRefs=True",
			"PartiallyInvalid=True UnsupportedValue: Dropped Rule 0: matches[0]: error parsing regexp: missing closing ): `(`; its requests take other rules, or are answered with 404; Dropped Rule 1: matches[0].path.type: \"Glob\" is not supported; its requests take other rules, or are answered with 404; Dropped Rule 2: matches[0].headers[0].type: \"Glob\"", "ResolvedWaypoints",
		},
		rules: []string{"r/0: shop/web.shop.svc:80,shop/web.shop.svc:81 dropped: matches[0]: error parsing", "r/1: shop/web.shop.svc:80,shop/web.shop.svc:81 dropped: ", "dropped", "1*shop/v1"},
	},
	"no rule can be executed": {
		spec:       onWeb + "\nrules: [{matches: [{path: {value: a}}]}]",
		conditions: []string{`Accepted=False UnsupportedValue: no rule can be executed: Dropped Rule 0: matches[0]: path "a" does not start with a slash`, "ResolvedRefs=True", "ResolvedWaypoints"},
		rules:      []string{"dropped: "},
	},
	"a filter that may protect": {
		spec: onWeb + `
rules:
- {matches: [{path: {value: /admin}}], filters: [{type: ExternalAuth, externalAuth: {protocol: SMTP, backendRef: {name: v1, port: 80}}}], backendRefs: [{name: v1, port: 80}]}
- {filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}], backendRefs: [{name: v1, port: 80}]}
- {filters: [{type: RequestHeaderModifier}], backendRefs: [{name: v1, port: 80}]}
- {filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: a}]}}], backendRefs: [{name: v1, port: 80}]}
- {backendRefs: [{name: v1, port: 80}]}
`,
		conditions: []string{
			"Accepted=True", "ResolvedRefs=True",
			`Dropped Rule 0: filters[0].externalAuth.protocol: "SMTP" is neither HTTP nor GRPC; its requests are answered with 500; Dropped Rule 1: filters[0]: filters of type ExtensionRef are not supported; its requests are answered with 500; Dropped Rule 2: filters[0]: the type is "RequestHeaderModifier", and the field for it is missing; its requests are answered with 500; Dropped Rule 3: filters.request.set[0].name: "Host" cannot be edited (use URLRewrite)`,
			"ResolvedWaypoints",
		},
		rules: []string{"2/admin [][] | guarded | 1*invalid", "2/ [][] | 1*invalid", "2/ [][] | 1*invalid", "2/ [][] | 1*invalid", "1*shop/v1"},
	},
	"an external authorizer": {
		spec: onWeb + `
rules:
- {filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: v2, port: 80}, http: {path: check/, allowedHeaders: [x-a]}}}], backendRefs: [{name: v1, port: 80}]}
- {filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: v2, port: 80}, grpc: {allowedHeaders: [x-a]}, forwardBody: {maxSize: 9}}}], backendRefs: [{name: v1, port: 80}]}
`,
		conditions: []string{"Accepted=True", "ResolvedRefs=True", "ResolvedWaypoints"},
		rules:      []string{"guarded | auth HTTP shop/v2.shop.svc:80 | 1*shop/v1", "guarded | auth gRPC shop/v2.shop.svc:80 | 1*shop/v1"},
	},
	"external authorizers with mistakes": {
		spec: onWeb + `
rules:
- {filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: none, port: 80}}}, {type: RequestRedirect, requestRedirect: {hostname: a}}]}
- {filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: web, namespace: market, port: 80}}}], backendRefs: [{name: v1, port: 80}]}
- {filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: v2, port: 80}, grpc: {}}}], backendRefs: [{name: v1, port: 80}]}
- {filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: v2, port: 80}, http: {allowedHeaders: ["x-*"]}}}], backendRefs: [{name: v1, port: 80}]}
- {filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: v2, port: 80}, http: {allowedResponseHeaders: [Host]}}}], backendRefs: [{name: v1, port: 80}]}
`,
		conditions: []string{
			"Accepted=True", "ResolvedRefs=False BackendNotFound: rule 0: externalAuth: there is no Service shop/none; rule 1: externalAuth: Service market/web is of another namespace",
			"PartiallyInvalid=True UnsupportedValue: Dropped Rule 2: filters[0].externalAuth.grpc: the protocol is HTTP; its requests are answered with 500; " +
				`Dropped Rule 3: filters[0].externalAuth.http.allowedHeaders[0]: "x-*" is no name of a header; its requests are answered with 500; ` +
				`Dropped Rule 4: filters[0].externalAuth: headersToUpstreamOnAllow[0]: "Host": the header decides where`,
			"ResolvedWaypoints",
		},
		rules: []string{"guarded | 1*invalid", "guarded | 1*invalid", "guarded | 1*invalid", "guarded | 1*invalid", "guarded | 1*invalid"},
	},
	"a filter of a backend": {
		spec:       onWeb + "\nrules: [{backendRefs: [{name: v1, port: 80, filters: [{type: URLRewrite, urlRewrite: {}}]}, {name: v2, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [a]}}]}]}]",
		conditions: []string{"Accepted=True", "ResolvedRefs=True", "PartiallyInvalid=True UnsupportedValue: Rule 0: backendRefs[0].filters[0]: a filter of type URLRewrite is not supported here, or given twice; the share of this backend is answered with 500", "ResolvedWaypoints"},
		rules:      []string{"1*invalid | 1*shop/v2"},
	},
	"session persistence": {
		spec:       onWeb + "\nrules: [{sessionPersistence: {}, backendRefs: [{name: v1, port: 80}]}, {sessionPersistence: {type: Header, sessionName: x-s, absoluteTimeout: 1h}}, {sessionPersistence: {sessionName: s, absoluteTimeout: 90s, cookieConfig: {lifetimeType: Permanent}}}]",
		conditions: []string{"Accepted=True", "ResolvedRefs=True", "ResolvedWaypoints"},
		rules:      []string{"session cookie ambit-session | 1*shop/v1", "session header x-s 1h0m0s", "session cookie s 1m30s permanent"},
	},
	"session persistence with mistakes": {
		spec:       onWeb + "\nrules: [{sessionPersistence: {type: Magic}}, {sessionPersistence: {sessionName: 'a b'}}, {sessionPersistence: {type: Header, sessionName: host}}, {sessionPersistence: {absoluteTimeout: soon}}, {sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}}]",
		conditions: []string{"Accepted=True", "ResolvedRefs=True", `PartiallyInvalid=True UnsupportedValue: Rule 0: sessionPersistence.type: "Magic" is not supported; requests go to any endpoint; Rule 1: sessionPersistence.name: "a b" is no token of up to 128 bytes; requests go to any endpoint; Rule 2: sessionPersistence.name: "host" cannot be edited (use URLRewrite); requests go to any endpoint; Rule 3: sessionPersistence.absoluteTimeout: "soon" is no duration; requests go to any endpoint; Rule 4: sessionPersistence.permanent: only a cookie is`, "ResolvedWaypoints"},
		rules:      []string{"2/", "2/", "2/", "2/", "2/"},
	},
	"durations": {
		spec:       onWeb + "\nrules: [{timeouts: {request: 1s, backendRequest: 2s}}, {timeouts: {request: 1.5s}}, {retry: {backoff: -1s}}, {retry: {attempts: 1000}}, {timeouts: {request: 0s, backendRequest: 2s}}]",
		conditions: []string{"Accepted=True", "ResolvedRefs=True", `Dropped Rule 0: timeouts.backendRequest: 2s is longer than timeouts.request, 1s; its requests are answered with 500; Dropped Rule 1: timeouts.request: "1.5s" is no duration; its requests are answered with 500; Dropped Rule 2: retry.backoff: "-1s" is no duration; its requests are answered with 500; Dropped Rule 3: retry.attempts: 1000, at most 100`, "ResolvedWaypoints"},
		rules:      []string{"invalid", "invalid", "invalid", "invalid", "2/ [][]"},
	},
	"a mirror that does not exist": {
		spec:       onWeb + "\nrules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}], backendRefs: [{name: v1, port: 80}]}]",
		conditions: []string{"Accepted=True", "ResolvedRefs=False BackendNotFound: rule 0: no copies are sent to a mirror: there is no Service shop/gone", "ResolvedWaypoints"},
		rules:      []string{"2/ [][] | 1*shop/v1"},
	},
	"a redirect beside backends": {
		spec:       onWeb + "\nrules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}], backendRefs: [{name: v1, port: 80}]}]",
		conditions: []string{"Accepted=False UnsupportedValue: no rule can be executed: Dropped Rule 0: filters.redirect: the rule has backends or a rewrite, too", "ResolvedRefs=True", "ResolvedWaypoints"},
		rules:      []string{"invalid"},
	},
}

func TestEqualityOfDestinations(t *testing.T) {
	eqtest.Fields(t, (*Destination).Equal)
}

func TestHTTPRoutes(t *testing.T) {
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.ns == "" {
				tt.ns = "shop"
			}
			w.put(tt.ns, tt.spec)
			conditions, rules := w.says(w.tables.HTTP, tt.ns)
			compare(t, conditions, tt.conditions)
			compare(t, rules, tt.rules)
		})
	}
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	for i, g := range got {
		if i >= len(want) || !strings.Contains(g, want[i]) {
			t.Errorf("%s", g)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines, want %q", len(got), want)
	}
}

// TestFilters: every filter arrives with all of its fields.
func TestFilters(t *testing.T) {
	w := newWorld(t)
	w.put("shop", onWeb+`
rules:
- matches: [{path: {value: /old}}]
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: "1"}], add: [{name: b, value: "2"}], remove: [c]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [d]}}
  - {type: URLRewrite, urlRewrite: {hostname: h, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
  - {type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 80}}}
  - {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 20}}
  - {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 81}, fraction: {numerator: 1, denominator: 3}}}
  - {type: CORS, cors: {allowOrigins: ["https://a"], allowCredentials: true, allowMethods: [GET], allowHeaders: [x], exposeHeaders: ["*"], maxAge: 7}}
  timeouts: {request: 1m30s, backendRequest: 250ms}
  retry: {codes: [500, 503], backoff: 10ms}
  backendRefs: [{name: v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: e, value: "3"}]}}]}]
- filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: h, port: 8443, statusCode: 308, path: {type: ReplaceFullPath, replaceFullPath: /x}}}]
- filters: [{type: CORS, cors: {allowOrigins: ["*"]}}]
`)
	res, _ := w.tables.HTTP.Get(source.Ref{Namespace: "shop", Name: "r"})
	var got []string
	for _, r := range res.resources {
		d, err := wire.Decode(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		f := d.Rule.Filters
		switch {
		case f.Redirect != nil:
			got = append(got, fmt.Sprintf("%+v %+v", *f.Redirect.Path, route.Redirect{Scheme: f.Redirect.Scheme, Host: f.Redirect.Host, Port: f.Redirect.Port, Status: f.Redirect.Status}))
		case f.Request == nil:
			got = append(got, fmt.Sprintf("%+v", *f.CORS))
		default:
			got = append(got, fmt.Sprintf("%+v %+v %s %+v", *f.Request, *f.Response, f.Rewrite.Host, *f.Rewrite.Path),
				fmt.Sprintf("%+v", *f.CORS), fmt.Sprintf("%+v %+v %+v", d.Rule.Timeouts, *d.Rule.Retry, *d.Rule.Backends[0].Filters.Request))
			for _, m := range f.Mirrors {
				got = append(got, fmt.Sprintf("%d/%d %s", m.Numerator, m.Denominator, m.Backend.Name))
			}
		}
	}
	slices.Sort(got)
	want := []string{
		"1/3 shop/v2.shop.svc:81",
		"100/100 shop/v1.shop.svc:80",
		"20/100 shop/v2.shop.svc:80",
		"{Origins:[*] Methods:[] Headers:[] Expose:[] Credentials:false MaxAge:5s}",
		"{Origins:[https://a] Methods:[GET] Headers:[x] Expose:[*] Credentials:true MaxAge:7s}",
		"{Prefix:false Value:/x} {Scheme:https Host:h Port:8443 Path:<nil> Status:308}",
		"{Request:1m30s Try:250ms} {Codes:[500 503] Attempts:2 Backoff:10ms} {Set:[{Name:e Value:3}] Add:[] Remove:[]}",
		"{Set:[{Name:a Value:1}] Add:[{Name:b Value:2}] Remove:[c]} {Set:[] Add:[] Remove:[d]} h {Prefix:true Value:/new}",
	}
	compare(t, got, want)
}

func TestGRPCRoutes(t *testing.T) {
	w := newWorld(t)
	o := &gatewayv1.GRPCRoute{}
	o.Namespace, o.Name = "shop", "r"
	if err := yaml.UnmarshalStrict([]byte(onWeb+`
rules:
- matches:
  - {method: {service: a.B, method: C}, headers: [{name: x, value: "1"}]}
  - {method: {service: a.B}}
  - {method: {method: C.D}}
  - {method: {type: RegularExpression, service: "a|b"}}
  - {}
  filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}, {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]
  backendRefs: [{name: v1, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [a]}}]}]
- {matches: [{method: {type: RegularExpression, service: "a)|(b", method: C}}]}
- {matches: [{method: {}}]}
- {filters: [{type: ExtensionRef}], backendRefs: [{name: v1, port: 80}]}
`), &o.Spec); err != nil {
		t.Fatal(err)
	}
	w.grpc.Set(source.Ref{Namespace: "shop", Name: "r"}, o)
	w.g.Settle()
	conditions, rules := w.says(w.tables.GRPC, "shop")
	compare(t, conditions, []string{"Accepted=True", "ResolvedRefs=True", "Dropped Rule 1: matches[0].method.service: error parsing regexp", "ResolvedWaypoints"})
	compare(t, rules, []string{
		`shop/wp/GRPCRoute/shop/r/0: shop/web.shop.svc:80,shop/web.shop.svc:81 | 1/a.B/C [{x 1 1 false}][] | 2/a.B [][] | 4/[^/]+/C\.D [][] | 4/(?:a|b)/[^/]+ [][] | 2/ [][] | 1*shop/v1`,
		"dropped", "dropped", "1*invalid",
	})
	res, _ := w.tables.GRPC.Get(source.Ref{Namespace: "shop", Name: "r"})
	for _, r := range res.resources {
		if d, err := wire.Decode(r.Body); err != nil || !d.Rule.GRPC {
			t.Errorf("%s: %+v, %v", r.Name, d, err)
		}
	}
}

// TestReferenceGrants: a grant permits a backend while it is there, and nothing
// that it does not name.
func TestReferenceGrants(t *testing.T) {
	const from = "from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n"
	for name, tt := range map[string]struct {
		ns, spec string
		want     bool
	}{
		"a name":             {"market", from + `to: [{group: "", kind: Service, name: v1}]`, true},
		"every Service":      {"market", from + `to: [{group: "", kind: Service}]`, true},
		"another name":       {"market", from + `to: [{group: "", kind: Service, name: v2}]`, false},
		"another kind":       {"market", from + `to: [{group: "", kind: Secret}]`, false},
		"another route kind": {"market", "from: [{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: shop}]\n" + `to: [{group: "", kind: Service}]`, false},
		"another author":     {"market", "from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}]\n" + `to: [{group: "", kind: Service}]`, false},
		"of the author":      {"shop", from + `to: [{group: "", kind: Service}]`, false},
	} {
		w := newWorld(t)
		w.put("shop", onWeb+"\nrules: [{backendRefs: [{name: v1, namespace: market, port: 80}]}]")
		g := &gatewayv1.ReferenceGrant{}
		if err := yaml.UnmarshalStrict([]byte(tt.spec), &g.Spec); err != nil {
			t.Fatal(err)
		}
		at := source.Ref{Namespace: tt.ns, Name: "g"}
		for _, there := range []bool{false, true, false} {
			if there {
				w.grants.Set(at, g)
			} else {
				w.grants.Delete(at)
			}
			w.g.Settle()
			_, rules := w.says(w.tables.HTTP, "shop")
			if got := strings.Contains(rules[0], "1*market/v1.market.svc:80"); got != (there && tt.want) {
				t.Errorf("%s: with the grant %v, %s", name, there, rules[0])
			}
		}
	}
}

// TestOnlyARuleThatChangesIsSent: the other rules of its route stay the same
// resources.
func TestOnlyARuleThatChangesIsSent(t *testing.T) {
	w := newWorld(t)
	const spec = onWeb + "\nrules: [{backendRefs: [{name: v1, port: 80}]}, {backendRefs: [{name: v2, port: %d}]}]"
	var changed []string
	w.tables.Resources[0].OnChange(func(cs []collection.Change[string, *xds.Resource]) {
		for _, c := range cs {
			changed = append(changed, c.Key)
		}
	})
	w.put("shop", fmt.Sprintf(spec, 80))
	changed = nil
	w.put("shop", fmt.Sprintf(spec, 81))
	if got := strings.Join(changed, " "); got != "shop/wp/HTTPRoute/shop/r/1" {
		t.Errorf("sent: %s", got)
	}
}

// TestStatusesAreWithinTheAPI: no message is longer than Kubernetes takes.
func TestStatusesAreWithinTheAPI(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 1000)
	var rules []string
	for range 16 {
		rules = append(rules, fmt.Sprintf("{matches: [{path: {type: RegularExpression, value: '(%s'}}], backendRefs: [{name: %s, port: 80}]}", long, long))
	}
	w.put("shop", onWeb+"\nrules: ["+strings.Join(rules, ", ")+"]")
	res, _ := w.tables.HTTP.Get(source.Ref{Namespace: "shop", Name: "r"})
	for _, c := range res.Parents[0].Conditions {
		if len(c.Message) > 32768 || c.Type == status.Accepted && !strings.Contains(c.Message, "and 11 more") {
			t.Errorf("%s: %d bytes", c.Type, len(c.Message))
		}
	}
}
