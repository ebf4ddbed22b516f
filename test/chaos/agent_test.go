package chaos

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestAgent: without the agent what is enrolled stays so, and nothing new
// starts outside of the mesh.
func TestAgent(t *testing.T) {
	t.Parallel()
	world := rig.Start(t, lab.Config{YAML: town, Args: map[string][]string{"ambit-cni": {"--resync", "2s"}}})

	t.Run("killed", func(t *testing.T) {
		w := world.For(t)
		load := startTraffic(w)
		kill(w, agent2)
		load.pass(1)
		load.alive("the agent is back")
		stop(w, agent2)
		seen := capture(w)
		if err := w.Apply(t.Context(), latePod("late")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Wait(t.Context(), func(s *lab.Status) bool { p, _ := s.Pod("shop", "late"); return p.Message != "" }); err != nil {
			t.Fatal(err)
		}
		w.Always("a new pod does not start uncaptured", func() error {
			s, err := w.Status(t.Context())
			if err != nil {
				return err
			}
			if p, _ := s.Pod("shop", "late"); len(p.PIDs) > 0 {
				return errors.New("its program runs")
			}
			return nil
		})
		load.alive("without an agent")
		resume(w, agent2)
		late := runs(w, "late")
		w.Settled()
		becomesServed(w, late, http(w, false))
		unreadable(w, seen.Stop(), "late", "web")
		load.unharmed()
	})

	t.Run("rules flushed by hand", func(t *testing.T) {
		w := world.For(t)
		ns := w.Netns(far)
		for _, when := range []string{"while the agent runs", "while it is down"} {
			if when == "while it is down" {
				stop(w, agent2)
			}
			if err := nft.Remove(ns); err != nil {
				t.Fatal(err)
			}
			if when == "while it is down" {
				resume(w, agent2)
			}
			w.Eventually("the rules are back, flushed "+when, func() error {
				rules, err := nft.Dump(ns)
				if err == nil && !strings.Contains(rules, "chain nat-output ") {
					err = errors.New("no rules that capture")
				}
				return err
			})
			w.Settled()
			seen := capture(w)
			for range 3 {
				w.MustGet(far, http(w, false))
				if err := tell(w, far, http(w, true)); err != nil {
					t.Error(err)
				}
			}
			unreadable(w, seen.Stop(), "far", "web")
		}
	})

	t.Run("pod deleted while it is down", func(t *testing.T) {
		w := world.For(t)
		w.MustApply(latePod("brief"))
		stop(w, agent2)
		w.MustDelete("Pod", "shop", "brief")
		resume(w, agent2)
		w.Eventually("the proxy lets go of it", func() error {
			d, err := w.Dump("node2")
			if err != nil {
				return err
			}
			for uid, s := range d.Pods {
				if s.Info.Name == "brief" {
					return fmt.Errorf("%s is %s", uid, s.State)
				}
			}
			return nil
		})
	})

	t.Run("label taken away while it is down", func(t *testing.T) {
		w := world.For(t)
		ns := w.Netns(far)
		load := w.StartLoad(far, http(w, false), rate)
		stop(w, agent2)
		none := wellknown.DataplaneModeNone
		label(t, w, "far", &none)
		load.Seconds(1)
		resume(w, agent2)
		gone(w, ns)
		w.Settled()
		load.Seconds(1)
		load.Clean()
		if a := w.MustGet(far, http(w, false)); a.Caller != w.Pod("shop", "far", false) {
			t.Errorf("the server saw %s", a.Caller)
		}
		label(t, w, "far", nil)
		w.Settled()
		seen := capture(w)
		becomesServed(w, far, http(w, false))
		unreadable(w, seen.Stop(), "far", "web")
	})
}

func label(t *testing.T, w *rig.World, pod string, value *string) {
	t.Helper()
	if err := w.Label(t.Context(), "pod", "shop", pod, map[string]*string{wellknown.LabelDataplaneMode: value}); err != nil {
		t.Fatal(err)
	}
}
