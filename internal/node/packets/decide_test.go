package packets

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/links"
)

var values = []uint32{0, 1, 20_000, Default, Default + 1, Size - 1, Size + 1, 512 << 10}

// each calls f with every combination of sizes that the kernel can have.
func each(f func(links.Sizes)) {
	for _, a := range values[1:] {
		for _, b := range values[1:] {
			for _, c := range values {
				for _, d := range values {
					f(links.Sizes{GSO: a, GRO: b, GSOIPv4: c, GROIPv4: d})
				}
			}
		}
	}
}

// apply does what the kernel does: sizes up to 64 KiB are those of IPv4 as well, and
// zero sets nothing.
func apply(s, set links.Sizes) links.Sizes {
	if set.GSO != 0 {
		if s.GSO = set.GSO; set.GSO <= Default && s.GSOIPv4 != 0 {
			s.GSOIPv4 = set.GSO
		}
	}
	if set.GRO != 0 {
		if s.GRO = set.GRO; set.GRO <= Default && s.GROIPv4 != 0 {
			s.GROIPv4 = set.GRO
		}
	}
	if set.GSOIPv4 != 0 {
		s.GSOIPv4 = set.GSOIPv4
	}
	if set.GROIPv4 != 0 {
		s.GROIPv4 = set.GROIPv4
	}
	return s
}

// Whatever an interface had, it has after the mesh; in the mesh, only what was the
// kernel's default differs.
func TestRestoreIsTheInverse(t *testing.T) {
	each(func(had links.Sizes) {
		set, why := enlarge(links.Interface{Sizes: had, Limit: 512 << 10})
		if why != "" {
			t.Fatalf("%+v: %s", had, why)
		}
		in := apply(had, set)
		pairs := [][2]uint32{{had.GSO, in.GSO}, {had.GRO, in.GRO}, {had.GSOIPv4, in.GSOIPv4}, {had.GROIPv4, in.GROIPv4}}
		for _, p := range pairs {
			if want := p[0]; p[0] == Default && p[1] != Size || p[0] != Default && p[1] != want {
				t.Errorf("%+v becomes %+v", had, in)
			}
		}
		if again, _ := enlarge(links.Interface{Sizes: in, Limit: 512 << 10}); again != (links.Sizes{}) {
			t.Errorf("%+v is set again: %+v", in, again)
		}
		if after := apply(in, restore(links.Interface{Sizes: in})); after != had {
			t.Errorf("%+v became %+v, and %+v afterwards", had, in, after)
		}
	})
}

func TestOldKernelsAndSmallDevices(t *testing.T) {
	def := links.Sizes{GSO: Default, GRO: Default, GSOIPv4: Default, GROIPv4: Default}
	for name, c := range map[string]struct {
		i    links.Interface
		want string
	}{
		"no limit":     {links.Interface{Sizes: links.Sizes{GSO: Default}}, "the kernel has no large packets"},
		"no GRO":       {links.Interface{Sizes: links.Sizes{GSO: Default}, Limit: 512 << 10}, "the kernel has no large packets"},
		"small device": {links.Interface{Sizes: def, Limit: Default}, "at most 65536 bytes"},
		"between":      {links.Interface{Sizes: def, Limit: Size - 1}, "at most 262142 bytes"},
		"just enough":  {links.Interface{Sizes: def, Limit: Size}, ""},
	} {
		set, why := enlarge(c.i)
		if c.want == "" && (why != "" || set.GSO != Size) || c.want != "" && (!strings.Contains(why, c.want) || set != (links.Sizes{})) {
			t.Errorf("%s: %+v %q", name, set, why)
		}
	}
	// Linux 5.19 to 6.2 have no sizes of IPv4.
	if set, _ := enlarge(links.Interface{Sizes: links.Sizes{GSO: Default, GRO: Default}, Limit: 512 << 10}); set != (links.Sizes{GSO: Size, GRO: Size}) {
		t.Errorf("%+v", set)
	}
}

// Numbers of interfaces are those of their own namespace: another pod's cable can have
// the same ones.
func TestOtherEnd(t *testing.T) {
	pod := links.Interface{Name: "eth0", Index: 2, Kind: "veth", Peer: 9, Space: 0}
	end := links.Interface{Name: "veth1", Index: 9, Kind: "veth", Peer: 2, Space: 4}
	other := func(change func(*links.Interface)) links.Interface {
		i := end
		change(&i)
		return i
	}
	if got, ok := otherEnd(pod, []links.Interface{{Name: "lo", Index: 1}, end}, 4); !ok || got.Name != "veth1" {
		t.Errorf("%+v %v", got, ok)
	}
	for name, host := range map[string]links.Interface{
		"another pod's":         other(func(i *links.Interface) { i.Space = 5 }),
		"of the host itself":    other(func(i *links.Interface) { i.Space = -1 }),
		"another number":        other(func(i *links.Interface) { i.Index = 8 }),
		"end of another":        other(func(i *links.Interface) { i.Peer = 3 }),
		"no virtual Ethernet":   other(func(i *links.Interface) { i.Kind = "device" }),
		"a bridge of that name": other(func(i *links.Interface) { i.Kind = "bridge" }),
	} {
		if got, ok := otherEnd(pod, []links.Interface{host}, 4); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for _, p := range []links.Interface{{Index: 2, Kind: "device", Peer: 9}, {Index: 2, Kind: "macvlan", Peer: 9}, {Index: 2, Kind: "veth"}} {
		if got, ok := otherEnd(p, []links.Interface{end}, 4); ok {
			t.Errorf("%+v: %+v", p, got)
		}
	}
}

func TestParseMode(t *testing.T) {
	for _, text := range []string{"off", "lo", "pod"} {
		if m, err := ParseMode(text); err != nil || string(m) != text {
			t.Errorf("%s: %v %v", text, m, err)
		}
	}
	for _, text := range []string{"", "all", "true", "LO", "pod "} {
		if _, err := ParseMode(text); err == nil {
			t.Errorf("%q passes", text)
		}
	}
}

func TestDescribe(t *testing.T) {
	for want, i := range map[string]links.Interface{
		"eth0: packets of at most 65536 bytes of IPv4 and 262143 of IPv6, 524280 possible": {Name: "eth0", Limit: 524280, Sizes: links.Sizes{GSO: Size, GSOIPv4: Default}},
		"eth1: packets of at most 65536 bytes of IPv4 and 200000 of IPv6, 524280 possible": {Name: "eth1", Limit: 524280, Sizes: links.Sizes{GSO: 200_000}},
		"eth2: the kernel has no large packets":                                            {Name: "eth2"},
	} {
		if got := describe(i); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
