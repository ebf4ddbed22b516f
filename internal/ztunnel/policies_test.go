package ztunnel

import (
	"strings"
	"testing"
)

const (
	denyAll  = `policies: [{name: p, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [8080]}]]]}]`
	allowAll = `policies: [{name: p, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [1]}]]]}]`
)

// without is the mesh whose server names a policy that has not come.
func (w *world) without(clientProto string) string {
	return strings.Replace(w.mesh(clientProto, "HBONE", idle), idle, "", 1)
}

// TestMissingPolicyRefuses: no client is let in to a workload that names a policy
// the proxy does not have, in a tunnel or in plaintext, and the log says why.
func TestMissingPolicyRefuses(t *testing.T) {
	for _, proto := range []string{"HBONE", "TCP"} {
		t.Run(proto, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				w.apply(w.without(proto))
				if proto == "HBONE" {
					w.enrol(w.client)
				}
				w.enrol(w.server)
				w.serve(8080, echo)
				w.refused(w.at(8080))
				w.server.log.wait(t, "connection complete", `reason="POLICY_UNAVAILABLE"`, `policy="shop/p"`)
				until(t, "nothing is carried", func() bool { return w.server.node.active.Load() == 0 })
			})
		})
	}
}

// TestMissingPolicyIsWaitedFor: a connection that comes before the policy is
// decided by it, and not earlier.
func TestMissingPolicyIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		let    bool
	}{"lets in": {allowAll, true}, "refuses": {denyAll, false}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			w.apply(w.without("TCP"))
			w.enrol(w.server)
			w.serve(8080, echo)
			conn := w.dial(w.at(8080))
			until(t, "it waits", func() bool { return w.server.node.budgets.Waiting.Used() == 1 })
			w.apply(c.policy)
			if c.let {
				w.talk(conn, "late")
				return
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("it was let in")
			}
			w.server.log.wait(t, "connection complete", `reason="POLICY_DENIED"`, `policy="shop/p"`)
		})
	}
}

// TestRenamedPolicyHolds: a policy gets another name. In whatever order its
// parts come, a connection that both names refuse is never let in, and one
// that is open and both allow stays.
func TestRenamedPolicyHolds(t *testing.T) {
	const (
		denyQ = `policies: [{name: q, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [8080]}]]]}]`
	)
	steps := map[string]func(w *world){
		"+q": func(w *world) { w.apply(denyQ) },
		"-p": func(w *world) { w.policies.Apply(nil, []string{"shop/p"}) },
		"w":  func(w *world) { w.apply(strings.Replace(w.without("TCP"), "[shop/p]", "[shop/q]", 1)) },
	}
	for _, order := range []string{"+q w -p", "+q -p w", "-p +q w", "w +q -p", "w -p +q", "-p w +q"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(t, false)
			w.apply(w.mesh("TCP", "HBONE", denyAll))
			w.enrol(w.server)
			w.serve(8080, echo)
			w.serve(9000, echo)
			open := w.dial(w.at(9000))
			w.talk(open, "before")
			w.refused(w.at(8080))
			for step := range strings.FieldsSeq(order) {
				steps[step](w)
				w.refused(w.at(8080))
			}
			w.talk(open, "after")
			w.talk(w.dial(w.at(9000)), "another")
			until(t, "nothing is kept of the old policy", func() bool { return w.policies.Set().Retired() == 0 })
		})
	}
}
