package vips

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/source"
)

// Allocation has the addresses of entries, and follows their changes. It belongs to one
// goroutine.
//
// Each host of an entry seeks one address of each family. It tries, one after another, those in
// the entry's status, then those that hashes of the host lead to, then all that follow. Claims on
// one address have an order: what is in a status comes before what entries list, and that before
// the rest; of equal ones the older entry's comes first. So there is one outcome in which no
// seeker could have an address that it has tried before its own, and would be first there: that of
// asking all entries in this order. A change restores it from where it is. What comes may push
// a seeker on to its next address, what goes lets one return to an address that it has tried.
type Allocation struct {
	pools   [2]pool // IPv4 and IPv6
	entries map[source.Ref]*entry
	pending map[source.Ref]*Request // nil: the entry goes
	changed map[source.Ref]struct{}

	held map[netip.Addr]*seeker
	// tried are the places where seekers were refused an address that another one has. Those of
	// walks are not in it.
	tried map[netip.Addr][]place
	// walking are seekers beyond the hashes. They are few until a range is nearly exhausted.
	walking [2]map[*seeker]struct{}

	steps int // counted for tests: addresses that were looked at
}

// entry is a ServiceEntry with a part in the allocation.
type entry struct {
	ref     source.Ref
	created int64
	seekers []*seeker // in the order of hosts and families, then what it lists
}

func (e *entry) compare(o *entry) int {
	if e == o {
		return 0
	}
	return cmp.Or(cmp.Compare(e.created, o.created), e.ref.Compare(o.ref))
}

// seeker is what is to have one address: a host, in one family.
type seeker struct {
	entry  *entry
	host   string
	family int
	turn   int    // among those of its entry
	kept   []kept // addresses of its own in the status
	start  uint64 // of the walk
	at     int    // the place of its address, or the end
	addr   netip.Addr
	kind   kind
}

// kind is where a seeker looks, beyond the status.
type kind uint8

const (
	nowhere kind = iota // its host gets none
	anywhere
	listed // it has one address, that its entry lists
)

// kept is an address in the status of an entry, and its place there.
type kept struct {
	addr netip.Addr
	turn int
}

// place is one of the addresses that a seeker tries, by number.
type place struct {
	seeker *seeker
	at     int
}

// NewAllocation returns one of no entries.
func NewAllocation(p Pools) *Allocation {
	a := &Allocation{
		entries: map[source.Ref]*entry{}, pending: map[source.Ref]*Request{}, changed: map[source.Ref]struct{}{},
		held: map[netip.Addr]*seeker{}, tried: map[netip.Addr][]place{},
	}
	for family, prefix := range [2]netip.Prefix{p.IPv4, p.IPv6} {
		a.pools[family], a.walking[family] = newPool(prefix), map[*seeker]struct{}{}
	}
	return a
}

// Set puts an entry in, or replaces it.
func (a *Allocation) Set(k source.Ref, r *Request) { a.pending[k] = r }

// Delete takes an entry out; it need not be there.
func (a *Allocation) Delete(k source.Ref) { a.pending[k] = nil }

// Changed calls f with each entry whose addresses may have changed since the last call, in no
// order: one of each family for each host, in the order of its hosts. An address is missing where
// a range is exhausted. has is false for an entry without any.
func (a *Allocation) Changed(f func(k source.Ref, all []Address, has bool)) {
	var come []*entry
	for k, r := range a.pending {
		a.remove(k)
		if r != nil {
			e := &entry{ref: k, created: r.Created}
			e.seekers = a.seekers(e, r)
			come = append(come, e)
		}
	}
	renew(&a.pending)
	// Older entries first: fewer have to move.
	slices.SortFunc(come, (*entry).compare)
	for _, e := range come {
		a.entries[e.ref] = e
		a.changed[e.ref] = struct{}{}
		for _, s := range e.seekers {
			a.seek(place{s, 0})
		}
	}
	for k := range a.changed {
		all := a.addresses(k)
		f(k, all, len(all) > 0)
	}
	renew(&a.changed)
}

// renew empties a map, without the memory of the largest change.
func renew[V any](m *map[source.Ref]V) {
	if len(*m) > 1024 {
		*m = map[source.Ref]V{}
		return
	}
	clear(*m)
}

func (a *Allocation) addresses(k source.Ref) (all []Address) {
	e := a.entries[k]
	if e == nil {
		return nil
	}
	for _, s := range e.seekers {
		if s.kind == anywhere && s.addr.IsValid() {
			all = append(all, Address{s.host, s.addr})
		}
	}
	return all
}

// seekers returns what is to have an address of an entry.
func (a *Allocation) seekers(e *entry, r *Request) (out []*seeker) {
	first := make(map[string]int, len(r.Hosts)) // of the seekers of a host
	add := func(host string, kind kind) {
		first[host] = len(out)
		for family := range a.pools {
			s := &seeker{entry: e, host: host, family: family, turn: len(out), kind: kind}
			s.start = hash(s, tries-1)
			out = append(out, s)
		}
	}
	for _, host := range r.Hosts {
		add(host, anywhere)
	}
	for turn, k := range r.Kept {
		if _, has := first[k.Host]; !has {
			add(k.Host, nowhere)
		}
		s := out[first[k.Host]+familyOf(k.Addr)]
		s.kept = append(s.kept, kept{k.Addr, turn})
	}
	for _, addr := range r.Taken {
		out = append(out, &seeker{entry: e, family: familyOf(addr), turn: len(out), kind: listed, kept: []kept{{addr, 0}}})
	}
	return out
}

// familyOf returns 0 for IPv4, and 1 for IPv6.
func familyOf(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// rank returns how claims at a place of a seeker stand to those of others: by status, list or
// hash, and within the entry.
func (p place) rank() (rank, turn int) {
	switch {
	case p.seeker.kind == listed:
		return 1, p.seeker.turn
	case p.at < len(p.seeker.kept):
		return 0, p.seeker.kept[p.at].turn
	}
	return 2, p.seeker.turn
}

// before reports whether an address goes to the seeker of p and not to that of o.
func (p place) before(o place) bool {
	pr, pt := p.rank()
	or, ot := o.rank()
	return cmp.Or(cmp.Compare(pr, or), p.seeker.entry.compare(o.seeker.entry), cmp.Compare(pt, ot)) < 0
}

// address returns the address of a place, which is invalid for one that cannot be used; end:
// there is no such place.
func (a *Allocation) address(p place) (addr netip.Addr, end bool) {
	s, n := p.seeker, p.at-len(p.seeker.kept)
	pool := &a.pools[s.family]
	switch {
	case n < 0:
		return s.kept[p.at].addr, false
	case s.kind != anywhere || n >= tries+pool.size:
		return netip.Addr{}, true
	case n < tries:
		addr = pool.nth(hash(s, n))
	default:
		addr = pool.nth(s.start + uint64(n-tries)) //nolint:gosec // not negative
	}
	if !usable(addr) {
		return netip.Addr{}, false
	}
	return addr, false
}

// walks reports whether a place is beyond the hashes.
func (p place) walks() bool { return p.at >= len(p.seeker.kept)+tries }

// seek gives a seeker the first address, from a place on, that it can have. One that has to
// make way goes on in its stead.
func (a *Allocation) seek(p place) {
	for {
		if p.walks() && a.exhausted(p) {
			p.at = len(p.seeker.kept) + tries + a.pools[p.seeker.family].size
		}
		addr, end := a.address(p)
		a.steps++
		if end {
			a.settle(p, netip.Addr{})
			return
		}
		if !addr.IsValid() {
			p.at++
			continue
		}
		other := a.held[addr]
		switch {
		case other == nil:
			a.settle(p, addr)
			return
		case p.before(place{other, other.at}):
			a.settle(p, addr)
			p = place{other, other.at}
		}
		a.refused(p, addr)
		p.at++
	}
}

// refused remembers that another seeker has the address of a place.
func (a *Allocation) refused(p place, addr netip.Addr) {
	if !p.walks() {
		a.tried[addr] = append(a.tried[addr], p)
	}
}

// settle gives a seeker the address of a place, which may be none.
func (a *Allocation) settle(p place, addr netip.Addr) {
	s := p.seeker
	s.at, s.addr = p.at, addr
	a.changed[s.entry.ref] = struct{}{}
	if addr.IsValid() {
		a.count(addr, s.family, 1)
		a.held[addr] = s
	}
	if p.walks() && s.kind == anywhere {
		a.walking[s.family][s] = struct{}{}
	} else {
		delete(a.walking[s.family], s)
	}
	if rank, _ := p.rank(); rank == 2 && addr.IsValid() {
		if pool := &a.pools[s.family]; !pool.last.after(s) {
			pool.last = last{s.entry, s.turn}
		}
	}
}

// count counts the addresses of a range that are held.
func (a *Allocation) count(addr netip.Addr, family, n int) {
	if a.held[addr] == nil && a.pools[family].has(addr) && usable(addr) {
		a.pools[family].held += n
	}
}

// exhausted reports whether a range has no address left for a place: all are held, and none of
// the holders would make way.
func (a *Allocation) exhausted(p place) bool {
	pool := &a.pools[p.seeker.family]
	return pool.held >= pool.usable && !pool.last.after(p.seeker)
}

// remove takes an entry out.
func (a *Allocation) remove(k source.Ref) {
	e := a.entries[k]
	if e == nil {
		return
	}
	delete(a.entries, k)
	a.changed[k] = struct{}{}
	// First, none of its seekers waits for anything.
	for _, s := range e.seekers {
		a.withdraw(s, 0)
		delete(a.walking[s.family], s)
	}
	for _, s := range e.seekers {
		if s.addr.IsValid() {
			a.vacate(s.addr, s.family)
		}
	}
}

// withdraw forgets where a seeker was refused, from a place on.
func (a *Allocation) withdraw(s *seeker, from int) {
	for at := from; at < min(s.at, len(s.kept)+tries); at++ {
		addr, end := a.address(place{s, at})
		if end {
			return
		}
		list := a.tried[addr]
		i := slices.Index(list, place{s, at})
		switch {
		case i < 0:
		case len(list) == 1:
			delete(a.tried, addr)
		default:
			list[i] = list[len(list)-1]
			a.tried[addr] = list[:len(list)-1]
		}
	}
}

// vacate gives an address that its holder has left to the first of those who have tried it, and
// what that one leaves to the next.
func (a *Allocation) vacate(addr netip.Addr, family int) {
	for addr.IsValid() {
		delete(a.held, addr)
		a.count(addr, family, -1)
		next, ok := a.first(addr, family)
		if !ok {
			return
		}
		s, left := next.seeker, next.seeker.addr
		a.withdraw(s, next.at)
		a.settle(next, addr)
		addr, family = left, s.family
	}
}

// first returns the place of the first claim on an address that was refused.
func (a *Allocation) first(addr netip.Addr, family int) (best place, ok bool) {
	consider := func(p place) {
		a.steps++
		if !ok || p.before(best) {
			best, ok = p, true
		}
	}
	for _, p := range a.tried[addr] {
		consider(p)
	}
	n, in := a.pools[family].number(addr)
	if !in || !usable(addr) {
		return best, ok
	}
	for s := range a.walking[family] {
		p := place{s, len(s.kept) + tries + a.pools[family].after(s.start, n)}
		if p.at < s.at {
			consider(p)
		}
	}
	return best, ok
}
