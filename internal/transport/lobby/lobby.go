// Package lobby decides which of many new connections may shake hands, and which
// ones have to go, so that no source costs another one its connections.
package lobby

import (
	"cmp"
	"container/list"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Lobby decides about connections that are not tunnels yet: which one may
// shake hands, and which one has to go when there are too many. It does no IO and
// has no lock.
//
// A connection is in one of four phases. Only one of them takes a slot: that in
// which this side computes. Whatever waits for the peer takes none, so a peer that
// is silent keeps no other peer waiting.
//
// Each phase is bounded. When one is full, the source with most connections in it
// loses one, of equals the one that owes most handshakes. Slots go to the source
// that holds fewest. A source is an IPv6 network of 64 bits, and in it an address;
// an IPv4 address is both.
//
// A source that does not finish its handshakes begins no others: see debts.
type Lobby struct {
	slots  int
	limits [numPhases]int
	crowds [numPhases]crowd
	addrs  debts // by whole address
	nets   debts // by source, where that has several addresses
	seq    uint64
}

// Phase of a connection on its way to a tunnel.
type Phase uint8

const (
	// Silent is a connection whose ClientHello is not complete.
	Silent Phase = iota
	// Ready is one that waits for a slot.
	Ready
	// Shaking is one that has a slot.
	Shaking
	// Asked is one whose peer has to send its next flight.
	Asked
	numPhases
	// Outside is one that has left the lobby.
	Outside
)

// Guest is one connection in the lobby.
type Guest struct {
	net   netip.Prefix
	addr  netip.Addr
	phase Phase
	was   Phase // the phase from which it left
	seq   uint64
	at    *list.Element
	begun bool // it has had a slot, and its source owes for it

	// Lent is set by the owner: what the connection had taken of a budget is
	// another connection's.
	Lent bool
	// Start gives it a slot; Evict ends it. The lobby calls neither.
	Start func()
	Evict func(*reason.Error)
}

// Phase returns where the connection is.
func (g *Guest) Phase() Phase { return g.phase }

// Was returns the phase from which a connection has left the lobby.
func (g *Guest) Was() Phase { return g.was }

// Refuse makes a connection that never comes into a lobby.
func (g *Guest) Refuse() { g.phase = Outside }

// Verdict is what a step of the lobby decides: which connection gets a slot, which
// one has to go. Both may be nil. The lobby has noted it already. Again, unless it
// is 0, is the time after which the owner should ask by Wake: then a slot that is
// free can be given.
type Verdict struct {
	Start, Evict *Guest
	Again        time.Duration
}

// New returns a lobby with a number of slots, and bounds of the other phases.
func New(slots, silents, readies, askeds int) *Lobby {
	b := &Lobby{slots: slots, addrs: debtsOfAddresses(), nets: debtsOfNets()}
	b.limits = [numPhases]int{Silent: silents, Ready: readies, Shaking: slots, Asked: askeds}
	for i := range b.crowds {
		b.crowds[i].nets = map[netip.Prefix]*origin{}
	}
	return b
}

// sourceBits is the length of the IPv6 prefix that counts as one source: what a
// host is usually given, so that its addresses cost it nothing.
const sourceBits = 64

// Arrive takes in a connection that has said nothing yet.
func (b *Lobby) Arrive(g *Guest, from netip.Addr) Verdict {
	bits := sourceBits
	if from = from.Unmap().WithZone(""); from.Is4() {
		bits = 32
	}
	g.addr = from
	g.net, _ = from.Prefix(bits) // an invalid address has the zero prefix
	g.phase = Outside
	return Verdict{Evict: b.move(g, Silent)}
}

// Heard notes that a silent connection's ClientHello is complete.
func (b *Lobby) Heard(g *Guest, now time.Time) Verdict { return b.wantSlot(g, now) }

// Asks notes that this side waits for the peer's next flight: the slot is free.
func (b *Lobby) Asks(g *Guest, now time.Time) Verdict {
	if g.phase == Outside {
		return Verdict{}
	}
	evict := b.move(g, Asked)
	return b.next(evict, now)
}

// Answered notes that the flight has come.
func (b *Lobby) Answered(g *Guest, now time.Time) Verdict { return b.wantSlot(g, now) }

// Finished notes that the handshake is over, and takes the connection out.
func (b *Lobby) Finished(g *Guest, now time.Time) Verdict {
	if g.begun {
		g.begun = false
		b.owe(g, -1, now)
	}
	return b.Leave(g, now)
}

// Leave takes a connection out, whatever it did.
func (b *Lobby) Leave(g *Guest, now time.Time) Verdict {
	if g.phase == Outside {
		return Verdict{}
	}
	b.remove(g)
	return b.next(nil, now)
}

// Wake gives slots that had to wait for time to pass.
func (b *Lobby) Wake(now time.Time) Verdict { return b.next(nil, now) }

// Tire takes out a connection that waits for its first slot, and reports whether
// it was one.
func (b *Lobby) Tire(g *Guest) bool {
	waits := g.phase == Ready && !g.begun
	if waits {
		b.remove(g)
	}
	return waits
}

func (b *Lobby) wantSlot(g *Guest, now time.Time) Verdict {
	if g.phase == Outside {
		return Verdict{}
	}
	evict := b.move(g, Ready)
	return b.next(evict, now)
}

// owe adds to the debts of g's source.
func (b *Lobby) owe(g *Guest, n int, now time.Time) {
	own := g.own()
	if b.addrs.add(own, n, now); own != g.net {
		b.nets.add(g.net, n, now)
	}
}

// owes returns what the address of g owed when its debt last changed.
func (b *Lobby) owes(g *Guest) int { return b.addrs.of[g.own()].n }

// wait returns for how long the source of g may begin no handshake.
func (b *Lobby) wait(g *Guest, now time.Time) time.Duration {
	return max(b.addrs.wait(g.own(), now), b.nets.wait(g.net, now))
}

// doubtful reports whether the source of g owes half of what it may. Of such a
// source the newest connection is served first. Its older ones may all be of an
// attack; a client that shares the address with the attacker is then served still.
func (b *Lobby) doubtful(g *Guest, now time.Time) bool {
	return b.addrs.now(g.own(), now).n > b.addrs.limit/2 || b.nets.now(g.net, now).n > b.nets.limit/2
}

// own returns the guest's address.
func (g *Guest) own() netip.Prefix { return netip.PrefixFrom(g.addr, g.addr.BitLen()) }

// move changes the phase of g, and returns the connection that has to go for it,
// which may be g itself.
func (b *Lobby) move(g *Guest, to Phase) *Guest {
	if g.phase != Outside {
		b.remove(g)
	}
	b.seq++
	g.phase, g.seq = to, b.seq
	b.crowds[to].add(g)
	if b.crowds[to].n <= b.limits[to] {
		return nil
	}
	// Of those that wait for the peer the oldest goes: it had most time to speak. Of
	// those that wait for this side the newest goes: the others have waited longer.
	out := b.crowds[to].guiltiest(to != Ready, b.owes)
	b.remove(out)
	return out
}

func (b *Lobby) remove(g *Guest) {
	b.crowds[g.phase].remove(g)
	g.was, g.phase = g.phase, Outside
}

// next gives a free slot to a connection that is ready: of the source that has
// the fewest slots, the one that waits longest. A source in debt gets one only to go
// on with a handshake.
func (b *Lobby) next(evict *Guest, now time.Time) Verdict {
	waiting, busy := &b.crowds[Ready], &b.crowds[Shaking]
	v := Verdict{Evict: evict}
	if waiting.n == 0 || busy.n >= b.slots {
		return v
	}
	for _, o := range waiting.nets {
		for _, l := range o.addrs {
			g := l.Front().Value.(*Guest)
			if wait := b.wait(g, now); wait > 0 && !g.begun {
				if v.Again == 0 || wait < v.Again {
					v.Again = wait
				}
				continue
			}
			if !g.begun && b.doubtful(g, now) {
				g = l.Back().Value.(*Guest)
			}
			if v.Start == nil || busy.fewer(g, v.Start) {
				v.Start = g
			}
		}
	}
	if v.Start == nil {
		return v
	}
	v.Again = 0 // the slot comes back, and the question with it
	b.remove(v.Start)
	b.move(v.Start, Shaking)
	if !v.Start.begun {
		v.Start.begun = true
		b.owe(v.Start, 1, now)
	}
	return v
}

// Spare returns the connection of a phase that has to go first, nil without one;
// it is out of the lobby.
func (b *Lobby) Spare(p Phase) *Guest {
	g := b.crowds[p].guiltiest(p != Ready, b.owes)
	if g != nil {
		b.remove(g)
	}
	return g
}

// crowd is the connections in one phase, by source.
type crowd struct {
	n    int
	nets map[netip.Prefix]*origin
}

// origin is the connections of one network: by address, those that go on with a
// handshake and then the others, oldest first.
type origin struct {
	n     int
	addrs map[netip.Addr]*list.List
}

func (c *crowd) add(g *Guest) {
	o := c.nets[g.net]
	if o == nil {
		o = &origin{addrs: map[netip.Addr]*list.List{}}
		c.nets[g.net] = o
	}
	l := o.addrs[g.addr]
	if l == nil {
		l = list.New()
		o.addrs[g.addr] = l
	}
	if g.phase == Ready && g.begun {
		g.at = l.PushFront(g) // it goes on before others of its source begin
	} else {
		g.at = l.PushBack(g)
	}
	c.n++
	o.n++
}

func (c *crowd) remove(g *Guest) {
	o := c.nets[g.net]
	l := o.addrs[g.addr]
	l.Remove(g.at)
	c.n--
	if o.n--; o.n == 0 {
		delete(c.nets, g.net)
	} else if l.Len() == 0 {
		delete(o.addrs, g.addr)
	}
}

// count returns how many connections a source has, by network and by address.
func (c *crowd) count(g *Guest) (byNet, byAddr int) {
	o := c.nets[g.net]
	if o == nil {
		return 0, 0
	}
	if l := o.addrs[g.addr]; l != nil {
		byAddr = l.Len()
	}
	return o.n, byAddr
}

// fewer reports whether the source of a has fewer connections here than that of
// b; of equals, whether a waits longer.
func (c *crowd) fewer(a, b *Guest) bool {
	an, aa := c.count(a)
	bn, ba := c.count(b)
	return cmp.Or(cmp.Compare(an, bn), cmp.Compare(aa, ba), cmp.Compare(a.seq, b.seq)) < 0
}

// guiltiest returns the oldest or newest connection of the source that has most: the
// network with most, and in it the address with most. Of equals it is the one that
// owes most: a source that has not finished its handshakes before will not now.
func (c *crowd) guiltiest(oldest bool, owes func(*Guest) int) *Guest {
	pick := func(l *list.List) *Guest {
		if oldest {
			return l.Front().Value.(*Guest)
		}
		return l.Back().Value.(*Guest)
	}
	var best *Guest
	var most, mostHere, mostOwed int
	for _, o := range c.nets {
		if o.n < most {
			continue
		}
		for _, l := range o.addrs {
			g := pick(l)
			owed := owes(g)
			worse := o.n > most || l.Len() > mostHere || l.Len() == mostHere && (owed > mostOwed ||
				owed == mostOwed && (g.seq < best.seq) == oldest)
			if best == nil || worse {
				best, most, mostHere, mostOwed = g, o.n, l.Len(), owed
			}
		}
	}
	return best
}
