package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
)

const mesh = `
workloads:
- {uid: c//Pod/shop/client, name: client, namespace: shop, serviceAccount: client, node: n1, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE}
- {uid: c//Pod/shop/static, name: static, namespace: shop, serviceAccount: _none, node: n1, workloadIps: [10.0.0.11], protocol: HBONE}
- {uid: c//Pod/shop/starting, name: starting, namespace: shop, serviceAccount: client, node: n1, workloadIps: [10.0.0.12], protocol: HBONE}
- {uid: c//Pod/shop/outside, name: outside, namespace: shop, node: n1, workloadIps: [10.0.0.13], protocol: TCP}
- {uid: c//Pod/shop/lost, name: lost, namespace: shop, serviceAccount: client, node: n1, workloadIps: [10.0.0.15], protocol: HBONE}
- {uid: c//Pod/shop/elsewhere, name: elsewhere, namespace: shop, node: n2, workloadIps: [10.0.0.14], protocol: TCP}
- {uid: c//Pod/shop/web1, name: web1, namespace: shop, serviceAccount: web, node: n1, workloadIps: [10.0.0.2, "fd00::2"], protocol: HBONE,
   services: {shop/web.shop.svc.cluster.local: {80: 8080}}, authorizationPolicies: [shop/web, shop/missing]}
- {uid: c//Pod/shop/web2, name: web2, namespace: shop, serviceAccount: web, node: n2, workloadIps: [10.0.0.3], protocol: HBONE, status: Unhealthy, services: {shop/web.shop.svc.cluster.local: {80: 8080}}}
- {uid: c//Pod/shop/db, name: db, namespace: shop, serviceAccount: db, node: n1, workloadIps: [10.0.0.4], protocol: HBONE,
   services: {shop/db.shop.svc.cluster.local: {5432: 5432, 80: 80}}, authorizationPolicies: [istio-system/istio_converted_static_strict, shop/ambit_waypoint_1, shop/db]}
- {uid: c//Pod/shop/wp, name: wp, namespace: shop, serviceAccount: wp, node: n1, workloadIps: [10.0.0.9], protocol: HBONE, nativeTunnel: true, services: {shop/waypoint.shop.svc.cluster.local: {15008: 15008}}}
- {uid: c//Pod/shop/strict, name: strict, namespace: shop, serviceAccount: client, node: n1, workloadIps: [10.0.0.16], protocol: HBONE, outboundTrafficPolicy: REGISTRY_ONLY}
- {uid: c//Pod/shop/watched, name: watched, namespace: shop, serviceAccount: client, node: n1, workloadIps: [10.0.0.17], protocol: HBONE, outboundTrafficPolicy: DRY_RUN}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.96.0.1, "/fd96::1"], ports: {80: 8080}}
- {name: db, namespace: shop, hostname: db.shop.svc.cluster.local, vips: [/10.96.0.2], ports: {5432: 5432, 80: 80}, waypoint: {destination: {namespace: shop, hostname: waypoint.shop.svc.cluster.local}, hboneMtlsPort: 15008}}
- {name: waypoint, namespace: shop, hostname: waypoint.shop.svc.cluster.local, vips: [/10.96.0.9], ports: {15008: 15008}}
- {name: empty, namespace: shop, hostname: empty.shop.svc.cluster.local, vips: [/10.96.0.3], ports: {80: 80}}
- {name: bare, namespace: shop, hostname: bare.shop.svc.cluster.local, ports: {80: 80}}
- {name: lost, namespace: shop, hostname: lost.shop.svc.cluster.local, vips: [/10.96.0.4], ports: {80: 80}, waypoint: {destination: {namespace: shop, hostname: shop.gone.NotFound.waypoint.invalid}, hboneMtlsPort: 15008}}
policies:
- {name: db, namespace: shop, scope: WorkloadSelector, action: Allow, rules: [[[{principals: [{Exact: x}]}]], [[{principals: [{Exact: cluster.local/ns/shop/sa/wp}]}]]]}
- {name: ambit_waypoint_1, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [80, 5432], notPrincipals: [{Exact: cluster.local/ns/shop/sa/wp}]}]]]}
- {name: istio_converted_static_strict, namespace: istio-system, scope: WorkloadSelector, action: Deny, rules: [[[{notPrincipals: [{Presence: {}}]}]]]}
- {name: web, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/bad}]}]]]}
`

func newWorld(t *testing.T) *World {
	t.Helper()
	c, err := localxds.Parse([]byte(mesh))
	if err != nil {
		t.Fatal(err)
	}
	d := workload.NewDirectory(workload.Options{TrustDomain: "cluster.local"})
	if _, bad := d.Apply(c.Addresses, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	s := rbac.NewStore()
	var set []rbac.Update
	for _, p := range c.Policies {
		set = append(set, rbac.Update{Name: p.GetNamespace() + "/" + p.GetName(), Policy: p})
	}
	if bad := s.Apply(set, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	return &World{
		Snapshot: d.Snapshot(), Policies: s.Set(), Node: "n1", Domain: "cluster.local", Exempt: egress.Servers("192.0.2.9:15012"), LocalhostTunnel: true,
		Load: func(string) int { return 0 },
		Served: func(namespace, name string) (bootstrap.Workload, bool, bool) {
			w := bootstrap.Workload{Name: name, Namespace: namespace, ServiceAccount: name}
			switch name {
			case "client", "db", "unsent":
			case "web1":
				w.ServiceAccount = "web"
			case "static":
				w.ServiceAccount = "_none"
			case "strict", "watched":
				w.ServiceAccount = "client"
			case "starting":
				w.ServiceAccount = "client"
				return w, false, true
			default:
				return w, false, false
			}
			return w, true, true
		},
	}
}

// show renders a verdict in one line: reason, steps that decide, what is next.
func show(v *verdict.Verdict) string {
	s := v.Reason
	for _, x := range v.Steps {
		if x.Decides {
			s += " | " + strings.TrimSpace(fmt.Sprintf("%s %s %s", x.Step, x.Object, x.Rule))
		}
	}
	if n := v.Next; n != nil {
		s += fmt.Sprintf(" > %s %s/%s at %s tunnel=%v", n.To, n.Namespace, n.Name, n.Authority, n.Tunnel)
	}
	return s
}

func TestOutbound(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ pod, to, want string }{
		{"client", "web", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "WEB.shop:80", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "svc/web", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "service/web.shop.svc.cluster.local.", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "10.96.0.1", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "[fd96::1]:80", "OK > pod shop/web1 at [fd00::2]:8080 tunnel=true"},
		{"client", "pod/web1:8080", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "pod/web1.shop:8080", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "web1.shop:8080", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"client", "pod/outside:80", "OK > pod shop/outside at 10.0.0.13:80 tunnel=false"},
		{"client", "db:5432", "OK > waypoint shop/wp at 10.96.0.2:5432 tunnel=true"},
		{"client", "192.0.2.1:443", "OK > outside / at 192.0.2.1:443 tunnel=false"},
		{"client", "web:81", "NO_HEALTHY_UPSTREAM | endpoint Pod shop/client"},
		{"client", "empty", "NO_HEALTHY_UPSTREAM | endpoint Pod shop/client"},
		{"client", "lost", "WAYPOINT_UNAVAILABLE | endpoint Pod shop/client"},
		{"client", "127.0.0.1:15001", "RECURSIVE_CALL | endpoint Pod shop/client"},
		{"static", "web", "CERTIFICATE_UNAVAILABLE | tunnel"},
		{"starting", "web", "CONNECT_FAILURE | capture Pod shop/starting"},
		{"unsent", "web", "UNKNOWN_SOURCE | capture Pod shop/unsent"},
		{"lost", "web", "CONNECT_FAILURE | capture Pod shop/lost"},
		{"strict", "web", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=true"},
		{"strict", "192.0.2.1:443", "NOT_IN_REGISTRY | policy Pod shop/strict REGISTRY_ONLY"},
		{"strict", "web:81", "NOT_IN_REGISTRY | policy Pod shop/strict REGISTRY_ONLY"},
		{"strict", "192.0.2.9:15012", "OK > outside / at 192.0.2.9:15012 tunnel=false"}, // the control plane
		{"watched", "192.0.2.1:443", "OK > outside / at 192.0.2.1:443 tunnel=false"},
		{"outside", "web", "OK > pod shop/web1 at 10.0.0.2:8080 tunnel=false"},
		{"outside", "db:80", "OK > pod shop/db at 10.0.0.4:80 tunnel=false"},
		{"outside", "empty", "NO_HEALTHY_UPSTREAM | endpoint Service shop/empty"},
		{"outside", "192.0.2.1:443", "OK > outside / at 192.0.2.1:443 tunnel=false"},
	} {
		v, err := Outbound(w, &verdict.Question{Direction: verdict.Outbound, Pod: "shop/" + tt.pod, To: tt.to})
		if err != nil {
			t.Errorf("%s to %s: %v", tt.pod, tt.to, err)
			continue
		}
		if got := show(v); got != tt.want {
			t.Errorf("%s to %s:\ngot  %s\nwant %s", tt.pod, tt.to, got, tt.want)
		}
	}
}

func TestOutboundErrors(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		pod, to string
		err     error
		says    string
	}{
		{"shop/client", "nothing", verdict.ErrUnknown, "no service or pod"},
		{"shop/client", "pod/nothing:80", verdict.ErrUnknown, "no service or pod"},
		{"shop/client", "svc/web1:80", verdict.ErrUnknown, "no service or pod"},
		{"shop/client", "bare", verdict.ErrUnknown, "has no address"},
		{"shop/client", "db", verdict.ErrQuestion, "the service has 80, 5432"},
		{"shop/client", "192.0.2.1", verdict.ErrQuestion, "has no port"},
		{"shop/client", "pod/web1", verdict.ErrQuestion, "has no port"},
		{"shop/client", "web:0", verdict.ErrQuestion, "is not a port"},
		{"shop/client", "web:99999", verdict.ErrQuestion, "is not a port"},
		{"shop/client", ":80", verdict.ErrQuestion, "has no host"},
		{"shop/client", "", verdict.ErrQuestion, "has no host"},
		{"shop/client", "job/x:80", verdict.ErrQuestion, "there are pod/ and svc/"},
		{"shop/nobody", "web", verdict.ErrUnknown, "no pod shop/nobody"},
		{"shop/wp", "web", verdict.ErrQuestion, "is a proxy"},
		{"shop/elsewhere", "web", verdict.ErrQuestion, "runs on node n2"},
		{"client", "web", verdict.ErrQuestion, "is not NAMESPACE/NAME"},
	} {
		v, err := Outbound(w, &verdict.Question{Direction: verdict.Outbound, Pod: tt.pod, To: tt.to})
		if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s to %q: %+v, error %v", tt.pod, tt.to, v, err)
		}
	}
}

func TestInbound(t *testing.T) {
	w := newWorld(t)
	id := func(account string) identity.Identity {
		return identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: account}
	}
	for _, tt := range []struct {
		pod, authority string
		as             identity.Identity
		tunnel         bool
		want           string
	}{
		{"db", "10.0.0.4:80", id("wp"), true, "OK | policy AuthorizationPolicy shop/db rule 1 > program shop/db at 10.0.0.4:80 tunnel=false"},
		{"db", "10.0.0.4:80", id("client"), true, "WAYPOINT_REQUIRED | policy Gateway shop/waypoint"},
		{"db", "10.0.0.4:80", identity.Identity{}, false, "POLICY_DENIED | policy PeerAuthentication (mode STRICT)"},
		{"db", "10.0.0.4:80", id("wp"), false, "POLICY_DENIED | policy PeerAuthentication (mode STRICT)"}, // plaintext proves no identity
		{"db", "10.0.0.4:81", id("client"), true, "NOT_ALLOWED | policy"},
		{"db", "10.0.0.5:80", id("wp"), true, "ADDRESS_MISMATCH | tunnel"},
		{"db", "nonsense", id("wp"), true, "BAD_REQUEST | tunnel"},
		{"db", "10.0.0.4:15008", id("wp"), true, "RECURSIVE_CALL | tunnel"},
		{"db", "10.0.0.4:15001", id("wp"), false, "RECURSIVE_CALL | tunnel"},
		{"web1", "10.0.0.2:8080", id("bad"), true, "POLICY_DENIED | policy AuthorizationPolicy shop/web rule 0"},
		{"web1", "10.0.0.2:8080", id("client"), true, "POLICY_UNAVAILABLE | policy AuthorizationPolicy shop/missing"},
		{"client", "10.0.0.1:80", id("web"), true, "OK | policy > program shop/client at 10.0.0.1:80 tunnel=false"},
		{"outside", "10.0.0.13:80", identity.Identity{}, false, "OK | capture Pod shop/outside > program shop/outside at 10.0.0.13:80 tunnel=false"},
		{"outside", "10.0.0.13:80", id("client"), true, "CONNECT_FAILURE | capture Pod shop/outside"},
		{"wp", "10.96.0.2:80", id("client"), true, "OK | capture Pod shop/wp > program shop/wp at 10.96.0.2:80 tunnel=false"},
		{"starting", "10.0.0.12:80", id("web"), true, "CONNECT_FAILURE | capture Pod shop/starting"},
		{"unsent", "10.0.0.99:80", id("web"), true, "UNKNOWN_SOURCE | capture Pod shop/unsent"},
	} {
		v, err := Inbound(w, &verdict.Question{
			Direction: verdict.Inbound, Pod: "shop/" + tt.pod, Authority: tt.authority, Tunnel: tt.tunnel, Identity: tt.as, Source: netip.MustParseAddr("10.0.0.77"),
		})
		if err != nil {
			t.Errorf("%s %s: %v", tt.pod, tt.authority, err)
			continue
		}
		if got := show(v); got != tt.want {
			t.Errorf("%s %s as %s, tunnel %v:\ngot  %s\nwant %s\n%+v", tt.pod, tt.authority, tt.as, tt.tunnel, got, tt.want, v)
		}
	}
	for _, q := range []verdict.Question{{}, {Pod: "shop/db", Authority: "x"}, {Pod: "shop/nobody"}} {
		if v, err := Inbound(w, &q); err == nil {
			t.Errorf("%+v: %+v", q, v)
		}
	}
}

// TestUnknown: in a directory that is filled on demand, a name is requested as DNS tries it.
func TestUnknown(t *testing.T) {
	w := newWorld(t)
	ask := func(to string) []string {
		return Unknown(w, &verdict.Question{Direction: verdict.Outbound, Pod: "shop/client", To: to})
	}
	if got := ask("web"); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if got := ask("10.9.9.9:80"); !slices.Equal(got, []string{"/10.9.9.9"}) {
		t.Errorf("%v", got)
	}
	want := []string{"shop/other.shop.svc.cluster.local", "shop/other.svc.cluster.local", "shop/other.cluster.local", "shop/other"}
	if got := ask("other:80"); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := ask("svc/other.far"); !slices.Contains(got, "far/other.far.svc.cluster.local") {
		t.Errorf("%v", got)
	}
	if got := ask("pod/other:80"); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
