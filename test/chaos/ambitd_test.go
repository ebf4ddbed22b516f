package chaos

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// callTimeout bounds a request that may hang for a reason.
const callTimeout = 3 * time.Second

// TestAmbitd: without the control plane, which is the certificate authority as
// well, known pods go on, and what is new waits.
func TestAmbitd(t *testing.T) {
	t.Parallel()
	world := rig.Start(t, lab.Config{YAML: town})
	connected(world)

	t.Run("reconnect sends nothing known", func(t *testing.T) {
		w := world.For(t)
		allHealthy(w)
		root := rootOf(w)
		before := [2]map[string]float64{received(w, "node1"), received(w, "node2")}
		proxies := [2]int{pid(w, server1), pid(w, server2)}
		kill(w, lab.Ambitd)
		connected(w)
		if now := rootOf(w); now != root {
			t.Error("the root of trust is another one after a restart")
		}
		// The same processes, with the tokens they were started with.
		if now := [2]int{pid(w, server1), pid(w, server2)}; now != proxies {
			t.Errorf("proxies were restarted: %v, before %v", now, proxies)
		}
		w.Always("nothing known is sent again", func() error {
			for i, node := range []string{"node1", "node2"} {
				if now := received(w, node); !maps.Equal(now, before[i]) {
					return fmt.Errorf("%s: bytes by type %v, before %v", node, now, before[i])
				}
			}
			return nil
		})
	})

	t.Run("down", func(t *testing.T) {
		w := world.For(t)
		certs := certificates(w, "node2")
		load := startTraffic(w)
		stop(w, lab.Ambitd)
		load.pass(2)
		load.alive("without ambitd")
		if now := certificates(w, "node2"); !maps.Equal(now, certs) {
			t.Errorf("certificates changed: %v, before %v", now, certs)
		}

		// What comes meanwhile waits: a policy, and a pod that nobody knows.
		seen := capture(w)
		if err := w.Apply(t.Context(), deny("near")+"---"+latePod("late")); err != nil {
			t.Fatal(err)
		}
		late := runs(w, "late")
		if err := tell(w, late, http(w, false)); err == nil {
			t.Error("a pod that has no identity yet is served")
		}
		if err := tell(w, near, http(w, true)); err != nil {
			t.Errorf("a policy that nobody has read is enforced: %v", err)
		}
		load.pass(1)
		// near is refused from here on, and its load with it.
		l := load.loads[1]
		load.loads = load.loads[:1]
		l.Clean()
		for name := range load.held {
			if name[:len("from near")] == "from near" {
				delete(load.held, name)
			}
		}

		resume(w, lab.Ambitd)
		w.Settled()
		becomesServed(w, late, http(w, false))
		becomesServed(w, late, http(w, true))
		becomesDenied(w, near, http(w, true))
		unreadable(w, seen.Stop(), "late", "web")
		load.unharmed()
		w.MustDelete("AuthorizationPolicy", "shop", "no-near")
		becomesServed(w, near, http(w, true))
	})

	t.Run("hangs", func(t *testing.T) {
		w := world.For(t)
		load := startTraffic(w)
		if err := w.Kill(t.Context(), lab.Ambitd, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		seen := capture(w)
		load.pass(2)
		load.alive("ambitd hangs")
		// An identity of its own, which the CA was never asked for.
		if err := w.Apply(t.Context(), latePod("later")); err != nil {
			t.Fatal(err)
		}
		later := runs(w, "later")
		if err := tell(w, later, http(w, false)); err == nil {
			t.Error("a pod without a certificate is served")
		}
		if err := w.Kill(t.Context(), lab.Ambitd, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		w.Settled()
		becomesServed(w, later, http(w, false))
		unreadable(w, seen.Stop(), "later", "web")
		load.unharmed()
	})

	t.Run("refuses to sign", func(t *testing.T) {
		w := world.For(t)
		load := startTraffic(w)
		refusing := filepath.Join(t.TempDir(), "ambitd")
		script := "#!/bin/sh\nexec " + rig.Bin("ambitd") + " \"$@\" --trusted-node-account istio-system/nobody --directory-reader istio-system/ztunnel\n"
		if err := os.WriteFile(refusing, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := w.Replace(t.Context(), lab.Ambitd, refusing, lab.RestartKill); err != nil {
			t.Fatal(err)
		}
		connected(w)
		seen := capture(w)
		if err := w.Apply(t.Context(), latePod("third")); err != nil {
			t.Fatal(err)
		}
		third := runs(w, "third")
		w.Settled()
		load.alive("the CA refuses")
		if err := tell(w, third, http(w, false)); err == nil {
			t.Error("a pod without a certificate is served")
		}
		w.Eventually("the access log says why", func() error {
			if len(w.AccessLines("node2", `src.workload="third"`, "CERTIFICATE_UNAVAILABLE")) == 0 {
				return fmt.Errorf("no line")
			}
			return nil
		})
		if err := w.Replace(t.Context(), lab.Ambitd, rig.Bin("ambitd"), lab.RestartKill); err != nil {
			t.Fatal(err)
		}
		becomesServed(w, third, http(w, false))
		unreadable(w, seen.Stop(), "third", "web")
		load.unharmed()
	})

	t.Run("a proxy starts without it", func(t *testing.T) {
		w := world.For(t)
		seen := capture(w)
		stop(w, lab.Ambitd)
		before := pid(w, server2)
		if err := w.Kill(t.Context(), server2, lab.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.Eventually("the next one runs", func() error {
			if now := pid(w, server2); now == before || now == 0 {
				return fmt.Errorf("pid %d", now)
			}
			return nil
		})
		w.Always("its pods get nowhere", func() error {
			if err := tell(w, far, http(w, false)); err == nil {
				return fmt.Errorf("far is served by a proxy that knows nothing")
			}
			return nil
		})
		resume(w, lab.Ambitd)
		w.Settled()
		becomesServed(w, far, http(w, false))
		becomesServed(w, far, http(w, true))
		unreadable(w, seen.Stop(), "far", "web")
		w.StartLoad(far, http(w, false), rate).Clean()
	})

	t.Run("broken configuration", func(t *testing.T) { brokenFile(t, world.For(t)) })
}

// allHealthy waits until both proxies know that every pod is ready: nothing
// more changes then.
func allHealthy(w *rig.World) {
	w.Eventually("both proxies know that every pod is ready", func() error {
		for _, node := range []string{"node1", "node2"} {
			d, err := w.Dump(node)
			if err != nil {
				return err
			}
			for _, wl := range d.Workloads {
				if wl.Status != "Healthy" {
					return fmt.Errorf("to %s, %s is %s", node, wl.Name, wl.Status)
				}
			}
		}
		return nil
	})
}

// brokenFile: a file that cannot be read is reported; everything else goes on,
// and what it said before stays in force, also after a restart.
func brokenFile(t *testing.T, w *rig.World) {
	w.MustApply(deny("near"))
	becomesDenied(w, near, http(w, false))
	load := w.StartLoad(far, http(w, false), rate)
	path := filepath.Join(w.StateDir(), "config", "authorizationpolicy.shop.no-near.yaml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(good, "  rules: [{from: [{sauce: {}}]}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	problem := func() error {
		b, err := w.Admin(t.Context(), lab.Ambitd, "/debug/problems")
		if err != nil {
			return err
		}
		return contains(string(b), path, `"line":`)
	}
	w.Eventually("the fault is reported with its file and line", problem)
	w.Refused(near, http(w, false))
	w.MustApply(latePod("new")) // everything else is followed
	becomesServed(w, lab.InPod("shop", "new"), http(w, false))
	kill(w, lab.Ambitd)
	connected(w)
	w.Eventually("the fault is reported after a restart", problem)
	for range 5 {
		w.Refused(near, http(w, false))
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the fault is forgotten", func() error {
		if problem() == nil {
			return fmt.Errorf("it is still reported")
		}
		return nil
	})
	w.Refused(near, http(w, false))
	w.MustDelete("AuthorizationPolicy", "shop", "no-near")
	becomesServed(w, near, http(w, false))
	load.Clean()
}
