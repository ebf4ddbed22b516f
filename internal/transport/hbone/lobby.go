package hbone

import (
	"cmp"
	"container/list"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// lobby decides about connections that are not tunnels yet: which one may
// shake hands, and which one has to go when there are too many. It does no IO and
// has no lock.
//
// A connection is in one of four phases. Only one of them takes a slot: that in
// which this side computes. Whatever waits for the peer takes none, so a peer that
// is silent keeps no other peer waiting.
//
// Each phase is bounded. When one is full, the source with most connections in it
// loses one: a source is an IPv6 network of 64 bits, and in it an address; an IPv4
// address is both. Slots go to the source that holds fewest.
type lobby struct {
	slots  int
	limits [numPhases]int
	crowds [numPhases]crowd
	seq    uint64
}

// phase of a connection on its way to a tunnel.
type lobbyPhase uint8

const (
	// silent: its ClientHello is not complete.
	silent lobbyPhase = iota
	// ready: it waits for a slot.
	ready
	// shaking: it has a slot.
	shaking
	// asked: this side waits for the peer's next flight.
	asked
	numPhases
	outside // not in the lobby any more
)

// guest is one connection in the lobby.
type guest struct {
	net   netip.Prefix
	addr  netip.Addr
	phase lobbyPhase
	was   lobbyPhase // the phase from which it left
	seq   uint64
	at    *list.Element
	lent  bool // what it had taken of a budget is another connection's

	// start gives it a slot; evict ends it. The lobby calls neither.
	start func()
	evict func(*reason.Error)
}

// verdict is what a step of the lobby decides: who gets a slot, who has to go.
// Both may be nil. The lobby has noted it already.
type verdict struct {
	start, evict *guest
}

func newLobby(slots, silents, readies, askeds int) *lobby {
	b := &lobby{slots: slots}
	b.limits = [numPhases]int{silent: silents, ready: readies, shaking: slots, asked: askeds}
	for i := range b.crowds {
		b.crowds[i].nets = map[netip.Prefix]*origin{}
	}
	return b
}

// sourceBits is the length of the IPv6 prefix that counts as one source: what a
// host is usually given, so that its addresses cost it nothing.
const sourceBits = 64

// arrive takes in a connection that has said nothing yet.
func (b *lobby) arrive(g *guest, from netip.Addr) verdict {
	bits := sourceBits
	if from = from.Unmap().WithZone(""); from.Is4() {
		bits = 32
	}
	g.addr = from
	g.net, _ = from.Prefix(bits) // an invalid address has the zero prefix
	g.phase = outside
	return verdict{evict: b.move(g, silent)}
}

// heard notes that a silent connection's ClientHello is complete.
func (b *lobby) heard(g *guest) verdict { return b.wantSlot(g) }

// asks notes that this side waits for the peer's next flight: the slot is free.
func (b *lobby) asks(g *guest) verdict {
	if g.phase == outside {
		return verdict{}
	}
	v := verdict{evict: b.move(g, asked)}
	v.start = b.next()
	return v
}

// answered notes that the flight has come.
func (b *lobby) answered(g *guest) verdict { return b.wantSlot(g) }

// leave takes a connection out, whatever it did.
func (b *lobby) leave(g *guest) verdict {
	if g.phase == outside {
		return verdict{}
	}
	b.remove(g)
	return verdict{start: b.next()}
}

func (b *lobby) wantSlot(g *guest) verdict {
	if g.phase == outside {
		return verdict{}
	}
	v := verdict{evict: b.move(g, ready)}
	v.start = b.next()
	return v
}

// move changes the phase of g, and returns the connection that has to go for it,
// which may be g itself.
func (b *lobby) move(g *guest, to lobbyPhase) *guest {
	if g.phase != outside {
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
	out := b.crowds[to].guiltiest(to != ready)
	b.remove(out)
	return out
}

func (b *lobby) remove(g *guest) {
	b.crowds[g.phase].remove(g)
	g.was, g.phase = g.phase, outside
}

// next gives a free slot to a connection that is ready: of the source that has
// the fewest slots, the one that waits longest.
func (b *lobby) next() *guest {
	waiting, busy := &b.crowds[ready], &b.crowds[shaking]
	if waiting.n == 0 || busy.n >= b.slots {
		return nil
	}
	var best *guest
	for _, o := range waiting.nets {
		for _, l := range o.addrs {
			if g := l.Front().Value.(*guest); best == nil || busy.fewer(g, best) {
				best = g
			}
		}
	}
	b.remove(best)
	b.move(best, shaking)
	return best
}

// spare returns the connection of a phase that has to go first, nil without one;
// it is out of the lobby.
func (b *lobby) spare(p lobbyPhase) *guest {
	g := b.crowds[p].guiltiest(true)
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

// origin is the connections of one network: by address, oldest first.
type origin struct {
	n     int
	addrs map[netip.Addr]*list.List
}

func (c *crowd) add(g *guest) {
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
	g.at = l.PushBack(g)
	c.n++
	o.n++
}

func (c *crowd) remove(g *guest) {
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
func (c *crowd) count(g *guest) (byNet, byAddr int) {
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
func (c *crowd) fewer(a, b *guest) bool {
	an, aa := c.count(a)
	bn, ba := c.count(b)
	return cmp.Or(cmp.Compare(an, bn), cmp.Compare(aa, ba), cmp.Compare(a.seq, b.seq)) < 0
}

// guiltiest returns the oldest or newest connection of the source that has most:
// the network with most, and in it the address with most.
func (c *crowd) guiltiest(oldest bool) *guest {
	pick := func(l *list.List) *guest {
		if oldest {
			return l.Front().Value.(*guest)
		}
		return l.Back().Value.(*guest)
	}
	var best *guest
	var most, mostHere int
	for _, o := range c.nets {
		if o.n < most {
			continue
		}
		for _, l := range o.addrs {
			g := pick(l)
			worse := o.n > most || l.Len() > mostHere ||
				l.Len() == mostHere && (g.seq < best.seq) == oldest
			if best == nil || worse {
				best, most, mostHere = g, o.n, l.Len()
			}
		}
	}
	return best
}
