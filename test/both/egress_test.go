package both

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// egressPolicy returns an EgressPolicy of the shop with the inside of a spec.
func egressPolicy(name, spec string) string {
	return fmt.Sprintf("\n---\napiVersion: ambit.mesh/v1alpha1\nkind: EgressPolicy\nmetadata: {name: %s, namespace: $shop}\nspec: {%s}\n", name, spec)
}

// decided returns how many connections the EgressPolicies of a pod's node decided about so.
func decided(w *world.World, at world.Place, decision string) (sum float64) {
	for _, s := range w.ProxySamples(at, "ambit_egress_policy_connections_total") {
		if s.Labels["decision"] == decision {
			sum += s.Value
		}
	}
	return sum
}

// TestEgressPolicy: under an EgressPolicy a pod reaches the mesh, and outside of it what an
// entry has. All else is refused, and the reason, the policy and the destination are shown.
// An object with a mistake is refused where it can be, and refuses elsewhere.
func TestEgressPolicy(t *testing.T) {
	w := startShop(t)
	w.Families(func(w *world.World, v6 bool) {
		// No host has these addresses: what is allowed fails later.
		listed, other := netip.MustParseAddrPort("192.0.2.7:80"), netip.MustParseAddrPort("198.51.100.7:80")
		if v6 {
			listed, other = netip.MustParseAddrPort("[2001:db8:1::7]:80"), netip.MustParseAddrPort("[2001:db8:2::7]:80")
		}
		pod := netip.AddrPortFrom(w.Pod(web, v6), 8080)
		policy := egressPolicy("partners", "selector: {matchLabels: {egress: confined}}, to: [{cidrs: [192.0.2.0/24, 2001:db8:1::/48], ports: [80]}]")
		client := rig.PodObject("$shop", "confined", "node2", "egress: confined")
		confined := world.Place{Namespace: "shop", Pod: "confined"}
		w.Apply(policy + client)
		w.Condition("EgressPolicy", "shop", "partners", "ZtunnelAccepted", "True Accepted", "namespace $shop that it selects")
		for _, to := range []netip.AddrPort{pod, w.Service("shop", "web", 80, v6)} {
			w.Becomes(200, confined, to, "/")
		}
		before := decided(w, confined, "refused")
		if r := w.Request(confined, other, "/"); r.Status != 0 {
			w.Errorf("%+v", r)
		}
		w.ProxyLogs(confined, `src.workload="confined"`, "dst.addr="+other.String(), `reason="EGRESS_DENIED"`, "EgressPolicy $shop/partners")
		if n := decided(w, confined, "refused"); n != before+1 {
			w.Errorf("%v refused connections are counted, want %v", n, before+1)
		}
		allowed := decided(w, confined, "allowed")
		if r := w.Request(confined, netip.AddrPortFrom(listed.Addr(), 81), "/"); r.Status != 0 {
			w.Errorf("another port: %+v", r)
		}
		w.ProxyLogs(confined, `src.workload="confined"`, "dst.addr="+netip.AddrPortFrom(listed.Addr(), 81).String(), `reason="EGRESS_DENIED"`)
		if r := w.Request(confined, listed, "/"); r.Status != 0 {
			w.Errorf("%+v", r)
		}
		w.Eventually("the listed address is allowed", func() error {
			if n := decided(w, confined, "allowed"); n != allowed+1 {
				return fmt.Errorf("%v, want %v", n, allowed+1)
			}
			return nil
		})
		if lines := w.ProxyLines(confined, `src.workload="confined"`, "dst.addr="+listed.String(), `reason="EGRESS_DENIED"`); len(lines) > 0 {
			w.Errorf("the listed address is refused: %q", lines)
		}
		w.Says([]string{"$shop/partners (Enforce)"}, "ztunnel-config", "egress", "--node", w.Node(confined))
		w.Says([]string{"EGRESS_DENIED", "$shop/partners"}, "why", "confined.$shop", other.String())
		for decision, to := range map[string]netip.AddrPort{"refused": other, "allowed": listed} {
			w.Eventually("the report has what is "+decision, func() error {
				out, err := w.Ambit("egress", "report", "-n", w.Text("$shop"))
				if err != nil {
					return err
				}
				for line := range strings.Lines(out) {
					if strings.Contains(line, to.Addr().String()) && strings.Contains(line, decision) {
						return nil
					}
				}
				return errors.New(out)
			})
		}

		bad := egressPolicy("partners", "selector: {matchLabels: {egress: confined}}, to: [{cidrs: [192.0.2.7/24]}]")
		if !w.Mistaken("shop", bad, "to[0].cidrs[0]", "192.0.2.0/24") {
			w.Condition("EgressPolicy", "shop", "partners", "ZtunnelAccepted", "False Invalid", "to[0].cidrs[0]", "192.0.2.0/24")
			w.Eventually("the policy with a mistake refuses", func() error {
				w.Request(confined, listed, "/")
				if len(w.ProxyLines(confined, "dst.addr="+listed.String(), `reason="EGRESS_DENIED"`, "to[0].cidrs[0]")) == 0 {
					return errors.New("it does not")
				}
				return nil
			})
		}
		w.Becomes(200, confined, pod, "/")
		w.Delete(policy + client)
	})
}
