package hbone

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// hall is a lobby and what its guests were told.
type hall struct {
	*lobby
	all []*guest
}

func (h *hall) take(v verdict) {
	if v.evict != nil && v.evict.phase != outside {
		panic("an evicted connection is still in the lobby")
	}
	if v.start != nil && v.start.phase != shaking {
		panic("a started connection has no slot")
	}
}

func (h *hall) from(addr string) *guest {
	g := &guest{}
	h.all = append(h.all, g)
	h.take(h.arrive(g, netip.MustParseAddr(addr)))
	return g
}

func newHall() *hall { return &hall{lobby: newLobby(4, 10, 8, 6)} }

// However many connections of one source are silent, one of another source that
// speaks gets a slot at once.
func TestSilentSourcesKeepNoOtherWaiting(t *testing.T) {
	for name, attacker := range map[string]func(i int) string{
		"one address":     func(int) string { return "10.0.0.9" },
		"one IPv6 net":    func(i int) string { return fmt.Sprintf("fd00::%x", i+1) },
		"many addresses":  func(i int) string { return fmt.Sprintf("10.1.%d.%d", i/250, i%250+1) },
		"many IPv6 nets":  func(i int) string { return fmt.Sprintf("fd00:0:0:%x::1", i+1) },
		"mapped and IPv4": func(i int) string { return []string{"10.0.0.9", "::ffff:10.0.0.9"}[i%2] },
	} {
		h := newHall()
		for i := range 600 {
			h.from(attacker(i))
		}
		g := h.from("10.9.9.9")
		if v := h.heard(g); v.start != g {
			t.Errorf("%s, silent: a connection that speaks gets no slot", name)
		}
		// The same with connections that send a hello and nothing after it.
		h = newHall()
		for i := range 600 {
			g := h.from(attacker(i))
			h.take(h.heard(g))
			if g.phase != shaking {
				t.Fatalf("%s, stalled: the slots are gone", name)
			}
			h.take(h.asks(g))
		}
		g = h.from("10.9.9.9")
		if v := h.heard(g); v.start != g {
			t.Errorf("%s, stalled: a connection that speaks gets no slot", name)
		}
	}
}

func TestTheGuiltiestGoesFirst(t *testing.T) {
	h := newHall()
	good := h.from("10.9.9.9")
	var bad []*guest
	for range 9 {
		bad = append(bad, h.from("10.0.0.9"))
	}
	more := h.from("10.0.0.9")
	if bad[0].phase != outside || bad[1].phase != silent || good.phase != silent || more.phase != silent {
		t.Error("the oldest connection of the source with most is not the one that went")
	}
	// One network with many addresses is one source, and in it the address with most.
	h = newHall()
	good, alone := h.from("10.9.9.9"), h.from("fd00::1")
	for range 9 {
		h.from("fd00::2")
	}
	if good.phase != silent || alone.phase != silent {
		t.Error("a neighbour of the guilty address went")
	}
	if h.spare(silent).addr != netip.MustParseAddr("fd00::2") {
		t.Error("another address than the guilty one was chosen")
	}
}

// Slots are shared by source: a flood of complete hellos keeps one other
// connection waiting for one slot, not for the flood.
func TestSlotsAreSharedBySource(t *testing.T) {
	h := newHall()
	var flood []*guest
	for range 12 {
		g := h.from("10.0.0.9")
		h.take(h.heard(g))
		flood = append(flood, g)
	}
	g := h.from("10.9.9.9")
	h.take(h.heard(g))
	if g.phase != ready {
		t.Fatalf("phase %d with all slots taken", g.phase)
	}
	if v := h.leave(flood[0]); v.start != g {
		t.Error("the slot that got free did not go to the source without one")
	}
}

func TestLobbyProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHall()
		one := func(t *rapid.T, p lobbyPhase) *guest {
			var fit []*guest
			for _, g := range h.all {
				if g.phase == p {
					fit = append(fit, g)
				}
			}
			if len(fit) == 0 {
				t.Skip("no connection in this phase")
			}
			return rapid.SampledFrom(fit).Draw(t, "guest")
		}
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) {
				h.from(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2", "fd00:1::1"}).Draw(t, "source"))
			},
			"heard":    func(t *rapid.T) { h.take(h.heard(one(t, silent))) },
			"asks":     func(t *rapid.T) { h.take(h.asks(one(t, shaking))) },
			"answered": func(t *rapid.T) { h.take(h.answered(one(t, asked))) },
			"leave": func(t *rapid.T) {
				h.take(h.leave(one(t, rapid.SampledFrom([]lobbyPhase{silent, ready, shaking, asked}).Draw(t, "phase"))))
			},
			"late": func(t *rapid.T) {
				g := one(t, outside)
				if v := h.leave(g); v != (verdict{}) {
					t.Fatal("a connection that is gone changes something")
				}
				if v := h.answered(g); v != (verdict{}) {
					t.Fatal("a connection that is gone changes something")
				}
			},
			"": func(t *rapid.T) {
				var n [numPhases]int
				for _, g := range h.all {
					if g.phase < numPhases {
						n[g.phase]++
					}
				}
				for p, c := range h.crowds {
					sum := 0
					for _, o := range c.nets {
						sum += o.n
					}
					if c.n != n[p] || sum != n[p] || n[p] > h.limits[p] {
						t.Fatalf("phase %d: %d connections, counted %d and %d, limit %d", p, n[p], c.n, sum, h.limits[p])
					}
				}
				if n[ready] > 0 && n[shaking] < h.slots {
					t.Fatalf("%d connections wait and %d of %d slots are taken", n[ready], n[shaking], h.slots)
				}
			},
		})
	})
}
