package registry

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// owners is a namespace with a Service, a pod and a pod of the node's network.
const owners = `
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.16, clusterIPs: [10.96.0.16, "fd96::16"], ipFamilies: [IPv4, IPv6], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
status: {loadBalancer: {ingress: [{ip: 198.51.100.1}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: node1, serviceAccountName: web}
status: {podIP: 10.1.0.5, podIPs: [{ip: 10.1.0.5}, {ip: "fd01::5"}], phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: kube-system}
spec: {nodeName: node1, hostNetwork: true}
status: {podIP: 192.0.2.11, podIPs: [{ip: 192.0.2.11}], phase: Running}
`

func claim(namespace, name, created, spec string) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: %s, creationTimestamp: %q}
spec: {ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.9.9.9}], %s}
`, name, namespace, created, spec)
}

const (
	early = "2026-01-01T00:00:00Z"
	late  = "2026-02-01T00:00:00Z"
)

// addressesOf are those that proxies receive for a service.
func addressesOf(t *testing.T, rec *recorder, name string) []string {
	t.Helper()
	out := []string{}
	for _, a := range rec.service(t, name).Addresses {
		addr, _ := netip.AddrFromSlice(a.Address)
		if a.Length != nil {
			out = append(out, netip.PrefixFrom(addr, int(*a.Length)).String())
			continue
		}
		out = append(out, addr.String())
	}
	return out
}

func claimsOf(r *Registry, namespace, name string) string {
	for _, o := range r.Status() {
		if o.Kind != source.ServiceEntry.Name || o.Namespace != namespace || o.Name != name {
			continue
		}
		for _, c := range o.Conditions {
			if c.Type == status.ClaimsAccepted {
				return c.Reason + ": " + c.Message
			}
		}
	}
	return ""
}

// A claim on what another namespace has is not sent, and its status says so.
func TestClaimsOnWhatOthersHave(t *testing.T) {
	for _, tc := range []struct {
		name, namespace, spec string
		want                  []string
		says                  string
	}{
		{"a ClusterIP", "aaa", `addresses: [10.96.0.16, 240.0.0.1]`, []string{"240.0.0.1"}, "OwnedByOthers: address 10.96.0.16 belongs to Service shop/web"},
		{"the second family", "zzz", `addresses: ["fd96::16"]`, []string{}, "address fd96::16 belongs to Service shop/web"},
		{"a range of one", "zzz", `addresses: [10.96.0.16/32]`, []string{}, "address 10.96.0.16 belongs to Service shop/web"},
		{"IPv4 as IPv6", "zzz", `addresses: ["::ffff:10.96.0.16"]`, []string{}, "address 10.96.0.16 belongs to Service shop/web"},
		{"a load balancer", "zzz", `addresses: [198.51.100.1]`, []string{}, "address 198.51.100.1 belongs to Service shop/web"},
		{"a pod", "zzz", `addresses: [10.1.0.5, "fd01::5"]`, []string{}, "address 10.1.0.5 belongs to Pod shop/web, address fd01::5 belongs to Pod shop/web"},
		{"a node", "zzz", `addresses: [192.0.2.11]`, []string{}, "address 192.0.2.11 belongs to Pod kube-system/proxy"},
		{"one's own Service", "shop", `addresses: [10.96.0.16]`, []string{"10.96.0.16"}, ""},
		{"for one's own clients", "aaa", `addresses: [10.96.0.16], exportTo: ["."]`, []string{"10.96.0.16"}, ""},
		{"nobody's", "aaa", `addresses: [240.0.0.1]`, []string{"240.0.0.1"}, ""},
		{"a range", "aaa", `addresses: [0.0.0.0/0]`, []string{"0.0.0.0/0"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, rec := load(t, owners+claim(tc.namespace, "e", early, "hosts: [made.up], "+tc.spec))
			if got := addressesOf(t, rec, tc.namespace+"/made.up"); !slices.Equal(got, tc.want) {
				t.Errorf("sent with %v, want %v", got, tc.want)
			}
			if got := claimsOf(r, tc.namespace, "e"); !strings.Contains(got, tc.says) || tc.says == "" && got != "" {
				t.Errorf("status %q, want %q", got, tc.says)
			}
		})
	}
}

// A claim goes and comes back with the owner.
func TestClaimFollowsTheOwner(t *testing.T) {
	r, rec := load(t, owners+claim("zzz", "e", early, "hosts: [made.up], addresses: [10.1.0.5]"))
	none := []string{}
	if got := addressesOf(t, rec, "zzz/made.up"); !slices.Equal(got, none) {
		t.Fatalf("sent with %v", got)
	}
	r.Apply([]source.Event{{Key: source.Key{Kind: source.Pod.Kind, Namespace: "shop", Name: "web"}}})
	if got := addressesOf(t, rec, "zzz/made.up"); !slices.Equal(got, []string{"10.1.0.5"}) {
		t.Fatalf("without the pod, sent with %v", got)
	}
	r.Apply(events(t, owners))
	if got := addressesOf(t, rec, "zzz/made.up"); !slices.Equal(got, none) {
		t.Fatalf("with the pod again, sent with %v", got)
	}
	// What else changes in the pod costs the entry nothing.
	updates := rec.updates
	r.Apply(events(t, strings.Replace(owners, `status: "True"`, `status: "False"`, 1)))
	if len(rec.set(wellknown.TypeAddress)) != 1 || rec.updates != updates+1 {
		t.Errorf("a pod that is no longer ready changes %d resources in %d updates", len(rec.set(wellknown.TypeAddress)), rec.updates-updates)
	}
}

// Of two entries the older one has the address for all other namespaces; each
// keeps it for its own.
func TestTheOlderClaim(t *testing.T) {
	r, rec := load(t, owners+
		claim("aaa", "e", late, "hosts: [a.test], addresses: [240.0.0.1]")+
		claim("mmm", "e", early, "hosts: [m.test], addresses: [240.0.0.1, 240.0.0.2]")+
		claim("zzz", "e", "2025-01-01T00:00:00Z", "hosts: [z.test], addresses: [240.0.0.2]"))
	for name, want := range map[string]bool{"aaa/a.test": false, "mmm/m.test": false, "zzz/z.test": true} {
		if got := rec.service(t, name).Canonical; got != want {
			t.Errorf("%s is canonical: %v", name, got)
		}
	}
	// mmm is older than aaa, but not canonical because of zzz: a proxy could not
	// tell the two apart.
	if got := addressesOf(t, rec, "aaa/a.test"); len(got) != 0 {
		t.Errorf("a.test is sent with %v", got)
	}
	if got := addressesOf(t, rec, "mmm/m.test"); !slices.Equal(got, []string{"240.0.0.1", "240.0.0.2"}) {
		t.Errorf("m.test is sent with %v", got)
	}
	if got := claimsOf(r, "mmm", "e"); !strings.Contains(got, "ClaimedEarlier: 240.0.0.2 was claimed first by ServiceEntry zzz/e, and only clients of namespace mmm") {
		t.Errorf("status %q", got)
	}
}

func TestClashes(t *testing.T) {
	r, _ := load(t, owners)
	for _, tc := range []struct {
		namespace, at string
		want          []string
		more          int
	}{
		{"aaa", "10.96.0.16/32", []string{"Service shop/web"}, 0},
		{"shop", "10.96.0.16/32", nil, 0},
		{"aaa", "::ffff:10.96.0.16/128", []string{"Service shop/web"}, 0},
		{"aaa", "240.0.0.1/32", nil, 0},
		{"aaa", "0.0.0.0/0", []string{"Pod kube-system/proxy", "Pod shop/web", "Service shop/web"}, 0},
		{"aaa", "fd00::/8", []string{"Pod shop/web", "Service shop/web"}, 0},
		{"shop", "0.0.0.0/0", []string{"Pod kube-system/proxy"}, 0},
		{"shop", "10.0.0.0/8", []string{}, 0},
	} {
		got, more := r.Clashes(tc.namespace, netip.MustParsePrefix(tc.at))
		if !slices.Equal(got, tc.want) || more != tc.more {
			t.Errorf("%s for %s: %v and %d", tc.at, tc.namespace, got, more)
		}
	}
}
