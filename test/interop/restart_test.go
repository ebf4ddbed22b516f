package interop

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// cli runs `ambit ztunnel-config` against the lab.
func cli(w *rig.World, args ...string) (string, error) { return w.Ambit("ztunnel-config", args...) }

func component(w *rig.World, name string) lab.ComponentStatus {
	w.T().Helper()
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	c, _ := s.Component(name)
	return c
}

// kill ends a component and waits until the supervisor has brought it back.
func kill(w *rig.World, name string) {
	w.T().Helper()
	before := component(w, name)
	if err := w.Kill(w.T().Context(), name, lab.SIGKILL); err != nil {
		w.T().Fatal(err)
	}
	w.Eventually(name+" is back by itself", func() error {
		if c := component(w, name); c.PID == before.PID || !c.Ready {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

// TestRestarts: either side finds the other again, and ambitd, without a hand.
func TestRestarts(t *testing.T) {
	world := start(t)
	for _, name := range []string{ours, peer} {
		t.Run("kill "+who(name), func(t *testing.T) {
			w := world.For(t)
			var loads []*rig.Load
			for _, x := range across {
				loads = append(loads, w.StartLoad(x.client(), x.targets(w, false)[1].http, 100))
			}
			kill(w, "ztunnel/"+name)
			w.Settled()
			for _, x := range across {
				for _, v6 := range []bool{false, true} {
					served(w, x.client(), x.targets(w, v6)[0].http)
				}
			}
			for i, l := range loads {
				l.Seconds(1)
				r := l.Stop()
				t.Logf("%s: of %d requests %d failed: %v", across[i], r.Sent, r.Failed, r.Errors)
				if r.OK == 0 {
					t.Error("nothing was answered")
				}
			}
			for _, x := range across {
				w.StartLoad(x.client(), x.targets(w, true)[1].http, 100).Clean()
			}
		})
	}

	for _, name := range []string{ours, peer} {
		t.Run("replace "+who(name), func(t *testing.T) {
			w := world.For(t)
			var loads []*rig.Load
			for _, x := range across {
				loads = append(loads, w.StartLoad(x.client(), x.targets(w, false)[1].http, 100))
			}
			if err := w.Restart(t.Context(), "ztunnel/"+name, lab.RestartGraceful); err != nil {
				t.Fatal(err)
			}
			w.Settled()
			for i, l := range loads {
				l.Seconds(2)
				t.Logf("%s", across[i])
				l.Clean()
			}
		})
	}

	t.Run("agent", func(t *testing.T) {
		w := world.For(t)
		x := way{peer, ours}
		load := w.StartLoad(x.client(), x.targets(w, false)[1].http, 100)
		kill(w, "ambit-cni/"+peer)
		w.Settled()
		load.Seconds(1)
		load.Clean()
	})

	t.Run("ambitd", func(t *testing.T) {
		w := world.For(t)
		var loads []*rig.Load
		for _, x := range across {
			loads = append(loads, w.StartLoad(x.client(), x.targets(w, false)[1].http, 100))
		}
		kill(w, lab.Ambitd)
		w.Eventually("all proxies follow ambitd again", func() error {
			b, err := w.Admin(t.Context(), lab.Ambitd, admin.PathFollowers)
			if err != nil {
				return err
			}
			var clients []admin.Follower
			if err := json.Unmarshal(b, &clients); err != nil {
				return err
			}
			if len(clients) != 3 {
				return fmt.Errorf("%d clients", len(clients))
			}
			return nil
		})
		for _, l := range loads {
			l.Clean()
		}
		// What is new arrives.
		for _, x := range across {
			w.MustApply(policy("deny", x.to, "DENY", fromAccount("client-"+x.from)))
			refused(w, x.client(), x.targets(w, true)[1].http)
			w.MustDelete("AuthorizationPolicy", "shop", "deny")
			served(w, x.client(), x.targets(w, true)[1].http)
		}
	})
}
