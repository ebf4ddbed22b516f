package network

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestAddresses(t *testing.T) {
	seen := map[string]string{}
	add := func(what string, d Dual) {
		for _, a := range d.Strings(Families{true, true}) {
			if was, ok := seen[a]; ok {
				t.Fatalf("%s is %s and %s", a, was, what)
			}
			seen[a] = what
		}
	}
	add("lan", HostAddr(0, LanHost))
	for n := 1; n <= MaxNodes; n++ {
		add(NodeName(n), NodeAddr(n))
		p4, p6 := podNetworks(n)
		for h := podGateway4; h <= LastHost; h++ {
			a := HostAddr(n, h)
			if !p4.Contains(a.V4) || !p6.Contains(a.V6) {
				t.Fatalf("%v is not in %v, %v", a, p4, p6)
			}
			add(fmt.Sprint(n, "/", h), a)
		}
	}
	for i := FirstVIP; i <= LastVIP; i++ {
		if a := ServiceAddr(i); !ServiceNetwork4.Contains(a.V4) || !ServiceNetwork6.Contains(a.V6) {
			t.Fatalf("%v is no service address", a)
		}
	}
}

// TestPool: a number that was given back is the last to be used again.
func TestPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := NewPool(10, 14)
		held := map[int]bool{}
		var order []int // numbers not held, longest unused first
		for i := 10; i <= 14; i++ {
			order = append(order, i)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "give") {
				var all []int
				for n := range held {
					all = append(all, n)
				}
				slices.Sort(all)
				n := rapid.SampledFrom(all).Draw(t, "which")
				p.Give(n)
				delete(held, n)
				order = append(order, n)
				continue
			}
			n, ok := p.Take()
			if ok != (len(order) > 0) {
				t.Fatalf("take: %v with %d free", ok, len(order))
			}
			if !ok {
				continue
			}
			if n != order[0] {
				t.Fatalf("%d was given, %d was free for longer", n, order[0])
			}
			held[n] = true
			order = order[1:]
		}
	})
}
