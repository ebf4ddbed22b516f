package lobby

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// hall is a lobby and what its guests were told.
type hall struct {
	*Lobby
	all []*Guest
	now time.Time
}

func (h *hall) take(v Verdict) {
	if v.Evict != nil && v.Evict.phase != Outside {
		panic("an evicted connection is still in the lobby")
	}
	if v.Start != nil && v.Start.phase != Shaking {
		panic("a started connection has no slot")
	}
}

func (h *hall) from(addr string) *Guest {
	g := &Guest{}
	h.all = append(h.all, g)
	h.take(h.Arrive(g, netip.MustParseAddr(addr)))
	return g
}

func newHall() *hall { return &hall{Lobby: New(4, 10, 8, 6), now: time.Unix(1e9, 0)} }

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
		if v := h.Heard(g, h.now); v.Start != g {
			t.Errorf("%s, silent: a connection that speaks gets no slot", name)
		}
		// The same with connections that send a hello and nothing after it.
		h = newHall()
		for i := range 600 {
			g := h.from(attacker(i))
			h.take(h.Heard(g, h.now))
			if g.phase == Shaking {
				h.take(h.Asks(g, h.now))
			}
		}
		if h.crowds[Shaking].n > 0 {
			t.Errorf("%s, stalled: %d slots are gone", name, h.crowds[Shaking].n)
		}
		g = h.from("10.9.9.9")
		if v := h.Heard(g, h.now); v.Start != g {
			t.Errorf("%s, stalled: a connection that speaks gets no slot", name)
		}
	}
}

func TestTheGuiltiestGoesFirst(t *testing.T) {
	h := newHall()
	good := h.from("10.9.9.9")
	var bad []*Guest
	for range 9 {
		bad = append(bad, h.from("10.0.0.9"))
	}
	more := h.from("10.0.0.9")
	if bad[0].phase != Outside || bad[1].phase != Silent || good.phase != Silent || more.phase != Silent {
		t.Error("the oldest connection of the source with most is not the one that went")
	}
	// One network with many addresses is one source, and in it the address with most.
	h = newHall()
	good, alone := h.from("10.9.9.9"), h.from("fd00::1")
	for range 9 {
		h.from("fd00::2")
	}
	if good.phase != Silent || alone.phase != Silent {
		t.Error("a neighbour of the guilty address went")
	}
	if h.Spare(Silent).addr != netip.MustParseAddr("fd00::2") {
		t.Error("another address than the guilty one was chosen")
	}
}

// Slots are shared by source: a flood of complete hellos keeps one other
// connection waiting for one slot, not for the flood.
func TestSlotsAreSharedBySource(t *testing.T) {
	h := newHall()
	var flood []*Guest
	for range 12 {
		g := h.from("10.0.0.9")
		h.take(h.Heard(g, h.now))
		flood = append(flood, g)
	}
	g := h.from("10.9.9.9")
	h.take(h.Heard(g, h.now))
	if g.phase != Ready {
		t.Fatalf("phase %d with all slots taken", g.phase)
	}
	if v := h.Leave(flood[0], h.now); v.Start != g {
		t.Error("the slot that got free did not go to the source without one")
	}
}

// begin has a source begin handshakes that it does not finish, and returns how many
// of n got a slot.
func (h *hall) begin(n int, from func(int) string) (got int) {
	for i := range n {
		g := h.from(from(i))
		h.take(h.Heard(g, h.now))
		if g.phase == Shaking {
			got++
		}
		h.take(h.Leave(g, h.now))
	}
	return got
}

// A source that does not finish its handshakes begins few, and its neighbours in one
// network of IPv6 begin theirs.
func TestUnfinishedHandshakesAreOwed(t *testing.T) {
	one := func(int) string { return "fd00::9" }
	h := newHall()
	if got := h.begin(1000, one); got != 64 {
		t.Errorf("a source has begun %d handshakes and finished none", got)
	}
	if got := h.begin(1, func(int) string { return "fd00::1" }); got != 1 {
		t.Error("its neighbour begins none")
	}
	g := h.from(one(0))
	v := h.Heard(g, h.now)
	if v.Start != nil || v.Again <= 0 || v.Again > 100*time.Millisecond {
		t.Fatalf("a source in debt: %+v", v)
	}
	h.now = h.now.Add(v.Again)
	if v := h.Wake(h.now); v.Start != g {
		t.Error("after the time that the lobby named, it gives no slot")
	}
	h.take(h.Leave(g, h.now))
	h.now = h.now.Add(time.Second)
	if got := h.begin(1000, one); got != 10 {
		t.Errorf("a second later the source has begun %d", got)
	}
	many := func(i int) string { return fmt.Sprintf("fd00:1::%x", i+1) }
	if got := newHall().begin(5000, many); got != 1024 {
		t.Errorf("a network of many addresses has begun %d handshakes", got)
	}
	h = newHall()
	for range 1000 {
		g := h.from(one(0))
		h.take(h.Heard(g, h.now))
		if g.phase != Shaking {
			t.Fatal("a source that finishes its handshakes begins no more")
		}
		h.take(h.Finished(g, h.now))
	}
	if n := len(h.addrs.of) + len(h.nets.of); n > 0 {
		t.Errorf("%d debts after all handshakes are finished", n)
	}
}

// A handshake under way goes on, whatever its source owes.
func TestHandshakeUnderWayGoesOn(t *testing.T) {
	h := newHall()
	g := h.from("10.0.0.9")
	h.take(h.Heard(g, h.now))
	h.take(h.Asks(g, h.now))
	h.begin(100, func(int) string { return "10.0.0.9" })
	other := h.from("10.0.0.9")
	h.take(h.Heard(other, h.now))
	if v := h.Answered(g, h.now); v.Start != g || other.phase != Ready {
		t.Errorf("it gets no slot: %+v", v)
	}
}

// A client that comes from the address of an attacker is served before what has
// been waiting there.
func TestNewestOfADoubtfulSourceComesFirst(t *testing.T) {
	h := newHall()
	h.begin(100, func(int) string { return "10.0.0.9" })
	var waiting []*Guest
	for range 6 {
		g := h.from("10.0.0.9")
		h.take(h.Heard(g, h.now))
		waiting = append(waiting, g)
	}
	h.now = h.now.Add(100 * time.Millisecond)
	if v := h.Wake(h.now); v.Start != waiting[5] {
		t.Error("another connection than the newest one has the slot")
	}
}

func TestDebtsAreBounded(t *testing.T) {
	d, now := debtsOfAddresses(), time.Unix(1e9, 0)
	for i := range 3 * maxDebts {
		d.add(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), 1, now)
		if len(d.of) > maxDebts {
			t.Fatalf("%d sources", len(d.of))
		}
	}
}

func TestLobbyProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHall()
		passed := false // time, which gives no slot by itself
		// step does something with a connection in a phase, if there is one.
		step := func(t *rapid.T, p Phase, do func(*Guest)) {
			var fit []*Guest
			for _, g := range h.all {
				if g.phase == p {
					fit = append(fit, g)
				}
			}
			if len(fit) > 0 {
				do(rapid.SampledFrom(fit).Draw(t, "guest"))
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) {
				h.from(rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2", "fd00:1::1"}).Draw(t, "source"))
			},
			"heard":    func(t *rapid.T) { step(t, Silent, func(g *Guest) { h.take(h.Heard(g, h.now)) }) },
			"asks":     func(t *rapid.T) { step(t, Shaking, func(g *Guest) { h.take(h.Asks(g, h.now)) }) },
			"answered": func(t *rapid.T) { step(t, Asked, func(g *Guest) { h.take(h.Answered(g, h.now)) }) },
			"leave": func(t *rapid.T) {
				phase := rapid.SampledFrom([]Phase{Silent, Ready, Shaking, Asked}).Draw(t, "phase")
				step(t, phase, func(g *Guest) { h.take(h.Leave(g, h.now)) })
			},
			"finished": func(t *rapid.T) { step(t, Shaking, func(g *Guest) { h.take(h.Finished(g, h.now)) }) },
			"time": func(t *rapid.T) {
				h.now = h.now.Add(time.Duration(rapid.IntRange(1, 300).Draw(t, "ms")) * time.Millisecond)
			},
			"wake": func(*rapid.T) { h.take(h.Wake(h.now)) },
			"late": func(t *rapid.T) {
				step(t, Outside, func(g *Guest) {
					if v := h.Leave(g, h.now); v != (Verdict{}) {
						t.Fatal("a connection that is gone changes something")
					}
					if v := h.Answered(g, h.now); v != (Verdict{}) {
						t.Fatal("a connection that is gone changes something")
					}
				})
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
				for v := h.Wake(h.now); v.Start != nil; v = h.Wake(h.now) {
					if !passed {
						t.Fatal("a connection waits, and there is a slot that it may have")
					}
				}
				passed = false
				if n := h.crowds[Ready].n; n > 0 && h.crowds[Shaking].n < h.slots && h.Wake(h.now).Again <= 0 {
					t.Fatalf("%d connections wait, there is a slot, and nothing will give it to them", n)
				}
			},
		})
	})
}
