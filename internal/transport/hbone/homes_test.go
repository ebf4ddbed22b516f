package hbone

import (
	"math/rand/v2"
	"strconv"
	"testing"
)

func TestHomes(t *testing.T) {
	h := newHomes(3)
	key := func(n int) Key { return Key{DstUID: strconv.Itoa(n)} }
	for i, want := range []int{1, 1, 1, 1, 0, 2, 1} { // the loop that asks, until it is too far ahead
		if at := h.find(key(i), 1); at != want {
			t.Errorf("key %d lives on loop %d, and not %d", i, at, want)
		}
	}
	if at := h.find(key(0), 2); at != 1 {
		t.Errorf("key 0 has moved to loop %d", at)
	}
	if at := h.find(key(7), -1); at != 0 {
		t.Errorf("a key that no loop asks for lives on loop %d", at)
	}
	h.drop(key(0), 2) // it lives elsewhere
	if at := h.find(key(0), 2); at != 1 {
		t.Errorf("key 0 has moved to loop %d", at)
	}
	h.drop(key(0), 1)
	if at := h.find(key(0), 2); at != 2 {
		t.Errorf("key 0 begins anew on loop %d", at)
	}
	h.keep(key(0), 1)
	if at := h.find(key(0), 1); at != 2 {
		t.Errorf("key 0 has moved to loop %d", at)
	}
	inner := Key{Via: &Via{}}
	if a, b := h.find(inner, 0), h.find(inner, 1); a != b {
		t.Errorf("a key inside of a tunnel is on loops %d and %d", a, b)
	}
	if h.keep(inner, 0); len(h.of) != 8 {
		t.Errorf("%d keys are remembered", len(h.of))
	}
}

// Whatever loops ask, none has much more than others, and the counts agree with the keys.
func TestHomesAreSpread(t *testing.T) {
	h := newHomes(4)
	live := map[int]int{}
	for n := range 2000 {
		if len(live) > 0 && rand.IntN(3) == 0 {
			for k, at := range live {
				h.drop(Key{DstUID: strconv.Itoa(k)}, at)
				delete(live, k)
				break
			}
			continue
		}
		least, most := h.bounds()
		at := h.find(Key{DstUID: strconv.Itoa(n)}, rand.IntN(4))
		if h.many[at] > max(least+aheadOf+1, most) {
			t.Fatalf("loop %d has %d keys, another one %d", at, h.many[at], least)
		}
		live[n] = at
	}
	count := make([]int, 4)
	for _, at := range live {
		count[at]++
	}
	for i, n := range count {
		if h.many[i] != n || len(h.of) != len(live) {
			t.Errorf("loop %d: %d keys are counted, and %d live there", i, h.many[i], n)
		}
	}
}

func (h *homes) bounds() (least, most int) {
	least = h.many[0]
	for _, n := range h.many {
		least, most = min(least, n), max(most, n)
	}
	return least, most
}

func BenchmarkHomes(b *testing.B) {
	h := newHomes(2)
	k := Key{SrcIdentity: alice, DstIdentities: bob.String(), DstUID: "uid-1"}
	h.find(k, 1)
	b.ReportAllocs()
	for b.Loop() {
		h.find(k, 0)
	}
}
