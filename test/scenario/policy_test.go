package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestStrict: with PERMISSIVE, strangers are let in without an identity; with
// STRICT only the mesh is, and the log says which policy refused.
func TestStrict(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop})
	const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: %s}}
`
	const exempt = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}
`
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		web, echo := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080), netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
		w.MustApply(fmt.Sprintf(strict, "PERMISSIVE"))
		w.BecomesAnswered(stranger, web)
		held := w.MustHold(stranger, echo)

		w.MustApply(fmt.Sprintf(strict, "STRICT"))
		w.BecomesRefused(stranger, web)
		w.MustGet(far, web)
		w.MustGet(near, web)
		if err := held.AwaitEnd(); err == nil {
			t.Error("the stranger's connection of before is still there")
		}
		w.Logs("node1", `src.workload="stranger"`, fmt.Sprintf("dst.addr=%s", web), `reason="POLICY_DENIED"`)
		w.Logs("node1", `src.workload="stranger"`, fmt.Sprintf("dst.addr=%s", echo), `reason="POLICY_CHANGED"`)

		// One port may be opened again, and only that.
		w.MustApply(exempt)
		w.BecomesAnswered(stranger, web)
		if _, err := w.Hold(stranger, echo); err == nil {
			t.Error("the other port is open, too")
		}
		w.MustDelete("PeerAuthentication", "shop", "web")
		w.BecomesRefused(stranger, web)
		w.MustDelete("PeerAuthentication", "shop", "default")
		w.BecomesAnswered(stranger, web)
	})
}

// TestPolicy: each field of a rule that node proxies enforce decides, and
// every refusal names the policy.
func TestPolicy(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.NamespaceObject("garden", true) + rig.PodObject("garden", "gnome", "node2", "")})
	gnome := lab.InPod("garden", "gnome")
	const app = "selector: {matchLabels: {app: web}}, "
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		web := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		echo := netip.AddrPortFrom(web.Addr(), 9000)
		vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		block := func(name, ns string) string { return w.Pod(ns, name, v6).String() }
		for _, c := range []struct {
			name, action, rest string
			in, out            []lab.Where
		}{
			{"principal", "ALLOW", `rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]}]`, []lab.Where{far}, []lab.Where{near, gnome, stranger}},
			{"principal", "DENY", `rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]}]`, []lab.Where{near, gnome, stranger}, []lab.Where{far}},
			{"principal-suffix", "ALLOW", `rules: [{from: [{source: {principals: ["*/sa/near"]}}]}]`, []lab.Where{near}, []lab.Where{far, gnome, stranger}},
			{"not-principal", "DENY", `rules: [{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/far]}}]}]`, []lab.Where{far}, []lab.Where{near, gnome, stranger}},
			{"namespace", "ALLOW", `rules: [{from: [{source: {namespaces: [garden]}}]}]`, []lab.Where{gnome}, []lab.Where{near, far, stranger}},
			{"account", "ALLOW", `rules: [{from: [{source: {serviceAccounts: [garden/gnome]}}]}]`, []lab.Where{gnome}, []lab.Where{near, far, stranger}},
			{"block", "DENY", `rules: [{from: [{source: {ipBlocks: ["` + block("stranger", "street") + `"]}}]}]`, []lab.Where{near, far, gnome}, []lab.Where{stranger}},
			{"block", "ALLOW", `rules: [{from: [{source: {ipBlocks: ["` + block("near", "shop") + `"]}}]}]`, []lab.Where{near}, []lab.Where{far, gnome, stranger}},
			{"port", "DENY", `rules: [{to: [{operation: {ports: ["8080"]}}]}]`, nil, []lab.Where{near, far, gnome, stranger}},
			{"other-port", "DENY", `rules: [{to: [{operation: {ports: ["9000"]}}]}]`, []lab.Where{near, far, gnome, stranger}, nil},
			{"nobody", "ALLOW", ``, nil, []lab.Where{near, far, gnome, stranger}},
		} {
			t.Run(c.action+" "+c.name, func(t *testing.T) {
				w := world.For(t)
				// Every port's name is its own policy, so that no log line of
				// another case can stand for this one.
				name := fmt.Sprintf("%s-%v", c.name, map[bool]string{false: "v4", true: "v6"}[v6])
				defer w.Delete(context.Background(), "AuthorizationPolicy", "shop", name) //nolint:errcheck // lift has, unless the test failed
				enforce(w, rig.PolicyObject("shop", name, c.action, app+c.rest), "node1", name)
				w.Eventually("web names the policy", func() error { return names(w, "node1", "web", "shop/"+name) })
				for _, from := range c.in {
					w.MustGet(from, web)
					w.MustGet(from, vip)
				}
				for _, from := range c.out {
					w.Refused(from, web)
					w.Refused(from, vip)
				}
				if c.name == "port" {
					w.MustHold(far, echo)
				}
				if len(c.out) > 0 && c.action == "DENY" {
					w.Logs("node1", `policy="shop/`+name+`"`, `reason="POLICY_DENIED"`, "explicitly denied by: shop/"+name)
				}
				lift(w, "node1", name)
				for _, from := range []lab.Where{near, far, gnome, stranger} {
					w.MustGet(from, web)
				}
			})
		}
	})
}

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

// names fails unless a pod of the shop names a policy, as far as a node knows.
func names(w *rig.World, node, pod, policy string) error {
	d, err := w.Dump(node)
	if err != nil {
		return err
	}
	for _, x := range d.Workloads {
		if x.Namespace == "shop" && x.Name == pod {
			if slices.Contains(x.AuthorizationPolicies, policy) {
				return nil
			}
			return fmt.Errorf("its policies are %v", x.AuthorizationPolicies)
		}
	}
	return fmt.Errorf("%s does not know it", node)
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
