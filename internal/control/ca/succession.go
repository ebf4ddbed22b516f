package ca

import (
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca/rotation"
)

// succession brings about who signs: it finds what is due in the state and in
// the plug-in files, makes the signers for it, and writes it into the book. Its
// methods are called with the authority's lock held; those that change the
// state, from within book.change.
type succession struct {
	conf    *Config
	book    book
	keys    keyring
	plugged plugged
	leader  bool
}

// leads reports whether this authority decides about rotations.
func (s *succession) leads() bool { return !s.book.shared || s.leader }

func (s *succession) current() *signer { return s.keys.of(s.book.state.Current) }

// look loads a plugged-in CA that is new.
func (s *succession) look(now time.Time, fresh bool) {
	if found := s.plugged.look(now, fresh); found != nil {
		s.keys.add(found)
		s.book.inForce() // it may be the one that others sign with already
	}
}

// begin sees to it that somebody signs. Without a leader yet, whoever finds
// nobody acts; a conflict shows who was second.
func (s *succession) begin(now time.Time) error {
	if cur := s.current(); s.leads() || cur == nil || !now.Before(cur.notAfter) {
		s.proposePlugged(now)
		if s.needsRoot(now) {
			if err := s.firstRoot(now); err != nil {
				return err
			}
		}
		s.advance(now)
	}
	if s.current() == nil {
		if err := s.succeed(now); err != nil {
			return err
		}
	}
	if s.current() == nil {
		return fmt.Errorf("the plugged-in CA that signed last is not in %q (%w): put its files back, or remove the state %s to begin with a new root", s.plugged.String(), s.plugged.reason, s.book.store)
	}
	return nil
}

// succeed lets the next signer sign before its time when nobody here has the key
// of the one before: a plugged-in CA's is nowhere any more when its files are
// replaced, but in the memory of who read them. Not while another replica is at
// work, which may have it: peers that do not know the new root yet would refuse it.
func (s *succession) succeed(now time.Time) error {
	next := s.keys.of(s.book.state.Next)
	if next == nil {
		return nil
	}
	if s.conf.Others != nil && s.conf.Others() {
		return fmt.Errorf("%w: the files of that CA in %s were replaced; this replica serves when the other one has ended, or the new CA may sign, at %s (`ambit ca rotate --hurry` ends the wait)",
			ErrNotYet, s.plugged.String(), s.book.state.NextAt.UTC().Format(time.RFC3339))
	}
	s.conf.Logger.Warn("signing with the next CA at once, because the one before is not available; peers that do not know its root yet will refuse it", "signer", next.cert.Subject)
	s.book.set(s.book.state.Hurry(now))
	s.advance(now)
	return nil
}

// decide does what is due.
func (s *succession) decide(now time.Time) {
	if !s.leads() {
		return
	}
	s.proposePlugged(now)
	if cur := s.current(); cur != nil && s.book.state.NeedsSuccessor(now, cur.cert.NotBefore, cur.cert.NotAfter) {
		s.conf.Logger.Info("the root nears its end, introducing its successor", "expires", cur.cert.NotAfter)
		if err := s.proposeSelfSigned(now); err != nil {
			s.conf.Logger.Error("cannot make a new root; trying again", "error", err)
		}
	}
	s.advance(now)
}

func (s *succession) needsRoot(now time.Time) bool {
	var expiry time.Time
	if cur := s.current(); cur != nil {
		expiry = cur.notAfter
	}
	return s.book.state.NeedsRoot(now, expiry)
}

// firstRoot makes a self-signed root, or adopts one. Not when an operator has
// plugged in a CA that is broken: nobody asked for another root.
func (s *succession) firstRoot(now time.Time) error {
	switch {
	case s.plugged.broken():
		return fmt.Errorf("plugged-in CA in %s: %w", s.plugged.String(), s.plugged.reason)
	case len(s.book.foreign.Cert) > 0:
		return s.adopt(now)
	}
	return s.proposeSelfSigned(now)
}

// adopt takes over the self-signed root of another program, so that its
// certificates and ours accept each other. How long those live is not
// recorded anywhere: as long as any may.
func (s *succession) adopt(now time.Time) error {
	foreign := s.book.foreign
	root, err := loadPlugin(pluginFiles{cert: foreign.Cert, key: foreign.Key, root: foreign.Cert}, s.conf.TrustDomain, now)
	if err == nil {
		err = root.cert.CheckSignatureFrom(root.cert)
	}
	if err != nil {
		return fmt.Errorf("the root in %s cannot be adopted: %w; repair it, plug it in as an intermediate CA, or remove it to begin with a new root", s.book.store, err)
	}
	g := root.generation()
	g.Cert, g.Key = string(foreign.Cert), string(foreign.Key)
	s.propose(root, g, now)
	s.book.state.IssuedUntil = now.Add(s.conf.MaxTTL)
	return nil
}

// proposePlugged makes the plugged-in CA the signer to be, unless it is.
func (s *succession) proposePlugged(now time.Time) {
	if s.plugged.signer == nil {
		return
	}
	g := s.plugged.signer.generation()
	if !s.book.state.Lacks(g) {
		return
	}
	first := s.book.state.Current == nil
	s.propose(s.plugged.signer, g, now)
	if first && s.book.shared {
		// Another program may have signed with it until now, for the time that
		// is usual.
		s.book.state.IssuedUntil = now.Add(s.conf.DefaultTTL)
	}
}

func (s *succession) proposeSelfSigned(now time.Time) error {
	root, g, err := newSelfSigned(s.conf.TrustDomain, now, s.conf.RootTTL)
	if err != nil {
		return err
	}
	s.propose(root, g, now)
	return nil
}

func (s *succession) propose(next *signer, g rotation.Generation, now time.Time) {
	s.keys.add(next)
	st := s.book.state.Propose(g, next.rootPEMs(), now, s.conf.Margin)
	// Somebody must sign: without the current one's key, or beyond its end,
	// there is nothing to wait for.
	if cur := s.current(); s.book.state.Current != nil && (cur == nil || !now.Before(cur.notAfter)) {
		s.conf.Logger.Warn("signing with a new CA at once, because the one before is not available; peers that do not know its root yet will refuse it", "signer", next.cert.Subject)
		st = st.Hurry(now)
	}
	s.book.set(st)
	s.conf.Logger.Info("new signer", "signer", next.cert.Subject, "root", next.root.Subject, "expires", next.notAfter, "signsFrom", st.NextAt)
}

func (s *succession) advance(now time.Time) {
	before := s.book.state.Stage()
	st, changed := s.book.state.Advance(now, s.conf.Margin, s.keys.has)
	if !changed {
		return
	}
	s.book.set(st)
	s.tell(before)
}

// tell logs a stage that is another than before.
func (s *succession) tell(before rotation.Stage) {
	if st := s.book.state; st.Stage() != before {
		s.conf.Logger.Info("root rotation", "stage", st.Stage(), "before", before, "until", st.Until())
	}
}

// ErrNoRotation matches the errors of a rotation that cannot be started now.
var ErrNoRotation = errors.New("no rotation was started")

func (s *succession) mayRotate() error {
	if !s.leads() {
		return fmt.Errorf("%w: another replica decides about rotations; ask the one that leads", ErrNoRotation)
	}
	return nil
}

// introduce proposes a new self-signed root on request.
func (s *succession) introduce(now time.Time) error {
	if err := s.mayRotate(); err != nil {
		return err
	}
	st := s.book.state
	if !st.Current.SelfSigned() {
		return fmt.Errorf("%w: the CA is plugged in; put new files into its place to rotate", ErrNoRotation)
	}
	if stage := st.Stage(); stage != Steady {
		return fmt.Errorf("%w: one is under way (%s until %s)", ErrNoRotation, stage, st.Until().UTC().Format(time.RFC3339))
	}
	return s.proposeSelfSigned(now)
}

// hurry ends the wait of the present stage, or introduces a root without one.
func (s *succession) hurry(now time.Time) error {
	if err := s.mayRotate(); err != nil {
		return err
	}
	if s.book.state.Stage() == Steady {
		if err := s.introduce(now); err != nil {
			return err
		}
	}
	s.conf.Logger.Warn("root rotation hurried on request", "stage", s.book.state.Stage(), "until", s.book.state.Until())
	s.book.set(s.book.state.Hurry(now))
	s.advance(now)
	return nil
}

// issued writes down that certificates of this life are out.
func (s *succession) issued(now time.Time, ttl time.Duration) {
	cur := s.current()
	if cur == nil {
		return
	}
	if notAfter := cur.until(now, ttl); notAfter.After(s.book.state.IssuedUntil) {
		// Ahead by a part of the life, so that only few signatures write.
		st := s.book.state
		st.IssuedUntil = notAfter.Add(notAfter.Sub(now) / 24)
		s.book.set(st)
	}
}
