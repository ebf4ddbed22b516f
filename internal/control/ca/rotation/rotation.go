// Package rotation is the change of a mesh's root as a state machine: which
// generation signs, which one is to, and which roots are trusted until when.
// Values in, values out; keys, clocks and stores are the authority's business.
package rotation

import (
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
)

// Stage is where a change of the root stands. The constants have their meaning.
type Stage = admin.Stage

// The stages.
const (
	Steady             = admin.Steady
	NewRootDistributed = admin.NewRootDistributed
	SigningByNew       = admin.SigningByNew
)

// Generation is one way to sign. Values only.
type Generation struct {
	// SignerID is the fingerprint of the signing certificate.
	SignerID string `json:"signerID"`
	// Root is the fingerprint of the root it chains to, Roots of all roots
	// that this generation wants trusted.
	Root  string   `json:"root"`
	Roots []string `json:"roots"`
	// Cert and Key are PEM, for the self-signed root only. The key of a
	// plugged-in CA stays where its owner put it.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

// SelfSigned reports whether the root signs itself, with the key that is here.
func (g *Generation) SelfSigned() bool { return g.Key != "" }

// Root is a root of the bundle.
type Root struct {
	ID  string `json:"id"`
	PEM string `json:"pem"`
	// KnownFrom is when the last certificate expires that was handed out
	// without this root.
	KnownFrom time.Time `json:"knownFrom"`
	// Until is when a root that is no longer wanted may go; zero while wanted.
	Until time.Time `json:"until,omitzero"`
}

// State is all that must survive a restart. It is a value: methods return the
// successor and leave the receiver as it was.
type State struct {
	Version int         `json:"version"`
	Current *Generation `json:"current"`
	Next    *Generation `json:"next,omitempty"`
	// NextAt is when Next may begin to sign.
	NextAt time.Time `json:"nextAt,omitzero"`
	Roots  []Root    `json:"roots"`
	// IssuedUntil is at or after the expiry of every certificate ever handed
	// out.
	IssuedUntil time.Time `json:"issuedUntil,omitzero"`
}

// Stage tells where the change of the root stands.
func (s State) Stage() Stage {
	if s.Next != nil {
		return NewRootDistributed
	}
	for _, r := range s.Roots {
		if !r.Until.IsZero() {
			return SigningByNew
		}
	}
	return Steady
}

// Propose makes g the next generation, with roots (PEM by fingerprint) in the
// bundle from now on. margin covers the clocks of the mesh and the time a
// bundle takes to its readers. The very first generation signs at once.
func (s State) Propose(g Generation, roots map[string]string, now time.Time, margin time.Duration) State {
	s.Roots = slices.Clone(s.Roots)
	known := now
	if s.Current != nil {
		known = later(s.IssuedUntil, now).Add(margin)
	}
	for _, id := range g.Roots {
		i := slices.IndexFunc(s.Roots, func(r Root) bool { return r.ID == id })
		if i < 0 {
			s.Roots = append(s.Roots, Root{ID: id, PEM: roots[id], KnownFrom: known})
			continue
		}
		s.Roots[i].Until = time.Time{}
	}
	s.Next, s.NextAt = &g, now
	if s.Current != nil && s.Current.Root == g.Root {
		return s // whoever accepts the signer of today accepts this one
	}
	for _, r := range s.Roots {
		if r.ID == g.Root {
			s.NextAt = r.KnownFrom
		}
	}
	return s
}

// Advance does what is due at now: the next generation begins to sign, when
// its signer is available; roots that nobody needs any more go.
func (s State) Advance(now time.Time, margin time.Duration, available func(signerID string) bool) (next State, changed bool) {
	s.Roots = slices.Clone(s.Roots)
	if s.Next != nil && !now.Before(s.NextAt) && available(s.Next.SignerID) {
		s.Current, s.Next, s.NextAt = s.Next, nil, time.Time{}
		changed = true
	}
	keep := s.Roots[:0]
	for _, r := range s.Roots {
		if !s.wants(r.ID) && r.Until.IsZero() {
			r.Until = later(s.IssuedUntil, now).Add(margin)
			changed = true
		}
		if !r.Until.IsZero() && !now.Before(r.Until) {
			changed = true
			continue
		}
		keep = append(keep, r)
	}
	s.Roots = keep
	return s, changed
}

// Lacks reports whether g is to be proposed: it is not what was proposed last.
func (s State) Lacks(g Generation) bool {
	last := s.Current
	if s.Next != nil {
		last = s.Next
	}
	return last == nil || last.SignerID != g.SignerID || last.Root != g.Root || !slices.Equal(last.Roots, g.Roots)
}

// NeedsRoot reports whether no root signs or is about to: at the very beginning, or
// after the self-signed root, which is good until expiry, has expired while
// nothing ran.
func (s State) NeedsRoot(now, expiry time.Time) bool {
	switch {
	case s.Next != nil:
		return false
	case s.Current == nil:
		return true
	}
	return s.Current.SelfSigned() && !now.Before(expiry)
}

// renewRoot is the part of a root's life, at its end, in which its successor
// is introduced.
const renewRoot = 5

// NeedsSuccessor reports whether the self-signed root, which is good from and
// until, nears its end, and nothing has been begun about it.
func (s State) NeedsSuccessor(now, from, until time.Time) bool {
	if s.Current == nil || !s.Current.SelfSigned() || s.Stage() != Steady {
		return false
	}
	return now.After(until.Add(-until.Sub(from) / renewRoot))
}

func (s State) wants(root string) bool {
	return s.Current != nil && slices.Contains(s.Current.Roots, root) ||
		s.Next != nil && slices.Contains(s.Next.Roots, root)
}

// Hurry ends every wait: the next generation may sign, unwanted roots may go.
func (s State) Hurry(now time.Time) State {
	s.Roots = slices.Clone(s.Roots)
	if s.Next != nil {
		s.NextAt = now
		return s
	}
	for i := range s.Roots {
		if !s.Roots[i].Until.IsZero() {
			s.Roots[i].Until = now
		}
	}
	return s
}

// Bundle is the PEM of all roots that are to be trusted.
func (s State) Bundle() []byte {
	var b []byte
	for _, r := range s.Roots {
		b = append(b, r.PEM...)
	}
	return b
}

// Until is when the stage ends by itself; zero when steady.
func (s State) Until() time.Time {
	if s.Next != nil {
		return s.NextAt
	}
	var last time.Time
	for _, r := range s.Roots {
		last = later(last, r.Until)
	}
	return last
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
