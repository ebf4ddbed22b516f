package scenario

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// enforce applies a policy of the shop and waits until a node has it.
func enforce(w *rig.World, yaml, node, name string) {
	w.T().Helper()
	w.MustApply(yaml)
	w.Eventually("policy "+name+" is enforced", func() error { return hasPolicy(w, node, name, true) })
}

// lift deletes a policy of the shop and waits until a node has forgotten it.
func lift(w *rig.World, node, name string) {
	w.T().Helper()
	w.MustDelete("AuthorizationPolicy", "shop", name)
	w.Eventually("policy "+name+" is lifted", func() error { return hasPolicy(w, node, name, false) })
}

func hasPolicy(w *rig.World, node, name string, yes bool) error {
	d, err := w.Dump(node)
	if err == nil && d.HasPolicy("shop", name) != yes {
		err = fmt.Errorf("the policies of %s are %v", node, d.Policies)
	}
	return err
}

// TestDryRun: a policy under trial is logged and changes nothing.
func TestDryRun(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop, Env: map[string][]string{"ztunnel": {"AUTHZ_POLICY_INFO_LOGGING=true"}}})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		web := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		trial := `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial, namespace: shop, annotations: {istio.io/dry-run: "%t"}}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]}]}
`
		enforce(w, fmt.Sprintf(trial, true), "node1", "trial")
		held := w.MustHold(far, netip.AddrPortFrom(web.Addr(), 9000))
		for range 5 {
			w.MustGet(far, web)
		}
		w.Eventually("the trial is logged", func() error { return contains(w.Log("ztunnel/node1"), `policy="shop/trial"`, web.String()) })
		w.Logs("node1", `direction="inbound"`, `dst.hbone_addr=`+web.String(), `dry_run="shop/trial=would_deny"`)
		if n := counted(w, lab.InZtunnel("node1"), "ambit_policy_verdicts_total", "policy=shop/trial", "verdict=would_deny"); n < 5 {
			t.Errorf("%v verdicts are counted", n)
		}
		if err := held.Ping(); err != nil {
			t.Error(err)
		}
		// In earnest it does.
		w.MustApply(fmt.Sprintf(trial, false))
		w.BecomesRefused(far, web)
		if held.AwaitEnd() == nil {
			t.Error("the connection of before is still there")
		}
		lift(w, "node1", "trial")
		w.Eventually("the count goes with the policy", func() error {
			if n := counted(w, lab.InZtunnel("node1"), "ambit_policy_verdicts_total", "policy=shop/trial"); n > 0 {
				return fmt.Errorf("%v", n)
			}
			return nil
		})
	})
}

// TestLivePolicy: connections end when a policy, or a change of the workload,
// takes away what allowed them. Others stay.
func TestLivePolicy(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		t.Run("policy", func(t *testing.T) {
			w := world.For(t)
			echo := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
			bad, good := w.MustHold(far, echo), w.MustHold(near, echo)
			w.MustApply(rig.PolicyObject("shop", "no-far", "DENY", `rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]}]`))
			if err := bad.AwaitEnd(); err == nil {
				t.Error("it did not end")
			}
			w.Logs("node1", `src.workload="far"`, `dst.hbone_addr=`+echo.String(), `reason="POLICY_CHANGED"`, `policy="shop/no-far"`)
			if err := good.Ping(); err != nil {
				t.Errorf("a connection that is still allowed: %v", err)
			}
			lift(w, "node1", "no-far")
		})
		t.Run("workload", func(t *testing.T) {
			w := world.For(t)
			echo := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
			// The policy is not for web, until web says that it is guarded.
			w.MustApply(rig.PolicyObject("shop", "guarded", "DENY", `selector: {matchLabels: {guarded: "yes"}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]}]`))
			bad, good := w.MustHold(far, echo), w.MustHold(near, echo)
			w.Always("nothing ends before", bad.Ping)
			yes := "yes"
			if err := w.Label(t.Context(), "pod", "shop", "web", map[string]*string{"guarded": &yes}); err != nil {
				t.Fatal(err)
			}
			if err := bad.AwaitEnd(); err == nil {
				t.Error("it did not end")
			}
			w.Logs("node1", `src.workload="far"`, `dst.hbone_addr=`+echo.String(), `reason="POLICY_CHANGED"`, `policy="shop/guarded"`)
			if err := good.Ping(); err != nil {
				t.Errorf("a connection that is still allowed: %v", err)
			}
			if err := w.Label(t.Context(), "pod", "shop", "web", map[string]*string{"guarded": nil}); err != nil {
				t.Fatal(err)
			}
			w.BecomesAnswered(far, netip.AddrPortFrom(echo.Addr(), 8080))
			w.MustDelete("AuthorizationPolicy", "shop", "guarded")
		})
	})
}
