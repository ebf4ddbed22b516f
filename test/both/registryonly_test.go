package both

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/test/world"
)

// TestRegistryOnly: the label of a namespace decides what its pods reach: the mesh, and outside of it what
// an entry lists, and nothing else. DRY_RUN reports and refuses nothing.
func TestRegistryOnly(t *testing.T) {
	all := startShop(t)
	all.Families(func(w *world.World, v6 bool) {
		// No host has this address: what is not refused fails later.
		outside := netip.MustParseAddrPort(map[bool]string{false: "192.0.2.7:80", true: "[2001:db8:1::7]:80"}[v6])
		other := netip.AddrPortFrom(outside.Addr(), 81)
		count := func(decision string) (sum float64) {
			for _, s := range w.ProxySamples(far, "ambit_egress_connections_total") {
				if s.Labels["decision"] == decision {
					sum += s.Value
				}
			}
			return sum
		}
		// counted waits until a connection is counted under a decision.
		counted := func(decision string, to netip.AddrPort) {
			before := count(decision)
			w.Eventually(fmt.Sprintf("a connection to %s is %s", to, decision), func() error {
				if r := w.Request(far, to, "/"); r.Status != 0 {
					return fmt.Errorf("%+v", r)
				}
				if n := count(decision); n <= before {
					return fmt.Errorf("%v are counted, as before", n)
				}
				return nil
			})
		}
		const label = "ambit.mesh/outbound-traffic-policy: "
		w.Label("shop", label+"REGISTRY_ONLY")
		counted("refused", outside)
		w.ProxyLogs(far, `src.workload="far"`, "dst.addr="+outside.String(), `reason="NOT_IN_REGISTRY"`)
		w.Says([]string{"NOT_IN_REGISTRY"}, "why", "far.$shop", outside.String())
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(w.Pod(web, v6), 8080), w.Service("shop", "web", 80, v6), netip.AddrPortFrom(w.Pod(gnome, v6), 8080)} {
			if lines := w.ProxyLines(far, "dst.addr="+to.String(), `reason="NOT_IN_REGISTRY"`); len(lines) > 0 {
				w.Errorf("%s is in a registry: %q", to, lines)
			}
		}
		w.Becomes(200, far, w.Service("shop", "web", 80, v6), "/")
		w.Becomes(200, near, netip.AddrPortFrom(w.Pod(web, v6), 8080), "/")

		entry := `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: listed, namespace: $shop}
spec:
  hosts: [listed.$shop.example]
  exportTo: ["."]
  location: MESH_EXTERNAL
  resolution: NONE
  addresses: ["` + outside.Addr().String() + `"]
  ports: [{number: 80, name: http, protocol: HTTP}]
`
		w.Apply(entry)
		w.Eventually("the listed address is not refused", func() error {
			before := count("refused")
			w.Request(far, outside, "/")
			if count("refused") != before {
				return errors.New("it is")
			}
			return nil
		})
		counted("refused", other)
		w.Delete(entry)
		counted("refused", outside)

		w.Label("shop", label+"DRY_RUN")
		counted("reported", outside)
		w.Label("shop", "")
		w.Eventually("nothing is counted", func() error {
			before := count("refused") + count("reported")
			w.Request(far, outside, "/")
			if count("refused")+count("reported") != before {
				return errors.New("it is")
			}
			return nil
		})
	})
}
