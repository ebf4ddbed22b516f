package chaos

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestZtunnel: without its proxy a pod gets resets, and never speaks
// plaintext; a proxy that is replaced in order is not noticed.
func TestZtunnel(t *testing.T) {
	t.Parallel()
	world := rig.Start(t, lab.Config{YAML: town})

	t.Run("of the client", func(t *testing.T) {
		w := world.For(t)
		held := w.MustHold(far, echo(w, false))
		seen := capture(w)
		stop(w, server2)
		if err := held.Ping(); err == nil {
			t.Error("a connection outlives its proxy")
		}
		rig.Families(t, func(t *testing.T, v6 bool) {
			w := world.For(t)
			for _, to := range []netip.AddrPort{http(w, v6), echo(w, v6)} {
				isReset(w, far, to)
			}
			// Who is outside of the mesh on the same node does not notice.
			w.MustGet(stranger, http(w, v6))
		})
		resume(w, server2)
		w.Settled()
		becomesServed(w, far, http(w, false))
		becomesServed(w, far, http(w, true))
		unreadable(w, seen.Stop(), "far", "web")
	})

	t.Run("of the server", func(t *testing.T) {
		w := world.For(t)
		seen := capture(w)
		stop(w, server1)
		rig.Families(t, func(t *testing.T, v6 bool) {
			w := world.For(t)
			pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
			// Plaintext from outside would go past policy now.
			isReset(w, stranger, pod)
			if err := tell(w, far, pod); err == nil {
				t.Error("a server whose proxy is gone was reached")
			}
			isReset(w, near, pod)
		})
		resume(w, server1)
		w.Settled()
		for _, from := range []lab.Where{far, near, stranger} {
			becomesServed(w, from, http(w, false))
			becomesServed(w, from, http(w, true))
		}
		unreadable(w, seen.Stop(), "far", "web")
	})

	t.Run("comes back by itself under load", func(t *testing.T) {
		w := world.For(t)
		seen := capture(w)
		for _, name := range []string{server1, server2} {
			load := w.StartLoad(far, http(w, false), rate)
			kill(w, name)
			w.Settled()
			becomesServed(w, far, http(w, false))
			load.Seconds(1)
			if r := load.Stop(); r.OK == 0 {
				t.Errorf("%s: nothing was answered", name)
			} else {
				t.Logf("%s killed: of %d requests %d failed: %v", name, r.Sent, r.Failed, r.Errors)
			}
			w.StartLoad(far, http(w, false), rate).Clean()
		}
		unreadable(w, seen.Stop(), "far", "web")
	})

	t.Run("replaced in order", func(t *testing.T) {
		w := world.For(t)
		load := startTraffic(w)
		for _, name := range []string{server1, server2} {
			if err := w.Restart(t.Context(), name, lab.RestartGraceful); err != nil {
				t.Fatal(err)
			}
			load.pass(1)
			load.alive("while the old " + name + " drains")
		}
		load.unharmed()
	})

	t.Run("SIGTERM", func(t *testing.T) {
		w := world.For(t)
		held := w.MustHold(far, echo(w, false))
		before := pid(w, server2)
		if err := w.Kill(t.Context(), server2, lab.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := held.Ping(); err != nil {
				t.Fatalf("a proxy that drains ended a connection: %v", err)
			}
		}
		if now := pid(w, server2); now != before {
			t.Error("the proxy did not wait for its last connection")
		}
		_ = held.Close()
		w.Eventually("it ends with its last connection, and the next one starts", func() error {
			if now := pid(w, server2); now == before || now == 0 {
				return fmt.Errorf("pid %d, before %d", now, before)
			}
			return nil
		})
		w.Settled()
		becomesServed(w, far, http(w, false))
		becomesServed(w, far, http(w, true))
	})
}

// isReset makes sure that a connection is refused by a reset, at once.
func isReset(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	err := tell(w, from, to)
	// The lab passes the error of connect on as text.
	if err == nil || !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) &&
		!strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "reset") {
		w.T().Errorf("from %s to %s: %v, want a reset", from, to, err)
	}
}
