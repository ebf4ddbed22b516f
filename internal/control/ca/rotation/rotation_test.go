package rotation

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func gen(signer, root string, roots ...string) Generation {
	return Generation{SignerID: signer, Root: root, Roots: roots}
}

func pems(ids ...string) map[string]string {
	m := make(map[string]string)
	for _, id := range ids {
		m[id] = id + "\n"
	}
	return m
}

func all(string) bool { return true }

func TestRotationStages(t *testing.T) {
	const margin = time.Minute
	t0 := time.Unix(1e9, 0).UTC()
	expect := func(s State, stage Stage, signer, bundle string, until time.Time) {
		t.Helper()
		if s.Stage() != stage || s.Current.SignerID != signer || string(s.Bundle()) != bundle || !s.Until().Equal(until) {
			t.Errorf("stage %s, signer %s, bundle %q, until %s; want %s, %s, %q, %s",
				s.Stage(), s.Current.SignerID, s.Bundle(), s.Until(), stage, signer, bundle, until)
		}
	}
	// The first root needs no ceremony.
	s := State{}.Propose(gen("sA", "A", "A"), pems("A"), t0, margin)
	s, _ = s.Advance(t0, margin, all)
	expect(s, Steady, "sA", "A\n", time.Time{})

	s.IssuedUntil = t0.Add(24 * time.Hour)
	s = s.Propose(gen("sB", "B", "B"), pems("B"), t0, margin)
	at := t0.Add(24*time.Hour + margin)
	expect(s, NewRootDistributed, "sA", "A\nB\n", at)

	early, changed := s.Advance(at.Add(-time.Second), margin, all)
	if changed {
		t.Error("too early")
	}
	expect(early, NewRootDistributed, "sA", "A\nB\n", at)
	missing, changed := s.Advance(at, margin, func(id string) bool { return id != "sB" })
	if changed || missing.Current.SignerID != "sA" {
		t.Error("signs with a key that is not there")
	}
	// In the meantime the old one has signed for longer.
	s.IssuedUntil = at.Add(24 * time.Hour)
	s, _ = s.Advance(at, margin, all)
	expect(s, SigningByNew, "sB", "A\nB\n", at.Add(24*time.Hour+margin))
	s, _ = s.Advance(at.Add(24*time.Hour+margin), margin, all)
	expect(s, Steady, "sB", "B\n", time.Time{})

	// Another intermediate below the same root, at once.
	s = s.Propose(gen("sB2", "B", "B"), pems("B"), at, margin)
	s, _ = s.Advance(at, margin, all)
	expect(s, Steady, "sB2", "B\n", time.Time{})
}

func TestLacks(t *testing.T) {
	now := time.Unix(1e9, 0).UTC()
	current := gen("sA", "A", "A", "B")
	signing := State{Current: &current}
	changing := signing.Propose(gen("sB", "B", "B"), pems("B"), now, time.Minute)
	for _, tt := range []struct {
		name string
		s    State
		g    Generation
		want bool
	}{
		{"the first", State{}, gen("sA", "A", "A"), true},
		{"what signs", signing, gen("sA", "A", "A", "B"), false},
		{"fewer roots", signing, gen("sA", "A", "A"), true},
		{"another signer", signing, gen("sA2", "A", "A", "B"), true},
		{"another path", signing, gen("sA", "B", "A", "B"), true},
		{"what will sign", changing, gen("sB", "B", "B"), false},
		{"back again", changing, gen("sA", "A", "A", "B"), true},
	} {
		if got := tt.s.Lacks(tt.g); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestNeeds(t *testing.T) {
	from := time.Unix(1e9, 0).UTC()
	until := from.Add(100 * time.Hour)
	self, plugged := gen("sA", "A", "A"), gen("sP", "P", "P")
	self.Key = "key"
	next := State{Current: &self}.Propose(plugged, pems("P"), from, time.Minute)
	leaving := State{Current: &self, Roots: []Root{{ID: "A"}, {ID: "Z", Until: until}}}
	for _, tt := range []struct {
		name            string
		s               State
		after           time.Duration
		root, successor bool
	}{
		{"nothing", State{}, 0, true, false},
		{"young", State{Current: &self}, time.Hour, false, false},
		{"not yet old", State{Current: &self}, 80 * time.Hour, false, false},
		{"old", State{Current: &self}, 80*time.Hour + 1, false, true},
		{"at its end", State{Current: &self}, 100 * time.Hour, true, true},
		{"at its end, with a successor", next, 100 * time.Hour, false, false},
		{"old, while another root leaves", leaving, 99 * time.Hour, false, false},
		{"plugged in", State{Current: &plugged}, 1000 * time.Hour, false, false},
	} {
		now := from.Add(tt.after)
		if got := tt.s.NeedsRoot(now, until); got != tt.root {
			t.Errorf("%s: needs a root: %t", tt.name, got)
		}
		if got := tt.s.NeedsSuccessor(now, from, until); got != tt.successor {
			t.Errorf("%s: needs a successor: %t", tt.name, got)
		}
	}
}

// TestRotationByHand is what operators of plugged-in CAs do: first both
// roots, then the new signer, then the new root alone.
func TestRotationByHand(t *testing.T) {
	const margin = time.Minute
	now := time.Unix(1e9, 0).UTC()
	s := State{}.Propose(gen("sA", "A", "A"), pems("A"), now, margin)
	s, _ = s.Advance(now, margin, all)
	s.IssuedUntil = now.Add(time.Hour)
	s = s.Propose(gen("sA", "A", "A", "B"), pems("A", "B"), now, margin)
	s, _ = s.Advance(now, margin, all)
	if s.Stage() != Steady || string(s.Bundle()) != "A\nB\n" {
		t.Errorf("%+v", s)
	}
	// In a hurry: the signer waits until the bundle is everywhere.
	s = s.Propose(gen("sB", "B", "A", "B"), pems("A", "B"), now.Add(time.Minute), margin)
	if s.Stage() != NewRootDistributed || !s.NextAt.Equal(now.Add(time.Hour+margin)) {
		t.Errorf("%+v", s)
	}
	s, _ = s.Advance(s.NextAt, margin, all)
	if s.Stage() != Steady || s.Current.SignerID != "sB" {
		t.Errorf("%+v", s)
	}
	// Removed by hand while certificates below it live: it stays until then.
	now = now.Add(2 * time.Hour)
	s.IssuedUntil = now.Add(time.Hour)
	s = s.Propose(gen("sB", "B", "B"), pems("B"), now, margin)
	s, _ = s.Advance(now, margin, all)
	if s.Stage() != SigningByNew || string(s.Bundle()) != "A\nB\n" {
		t.Errorf("%+v", s)
	}
	s, _ = s.Advance(now.Add(time.Hour+margin), margin, all)
	if s.Stage() != Steady || string(s.Bundle()) != "B\n" {
		t.Errorf("%+v", s)
	}
}

// TestRotationNeverBreaks: whatever is proposed and whenever, no living
// certificate is ever refused by the holder of another.
func TestRotationNeverBreaks(t *testing.T) {
	type issued struct {
		root  string
		roots []string // its owner's bundle
		until time.Time
	}
	rapid.Check(t, func(t *rapid.T) {
		const margin = time.Minute
		now := time.Unix(1e9, 0).UTC()
		s := State{}.Propose(gen("s0", "r0", "r0"), pems("r0"), now, margin)
		s, _ = s.Advance(now, margin, all)
		var living []issued
		n := 0
		t.Repeat(map[string]func(*rapid.T){
			"issue": func(t *rapid.T) {
				ttl := time.Duration(rapid.IntRange(1, 48).Draw(t, "hours")) * time.Hour
				c := issued{root: s.Current.Root, until: now.Add(ttl)}
				for _, r := range s.Roots {
					c.roots = append(c.roots, r.ID)
				}
				s.IssuedUntil = later(s.IssuedUntil, c.until)
				living = append(living, c)
			},
			"propose": func(t *rapid.T) {
				root := fmt.Sprint("r", rapid.IntRange(0, 3).Draw(t, "root"))
				roots := []string{root}
				if other := fmt.Sprint("r", rapid.IntRange(0, 3).Draw(t, "other")); other != root {
					roots = append(roots, other)
				}
				n++
				s = s.Propose(gen(fmt.Sprint("s", n), root, roots...), pems(roots...), now, margin)
				s, _ = s.Advance(now, margin, all)
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 30*60).Draw(t, "minutes")) * time.Minute)
				s, _ = s.Advance(now, margin, all)
			},
			"": func(t *rapid.T) {
				living = slices.DeleteFunc(living, func(c issued) bool { return !now.Before(c.until) })
				for _, a := range living {
					for _, b := range living {
						if !slices.Contains(a.roots, b.root) {
							t.Fatalf("the holder of %v refuses one below %s; state %+v", a.roots, b.root, s)
						}
					}
				}
				if !slices.ContainsFunc(s.Roots, func(r Root) bool { return r.ID == s.Current.Root }) {
					t.Fatalf("the bundle lacks the signer's root: %+v", s)
				}
			},
		})
	})
}
