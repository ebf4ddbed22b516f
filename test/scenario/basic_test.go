package scenario

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// What rig.Shop consists of, by short names.
const shop = rig.Shop

var near, far, web, stranger = rig.Near, rig.Far, rig.Web, rig.Stranger

// TestCaptured: programs on one node and on two reach each other through the
// mesh, by pod and by service, and the server sees who really called.
func TestCaptured(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		for _, to := range []netip.AddrPort{pod, vip} {
			for name, from := range map[string]lab.Where{"near": near, "far": far} {
				if a := w.MustGet(from, to); a.Name != "web" || a.Caller != w.Pod("shop", name, v6) {
					t.Errorf("from %s to %s: %s answered and saw %s", name, to, a.Name, a.Caller)
				}
			}
			// A client outside the mesh is let in, in plaintext.
			w.MustGet(stranger, to)
		}
		w.Eventually("both ends logged an identity", func() error {
			return w.ExpectLines("node1", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/far"`, `dst.hbone_addr=`+pod.String())
		})
	})
}
