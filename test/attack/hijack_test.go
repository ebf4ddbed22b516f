package attack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// hijack returns a ServiceEntry that leads what it claims to a server of its
// own namespace. Rest is the inside of a YAML map.
func hijack(namespace, name, rest string) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, targetPort: 8080, name: http, protocol: HTTP}, {number: 8080, name: http-direct, protocol: HTTP}]
  workloadSelector: {labels: {app: evil}}
  %[3]s
`, namespace, name, rest)
}

// The namespaces of the attackers: one sorts before the shop, one after it.
var attackers = []string{"aaa", "zzz"}

// TestHijack tries to take over addresses of other tenants by ServiceEntries
// and WorkloadEntries. The attacker may write those in its own namespace.
func TestHijack(t *testing.T) {
	t.Parallel()
	yaml := rig.NamespaceObject("front", true) + rig.PodObject("front", "user", "node2", "app: user")
	for i, ns := range attackers {
		yaml += rig.NamespaceObject(ns, true) + rig.ServerObject(ns, "evil", fmt.Sprint("node", i+1), "app: evil")
	}
	w := start(t, yaml)
	user := lab.InPod("front", "user")
	clients := []lab.Where{user, rig.Near, rig.Far, thief1}
	web := func(w *rig.World, v6 bool) []netip.AddrPort {
		return []netip.AddrPort{
			netip.AddrPortFrom(w.Service("shop", "web", v6), 80),
			netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080),
		}
	}
	safe := func(t *testing.T) {
		t.Helper()
		rig.Families(t, func(t *testing.T, v6 bool) {
			w := w.For(t)
			for _, to := range web(w, v6) {
				for _, from := range clients {
					for range 3 {
						if a := w.MustGet(from, to); a.Name != "web" {
							t.Fatalf("%s answers %s at %s", a.Name, from, to)
						}
					}
				}
			}
		})
	}
	safe(t)
	exact := ""
	for _, v6 := range []bool{false, true} {
		for _, to := range web(w, v6) {
			exact += fmt.Sprintf("%q, ", to.Addr())
		}
	}
	for _, tc := range []struct{ name, rest string }{
		{"exact addresses", "hosts: [made.up.NS], addresses: [" + exact + "]"},
		{"the form of a Kubernetes Service", "hosts: [web.NS.svc.cluster.local], addresses: [" + exact + "]"},
		{"everything", `hosts: [every.thing.NS], addresses: [0.0.0.0/0, "::/0"]`},
		{"halves of everything", `hosts: [halves.NS], addresses: [0.0.0.0/1, 128.0.0.0/1, "::/1", "8000::/1"]`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.For(t)
			name := strings.ReplaceAll(strings.ToLower(tc.name), " ", "-")
			if strings.Contains(tc.rest, "web.NS") {
				name = "web"
			}
			spec := strings.Replace(tc.rest, "{", "", 1)
			for _, ns := range attackers {
				body := strings.ReplaceAll(spec, "NS", ns)
				hosts, addresses, _ := strings.Cut(body, ", addresses: ")
				w.MustApply(hijack(ns, name, hosts+"\n  addresses: "+addresses))
			}
			safe(t)
			for _, ns := range attackers {
				w.MustDelete("ServiceEntry", ns, name)
			}
		})
	}
	t.Run("WorkloadEntries", func(t *testing.T) {
		w := w.For(t)
		for _, ns := range attackers {
			for i, a := range strings.Split(strings.Trim(exact, ", "), ", ") {
				w.MustApply(fmt.Sprintf("\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w%d, namespace: %s}\nspec: {address: %s, serviceAccount: evil, labels: {app: evil}}\n", i, ns, a))
			}
		}
		safe(t)
	})
}

// TestHijackForOneself takes an address for the clients of one's own namespace,
// which is allowed and changes nothing for others. The claim of everybody's
// clients is not sent, and its status says whose the address is.
func TestHijackForOneself(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	vip := w.Service("shop", "web", false)
	to := netip.AddrPortFrom(vip, 80)
	claim := func(export string) string {
		return strings.ReplaceAll(hijack("market", "mine", fmt.Sprintf("hosts: [mine.test]\n  addresses: [%q]%s", vip, export)), "app: evil", "app: stall")
	}
	w.MustApply(claim(""))
	out, err := w.Ambit("status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "address "+vip.String()+" belongs to Service shop/web") {
		t.Errorf("the status does not name the owner of %s", vip)
	}
	if a := w.MustGet(thief2, to); a.Name != "web" {
		t.Fatalf("%s answers at %s", a.Name, to)
	}
	w.MustApply(claim("\n  exportTo: [\".\"]"))
	w.Eventually("the claim holds at home", func() error {
		if a, err := w.Get(thief2, to); err != nil || a.Name != "stall" {
			return fmt.Errorf("%q answers: %w", a.Name, err)
		}
		return nil
	})
	for range 5 {
		if a := w.MustGet(rig.Far, to); a.Name != "web" {
			t.Fatalf("%s answers the shop at %s", a.Name, to)
		}
	}
}
