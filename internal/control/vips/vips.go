// Package vips allocates virtual addresses for hosts of ServiceEntries that list none, so
// that a connection shows which host its client has looked up. The
// allocation is a pure function of the entries: every replica makes the same one. What was
// written into an entry's status stays.
package vips

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/source"
)

// LabelAllocate has the value false on entries that get no address. It is Istio's.
const LabelAllocate = "networking.istio.io/enable-autoallocate-ip"

// The ranges of allocated addresses, which are Istio's.
var (
	IPv4 = netip.MustParsePrefix("240.240.0.0/16")
	IPv6 = netip.MustParsePrefix("2001:2::/48")
)

// Address is an allocated address of a host.
type Address struct {
	Host string
	Addr netip.Addr
}

// Request is what the allocation depends on of one entry.
type Request struct {
	Created int64    // Unix seconds
	Hosts   []string // that get addresses
	// Kept are addresses in the entry's status, Taken those that it lists itself.
	Kept  []Address
	Taken []netip.Addr
}

func (a *Request) equal(b *Request) bool {
	return a.Created == b.Created && slices.Equal(a.Hosts, b.Hosts) && slices.Equal(a.Kept, b.Kept) && slices.Equal(a.Taken, b.Taken)
}

// Allocates reports whether the hosts of an entry get addresses.
func Allocates(e *networkingv1.ServiceEntry) bool {
	r := e.Spec.Resolution
	if r == networkingapi.ServiceEntry_NONE || r == networkingapi.ServiceEntry_DYNAMIC_DNS {
		return false // a connection goes where it was going
	}
	return len(e.Spec.Addresses) == 0 && !strings.EqualFold(e.Labels[LabelAllocate], "false")
}

// Read returns the request of an entry; ok is false for one that has no part in the
// allocation.
func Read(e *networkingv1.ServiceEntry) (out *Request, ok bool) {
	out = &Request{Created: e.CreationTimestamp.Unix()}
	for _, text := range e.Spec.Addresses {
		if a, err := netip.ParseAddr(text); err == nil && (IPv4.Contains(a.Unmap()) || IPv6.Contains(a)) {
			out.Taken = append(out.Taken, a.Unmap())
		}
	}
	if !Allocates(e) {
		return out, len(out.Taken) > 0
	}
	for _, h := range e.Spec.Hosts {
		if h != "" && !strings.Contains(h, "*") && !slices.Contains(out.Hosts, h) {
			out.Hosts = append(out.Hosts, h)
		}
	}
	for _, s := range e.Status.GetAddresses() {
		if a, err := netip.ParseAddr(s.GetValue()); err == nil && a.Zone() == "" && slices.Contains(out.Hosts, s.GetHost()) {
			out.Kept = append(out.Kept, Address{s.GetHost(), a.Unmap()})
		}
	}
	return out, len(out.Hosts) > 0
}

// Pools are the ranges to allocate from.
type Pools struct{ IPv4, IPv6 netip.Prefix }

// Default are the ranges that are used.
var Default = Pools{IPv4, IPv6}

// holder is a host of an entry.
type holder struct {
	entry source.Ref
	host  string
}

// Allocate returns the addresses of every entry, one of each family for each host in the
// order of its hosts. Older entries come first: of two that have one address in their status,
// the older one keeps it. An address is missing where a range is exhausted.
func Allocate(pools Pools, rows []collection.Row[source.Ref, *Request]) map[source.Ref][]Address {
	rows = slices.Clone(rows)
	slices.SortFunc(rows, func(a, b collection.Row[source.Ref, *Request]) int {
		return cmp.Or(cmp.Compare(a.Value.Created, b.Value.Created), a.Key.Compare(b.Key))
	})
	taken := map[netip.Addr]holder{}
	has := map[holder][2]netip.Addr{} // IPv4 and IPv6
	for _, row := range rows {
		for _, k := range row.Value.Kept {
			h, family := holder{row.Key, k.Host}, 0
			if k.Addr.Is6() {
				family = 1
			}
			own := has[h]
			if _, is := taken[k.Addr]; is || own[family].IsValid() {
				continue
			}
			taken[k.Addr], own[family] = h, k.Addr
			has[h] = own
		}
	}
	for _, row := range rows {
		for _, a := range row.Value.Taken {
			if _, is := taken[a]; !is {
				taken[a] = holder{entry: row.Key}
			}
		}
	}
	out := make(map[source.Ref][]Address, len(rows))
	for _, row := range rows {
		for _, host := range row.Value.Hosts {
			h := holder{row.Key, host}
			own := has[h]
			for family, pool := range [2]netip.Prefix{pools.IPv4, pools.IPv6} {
				if !own[family].IsValid() {
					if own[family] = free(pool, h, taken); own[family].IsValid() {
						taken[own[family]] = h
					}
				}
				if own[family].IsValid() {
					out[row.Key] = append(out[row.Key], Address{host, own[family]})
				}
			}
		}
	}
	return out
}

// free returns an address of a range that nothing has: the first that hashes of the host
// lead to, or else the next one. It is invalid when the range is exhausted.
func free(pool netip.Prefix, h holder, taken map[netip.Addr]holder) netip.Addr {
	const tries = 16
	var at uint64
	for i := range tries {
		at = hash(h, i)
		if a := nth(pool, at); usable(a) {
			if _, is := taken[a]; !is {
				return a
			}
		}
	}
	size := uint64(1) << min(pool.Addr().BitLen()-pool.Bits(), 32)
	for i := range min(size, uint64(len(taken)+len(taken)/64+1024)) {
		if a := nth(pool, at+i); usable(a) {
			if _, is := taken[a]; !is {
				return a
			}
		}
	}
	return netip.Addr{}
}

func hash(h holder, turn int) uint64 {
	f := fnv.New64a()
	for _, s := range []string{h.entry.Cluster.String(), h.entry.Namespace, h.entry.Name, h.host} {
		_, _ = f.Write(append([]byte(s), 0))
	}
	_, _ = f.Write([]byte{byte(turn)})
	v := f.Sum64()
	// The low bits of FNV are poor on their own.
	v ^= v >> 32
	v *= 0x9E3779B97F4A7C15
	return v ^ v>>29
}

// nth returns the address with a number in a range; numbers beyond it begin again.
func nth(pool netip.Prefix, n uint64) netip.Addr {
	b := pool.Addr().AsSlice()
	bits := pool.Addr().BitLen() - pool.Bits()
	if bits < 64 {
		n &= 1<<bits - 1
	}
	low := b[max(len(b)-8, 0):]
	var buf [8]byte
	copy(buf[8-len(low):], low)
	binary.BigEndian.PutUint64(buf[:], binary.BigEndian.Uint64(buf[:])|n)
	copy(low, buf[8-len(low):])
	a, _ := netip.AddrFromSlice(b)
	return a
}

// usable leaves out the first and the last address of every 256, which programs may take
// for those of a network.
func usable(a netip.Addr) bool {
	b := a.AsSlice()
	last := b[len(b)-1]
	return last != 0 && last != 255
}

// Entries returns the entries of a mesh with the addresses that are allocated for them.
func Entries(in *collection.Collection[source.Ref, *networkingv1.ServiceEntry]) *collection.Collection[source.Ref, *networkingv1.ServiceEntry] {
	requests := collection.Map(in, "requests for addresses", (*Request).equal, func(_ *collection.Reader, k source.Ref, e *networkingv1.ServiceEntry) (*Request, bool) {
		req, ok := Read(e)
		return req, ok && k.Cluster.Own()
	})
	all := collection.Reduce(requests, "allocation of addresses", func(_, _ map[source.Ref][]Address) bool { return false }, source.Ref.Compare,
		func(source.Ref, *Request) (struct{}, bool) { return struct{}{}, true },
		func(_ *collection.Reader, _ struct{}, rows []collection.Row[source.Ref, *Request]) (map[source.Ref][]Address, bool) {
			return Allocate(Default, rows), true
		})
	own := collection.Map(requests, "allocated addresses", slices.Equal[[]Address], func(r *collection.Reader, k source.Ref, _ *Request) ([]Address, bool) {
		m, _ := collection.Fetch(r, all, struct{}{})
		return m[k], len(m[k]) > 0
	})
	return collection.Map(in, "service entries with addresses", func(a, b *networkingv1.ServiceEntry) bool { return a == b },
		func(r *collection.Reader, k source.Ref, e *networkingv1.ServiceEntry) (*networkingv1.ServiceEntry, bool) {
			addrs, ok := collection.Fetch(r, own, k)
			if !ok || slices.Equal(addrs, written(e)) {
				return e, true
			}
			next := e.DeepCopy()
			next.Status.Addresses = nil
			for _, a := range addrs {
				next.Status.Addresses = append(next.Status.Addresses, &networkingapi.ServiceEntryAddress{Host: a.Host, Value: a.Addr.String()})
			}
			return next, true
		})
}

// written are the addresses in the status of an entry, as they are.
func written(e *networkingv1.ServiceEntry) (out []Address) {
	for _, s := range e.Status.GetAddresses() {
		a, _ := netip.ParseAddr(s.GetValue())
		out = append(out, Address{s.GetHost(), a})
	}
	return out
}
