// Package ca is the certificate authority of the mesh: it signs short-lived
// certificates for workload identities, keeps its root or uses a plugged-in
// one, and changes roots without breaking a handshake.
//
// The change of a root is a staged machine (see Stage) that waits by the
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
// rotations, lest replicas that see a plugged-in CA at different times undo each
// other's.
package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Defaults of an Authority.
const (
	// DefaultTTL and MaxTTL are Istio's, so that peers find what they expect.
	DefaultTTL = 24 * time.Hour
	MaxTTL     = 90 * 24 * time.Hour
	// RootTTL is the life of a self-signed root.
	RootTTL = 10 * 365 * 24 * time.Hour

	// DefaultMargin covers clock skew and the way of a trust bundle to its
	// readers (a ConfigMap takes up to a minute or two).
	DefaultMargin = 10 * time.Minute
	// MinTTL is the shortest certificate worth signing.
	MinTTL = 10 * time.Second
	// pollInterval is how often plug-in files and due stages are looked at.
	pollInterval = 5 * time.Second
	// storeRetry is how long a store that failed is left alone.
	storeRetry = 10 * time.Second
	// maxConflicts is how often a change is tried again after other replicas.
	maxConflicts = 5
	// renewRoot is the part of a root's life, at its end, in which its
	// successor is introduced.
	renewRoot = 5
)

// Config of an Authority.
type Config struct {
	// StateDir holds the state, including the self-signed root's key (0600),
	// and root-cert.pem for clients of the control plane. One process uses it
	// at a time.
	StateDir string
	// Store, when set, holds the state instead, and is shared with other
	// replicas. The authority closes it.
	Store Store
	// PluginDir, when set, is where the files of a plugged-in CA are or will
	// be: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem, or the
	// tls.crt, tls.key, ca.crt of a Kubernetes TLS secret.
	PluginDir string
	// Plugin, when set, is asked for these files instead.
	Plugin      PluginSource
	TrustDomain string
	// DefaultTTL is given to who asks for none, MaxTTL bounds the rest.
	DefaultTTL, MaxTTL time.Duration
	// RootTTL is for a new self-signed root.
	RootTTL time.Duration
	// Margin is added to every wait of a rotation.
	Margin  time.Duration
	Logger  *slog.Logger
	Metrics *Metrics
}

// Authority signs certificates. Safe for use by several goroutines.
type Authority struct {
	conf   Config
	store  Store
	shared bool // the store has other users

	// view is what is in force; readers need no lock, so that nobody waits
	// for a store but who has to write.
	view atomic.Pointer[view]

	mu      sync.Mutex
	leader  bool
	state   state  // being changed
	stored  state  // in a shared store: what the store had last
	version string // of stored
	saved   bool   // state is in the store
	foreign Record // a root of another program in the store, and nothing else
	signers map[string]*signer
	closed  bool
	failed  error     // of the last save
	retryAt time.Time // when the store is tried again

	plugged      *signer           // the last good plugged-in CA
	pluginSum    [sha256.Size]byte // of the files looked at last
	pluginReason string            // why they are not in use; "" when they are
}

// view is an authority at one moment. Immutable.
type view struct {
	state   state
	signer  *signer // nil when the one in the state is not available here
	bundle  []byte
	roots   *x509.CertPool
	changed chan struct{} // closed when there is another bundle
}

// Open loads the authority, or makes a new self-signed root when there is
// neither state nor a plugged-in CA. A plugged-in CA that cannot be used is an
// error when no other signer is left.
func Open(conf Config) (*Authority, error) {
	conf.setDefaults()
	if conf.TrustDomain == "" {
		return nil, errors.New("CA: no trust domain")
	}
	a := &Authority{conf: conf, store: conf.Store, shared: conf.Store != nil, signers: make(map[string]*signer)}
	if !a.shared {
		dir, err := openDirectory(conf.StateDir)
		if err != nil {
			return nil, fmt.Errorf("CA: %w", err)
		}
		a.store = dir
	}
	a.view.Store(&view{roots: x509.NewCertPool(), changed: make(chan struct{})})
	if err := a.load(); err != nil {
		_ = a.store.Close()
		return nil, fmt.Errorf("CA: %w", err)
	}
	return a, nil
}

func (c *Config) setDefaults() {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&c.MaxTTL, MaxTTL)
	set(&c.DefaultTTL, min(DefaultTTL, c.MaxTTL))
	set(&c.RootTTL, RootTTL)
	set(&c.Margin, DefaultMargin)
	if c.Plugin == nil && c.PluginDir != "" {
		c.Plugin = pluginDir(c.PluginDir)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func (a *Authority) load() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.reload(); err != nil {
		return err
	}
	now := time.Now()
	a.loadPlugin(now, true)
	return a.change(func() error { return a.begin(now) })
}

// begin sees to it that somebody signs. Without a leader yet, whoever finds
// nobody acts; a conflict shows who was second.
func (a *Authority) begin(now time.Time) error {
	if s := a.current(); a.leads() || s == nil || !now.Before(s.notAfter) {
		a.proposePlugin(now)
		if a.needsRoot(now) {
			if err := a.firstRoot(now); err != nil {
				return err
			}
		}
		a.advance(now)
	}
	if a.current() == nil {
		return fmt.Errorf("the plugged-in CA that signed last is not in %q (%s): put its files back, or remove the state %s to begin with a new root", a.conf.pluginName(), a.pluginReason, a.store)
	}
	return nil
}

func (c *Config) pluginName() string {
	if c.Plugin == nil {
		return ""
	}
	return c.Plugin.String()
}

// reload takes what the store has for the truth.
func (a *Authority) reload() error {
	rec, version, err := a.store.Load()
	if err != nil {
		return err
	}
	if rec.State == nil && a.state.Current != nil {
		// The mesh trusts what is in force here. Losing it would be the end of
		// every connection.
		a.conf.Logger.Error("the CA's state is gone; writing it again", "store", a.store.String())
		a.version, a.saved = version, false
		return nil
	}
	st := state{Version: stateVersion}
	if rec.State != nil {
		if st, err = decodeState(rec.State, a.store.String()); err != nil {
			return err
		}
	}
	for _, g := range []*generation{st.Current, st.Next} {
		if g == nil || g.Key == "" || a.signers[g.SignerID] != nil {
			continue
		}
		s, err := loadSelfSigned(g.Cert, g.Key)
		if err != nil {
			return fmt.Errorf("self-signed root in %s: %w", a.store, err)
		}
		a.signers[s.id] = s
	}
	a.foreign = Record{}
	if rec.State == nil {
		a.foreign = rec
	}
	a.state, a.stored, a.version, a.saved = st, st, version, true
	if st.Current != nil {
		a.publish()
	}
	return nil
}

// needsRoot tells whether nobody signs, nor will: at the very beginning, or
// after the self-signed root has expired while nothing ran.
func (a *Authority) needsRoot(now time.Time) bool {
	if a.state.Next != nil {
		return false
	}
	g := a.state.Current
	return g == nil || g.Key != "" && !now.Before(a.signers[g.SignerID].notAfter)
}

// firstRoot makes a self-signed root, or adopts one. Not when an operator has
// plugged in a CA that is broken: nobody asked for another root.
func (a *Authority) firstRoot(now time.Time) error {
	switch {
	case a.pluginReason != "" && a.pluginReason != errNoPlugin.Error():
		return fmt.Errorf("plugged-in CA in %s: %s", a.conf.pluginName(), a.pluginReason)
	case len(a.foreign.Cert) > 0:
		return a.adopt(now)
	}
	return a.proposeSelfSigned(now)
}

// adopt takes over the self-signed root of another program, so that its
// certificates and ours accept each other. How long those live is not
// recorded anywhere: as long as any may.
func (a *Authority) adopt(now time.Time) error {
	s, err := loadPlugin(pluginFiles{cert: a.foreign.Cert, key: a.foreign.Key, root: a.foreign.Cert}, a.conf.TrustDomain, now)
	if err == nil {
		err = s.cert.CheckSignatureFrom(s.cert)
	}
	if err != nil {
		return fmt.Errorf("the root in %s cannot be adopted: %w; repair it, plug it in as an intermediate CA, or remove it to begin with a new root", a.store, err)
	}
	g := s.generation()
	g.Cert, g.Key = string(a.foreign.Cert), string(a.foreign.Key)
	a.propose(s, g, now)
	a.state.IssuedUntil = now.Add(a.conf.MaxTTL)
	return nil
}

func (a *Authority) current() *signer {
	if a.state.Current == nil {
		return nil
	}
	return a.signers[a.state.Current.SignerID]
}

// leads tells whether this authority decides about rotations.
func (a *Authority) leads() bool { return !a.shared || a.leader }

// Close gives the store to the next process.
func (a *Authority) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	return a.store.Close()
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
		case <-a.store.Changed():
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
	before := a.state.stage()
	if err := a.reload(); err != nil {
		a.conf.Logger.Error("cannot read the CA's state; what was read last stays in force", "store", a.store.String(), "error", err)
	}
	if now := a.state.stage(); now != before {
		a.conf.Logger.Info("root rotation", "stage", now, "before", before, "until", a.state.until())
	}
}

// Lead makes this authority the one of several replicas that starts and
// advances rotations, until ctx ends. At most one should.
func (a *Authority) Lead(ctx context.Context) {
	a.mu.Lock()
	a.leader = true
	// What another one saw before must not be undone by what is old here.
	a.loadPlugin(time.Now(), true)
	a.mu.Unlock()
	a.follow()
	a.Tick()
	<-ctx.Done()
	a.mu.Lock()
	a.leader = false
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
	a.loadPlugin(now, false)
	if err := a.change(func() error { a.decide(now); return nil }); err != nil {
		message := "cannot save the CA's state; it is in force, but would be lost in a restart; trying again"
		if a.shared {
			message = "cannot save the CA's state; what other replicas know stays in force; trying again"
		}
		a.conf.Logger.Error(message, "store", a.store.String(), "error", err)
	}
}

// decide does what is due.
func (a *Authority) decide(now time.Time) {
	if !a.leads() {
		return
	}
	a.proposePlugin(now)
	if s := a.current(); s != nil && a.state.Current.Key != "" && a.state.stage() == Steady {
		life := s.cert.NotAfter.Sub(s.cert.NotBefore)
		if now.After(s.cert.NotAfter.Add(-life / renewRoot)) {
			a.conf.Logger.Info("the root nears its end, introducing its successor", "expires", s.cert.NotAfter)
			if err := a.proposeSelfSigned(now); err != nil {
				a.conf.Logger.Error("cannot make a new root; trying again", "error", err)
			}
		}
	}
	a.advance(now)
}

// loadPlugin looks at the plug-in files and keeps what is new there. What is
// wrong with them is logged once per version and kept for Status.
func (a *Authority) loadPlugin(now time.Time, fresh bool) {
	if a.conf.Plugin == nil {
		a.pluginReason = errNoPlugin.Error()
		return
	}
	texts, err := a.conf.Plugin.Files(fresh)
	var files pluginFiles
	if err == nil {
		files, err = choosePlugin(texts)
	}
	if err != nil {
		if a.pluginReason != err.Error() {
			a.pluginReason = err.Error()
			level := slog.LevelWarn
			if errors.Is(err, errNoPlugin) && a.plugged == nil {
				level = slog.LevelInfo // nobody has plugged one in
			}
			a.conf.Logger.Log(context.Background(), level, "no plugged-in CA to load; the signer in use stays", "from", a.conf.pluginName(), "reason", err)
		}
		return
	}
	if files.sum == a.pluginSum {
		return
	}
	a.pluginSum, a.pluginReason = files.sum, ""
	s, err := loadPlugin(files, a.conf.TrustDomain, now)
	if err != nil {
		a.pluginReason = err.Error()
		a.conf.Logger.Error("the plugged-in CA cannot be used; the signer in use stays", "from", a.conf.pluginName(), "reason", err)
		return
	}
	a.plugged, a.signers[s.id] = s, s
	a.publish() // it may be the one that others sign with already
}

// proposePlugin makes the plugged-in CA the signer to be, unless it is.
func (a *Authority) proposePlugin(now time.Time) {
	if a.plugged == nil {
		return
	}
	g, last := a.plugged.generation(), a.state.Current
	if a.state.Next != nil {
		last = a.state.Next
	}
	if last != nil && last.SignerID == g.SignerID && last.Root == g.Root && slices.Equal(last.Roots, g.Roots) {
		return
	}
	first := a.state.Current == nil
	a.propose(a.plugged, g, now)
	if first && a.shared {
		// Another program may have signed with it until now, for the time that
		// is usual.
		a.state.IssuedUntil = now.Add(a.conf.DefaultTTL)
	}
}

func (a *Authority) proposeSelfSigned(now time.Time) error {
	s, g, err := newSelfSigned(a.conf.TrustDomain, now, a.conf.RootTTL)
	if err != nil {
		return err
	}
	a.propose(s, g, now)
	return nil
}

func (a *Authority) propose(s *signer, g generation, now time.Time) {
	a.signers[s.id] = s
	st := a.state.propose(g, s.rootPEMs(), now, a.conf.Margin)
	// Somebody must sign: without the current one's key, or beyond its end,
	// there is nothing to wait for.
	if cur := a.current(); a.state.Current != nil && (cur == nil || !now.Before(cur.notAfter)) {
		a.conf.Logger.Warn("signing with a new CA at once, because the one before is not available; peers that do not know its root yet will refuse it", "signer", s.cert.Subject)
		st = st.hurry(now)
	}
	a.state, a.saved = st, false
	a.conf.Logger.Info("new signer", "signer", s.cert.Subject, "root", s.root.Subject, "expires", s.notAfter, "signsFrom", st.NextAt)
}

func (a *Authority) advance(now time.Time) {
	before := a.state.stage()
	st, changed := a.state.advance(now, a.conf.Margin, func(id string) bool { return a.signers[id] != nil })
	if !changed {
		return
	}
	a.state, a.saved = st, false
	if st.stage() != before {
		a.conf.Logger.Info("root rotation", "stage", st.stage(), "before", before, "until", st.until())
	}
}

// change lets f change the state, saves and publishes that. When another
// replica was first, f is asked again, about theirs.
func (a *Authority) change(f func() error) error {
	for range maxConflicts {
		if err := f(); err != nil {
			a.revert()
			return err
		}
		err := a.commit()
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if err := a.reload(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w, %d times in a row", ErrConflict, maxConflicts)
}

// revert forgets what is not in the store, when others would not know of it.
func (a *Authority) revert() {
	if a.shared && a.stored.Current != nil {
		a.state, a.saved = a.stored, true
	}
}

// commit saves the state and then publishes it: nothing is handed out that a
// crash could make the authority forget.
func (a *Authority) commit() error {
	if !a.saved {
		if err := a.save(); err != nil {
			if a.shared {
				a.revert()
			} else {
				a.publish()
			}
			return err
		}
	}
	a.publish()
	return a.store.Publish(a.view.Load().bundle)
}

func (a *Authority) save() error {
	now := time.Now()
	if a.shared && now.Before(a.retryAt) {
		return a.failed
	}
	rec, err := a.state.record()
	if err != nil {
		return err
	}
	version, err := a.store.Save(rec, a.version)
	if err != nil {
		if !errors.Is(err, ErrConflict) {
			a.failed, a.retryAt = err, now.Add(storeRetry)
		}
		return err
	}
	a.version, a.stored, a.saved, a.foreign = version, a.state, true, Record{}
	return nil
}

func (a *Authority) publish() {
	if a.state.Current == nil {
		return
	}
	for id, s := range a.signers {
		if id != a.state.Current.SignerID && (a.state.Next == nil || id != a.state.Next.SignerID) && s != a.plugged {
			delete(a.signers, id)
		}
	}
	old := a.view.Load()
	v := &view{state: a.state, signer: a.current(), bundle: a.state.bundle(), roots: old.roots, changed: old.changed}
	if v.signer != nil {
		a.conf.Metrics.signer(v.signer)
	}
	another := !bytes.Equal(v.bundle, old.bundle)
	if another {
		v.changed = make(chan struct{})
		v.roots = x509.NewCertPool()
		v.roots.AppendCertsFromPEM(v.bundle)
	}
	a.view.Store(v)
	if another {
		close(old.changed)
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

// ErrNoRotation matches the errors of a rotation that cannot be started now.
var ErrNoRotation = errors.New("no rotation was started")

// StartRotation introduces a new self-signed root. An error that matches
// ErrNoRotation says why not: a rotation is under way, the CA is plugged in
// and rotates by its files, or another replica decides.
func (a *Authority) StartRotation() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(func() error { return a.introduce(time.Now()) })
}

func (a *Authority) introduce(now time.Time) error {
	if err := a.mayRotate(); err != nil {
		return err
	}
	if a.state.Current.Key == "" {
		return fmt.Errorf("%w: the CA is plugged in; put new files into its place to rotate", ErrNoRotation)
	}
	if s := a.state.stage(); s != Steady {
		return fmt.Errorf("%w: one is under way (%s until %s)", ErrNoRotation, s, a.state.until().UTC().Format(time.RFC3339))
	}
	return a.proposeSelfSigned(now)
}

func (a *Authority) mayRotate() error {
	if !a.leads() {
		return fmt.Errorf("%w: another replica decides about rotations; ask the one that leads", ErrNoRotation)
	}
	return nil
}

// Hurry ends the wait of the present stage, for an emergency such as a stolen
// key: peers that have not renewed their certificates since will be refused
// until they do. Without a rotation under way it starts one and lets the new
// root sign at once; the old one is trusted until the next Hurry, or until
// nothing needs it. Errors are those of StartRotation.
func (a *Authority) Hurry() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	return a.change(func() error {
		if err := a.mayRotate(); err != nil {
			return err
		}
		if a.state.stage() == Steady {
			if err := a.introduce(now); err != nil {
				return err
			}
		}
		a.conf.Logger.Warn("root rotation hurried on request", "stage", a.state.stage(), "until", a.state.until())
		a.state, a.saved = a.state.hurry(now), false
		a.advance(now)
		return nil
	})
}

// Status describes the authority for people.
type Status struct {
	Stage Stage `json:"stage"`
	// Until is when the stage ends by itself.
	Until         time.Time `json:"until,omitzero"`
	Signer        string    `json:"signer"`
	SignerExpires time.Time `json:"signerExpires"`
	// NextSigner will sign when the stage new-root-distributed ends.
	NextSigner string `json:"nextSigner,omitempty"`
	PluggedIn  bool   `json:"pluggedIn"`
	// Roots counts those that the mesh is told to trust.
	Roots int `json:"roots"`
	// PluginProblem is why the files of the plugged-in CA are not in use.
	PluginProblem string `json:"pluginProblem,omitempty"`
	// Leads tells whether this replica starts and advances rotations.
	Leads bool `json:"leads"`
}

// Status returns the present state.
func (a *Authority) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := Status{
		Stage: a.state.stage(), Until: a.state.until(), Leads: a.leads(),
		PluggedIn: a.state.Current.Key == "", Roots: len(a.state.Roots),
	}
	if s := a.current(); s != nil {
		st.Signer, st.SignerExpires = s.cert.Subject.String(), s.notAfter
	}
	if a.state.Next != nil {
		if next := a.signers[a.state.Next.SignerID]; next != nil {
			st.NextSigner = next.cert.Subject.String()
		}
	}
	if a.conf.Plugin != nil && (st.PluggedIn || a.pluginReason != errNoPlugin.Error()) {
		st.PluginProblem = a.pluginReason
	}
	return st
}

// Sign answers a certificate request (PEM) for id: leaf, intermediates one by
// one, and last all roots in one element. ttl zero is the default; more than
// the maximum, or than the CA's own life, is cut. The error matches
// ErrBadRequest when the request is at fault.
func (a *Authority) Sign(id identity.Identity, csrPEM []byte, ttl time.Duration) ([]string, error) {
	if id.TrustDomain != a.conf.TrustDomain {
		return nil, fmt.Errorf("%w: %s is not of the trust domain %s", ErrBadRequest, id, a.conf.TrustDomain)
	}
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	pub, err := parseCSR(csrPEM, id)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s, bundle, notAfter, err := a.lease(now, ttl)
	if err != nil {
		return nil, err
	}
	der, err := s.issue(subject{identity: id}, pub, now, notAfter)
	if err != nil {
		return nil, err
	}
	chain := []string{string(encodeCert(der))}
	for _, c := range s.chain {
		chain = append(chain, string(encodeCert(c.Raw)))
	}
	return append(chain, string(bundle)), nil
}

// lease decides who signs and until when, and records that such a certificate
// is out. The recording happens before the signing: whoever decides about a
// stage afterwards knows of this certificate.
func (a *Authority) lease(now time.Time, ttl time.Duration) (s *signer, bundle []byte, notAfter time.Time, err error) {
	switch {
	case ttl < 0:
		return nil, nil, notAfter, fmt.Errorf("%w: negative validity", ErrBadRequest)
	case ttl == 0:
		ttl = a.conf.DefaultTTL
	}
	ttl = max(min(ttl, a.conf.MaxTTL), MinTTL)
	v := a.view.Load()
	if s, notAfter, err = v.grant(now, ttl); err != nil || !notAfter.After(v.state.IssuedUntil) {
		return s, v.bundle, notAfter, err
	}
	if err := a.record(now, ttl); err != nil && !a.shared {
		// A full disk must not end the mesh when its certificates do.
		a.conf.Logger.Error("cannot save the CA's state; signing goes on, but a root rotation after a restart may come too early", "error", err)
	} else if err != nil {
		a.conf.Logger.Error("cannot save the CA's state; signing goes on, but for no longer than other replicas know of", "until", a.view.Load().state.IssuedUntil, "error", err)
	}
	v = a.view.Load()
	if s, notAfter, err = v.grant(now, ttl); err != nil {
		return nil, nil, notAfter, err
	}
	if notAfter.After(v.state.IssuedUntil) {
		notAfter = v.state.IssuedUntil
	}
	if notAfter.Sub(now) < MinTTL {
		return nil, nil, notAfter, fmt.Errorf("the CA's state in %s could not be saved for so long that no certificate can be recorded any more", a.store)
	}
	return s, v.bundle, notAfter, nil
}

// record saves that certificates of this life are out.
func (a *Authority) record(now time.Time, ttl time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(func() error {
		s := a.current()
		if s == nil {
			return nil
		}
		if notAfter := s.until(now, ttl); notAfter.After(a.state.IssuedUntil) {
			// Ahead by a part of the life, so that only few signatures write.
			a.state.IssuedUntil = notAfter.Add(notAfter.Sub(now) / 24)
			a.saved = false
		}
		return nil
	})
}

// grant is who signs, and the end of what is signed.
func (v *view) grant(now time.Time, ttl time.Duration) (*signer, time.Time, error) {
	s := v.signer
	if s == nil {
		return nil, time.Time{}, errors.New("the CA that signs has not been read here yet")
	}
	notAfter := s.until(now, ttl)
	if notAfter.Sub(now) < MinTTL {
		return nil, notAfter, fmt.Errorf("the CA %q expires at %s: it cannot sign any more; replace it", s.cert.Subject, s.notAfter.UTC().Format(time.RFC3339))
	}
	return s, notAfter, nil
}

// until is the end of a certificate of that life: not beyond the CA's own.
func (s *signer) until(now time.Time, ttl time.Duration) time.Time {
	notAfter := now.Add(ttl)
	if notAfter.After(s.notAfter) {
		return s.notAfter
	}
	return notAfter
}
