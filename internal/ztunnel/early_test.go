package ztunnel

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
)

// TestEarlyBytesAndPolicies: a program's first bytes are at the server's node before its
// policies have decided. The server's program gets none of them, and no connection, unless
// they allow it; then it gets them once.
func TestEarlyBytesAndPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		let    bool
	}{"lets in": {allowAll, true}, "refuses": {denyAll, false}} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				w.apply(w.mesh("HBONE", "HBONE", ""))
				w.enrol(w.client)
				w.enrol(w.server)
				w.serve(9000, echo)
				var seen atomic.Int64
				w.serve(8080, func(c *net.TCPConn) {
					seen.Add(1)
					echo(c)
				})
				open := w.dial(w.at(9000)) // early bytes need a tunnel
				w.talk(open, "before")
				w.apply(w.without("HBONE"))
				conn := w.dial(w.at(8080))
				if _, err := io.WriteString(conn, "early\n"); err != nil {
					t.Fatal(err)
				}
				until(t, "it waits for the policy", func() bool { return w.server.node.budgets.Waiting.Used() == 1 })
				w.talk(open, "meanwhile") // on the same tunnel, behind the early bytes
				if seen.Load() > 0 {
					t.Error("the program was reached before its policies have decided")
				}
				w.apply(c.policy)
				b, err := io.ReadAll(io.LimitReader(conn, int64(len(w.clientIP().String()+" early\n"))))
				if c.let && (err != nil || string(b) != w.clientIP().String()+" early\n") {
					t.Errorf("%q, %v", b, err)
				}
				if !c.let && (err == nil || len(b) > 0 || seen.Load() > 0) {
					t.Errorf("%q, %v; the program saw %d connections", b, err, seen.Load())
				}
				if !c.let {
					w.server.log.wait(t, "connection complete", `reason="POLICY_DENIED"`, `policy="shop/p"`)
				}
			})
		})
	}
}
