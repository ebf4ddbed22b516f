package attack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

const callers = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web-callers, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [%s]
`

// TestEmptyPartOfARule: a policy's author leaves a part of a rule empty, where
// no webhook is asked. Nobody is let in, and the status says why.
func TestEmptyPartOfARule(t *testing.T) {
	t.Parallel()
	// The first is there from the start: there is no last good state.
	world := rig.Start(t, lab.Config{YAML: rig.Shop + market() + fmt.Sprintf(callers, "{from: []}")})
	for _, rule := range []string{
		"{from: []}", "{from: null}", "{from: [{}]}", "{from: [{source: {}}]}", "{from: [{source: {principals: []}}]}",
		"{from: [{source: {principals: [], namespaces: [market]}}]}",
		"{to: [{}]}", "{to: [{operation: {ports: []}}]}", "{when: []}", "{when: [{key: source.principal}]}",
	} {
		t.Run(rule, func(t *testing.T) {
			w := world.For(t)
			w.MustApply(fmt.Sprintf(callers, rule))
			w.Eventually("the status says why", func() error {
				out, err := w.Ambit("status")
				if err == nil && (!strings.Contains(out, "web-callers") || !strings.Contains(out, "Invalid")) {
					err = fmt.Errorf("it says %s", out)
				}
				return err
			})
			for _, v6 := range []bool{false, true} {
				web := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
				for _, from := range []lab.Where{rig.Far, thief2, rig.Stranger} {
					w.Refused(from, web)
				}
			}
		})
	}
	w := world.For(t)
	w.MustApply(fmt.Sprintf(callers, "{from: [{source: {namespaces: [shop]}}]}"))
	w.BecomesAnswered(rig.Far, netip.AddrPortFrom(w.Pod("shop", "web", false), 8080))
}

// hammer connects again and again from a pod, until stop. It returns what was
// answered, which may be nothing.
func hammer(w *rig.World, from lab.Where, to netip.AddrPort) (stop func()) {
	l := w.StartLoad(from, to, 100)
	return func() {
		w.T().Helper()
		if r := l.Stop(); r.OK > 0 || r.Failed == 0 {
			w.T().Errorf("of %d requests by %s, %d were let in, %d refused", r.Sent, from, r.OK, r.Failed)
		}
	}
}

// TestPolicyIsRenamed: a stranger tries while policies get other names. It is
// never let in, and no request of a client that is allowed fails.
func TestPolicyIsRenamed(t *testing.T) {
	t.Parallel()
	const authz = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-%s, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]}
`
	w := rig.Start(t, lab.Config{YAML: rig.Shop + fmt.Sprintf(authz, "a")})
	web := netip.AddrPortFrom(w.Pod("shop", "web", false), 8080)
	w.BecomesRefused(rig.Stranger, web)
	good := w.StartLoad(rig.Far, web, 100)
	stop := hammer(w, rig.Stranger, web)
	at := [2]string{"a", "b"}
	for i := range renames {
		old, next := at[i%2], at[(i+1)%2]
		if err := w.Apply(t.Context(), fmt.Sprintf(authz, next)); err != nil {
			t.Fatal(err)
		}
		w.MustDelete("AuthorizationPolicy", "shop", "deny-"+old)
	}
	w.Settled()
	stop()
	good.Clean()
}

// renames is how often a name changes: 200 pass in less than a minute.
const renames = 200

// TestPeerAuthenticationChangesItsPolicy: the policy behind a PeerAuthentication
// has another name with exempt ports than without. The stranger is never let in.
func TestPeerAuthenticationChangesItsPolicy(t *testing.T) {
	t.Parallel()
	const peer = `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}%s}
`
	w := rig.Start(t, lab.Config{YAML: rig.Shop + fmt.Sprintf(peer, "")})
	web := netip.AddrPortFrom(w.Pod("shop", "web", true), 8080)
	w.BecomesRefused(rig.Stranger, web)
	good := w.StartLoad(rig.Far, web, 100)
	stop := hammer(w, rig.Stranger, web)
	for i := range renames {
		exempt := ", portLevelMtls: {9321: {mode: PERMISSIVE}}"
		if i%2 == 1 {
			exempt = ""
		}
		if err := w.Apply(t.Context(), fmt.Sprintf(peer, exempt)); err != nil {
			t.Fatal(err)
		}
	}
	w.Settled()
	stop()
	good.Clean()
}

// TestSelectorInRootNamespace: a PeerAuthentication with a selector in the root
// namespace closes the pods that it selects there, and no others.
func TestSelectorInRootNamespace(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: rig.Shop + rig.NamespaceObject("istio-system", true) +
		rig.ServerObject("istio-system", "console", "node1", "app: web") + `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: istio-system}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
`})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		console := netip.AddrPortFrom(w.Pod("istio-system", "console", v6), 8080)
		w.BecomesRefused(rig.Stranger, console)
		w.MustGet(rig.Far, console)
		w.MustGet(rig.Stranger, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
	})
}
