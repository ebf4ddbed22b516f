package ca

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func gen(signer, root string, roots ...string) generation {
	return generation{SignerID: signer, Root: root, Roots: roots}
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
	expect := func(s state, stage Stage, signer, bundle string, until time.Time) {
		t.Helper()
		if s.stage() != stage || s.Current.SignerID != signer || string(s.bundle()) != bundle || !s.until().Equal(until) {
			t.Errorf("stage %s, signer %s, bundle %q, until %s; want %s, %s, %q, %s",
				s.stage(), s.Current.SignerID, s.bundle(), s.until(), stage, signer, bundle, until)
		}
	}
	// The first root needs no ceremony.
	s := state{}.propose(gen("sA", "A", "A"), pems("A"), t0, margin)
	s, _ = s.advance(t0, margin, all)
	expect(s, Steady, "sA", "A\n", time.Time{})

	s.IssuedUntil = t0.Add(24 * time.Hour)
	s = s.propose(gen("sB", "B", "B"), pems("B"), t0, margin)
	at := t0.Add(24*time.Hour + margin)
	expect(s, NewRootDistributed, "sA", "A\nB\n", at)

	early, changed := s.advance(at.Add(-time.Second), margin, all)
	if changed {
		t.Error("too early")
	}
	expect(early, NewRootDistributed, "sA", "A\nB\n", at)
	missing, changed := s.advance(at, margin, func(id string) bool { return id != "sB" })
	if changed || missing.Current.SignerID != "sA" {
		t.Error("signs with a key that is not there")
	}
	// In the meantime the old one has signed for longer.
	s.IssuedUntil = at.Add(24 * time.Hour)
	s, _ = s.advance(at, margin, all)
	expect(s, SigningByNew, "sB", "A\nB\n", at.Add(24*time.Hour+margin))
	s, _ = s.advance(at.Add(24*time.Hour+margin), margin, all)
	expect(s, Steady, "sB", "B\n", time.Time{})

	// Another intermediate below the same root, at once.
	s = s.propose(gen("sB2", "B", "B"), pems("B"), at, margin)
	s, _ = s.advance(at, margin, all)
	expect(s, Steady, "sB2", "B\n", time.Time{})
}

// TestRotationByHand is what operators of plugged-in CAs do: first both
// roots, then the new signer, then the new root alone.
func TestRotationByHand(t *testing.T) {
	const margin = time.Minute
	now := time.Unix(1e9, 0).UTC()
	s := state{}.propose(gen("sA", "A", "A"), pems("A"), now, margin)
	s, _ = s.advance(now, margin, all)
	s.IssuedUntil = now.Add(time.Hour)
	s = s.propose(gen("sA", "A", "A", "B"), pems("A", "B"), now, margin)
	s, _ = s.advance(now, margin, all)
	if s.stage() != Steady || string(s.bundle()) != "A\nB\n" {
		t.Errorf("%+v", s)
	}
	// In a hurry: the signer waits until the bundle is everywhere.
	s = s.propose(gen("sB", "B", "A", "B"), pems("A", "B"), now.Add(time.Minute), margin)
	if s.stage() != NewRootDistributed || !s.NextAt.Equal(now.Add(time.Hour+margin)) {
		t.Errorf("%+v", s)
	}
	s, _ = s.advance(s.NextAt, margin, all)
	if s.stage() != Steady || s.Current.SignerID != "sB" {
		t.Errorf("%+v", s)
	}
	// Removed by hand while certificates below it live: it stays until then.
	now = now.Add(2 * time.Hour)
	s.IssuedUntil = now.Add(time.Hour)
	s = s.propose(gen("sB", "B", "B"), pems("B"), now, margin)
	s, _ = s.advance(now, margin, all)
	if s.stage() != SigningByNew || string(s.bundle()) != "A\nB\n" {
		t.Errorf("%+v", s)
	}
	s, _ = s.advance(now.Add(time.Hour+margin), margin, all)
	if s.stage() != Steady || string(s.bundle()) != "B\n" {
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
		s := state{}.propose(gen("s0", "r0", "r0"), pems("r0"), now, margin)
		s, _ = s.advance(now, margin, all)
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
				s = s.propose(gen(fmt.Sprint("s", n), root, roots...), pems(roots...), now, margin)
				s, _ = s.advance(now, margin, all)
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 30*60).Draw(t, "minutes")) * time.Minute)
				s, _ = s.advance(now, margin, all)
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
				if !slices.ContainsFunc(s.Roots, func(r trusted) bool { return r.ID == s.Current.Root }) {
					t.Fatalf("the bundle lacks the signer's root: %+v", s)
				}
			},
		})
	})
}
