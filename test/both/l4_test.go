package both

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

var (
	near     = world.Place{Namespace: "shop", Pod: "near"}
	web      = world.Place{Namespace: "shop", Pod: "web"}
	gnome    = world.Place{Namespace: "garden", Pod: "gnome"}
	stranger = world.Place{Namespace: "street", Pod: "stranger"}
)

// startShop makes a world with the server web and clients on both nodes, one of another
// namespace in the mesh, and one outside of the mesh.
func startShop(t *testing.T) *world.World {
	t.Helper()
	return startShopWith(t, world.Options{})
}

func startShopWith(t *testing.T, o world.Options) *world.World {
	t.Helper()
	w := start(t, o)
	w.Namespace("garden", true)
	w.Namespace("street", false)
	w.Apply(server("web", "app: web") + rig.PodObject("$shop", "near", "node1", "") + rig.PodObject("$shop", "far", "node2", "") +
		rig.PodObject("$garden", "gnome", "node2", "") + rig.PodObject("$street", "stranger", "node2", "") +
		rig.ServiceObject("$shop", "web", "web", "{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9000}"))
	return w
}

// refused returns an error unless all of n connections are refused.
func refused(w *world.World, n int, from world.Place, to netip.AddrPort) error {
	all, err := w.Requests(n, from, to, "/")
	for _, r := range all {
		if r.Status != 0 {
			return fmt.Errorf("%s is answered: %+v", from, r)
		}
	}
	return err
}

// closed returns an error if an echo server answers.
func closed(w *world.World, from world.Place, to netip.AddrPort) error {
	// What the server does not understand as HTTP, it sends back.
	if r := w.Request(from, to, "/"); r.Status != 0 || strings.Contains(r.Error, "malformed") {
		return fmt.Errorf("%s gets %+v", from, r)
	}
	return nil
}

// TestCaptured: programs on one node and on two reach each other through the mesh, by pod
// and by service, and the server sees who really called. A client outside of the mesh is let
// in, in plaintext.
func TestCaptured(t *testing.T) {
	w := startShop(t)
	for _, family := range []string{"IPv4", "IPv6"} {
		w.Apply("\n---\napiVersion: v1\nkind: Service\nmetadata: {name: only-" + strings.ToLower(family) + ", namespace: $shop}\n" +
			"spec: {selector: {app: web}, ipFamilyPolicy: SingleStack, ipFamilies: [" + family + "], ports: [{name: http, port: 80, targetPort: 8080}]}\n")
	}
	w.Families(func(w *world.World, v6 bool) {
		pod := netip.AddrPortFrom(w.Pod(web, v6), 8080)
		only := map[bool]string{false: "only-ipv4", true: "only-ipv6"}[v6]
		for _, to := range []netip.AddrPort{pod, w.Service("shop", "web", 80, v6), w.Service("shop", only, 80, v6)} {
			for _, from := range []world.Place{near, far, stranger} {
				w.Becomes(200, from, to, "/")
				if a, err := w.Request(from, to, "/").Answer(); err != nil || a.Name != "web" || a.Caller != w.Pod(from, v6) {
					w.Errorf("from %s to %s: %+v, error %v", from, to, a, err)
				}
			}
		}
		for _, from := range []world.Place{near, far} {
			w.ProxyLogs(web, `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/$shop/sa/`+from.Pod+`"`, "dst.hbone_addr="+pod.String())
		}
	})
}

// mtls is the PeerAuthentication of the shop.
func mtls(mode string) string {
	return "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: $shop}\nspec: {mtls: {mode: " + mode + "}}\n"
}

// exempt opens one port of web.
const exempt = `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: $shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}
`

// TestStrict: with PERMISSIVE, strangers are let in without an identity; with STRICT only the
// mesh is, and the connections of before end.
func TestStrict(t *testing.T) {
	w := startShop(t)
	w.Families(func(w *world.World, v6 bool) {
		to, echo := netip.AddrPortFrom(w.Pod(web, v6), 8080), netip.AddrPortFrom(w.Pod(web, v6), 9000)
		w.Apply(mtls("PERMISSIVE"))
		w.Becomes(200, stranger, to, "/")
		outside, inside := w.Hold(stranger, echo), w.Hold(far, echo)
		w.Apply(mtls("STRICT"))
		w.Eventually("the stranger is refused", func() error { return refused(w, 5, stranger, to) })
		w.Eventually("its connection of before ends", func() error {
			if outside.Carries() == nil {
				return errors.New("it carries on")
			}
			return nil
		})
		for _, from := range []world.Place{near, far, gnome} {
			if err := w.AnsweredBy("web", 3, from, to, "/"); err != nil {
				w.Errorf("%s: %v", from, err)
			}
		}
		if err := inside.Carries(); err != nil {
			w.Errorf("inside of the mesh: %v", err)
		}
		w.ProxyLogs(web, `src.workload="stranger"`, "dst.addr="+to.String(), `reason="POLICY_DENIED"`)
		w.ProxyLogs(web, `src.workload="stranger"`, "dst.addr="+echo.String(), `reason="POLICY_CHANGED"`)
		// One port may be opened again, and only that.
		w.Apply(exempt)
		w.Becomes(200, stranger, to, "/")
		if err := closed(w, stranger, echo); err != nil {
			w.Errorf("the other port: %v", err)
		}
		w.Delete(exempt)
		w.Eventually("the stranger is refused again", func() error { return refused(w, 5, stranger, to) })
		w.Delete(mtls("STRICT"))
		w.Becomes(200, stranger, to, "/")
	})
}

// TestPolicy: each field of a rule that node proxies enforce decides, and every refusal names
// the policy. What they cannot judge is never allowed, and the status has the field.
func TestPolicy(t *testing.T) {
	w := startShop(t)
	everybody := []world.Place{near, far, gnome, stranger}
	w.Families(func(w *world.World, v6 bool) {
		to := map[string]netip.AddrPort{"the pod": netip.AddrPortFrom(w.Pod(web, v6), 8080), "the service": w.Service("shop", "web", 80, v6)}
		// judged waits until those that are not in are refused, and then until the others
		// are answered.
		judged := func(what string, in []world.Place) {
			for _, answered := range []bool{false, true} {
				for name, at := range to {
					for _, from := range everybody {
						if slices.Contains(in, from) != answered {
							continue
						}
						w.Eventually(fmt.Sprintf("%s: %s at %s", what, from, name), func() error {
							if answered {
								return w.AnsweredBy("web", 2, from, at, "/")
							}
							return refused(w, 2, from, at)
						})
					}
				}
			}
		}
		echo := netip.AddrPortFrom(to["the pod"].Addr(), 9000)
		for _, c := range []struct {
			name, action, rest string
			in                 []world.Place
		}{
			{"principal", "ALLOW", `rules: [{from: [{source: {principals: [cluster.local/ns/$shop/sa/far]}}]}]`, []world.Place{far}},
			{"principal", "DENY", `rules: [{from: [{source: {principals: [cluster.local/ns/$shop/sa/far]}}]}]`, []world.Place{near, gnome, stranger}},
			{"principal-suffix", "ALLOW", `rules: [{from: [{source: {principals: ["*/sa/near"]}}]}]`, []world.Place{near}},
			{"not-principal", "DENY", `rules: [{from: [{source: {notPrincipals: [cluster.local/ns/$shop/sa/far]}}]}]`, []world.Place{far}},
			{"namespace", "ALLOW", `rules: [{from: [{source: {namespaces: [$garden]}}]}]`, []world.Place{gnome}},
			{"account", "ALLOW", `rules: [{from: [{source: {serviceAccounts: [$garden/gnome]}}]}]`, []world.Place{gnome}},
			{"block", "DENY", `rules: [{from: [{source: {ipBlocks: ["` + w.Pod(stranger, v6).String() + `"]}}]}]`, []world.Place{near, far, gnome}},
			{"block", "ALLOW", `rules: [{from: [{source: {ipBlocks: ["` + w.Pod(near, v6).String() + `"]}}]}]`, []world.Place{near}},
			{"port", "DENY", `rules: [{to: [{operation: {ports: ["8080"]}}]}]`, nil},
			{"other-port", "DENY", `rules: [{to: [{operation: {ports: ["9000"]}}]}]`, everybody},
			{"without-rules", "ALLOW", ``, nil},
			{"method", "ALLOW", `rules: [{to: [{operation: {methods: [GET]}}]}]`, nil},
		} {
			// Each case has a policy of its own name, so that no line of another stands for it.
			name := fmt.Sprintf("%s-%s", c.name, map[bool]string{false: "v4", true: "v6"}[v6])
			policy := rig.PolicyObject("$shop", name, c.action, "selector: {matchLabels: {app: web}}, "+c.rest)
			w.Apply(policy)
			if c.name == "method" {
				w.Condition("AuthorizationPolicy", "shop", name, "ZtunnelAccepted", "False", "methods")
			} else {
				w.Condition("AuthorizationPolicy", "shop", name, "ZtunnelAccepted", "True")
			}
			if c.name == "other-port" {
				w.Eventually("the other port is closed", func() error { return closed(w, far, echo) })
			}
			judged(c.action+" "+c.name, c.in)
			if c.action == "DENY" && len(c.in) < len(everybody) {
				w.ProxyLogs(web, `policy="$shop/`+name+`"`, `reason="POLICY_DENIED"`, "explicitly denied by: $shop/"+name)
			}
			if c.name == "port" {
				_ = w.Hold(far, echo)
			}
			w.Delete(policy)
		}
		judged("without a policy", everybody)
	})
}
