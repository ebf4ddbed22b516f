// Package ca is the certificate authority of the mesh: it signs short-lived
// certificates for workload identities, keeps its root or uses a plugged-in
// one, and changes roots without breaking a handshake.
//
// The change of a root is a staged machine (package rotation) that waits by the
// expiry of certificates and not by guesses: the authority records how long
// the certificates live that it has handed out, and a stage ends when none is
// left that the next stage would break. It needs no acknowledgement, so it
// also holds with peers that cannot give one.
//
// Several replicas may share one Store. Its versions put their saves into one
// order, and that is all the safety there is need of:
//
//   - A certificate never outlives IssuedUntil as the store has it at that
//     moment: a replica that wants a longer one first saves a later
//     IssuedUntil, and gives a shorter one when it cannot.
//   - A stage is decided on the record it replaces. A replica that has not
//     seen the decision yet goes on signing as before, but only until the
//     IssuedUntil that the decision was based on; to go beyond, it has to save,
//     meets the conflict, and learns of it.
//
// So what outlives a stage is bounded by what the stage has waited for, however
// late a replica learns. Only the one that leads (see Lead) starts and advances
// rotations: otherwise replicas that see a plugged-in CA at different times would
// undo each other's.
package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca/rotation"
)

// pollInterval is how often plug-in files and due stages are looked at.
const pollInterval = 5 * time.Second

// Stage is where a change of the root stands.
type Stage = rotation.Stage

// The stages, in order, as rotation describes them.
const (
	Steady             = rotation.Steady
	NewRootDistributed = rotation.NewRootDistributed
	SigningByNew       = rotation.SigningByNew
)

// Authority signs certificates. Safe for use by several goroutines.
type Authority struct {
	conf Config

	// view is what is in force; readers need no lock, so that nobody waits
	// for a store but who has to write.
	view atomic.Pointer[view]

	mu     sync.Mutex
	line   succession
	closed bool
}

// Open loads the authority, or makes a new self-signed root when there is
// neither state nor a plugged-in CA. A plugged-in CA that cannot be used is an
// error when no other signer is left. An error that matches ErrUnavailable says
// that it is not known what there is, and ErrNotYet that another replica is to
// end first: Open may be called again.
func Open(conf Config) (*Authority, error) {
	conf.setDefaults()
	if conf.TrustDomain == "" {
		return nil, errors.New("CA: no trust domain")
	}
	store := conf.Store
	if store == nil {
		dir, err := openDirectory(conf.StateDir)
		if err != nil {
			return nil, fmt.Errorf("CA: %w", err)
		}
		store = dir
	}
	a := &Authority{conf: conf}
	a.line = succession{
		conf: &a.conf, keys: keyring{},
		plugged: plugged{source: conf.Plugin, trustDomain: conf.TrustDomain, logger: conf.Logger},
	}
	a.line.book = book{
		store: store, shared: conf.Store != nil, logger: conf.Logger,
		open: a.line.keys.open, inForce: a.publish,
	}
	a.view.Store(newView())
	if err := a.load(); err != nil {
		if conf.Store == nil {
			_ = store.Close()
		}
		return nil, fmt.Errorf("CA: %w", err)
	}
	return a, nil
}

func (a *Authority) load() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.line.book.reload(); err != nil {
		return err
	}
	now := time.Now()
	a.line.look(now, true)
	return a.line.book.change(func() error { return a.line.begin(now) })
}

// publish puts the state of the book in force.
func (a *Authority) publish() []byte {
	st := a.line.book.state
	old := a.view.Load()
	if st.Current == nil {
		return old.bundle
	}
	a.line.keys.prune(st, a.line.plugged.signer)
	v, another := old.next(st, a.line.current())
	if v.signer != nil {
		a.conf.Metrics.signer(v.signer)
		a.conf.Metrics.rotation(st.Until())
	}
	a.view.Store(v)
	if another {
		close(old.changed)
	}
	return v.bundle
}

// shared reports whether other replicas use the store.
func (a *Authority) shared() bool { return a.conf.Store != nil }

// change is book.change under the lock.
func (a *Authority) change(f func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.line.book.change(f)
}

// Close gives the store to the next process.
func (a *Authority) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	return a.line.book.store.Close()
}

// Run follows the plug-in files and other replicas, and moves rotations on,
// until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	t := time.NewTicker(pollInterval)
	defer t.Stop()
	var plugin <-chan struct{}
	if a.conf.Plugin != nil {
		plugin = a.conf.Plugin.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-plugin:
		case <-a.line.book.store.Changed():
			a.follow()
		}
		a.Tick()
	}
}

// follow learns what other replicas have saved.
func (a *Authority) follow() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	before := a.line.book.state.Stage()
	if err := a.line.book.reload(); err != nil {
		a.conf.Logger.Error("cannot read the CA's state; what was read last stays in force", "store", a.line.book.store.String(), "error", err)
	}
	a.line.tell(before)
}

// Lead makes this authority the one of several replicas that starts and
// advances rotations, until ctx ends. At most one should.
func (a *Authority) Lead(ctx context.Context) {
	a.mu.Lock()
	a.line.leader = true
	// What another one saw before must not be undone by what is old here.
	a.line.look(time.Now(), true)
	a.mu.Unlock()
	a.follow()
	a.Tick()
	<-ctx.Done()
	a.mu.Lock()
	a.line.leader = false
	a.mu.Unlock()
}

// Tick does what Run does at intervals, now.
func (a *Authority) Tick() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	now := time.Now()
	a.line.look(now, false)
	if err := a.line.book.change(func() error { a.line.decide(now); return nil }); err != nil {
		message := "cannot save the CA's state; it is in force, but would be lost in a restart; trying again"
		if a.shared() {
			message = "cannot save the CA's state; what other replicas know stays in force; trying again"
		}
		a.conf.Logger.Error(message, "store", a.line.book.store.String(), "error", err)
	}
}

// Bundle is the PEM of all roots to trust; changed is closed when there is a
// newer one.
func (a *Authority) Bundle() (text []byte, changed <-chan struct{}) {
	v := a.view.Load()
	return v.bundle, v.changed
}

// Roots is Bundle as a pool, which must not be changed.
func (a *Authority) Roots() *x509.CertPool { return a.view.Load().roots }

// StartRotation introduces a new self-signed root. An error that matches
// ErrNoRotation says why not: a rotation is under way, the CA is plugged in
// and rotates by its files, or another replica decides.
func (a *Authority) StartRotation() error {
	return a.change(func() error { return a.line.introduce(time.Now()) })
}

// Hurry ends the wait of the present stage, for an emergency such as a stolen
// key: peers that have not renewed their certificates since will be refused
// until they do. Without a rotation under way it starts one and lets the new
// root sign at once; the old one is trusted until the next Hurry, or until
// nothing needs it. Errors are those of StartRotation.
func (a *Authority) Hurry() error {
	return a.change(func() error { return a.line.hurry(time.Now()) })
}
