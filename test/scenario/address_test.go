package scenario

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

const strictShop = `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`

// external returns a ServiceEntry of the shop; spec is the inside of a YAML map.
func external(name, spec string) string {
	return fmt.Sprintf("\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s, namespace: shop}\nspec: {location: MESH_INTERNAL, resolution: STATIC, %s}\n", name, spec)
}

// answersOnly waits until requests are answered by these pods and no others.
func answersOnly(w *rig.World, to netip.AddrPort, want ...string) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("%v answer at %s", want, to), func() error {
		if _, err := w.Get(rig.Far, to); err != nil {
			return err // not there yet
		}
		if got := slices.Sorted(maps.Keys(w.Answers(rig.Far, to, 20))); !slices.Equal(got, want) {
			return fmt.Errorf("answered by %v", got)
		}
		return nil
	})
}

func at(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

// TestEntriesOfOneHost has an entry per port of one host.
func TestEntriesOfOneHost(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: rig.Shop + rig.ServerObject("shop", "one", "node1", "app: one") + rig.ServerObject("shop", "two", "node2", "app: two")})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		one, two := w.Pod("shop", "one", v6), w.Pod("shop", "two", v6)
		vip := map[bool]string{false: "240.9.0.1", true: "2001:db8:9::1"}[v6]
		db := func(name, host string, port int, endpoint netip.Addr) string {
			return external(name, fmt.Sprintf("hosts: [%s], addresses: [%q], ports: [{number: %d, targetPort: 8080, name: http}], endpoints: [{address: %q}]", host, vip, port, endpoint))
		}
		w.MustApply(db("db-a", "db.test", 8080, one) + db("db-b", "db.test", 9000, two))
		answersOnly(w, at(vip, 8080), "one")
		answersOnly(w, at(vip, 9000), "two")
		w.MustApply(db("db-a", "renamed.test", 8081, one))
		answersOnly(w, at(vip, 9000), "two")
		w.MustApply(db("db-a", "db.test", 8080, one))
		answersOnly(w, at(vip, 8080), "one")
		w.MustDelete("ServiceEntry", "shop", "db-b")
		answersOnly(w, at(vip, 8080), "one")
	})
}

// TestEntryPortByName has entries whose port has the name of a container's.
func TestEntryPortByName(t *testing.T) {
	t.Parallel()
	named := func(name, port, containerPort string) string {
		return rig.ServerObject("shop", name, "node1", "app: named") + "    ports: [{name: " + port + ", containerPort: " + containerPort + "}]\n"
	}
	w := rig.Start(t, lab.Config{YAML: rig.Shop + named("one", "http", "8080") +
		external("alias", `hosts: [alias.test], addresses: [240.9.0.2], ports: [{number: 8002, name: http, protocol: HTTP}], workloadSelector: {labels: {app: named}}`)})
	answersOnly(w, at("240.9.0.2", 8002), "one")
}

// TestSlicesDecide has a Service without a selector, whose slices say which
// endpoints are ready: an operator fails over by them.
func TestSlicesDecide(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: rig.Shop + rig.ServerObject("shop", "p1", "node1", "app: p1") + rig.ServerObject("shop", "p2", "node2", "app: p2") + `
---
apiVersion: v1
kind: Service
metadata: {name: leader, namespace: shop}
spec: {ports: [{name: pg, port: 5432}, {name: admin, port: 81}]}
`})
	endpoint := func(name string, ready bool) string {
		return fmt.Sprintf("{addresses: [%q], conditions: {ready: %v}, targetRef: {kind: Pod, name: %s, namespace: shop}}", w.Pod("shop", name, false), ready, name)
	}
	slice := func(name, port string, endpoints ...string) string {
		return fmt.Sprintf(`
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, namespace: shop, labels: {kubernetes.io/service-name: leader}}
addressType: IPv4
ports: [{name: %s, port: 8080}]
endpoints: [%s]
`, name, port, strings.Join(endpoints, ", "))
	}
	vip := w.Service("shop", "leader", false)
	pg, admin := netip.AddrPortFrom(vip, 5432), netip.AddrPortFrom(vip, 81)
	w.MustApply(slice("leader-1", "pg", endpoint("p1", true), endpoint("p2", false)))
	answersOnly(w, pg, "p1")
	w.MustApply(slice("leader-1", "pg", endpoint("p1", false), endpoint("p2", true)))
	answersOnly(w, pg, "p2")
	w.MustApply(slice("leader-2", "admin", endpoint("p1", true)))
	answersOnly(w, admin, "p1")
	answersOnly(w, pg, "p2")
	w.MustApply(slice("leader-1", "pg", endpoint("p1", true), endpoint("p2", true)))
	answersOnly(w, pg, "p1", "p2")
}

// TestEndpointsThatArePods has objects that name an enrolled pod by its
// address: under STRICT they answer only through the pod's tunnel.
func TestEndpointsThatArePods(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: rig.Shop + strictShop + `
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
`})
	pod := w.Pod("shop", "web", false)
	w.MustApply(external("legacy", fmt.Sprintf(`hosts: [legacy.test], addresses: [240.9.0.3], ports: [{number: 8080, name: http}], endpoints: [{address: %q}]`, pod)) +
		external("machines", `hosts: [machines.test], addresses: [240.9.0.4], ports: [{number: 8080, name: http}], workloadSelector: {labels: {app: web, machine: "yes"}}`) + fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec: {address: %[1]q, labels: {app: web, machine: "yes"}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bare-1, namespace: shop, labels: {kubernetes.io/service-name: bare}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [%[1]q], conditions: {ready: true}}]
`, pod))
	for _, to := range []netip.AddrPort{
		at("240.9.0.3", 8080), at("240.9.0.4", 8080), netip.AddrPortFrom(w.Service("shop", "bare", false), 80),
		// The entry has the labels that the Service selects the pod by.
		netip.AddrPortFrom(w.Service("shop", "web", false), 80),
		netip.AddrPortFrom(pod, 8080),
	} {
		w.BecomesAnswered(rig.Far, to)
		if got := w.Answers(rig.Far, to, 20); got["web"] != 20 {
			t.Errorf("at %s: %v of 20", to, got)
		}
	}
	w.Logs("node1", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/far"`, `dst.hbone_addr=`+pod.String())
}

// TestRangeAroundPods has a range of the client's own namespace that also
// contains the addresses of pods, which stay in the mesh.
func TestRangeAroundPods(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: rig.Shop + strictShop + `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: corp, namespace: shop}
spec: {hosts: [corp.test], addresses: [10.0.0.0/8, "fc00::/7"], resolution: NONE, location: MESH_EXTERNAL, ports: [{number: 8080, name: http}, {number: 80, name: web}]}
`})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		w.MustGet(rig.Far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
		w.MustGet(rig.Near, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
		w.MustGet(rig.Far, netip.AddrPortFrom(w.Service("shop", "web", v6), 80))
	})
}
