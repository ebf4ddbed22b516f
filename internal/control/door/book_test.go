package door

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestTheGuiltiestMakesRoom(t *testing.T) {
	b := newBook(100, 50)
	places := map[string][]*place{}
	enter := func(peer string, s stage) *place {
		p := &place{stage: s}
		victim := b.add(p, peer)
		places[peer] = append(places[peer], p)
		return victim
	}
	proxy := &place{stage: silent}
	if b.add(proxy, "proxy") != nil {
		t.Fatal("there is room")
	}
	for range 50 {
		if v := enter("evil", speaking); v != nil {
			t.Fatalf("%+v had to go", v)
		}
	}
	// One address has too many: its own go, the silent first, then the oldest.
	places["evil"][20].stage = silent
	if v := enter("evil", speaking); v != places["evil"][20] {
		t.Errorf("%+v went, not the silent one", v)
	}
	if v := enter("evil", silent); v != places["evil"][0] {
		t.Errorf("%+v went, not the oldest", v)
	}
	// All together are too many: one of the address with most of them goes.
	for i := range 49 {
		if v := enter(fmt.Sprint(i), silent); v != nil {
			t.Fatalf("%+v had to go", v)
		}
	}
	if v := enter("another", silent); v == nil || v.peer != "evil" || v.stage != silent {
		t.Errorf("%+v went", v)
	}
	if proxy.element == nil || b.total != 100 {
		t.Errorf("the proxy is gone, or the count is wrong: %+v", b)
	}
}

// TestBookStaysRight: whatever enters and leaves, nothing exceeds its bound.
func TestBookStaysRight(t *testing.T) {
	b := newBook(20, 5)
	in := map[*place]bool{}
	for range 20_000 {
		if rand.N(3) == 0 {
			for p := range in {
				if !b.remove(p) || b.remove(p) {
					t.Fatal("remove")
				}
				delete(in, p)
				break
			}
		} else {
			p := &place{stage: stage(rand.N(3))}
			if v := b.add(p, fmt.Sprint(rand.N(9))); v != nil {
				if !in[v] {
					t.Fatal("a stranger had to go")
				}
				delete(in, v)
			}
			in[p] = true
		}
		n := 0
		for peer, l := range b.peers {
			if n += l.Len(); l.Len() == 0 || l.Len() > 5 {
				t.Fatalf("%s has %d", peer, l.Len())
			}
		}
		if n != b.total || n != len(in) || n > 20 {
			t.Fatalf("%d in lists, %d counted, %d entered", n, b.total, len(in))
		}
	}
}
