package attack

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestFormerTrustDomainInPolicies checks a mesh whose trust domain was renamed:
// policies that use a former name, or cluster.local, hold as before. A DENY
// that no longer matches would let in the clients that it is to keep out.
func TestFormerTrustDomainInPolicies(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{
		YAML: rig.Shop + strict,
		Args: map[string][]string{lab.Ambitd: {"--trust-domain", "corp.example", "--trust-domain-alias", "old.example"}},
		Env:  map[string][]string{"ztunnel": {"TRUST_DOMAIN=corp.example"}},
	})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		web := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		w.MustGet(rig.Near, web)
		w.MustGet(rig.Far, web)
		for _, tc := range []struct {
			action, principal string
			far, near         bool // who is let in
		}{
			{"DENY", "corp.example/ns/shop/sa/far", false, true},
			{"DENY", "cluster.local/ns/shop/sa/far", false, true},
			{"DENY", "old.example/ns/shop/sa/far", false, true},
			{"DENY", "old.example/ns/shop/*", false, false},
			{"DENY", "foreign.example/ns/shop/sa/far", true, true},
			{"ALLOW", "corp.example/ns/shop/sa/far", true, false},
			{"ALLOW", "cluster.local/ns/shop/sa/far", true, false},
			{"ALLOW", "old.example/ns/shop/sa/far", true, false},
			{"ALLOW", "foreign.example/ns/shop/sa/far", false, false},
		} {
			t.Logf("%s %s", tc.action, tc.principal)
			w.MustApply(rig.PolicyObject("shop", "p", tc.action, `selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ["`+tc.principal+`"]}}]}]`))
			for _, c := range []struct {
				from lab.Where
				in   bool
			}{{rig.Far, tc.far}, {rig.Near, tc.near}} {
				if c.in {
					w.BecomesAnswered(c.from, web)
				} else {
					w.BecomesRefused(c.from, web)
				}
			}
			w.MustDelete("AuthorizationPolicy", "shop", "p")
			w.BecomesAnswered(rig.Far, web)
			w.BecomesAnswered(rig.Near, web)
		}
	})
}
