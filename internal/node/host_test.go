package node

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// hostTable is a host's table that remembers what it was made.
type hostTable struct {
	w *world

	mu   sync.Mutex
	pods []netip.Addr
	err  error
}

func (h *hostTable) Apply(pods []netip.Addr) (differs []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	if !slices.Equal(h.pods, pods) {
		differs = []string{"other pods"}
		h.w.set(func() { h.w.note("host table %v", pods) })
	}
	h.pods = pods
	return differs, nil
}

func (h *hostTable) set(err error, pods ...netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pods, h.err = pods, err
}

// withHost gives an agent a host's table, and a pod that is probed.
func withHost(b *bubble) *hostTable {
	h := &hostTable{w: b.w}
	b.cfg.HostRules = h
	b.probe = newProbed(h)
	b.pod.ProbePorts = []uint16{8080}
	b.Set(b.pod)
	return h
}

func TestHostTableComesFirstAndGoesLast(t *testing.T) {
	var h *hostTable
	inBubble(t, func(b *bubble) { h = withHost(b) }, func(t *testing.T, b *bubble) {
		expect(t, b)
		b.label(ambient)
		expect(t, b, "host table [fd00:9::2]", "served", "rules capture", `announced "enabled"`)
		b.heard()
		h.set(nil) // somebody flushes all tables
		sleep(hostPoll)
		expect(t, b, "host table [fd00:9::2]")
		b.label(map[string]string{})
		b.heard()
		b.w.take()
		sleep(DefaultSettle + drainPoll)
		expect(t, b, "rules quiesce", "no longer served", "rules removed", "host table []")
	})
}

func TestHostTableOfAFormerAgentIsKept(t *testing.T) {
	var h *hostTable
	inBubble(t, func(b *bubble) {
		b.w.rules = "capture"
		b.pod.Annotations = enabled
		b.SetNamespace("default", ambient)
		h = withHost(b)
		h.set(nil, netnstest.PodIPv6)
	}, func(t *testing.T, b *bubble) {
		sleep(3 * hostPoll)
		expect(t, b, "served")
	})
}

// Where the host's table cannot be written, nothing is enrolled whose probes
// would fail, and it is said.
func TestHostTableFails(t *testing.T) {
	var h *hostTable
	var told []error
	inBubble(t, func(b *bubble) {
		h = withHost(b)
		h.err = errBroken
		b.cfg.HostRulesFail = func(err error) { b.w.set(func() { told = append(told, err) }) }
		b.SetNamespace("default", ambient)
	}, func(t *testing.T, b *bubble) {
		sleep(DefaultResync)
		expect(t, b)
		h.set(nil)
		sleep(lastRetry)
		expect(t, b, "host table [fd00:9::2]", "served", "rules capture", `announced "enabled"`)
		b.w.mu.Lock()
		defer b.w.mu.Unlock()
		if len(told) != 2 || told[0] == nil || told[1] != nil {
			t.Errorf("told %v", told)
		}
	})
}

func TestEveryPodLeaves(t *testing.T) {
	inBubble(t, withPod, func(t *testing.T, b *bubble) {
		b.heard()
		b.w.take()
		b.Leave(t.Context())
		b.Abandon()
		expect(t, b, `announced ""`, "rules quiesce", "no longer served", "rules removed", `announced ""`)
		if err := b.AddNew(t.Context(), newPod(fdPath(b.ns), "web")); err != nil {
			t.Errorf("a pod that starts meanwhile: %v", err)
		}
		synctest.Wait()
		expect(t, b)
	})
}

// A pod that cannot leave in time, because nobody can be told, is not left
// captured with nobody behind.
func TestPodsThatCannotLeaveAreAbandoned(t *testing.T) {
	inBubble(t, withPod, func(t *testing.T, b *bubble) {
		b.heard()
		b.w.set(func() { b.w.mute = true })
		b.w.take()
		ctx, cancel := context.WithTimeout(t.Context(), 50*leavePoll)
		defer cancel()
		b.Leave(ctx)
		expect(t, b)
		b.Abandon()
		expect(t, b, "rules removed")
	})
}
