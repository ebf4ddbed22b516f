package chaos

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// strikes is how often the storm hits: each kind of damage several times.
const strikes = 24

// TestStorm kills everything in any order, faster than it recovers, while pods
// come, go, and change sides. Afterwards all is as the objects say, nothing was
// ever readable between the nodes, and not one request fails.
func TestStorm(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: town})
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's
	load := w.StartLoad(far, http(w, false), rate)
	seen := capture(w)
	components := []string{lab.Ambitd, server1, server2, "ambit-cni/node1", agent2}
	alive := map[string]bool{}
	for range strikes {
		switch dice.IntN(3) {
		case 0:
			name := fmt.Sprintf("guest%d", dice.IntN(4))
			if alive[name] {
				w.MustDelete("Pod", "shop", name)
			} else if err := w.Apply(t.Context(), latePod(name)); err != nil {
				t.Fatal(err)
			}
			alive[name] = !alive[name]
		default:
			// One that has not come back yet cannot be killed again.
			_ = w.Kill(t.Context(), components[dice.IntN(len(components))], lab.SIGKILL)
		}
		time.Sleep(time.Duration(dice.IntN(300)) * time.Millisecond)
		for _, from := range append(guests(w), far) {
			_ = tell(w, from, http(w, dice.IntN(2) == 0)) // that it may fail, and never in plaintext
		}
	}
	if _, err := w.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	connected(w)
	becomesServed(w, far, http(w, false))
	for name := range alive {
		if alive[name] {
			becomesServed(w, runs(w, name), http(w, true))
		}
	}
	r := load.Stop()
	t.Logf("during the storm: of %d requests %d failed: %v", r.Sent, r.Failed, r.Errors)
	calm := startTraffic(w)
	calm.pass(1)
	calm.unharmed()
	web := []netip.Addr{w.Pod("shop", "web", false), w.Pod("shop", "web", true)}
	report := seen.Stop()
	if report.Dropped > 0 {
		t.Fatalf("the capture is incomplete: %d frames lost", report.Dropped)
	}
	for _, f := range report.Flows {
		if slices.Contains(web, f.Server.Addr()) && (f.Plaintext || f.Marks > 0) {
			t.Errorf("on the link between the nodes: %s to %s, %s: %s", f.Client, f.Server, f.Kind, f.Excerpt)
		}
	}
}

// guests are the pods of the storm whose programs run.
func guests(w *rig.World) (out []lab.Where) {
	w.T().Helper()
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	for _, p := range s.Pods {
		if strings.HasPrefix(p.Name, "guest") && len(p.PIDs) > 0 {
			out = append(out, lab.InPod(p.Namespace, p.Name))
		}
	}
	return out
}
