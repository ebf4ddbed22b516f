package attack

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
	"golang.org/x/sys/unix"
)

// rate is low by default: all other tests run on the same machine.
var rate = flag.Int("load.rate", 100, "requests a second of TestLoadBesideAttacks")

// yield is for measuring on a machine that does nothing else.
var yield = flag.Bool("load.yield", false, "attackers get the processor time that others leave, as if they had machines of their own")

// lowest is the priority of attackers that yield.
const lowest = 19

// sessionPriority is the file with the priority of a process's session. Linux divides
// processor time among sessions first (sched_autogroup), and each pod of a lab is one:
// within its session alone, a priority changes nothing.
const sessionPriority = "/proc/self/autogroup"

// yielding is what a command of an attacker begins with.
func yielding() []string {
	if !*yield {
		return nil
	}
	return []string{"sh", "-c", fmt.Sprintf(`[ ! -w %[1]s ] || echo %[2]d > %[1]s; exec nice -n %[2]d "$@"`, sessionPriority, lowest), "sh"}
}

// yieldThreads lowers the priority of this process, which attacks, and not that of the
// lab, which runs already.
func yieldThreads(t *testing.T) {
	t.Helper()
	if !*yield {
		return
	}
	if err := os.WriteFile(sessionPriority, []byte(strconv.Itoa(lowest)), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads { // threads that begin later have the priority of those that begin them
		id, err := strconv.Atoi(thread.Name())
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, id, lowest)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
}

// TestLoadBesideAttacks: while one tenant, or a stranger, attacks the front doors and
// budgets, another tenant's requests are all answered. The log has how long they took
// before and beside the attack; a busy machine makes these times useless, so they are
// no condition.
func TestLoadBesideAttacks(t *testing.T) {
	world := start(t, looperPod)
	yieldThreads(t)
	web := world.Pod("shop", "web", false)
	stall := netip.AddrPortFrom(world.Pod("market", "stall", false), 9000)
	own := netip.AddrPortFrom(world.Pod("market", "looper", false), wellknown.PortOutbound)
	for _, a := range []struct {
		name string
		// run attacks until ctx ends. Its result waits for the end. A program that it
		// has started ends with the subtest.
		run func(ctx context.Context, w *rig.World) interface{ Wait() }
	}{
		{"large messages of strangers", func(ctx context.Context, w *rig.World) interface{ Wait() } {
			var hogs sync.WaitGroup
			dial := dialer(w.Netns(rig.Stranger))
			for i := range 4 {
				h := hog{method: []string{createCertificate, deltaResources}[i%2], size: 190 << 20, token: []string{"", forged(w, i)}[i/2]}
				hogs.Go(func() {
					for ctx.Err() == nil {
						again := hog{method: h.method, size: h.size, token: h.token}
						_, _ = again.run(ctx, dial, frontDoor(false))
					}
				})
			}
			return &hogs
		}},
		{"made-up tokens", func(ctx context.Context, w *rig.World) interface{ Wait() } {
			return makeUpTokens(ctx, w, new(atomic.Int64))
		}},
		{"silence at the control plane", func(_ context.Context, w *rig.World) interface{ Wait() } {
			siege(w, rig.Stranger, netip.MustParseAddrPort(frontDoor(false)), 2000, "silent")
			return new(sync.WaitGroup)
		}},
		{"silence at the tunnel port", func(_ context.Context, w *rig.World) interface{ Wait() } {
			siege(w, rig.Stranger, netip.AddrPortFrom(web, wellknown.PortHBONE), 600, "stall")
			return new(sync.WaitGroup)
		}},
		{"connections of a pod to its own proxy", func(ctx context.Context, w *rig.World) interface{ Wait() } {
			var loops sync.WaitGroup
			for range 4 {
				loops.Go(func() {
					for ctx.Err() == nil {
						if c, err := w.Dial(ctx, looper, "tcp", own.String()); err == nil {
							_, _ = io.Copy(io.Discard, c)
							_ = c.Close()
						}
					}
				})
			}
			return &loops
		}},
		{"streams of a tenant", func(ctx context.Context, w *rig.World) interface{ Wait() } {
			return holdStreams(ctx, w, new(atomic.Int64))
		}},
		{"descriptors of the node proxy", func(_ context.Context, w *rig.World) interface{ Wait() } {
			siege(w, thief1, stall, 9000, "silent")
			return new(sync.WaitGroup)
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			w := world.For(t)
			const seconds = 4
			to := netip.AddrPortFrom(web, 8080)
			quiet := w.StartLoad(rig.Near, to, *rate)
			quiet.Seconds(seconds - 1)
			before := quiet.Clean()
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			load := w.StartLoad(rig.Near, to, *rate)
			attack := a.run(ctx, w)
			defer attack.Wait() // also when a request fails: the attackers use the test
			defer stop()
			load.Seconds(seconds)
			beside := load.Clean()
			t.Logf("microseconds, p50 and p99: %d and %d before, %d and %d beside the attack (%d requests)", before.P50, before.P99, beside.P50, beside.P99, beside.OK)
		})
	}
}
