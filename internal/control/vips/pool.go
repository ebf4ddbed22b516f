package vips

import (
	"cmp"
	"encoding/binary"
	"net/netip"
)

// tries is how many hashes of a host lead to an address, before those that follow are tried.
const tries = 16

// pool is a range to allocate from. Its addresses have numbers.
type pool struct {
	prefix netip.Prefix
	mask   uint64 // of numbers
	size   int    // how many of its addresses are tried at most
	usable int    // of the size
	held   int    // addresses that can be used, and are
	last   last   // no seeker that a hash has led to an address comes later
}

// last is a seeker's place in the order of all. The zero value comes first.
type last struct {
	entry *entry
	turn  int
}

// after reports whether it comes after a seeker.
func (l *last) after(s *seeker) bool {
	return l.entry != nil && cmp.Or(l.entry.compare(s.entry), cmp.Compare(l.turn, s.turn)) > 0
}

func newPool(prefix netip.Prefix) pool {
	bits := prefix.Addr().BitLen() - prefix.Bits()
	p := pool{prefix: prefix.Masked(), mask: ^uint64(0), size: 1 << min(bits, 32)}
	if bits < 64 {
		p.mask = 1<<bits - 1
	}
	// Of 256 addresses, two cannot be used. A range of less begins, but does not end, with one.
	if p.usable = p.size - p.size/128; bits < 8 {
		p.usable = 0
		for n := range p.size {
			if usable(p.nth(uint64(n))) { //nolint:gosec // not negative
				p.usable++
			}
		}
	}
	return p
}

// nth returns the address with a number; numbers beyond the range begin again.
func (p *pool) nth(n uint64) netip.Addr {
	if a := p.prefix.Addr(); a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|uint32(n&p.mask)) //nolint:gosec // the range has no more
		return netip.AddrFrom4(b)
	}
	b := p.prefix.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])|n&p.mask)
	return netip.AddrFrom16(b)
}

func (p *pool) has(a netip.Addr) bool {
	_, in := p.number(a)
	return in
}

// number returns the number of an address; in is false for one that has none.
func (p *pool) number(a netip.Addr) (n uint64, in bool) {
	if a.Is4() {
		b := a.As4()
		n = uint64(binary.BigEndian.Uint32(b[:])) & p.mask
	} else {
		b := a.As16()
		n = binary.BigEndian.Uint64(b[8:]) & p.mask
	}
	return n, p.nth(n) == a
}

// after returns how far a number is from the start of a walk.
func (p *pool) after(start, n uint64) int {
	return int(min((n-start)&p.mask, 1<<62)) //nolint:gosec // it fits
}

// usable leaves out the first and the last address of every 256, which programs may take
// for those of a network.
func usable(a netip.Addr) bool {
	b := a.As16()
	return b[15] != 0 && b[15] != 255
}

// hash returns the number of an address for a seeker: FNV-1a of what it is called, and of the
// turn.
func hash(s *seeker, turn int) uint64 {
	const prime = 1099511628211
	v := uint64(14695981039346656037)
	for _, text := range [...]string{s.entry.ref.Cluster.String(), s.entry.ref.Namespace, s.entry.ref.Name, s.host} {
		for i := range len(text) {
			v = (v ^ uint64(text[i])) * prime
		}
		v *= prime // of a byte of zero
	}
	v = (v ^ uint64(byte(turn))) * prime //nolint:gosec // at most 15
	// The low bits of FNV are poor on their own.
	v ^= v >> 32
	v *= 0x9E3779B97F4A7C15
	return v ^ v>>29
}
