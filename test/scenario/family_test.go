package scenario

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestOneFamily: a mesh whose nodes, pods and services have addresses of one family alone
// works as any other: tunnels, strangers, STRICT, look-ups, a waypoint, probes, and proxies
// that are replaced. Nothing of it fails for the family that is missing.
func TestOneFamily(t *testing.T) {
	for _, family := range []string{"ipv4", "ipv6"} {
		t.Run(family, func(t *testing.T) {
			v6 := family == "ipv6"
			w := rig.Start(t, lab.Config{IPFamily: family, YAML: named + managed + rig.ServerObject("shop", "behind", "node1", "app: behind") + `
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: behind}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`})
			s, err := w.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i := range s.Pods {
				for _, ip := range s.Pods[i].IPs {
					if netip.MustParseAddr(ip).Is6() != v6 {
						t.Fatalf("pod %s has %s", s.Pods[i].Name, ip)
					}
				}
			}
			pod, vip := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080), netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
			for _, to := range []netip.AddrPort{pod, vip} {
				for _, from := range []lab.Where{near, far, stranger} {
					want(t, "answer", w.MustGet(from, to).Name, "web")
				}
			}
			w.Logs("node1", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/far"`)
			w.MustApply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n")
			w.BecomesRefused(stranger, pod)
			w.BecomesAnswered(far, vip)
			w.BecomesAnswered(near, pod)

			w.BecomesAnswered(far, netip.AddrPortFrom(w.Service("shop", "front", v6), 80))
			kind, server := dns.TypeA, netip.MustParseAddr("10.96.0.10")
			if v6 {
				kind, server = dns.TypeAAAA, netip.MustParseAddr("fd96::a")
			}
			var addresses []string
			w.Eventually("the host of an entry is found", func() error {
				m, err := look(w, looker, server, "udp", ask("ledger.example", kind))
				if err != nil {
					return err
				}
				if addresses = found(m); len(addresses) != 1 {
					return fmt.Errorf("found %q", addresses)
				}
				return nil
			})
			want(t, "answer by name", w.MustGet(looker, netip.AddrPortFrom(netip.MustParseAddr(addresses[0]), 80)).Name, "web")
			want(t, "answer by name", strings.Fields(w.MustRun(looker, rig.Bin("echo"), "get", "-url", "http://ledger.example/"))[0], "web")

			load := w.StartLoad(far, vip, 50)
			for _, node := range []string{ztunnel1, ztunnel2} {
				if err := w.Restart(t.Context(), node, lab.RestartGraceful); err != nil {
					t.Error(err)
				}
			}
			load.Clean()
		})
	}
}
