package both

import (
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// rollRate is modest by default: other tests run on the same machine.
var rollRate = flag.Int("roll.rate", 200, "new connections a second during a rolling restart")

// A rolling restart replaces some pods of all at a time.
const (
	replicas = 10
	atOnce   = 2
)

// replica is a pod of an application that is restarted. It goes on for some seconds after its
// end was asked for, as applications do that nothing may be lost of.
func replica(name string, seconds int) string {
	y := strings.Replace(server(name, "app: web"), "terminationGracePeriodSeconds: 0", fmt.Sprintf("terminationGracePeriodSeconds: %d", seconds+10), 1)
	return y + fmt.Sprintf("    lifecycle: {preStop: {sleep: {seconds: %d}}}\n", seconds)
}

// client is the pod far, and the service of the replicas.
func client() string {
	return rig.PodObject("$shop", "far", "node2", "") + rig.ServiceObject("$shop", "web", "web", "{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9000}")
}

// TestRollingRestart: the pods of an application are replaced, some at a time, while
// clients make new connections all the time. None of these fails. A pod that is about to end
// gets no new ones, and connections that it has go on until it is gone.
func TestRollingRestart(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(client())
	name := func(generation, i int) string { return fmt.Sprintf("web%d-%d", generation, i) }
	some := func(generation, from, n int) (y string) {
		for i := from; i < from+n; i++ {
			y += replica(name(generation, i), 2)
		}
		return y
	}
	w.Apply(some(0, 0, replicas))
	generation := 0
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "web", 80, v6)
		w.Becomes(200, far, to, "/")
		held := w.Hold(far, netip.AddrPortFrom(w.Pod(world.Place{Namespace: "shop", Pod: name(generation, 0)}, v6), 9000))
		load := w.Load(far, to, *rollRate, "-per-conn", "1", "-workers", "64")
		load.Seconds(1)
		for i := 0; i < replicas; i += atOnce {
			w.Apply(some(generation+1, i, atOnce))
			w.Delete(some(generation, i, atOnce))
		}
		generation++
		load.Seconds(1)
		r := load.Clean()
		w.Logf("of %d connections, %d failed; p50 %d µs, p99 %d µs, max %d µs", r.Sent, r.Failed, r.P50, r.P99, r.Max)
		w.Eventually("the connection of the first pod has ended with it", func() error {
			if held.Carries() == nil {
				return fmt.Errorf("it carries on")
			}
			return nil
		})
	})
}

// TestEndingPod: while a pod ends, its connections go on, and new ones of its service are
// others'. When it is the only one, it gets them still.
func TestEndingPod(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(client())
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "web", 80, v6)
		leaves := world.Place{Namespace: "shop", Pod: "leaves"}
		answers := func(want string) error {
			all, err := w.Requests(30, far, to, "/")
			if err != nil {
				return err
			}
			var got []string
			for _, r := range all {
				a, err := r.Answer()
				if err != nil {
					return err
				}
				got = append(got, a.Name)
			}
			slices.Sort(got)
			if got := strings.Join(slices.Compact(got), " "); got != want {
				return fmt.Errorf("answers of %q", got)
			}
			return nil
		}
		// ends asks for the end of the pod, has check look as soon as that was read, and
		// returns when the pod is gone.
		ends := func(y string, check func()) {
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				w.Delete(y)
			}()
			w.Eventually("the end of the pod is asked for", func() error { return w.Ending(leaves) })
			check()
			select {
			case <-gone:
				w.Error("the pod was gone before anything could be seen: this test is none")
			default:
			}
			<-gone
		}
		t.Logf("IPv6 %v: beside another pod", v6)
		w.Apply(replica("leaves", 8) + server("stays", "app: web"))
		w.Eventually("both answer", func() error { return answers("leaves stays") })
		held := w.Hold(far, netip.AddrPortFrom(w.Pod(leaves, v6), 9000))
		ends(replica("leaves", 8), func() {
			w.Eventually("the other pod alone gets new connections", func() error { return answers("stays") })
			for range 3 {
				if err := answers("stays"); err != nil {
					w.Error(err)
				}
				if err := held.Carries(); err != nil {
					w.Errorf("the connection of before: %v", err)
				}
			}
		})
		t.Logf("IPv6 %v: alone", v6)
		w.Apply(replica("leaves", 8))
		w.Delete(server("stays", "app: web"))
		w.Eventually("it answers", func() error { return answers("leaves") })
		ends(replica("leaves", 8), func() {
			for range 5 {
				if err := answers("leaves"); err != nil {
					w.Error(err)
				}
			}
		})
	})
}

// TestAddressUsedAgain: when the address of a pod goes to another workload of the same
// account, tunnels of before do not lead there: no connection of the service does.
func TestAddressUsedAgain(t *testing.T) {
	w := start(t, world.Options{FewAddresses: true})
	// One account for all: only that differs which tells pods of one account apart.
	same := func(y string) string {
		lines := strings.Split(y, "\n")
		for i, l := range lines {
			if strings.Contains(l, "serviceAccountName: ") {
				lines[i] = "  serviceAccountName: default"
			}
		}
		return strings.Join(lines, "\n")
	}
	w.Apply(same(client() + server("stays", "app: web")))
	w.Scarce("shop")
	goes, other := same(server("goes", "app: web")), same(server("other", "app: other"))
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "web", 80, v6)
		w.Apply(goes)
		at := world.Place{Namespace: "shop", Pod: "goes"}
		held := w.Hold(far, netip.AddrPortFrom(w.Pod(at, v6), 9000)) // it keeps a tunnel open
		was := w.Pod(at, v6)
		load := w.Load(far, to, *rollRate, "-per-conn", "1", "-workers", "64")
		w.Successor(goes, other)
		if now := w.Pod(world.Place{Namespace: "shop", Pod: "other"}, v6); now != was {
			w.Fatalf("the other workload has %s and not %s: this test is none", now, was)
		}
		if err := w.AnsweredBy("stays", 200, far, to, "/"); err != nil {
			w.Error(err)
		}
		w.Eventually("the connection of before has ended", func() error {
			if held.Carries() == nil {
				return fmt.Errorf("it carries on")
			}
			return nil
		})
		if r := load.Stop(); r.OK == 0 {
			w.Errorf("there was no load: %+v", r)
		}
		w.Delete(other)
	})
}
