package attack

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// lateNamespace is in the mesh later. The stranger's pod, and one of the own
// node, have connections to its server before.
func lateNamespace() string {
	return rig.NamespaceObject("late", false) +
		rig.ServerObject("late", "server", "node1", "app: late") +
		rig.NamespaceObject("alley", false) +
		rig.PodObject("alley", "neighbour", "node1", "")
}

// held is a connection to test/echo's port 9000.
type held struct {
	net.Conn
	from string
}

func (h held) alive() error {
	if _, err := io.WriteString(h, "x"); err != nil {
		return fmt.Errorf("from %s: %w", h.from, err)
	}
	if _, err := io.ReadFull(h, make([]byte, 1)); err != nil {
		return fmt.Errorf("from %s: %w", h.from, err)
	}
	return nil
}

// holdAll connects from outside of the mesh, in both families.
func holdAll(w *rig.World) []held {
	var all []held
	for _, v6 := range []bool{false, true} {
		to := netip.AddrPortFrom(w.Pod("late", "server", v6), 9000)
		for _, from := range []lab.Where{rig.Stranger, lab.InPod("alley", "neighbour")} {
			h := held{w.MustDial(from, to), fmt.Sprintf("%s to %s", from, to)}
			if err := h.alive(); err != nil {
				w.T().Fatal(err)
			}
			all = append(all, h)
		}
	}
	return all
}

func mustLive(t *testing.T, when string, all []held) {
	t.Helper()
	for _, h := range all {
		if err := h.alive(); err != nil {
			t.Fatalf("%s, the old connection %v", when, err)
		}
	}
}

func enrolLate(w *rig.World) {
	ambient := "ambient"
	if err := w.Label(w.T().Context(), "namespace", "", "late", map[string]*string{"istio.io/dataplane-mode": &ambient}); err != nil {
		w.T().Fatal(err)
	}
	w.Settled()
}

// TestHeldConnection: a client connects in plaintext before the pod is in the
// mesh, and goes on after a policy that would not let it in. It needs nothing
// but patience.
func TestHeldConnection(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]string{
		"STRICT": `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: late}
spec: {mtls: {mode: STRICT}}
`,
		"empty ALLOW": `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: late}
spec: {}
`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, lateNamespace())
			old := holdAll(w)
			enrolLate(w)
			mustLive(t, "enrolled", old)
			w.MustApply(policy)
			for _, h := range old {
				if err := ends(h); err != nil {
					t.Fatal(err)
				}
			}
			w.Logs("node1", "POLICY_CHANGED", "before the pod was enrolled")
			// Its own client's connections, and new plaintext ones, are judged as ever.
			w.Refused(rig.Stranger, netip.AddrPortFrom(w.Pod("late", "server", false), 8080))
		})
	}
}

// ends waits until a connection is reset.
func ends(h held) error {
	if err := h.SetReadDeadline(deadline()); err != nil {
		return err
	}
	if _, err := h.Read(make([]byte, 1)); !isReset(err) {
		return fmt.Errorf("from %s: %w, and not a reset", h.from, err)
	}
	return nil
}

// TestHeldConnectionAcrossRestart: the proxy that is restarted knows the old
// connections as well.
func TestHeldConnectionAcrossRestart(t *testing.T) {
	t.Parallel()
	w := start(t, lateNamespace())
	old := holdAll(w)
	enrolLate(w)
	if err := w.Restart(t.Context(), "ztunnel/node1", lab.RestartGraceful); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	mustLive(t, "after the restart", old)
	w.MustApply(rig.PolicyObject("late", "nothing", "ALLOW", "rules: []"))
	for _, h := range old {
		if err := ends(h); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHeldConnectionLeft: by the setting, old connections are left alone.
func TestHeldConnectionLeft(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{
		YAML: rig.Shop + lateNamespace(),
		Env:  map[string][]string{"ztunnel": {"CLOSE_UNCAPTURED_CONNECTIONS=false"}},
	})
	old := holdAll(w)
	enrolLate(w)
	w.MustApply(rig.PolicyObject("late", "nothing", "ALLOW", "rules: []"))
	w.BecomesRefused(rig.Stranger, netip.AddrPortFrom(w.Pod("late", "server", false), 8080))
	mustLive(t, "with the setting", old)
}
