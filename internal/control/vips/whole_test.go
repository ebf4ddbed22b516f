package vips

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/source"
)

// holder is a host of an entry.
type holder struct {
	entry source.Ref
	host  string
}

// allocate is the allocation as a whole, which an Allocation must agree with. It returns the
// addresses of every entry, one of each family for each host in the
// order of its hosts. Older entries come first: of two that have one address in their status,
// the older one keeps it. An address is missing where a range is exhausted.
func allocate(pools Pools, rows []collection.Row[source.Ref, *Request]) map[source.Ref][]Address {
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
	var at uint64
	for i := range tries {
		at = wholeHash(h, i)
		if a := wholeNth(pool, at); usable(a) {
			if _, is := taken[a]; !is {
				return a
			}
		}
	}
	size := uint64(1) << min(pool.Addr().BitLen()-pool.Bits(), 32)
	for i := range min(size, uint64(len(taken)+len(taken)/64+1024)) {
		if a := wholeNth(pool, at+i); usable(a) {
			if _, is := taken[a]; !is {
				return a
			}
		}
	}
	return netip.Addr{}
}

func wholeHash(h holder, turn int) uint64 {
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

// wholeNth returns the address with a number in a range; numbers beyond it begin again.
func wholeNth(pool netip.Prefix, n uint64) netip.Addr {
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
