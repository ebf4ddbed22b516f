// Package ca is the certificate authority of the mesh: it signs short-lived
// certificates for workload identities, keeps its root or uses a plugged-in
// one, and changes roots without breaking a handshake.
//
// The change of a root is a staged machine (see Stage) that waits by the
// expiry of certificates and not by guesses: the authority records how long
// the certificates live that it has handed out, and a stage ends when none is
// left that the next stage would break. It needs no acknowledgement, so it
// also holds with peers that cannot give one.
package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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
	// PluginDir, when set, is where the files of a plugged-in CA are or will
	// be: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem, or the
	// tls.crt, tls.key, ca.crt of a Kubernetes TLS secret.
	PluginDir   string
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
	conf  Config
	store *store

	mu      sync.Mutex
	state   state
	saved   bool // state is on disk
	signers map[string]*signer
	bundle  []byte
	changed chan struct{} // closed and replaced with the bundle
	closed  bool

	pluginSum    [sha256.Size]byte // of the files looked at last
	pluginReason string            // why they are not in use; "" when they are
}

// Open loads the authority, or makes a new self-signed root when there is
// neither state nor a plugged-in CA. A plugged-in CA that cannot be used is an
// error when no other signer is left.
func Open(conf Config) (*Authority, error) {
	conf.setDefaults()
	if conf.TrustDomain == "" {
		return nil, errors.New("CA: no trust domain")
	}
	st, err := openStore(conf.StateDir)
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	a := &Authority{conf: conf, store: st, signers: make(map[string]*signer), changed: make(chan struct{})}
	if err := a.load(); err != nil {
		_ = st.close()
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
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func (a *Authority) load() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	if a.state, err = a.store.load(); err != nil {
		return err
	}
	for _, g := range []*generation{a.state.Current, a.state.Next} {
		if g == nil || g.Key == "" {
			continue
		}
		s, err := loadSelfSigned(g.Cert, g.Key)
		if err != nil {
			return fmt.Errorf("self-signed root in %s: %w", a.conf.StateDir, err)
		}
		a.signers[s.id] = s
	}
	now := time.Now()
	a.loadPlugin(now)
	if a.needsRoot(now) {
		if a.pluginReason != "" && a.pluginReason != errNoPlugin.Error() {
			return fmt.Errorf("plugged-in CA in %s: %s", a.conf.PluginDir, a.pluginReason)
		}
		if err := a.proposeSelfSigned(now); err != nil {
			return err
		}
	}
	a.advance(now)
	if a.current() == nil {
		return fmt.Errorf("the plugged-in CA that signed last is not in %q (%s): put its files back, or remove the state directory to begin with a new root", a.conf.PluginDir, a.pluginReason)
	}
	return a.commit()
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

func (a *Authority) current() *signer {
	if a.state.Current == nil {
		return nil
	}
	return a.signers[a.state.Current.SignerID]
}

// Close gives the state directory to the next process.
func (a *Authority) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	return a.store.close()
}

// Run follows the plug-in files and moves rotations on, until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	t := time.NewTicker(pollInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			a.Tick()
		}
	}
}

// Tick does what Run does at intervals, now.
func (a *Authority) Tick() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	now := time.Now()
	a.loadPlugin(now)
	if s := a.current(); a.state.Current.Key != "" && a.state.stage() == Steady {
		life := s.cert.NotAfter.Sub(s.cert.NotBefore)
		if now.After(s.cert.NotAfter.Add(-life / renewRoot)) {
			a.conf.Logger.Info("the root nears its end, introducing its successor", "expires", s.cert.NotAfter)
			if err := a.proposeSelfSigned(now); err != nil {
				a.conf.Logger.Error("cannot make a new root; trying again", "error", err)
			}
		}
	}
	a.advance(now)
	if err := a.commit(); err != nil {
		a.conf.Logger.Error("cannot save the CA's state; it is in force, but would be lost in a restart; trying again", "error", err)
	}
}

// loadPlugin looks at the plug-in files and proposes what is new there. What
// is wrong with them is logged once per version and kept for Status.
func (a *Authority) loadPlugin(now time.Time) {
	if a.conf.PluginDir == "" {
		a.pluginReason = errNoPlugin.Error()
		return
	}
	files, err := readPlugin(a.conf.PluginDir)
	if err != nil {
		if a.pluginReason != err.Error() {
			a.pluginReason = err.Error()
			a.conf.Logger.Warn("no plugged-in CA to load; the signer in use stays", "directory", a.conf.PluginDir, "reason", err)
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
		a.conf.Logger.Error("the plugged-in CA cannot be used; the signer in use stays", "directory", a.conf.PluginDir, "reason", err)
		return
	}
	a.propose(s, s.generation(), now)
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

// commit saves the state and then publishes it: nothing is handed out that a
// crash could make the authority forget.
func (a *Authority) commit() error {
	if !a.saved {
		if err := a.store.save(a.state); err != nil {
			a.publish()
			return err
		}
		a.saved = true
	}
	a.publish()
	return a.store.saveBundle(a.bundle)
}

func (a *Authority) publish() {
	for id := range a.signers {
		if id != a.state.Current.SignerID && (a.state.Next == nil || id != a.state.Next.SignerID) {
			delete(a.signers, id)
		}
	}
	if s := a.current(); s != nil {
		a.conf.Metrics.signer(s)
	}
	b := a.state.bundle()
	if string(b) == string(a.bundle) {
		return
	}
	a.bundle = b
	close(a.changed)
	a.changed = make(chan struct{})
}

// Bundle is the PEM of all roots to trust; changed is closed when there is a
// newer one.
func (a *Authority) Bundle() (text []byte, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle, a.changed
}

// Roots is Bundle as a pool.
func (a *Authority) Roots() *x509.CertPool {
	text, _ := a.Bundle()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

// ErrNoRotation matches the errors of a rotation that cannot be started now.
var ErrNoRotation = errors.New("no rotation was started")

// StartRotation introduces a new self-signed root. An error that matches
// ErrNoRotation says why not: a rotation is under way, or the CA is plugged in
// and rotates by its files.
func (a *Authority) StartRotation() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.introduce(time.Now()); err != nil {
		return err
	}
	return a.commit()
}

func (a *Authority) introduce(now time.Time) error {
	if a.state.Current.Key == "" {
		return fmt.Errorf("%w: the CA is plugged in; put new files into its directory to rotate", ErrNoRotation)
	}
	if s := a.state.stage(); s != Steady {
		return fmt.Errorf("%w: one is under way (%s until %s)", ErrNoRotation, s, a.state.until().UTC().Format(time.RFC3339))
	}
	return a.proposeSelfSigned(now)
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
	if a.state.stage() == Steady {
		if err := a.introduce(now); err != nil {
			return err
		}
	}
	a.conf.Logger.Warn("root rotation hurried on request", "stage", a.state.stage(), "until", a.state.until())
	a.state, a.saved = a.state.hurry(now), false
	a.advance(now)
	return a.commit()
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
	// PluginProblem is why the files in the plug-in directory are not in use.
	PluginProblem string `json:"pluginProblem,omitempty"`
}

// Status returns the present state.
func (a *Authority) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.current()
	st := Status{
		Stage: a.state.stage(), Until: a.state.until(), Signer: s.cert.Subject.String(),
		SignerExpires: s.notAfter, PluggedIn: a.state.Current.Key == "", Roots: len(a.state.Roots),
	}
	if a.state.Next != nil {
		if next := a.signers[a.state.Next.SignerID]; next != nil {
			st.NextSigner = next.cert.Subject.String()
		}
	}
	if a.conf.PluginDir != "" {
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
	a.mu.Lock()
	defer a.mu.Unlock()
	s = a.current()
	notAfter = now.Add(ttl)
	if notAfter.After(s.notAfter) {
		notAfter = s.notAfter
	}
	if notAfter.Sub(now) < MinTTL {
		return nil, nil, notAfter, fmt.Errorf("the CA %q expires at %s: it cannot sign any more; replace it", s.cert.Subject, s.notAfter.UTC().Format(time.RFC3339))
	}
	if notAfter.After(a.state.IssuedUntil) {
		// Ahead by a part of the life, so that only few signatures write.
		a.state.IssuedUntil = notAfter.Add(notAfter.Sub(now) / 24)
		a.saved = false
	}
	if !a.saved {
		if err := a.commit(); err != nil {
			// A full disk must not end the mesh when its certificates do.
			a.conf.Logger.Error("cannot save the CA's state; signing goes on, but a root rotation after a restart may come too early", "error", err)
		}
	}
	return s, a.bundle, notAfter, nil
}
