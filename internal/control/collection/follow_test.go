package collection

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

// seats is a machine: of the guests who want one seat, the first by name gets it.
type seats struct {
	wants map[string]string
	dirty map[string]bool
	sets  int
}

func (s *seats) Set(guest, seat string) {
	s.sets++
	s.Delete(guest)
	s.wants[guest] = seat
	s.touch(seat)
}

func (s *seats) Delete(guest string) {
	s.dirty[guest] = true
	seat, ok := s.wants[guest]
	delete(s.wants, guest)
	if ok {
		s.touch(seat)
	}
}

func (s *seats) touch(seat string) {
	for guest, wanted := range s.wants {
		if wanted == seat {
			s.dirty[guest] = true
		}
	}
}

func (s *seats) Changed(f func(string, string, bool)) {
	for guest := range s.dirty {
		seat, has := s.wants[guest]
		for other, wanted := range s.wants {
			has = has && (wanted != seat || guest <= other)
		}
		f(guest, seat, has)
	}
	clear(s.dirty)
}

func newSeats() *seats { return &seats{wants: map[string]string{}, dirty: map[string]bool{}} }

// TestFollow: what a machine derives is a collection like others: it can be read, its readers
// run when it changes, and nothing runs when nothing changed.
func TestFollow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		build := func() (*Graph, Input[string, string], *seats, *Collection[string, string], *Collection[string, string]) {
			g := NewGraph()
			in := NewInput[string](g, "guests", same[string])
			in.Set("z", "1") // from before the derivation
			m := newSeats()
			out := Follow(in.Collection, "seats", same[string], m)
			shown := Map(in.Collection, "shown", same[string], func(r *Reader, k, v string) (string, bool) {
				seat, ok := Fetch(r, out, k)
				return fmt.Sprint(v, seat, ok), true
			})
			return g, in, m, out, shown
		}
		g, in, m, out, shown := build()
		letter := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "z"})
		for range rapid.IntRange(1, 10).Draw(t, "turns") {
			for range rapid.IntRange(0, 4).Draw(t, "edits") {
				if k := letter.Draw(t, "guest"); rapid.Bool().Draw(t, "comes") {
					in.Set(k, rapid.SampledFrom([]string{"1", "2"}).Draw(t, "seat"))
				} else {
					in.Delete(k)
				}
			}
			g.Settle()
			before := m.sets
			if g.Settle(); m.sets != before {
				t.Fatal("rows were put in that have not changed")
			}
		}
		fg, fin, _, fout, fshown := build()
		fin.Delete("z")
		for k, v := range in.All() {
			fin.Set(k, v)
		}
		fg.Settle()
		if !maps.Equal(maps.Collect(out.All()), maps.Collect(fout.All())) || !maps.Equal(maps.Collect(shown.All()), maps.Collect(fshown.All())) {
			t.Fatalf("%v, %v; fresh %v, %v", out.rows, shown.rows, fout.rows, fshown.rows)
		}
	})
}
