package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// Defaults of Config.
const (
	defaultTTL      = 24 * time.Hour
	defaultParallel = 8
	defaultTimeout  = 10 * time.Second
	defaultRetain   = time.Minute
)

// errClosed ends the waits of a manager that is closed.
var errClosed = errors.New("the proxy is shutting down")

// Manager keeps one certificate per identity that is held. Safe for use by
// several goroutines.
type Manager struct {
	conf   Config
	ctx    context.Context // ends with the manager, and with it all fetches
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	entries map[identity.Identity]*entry
	queue   *queue
	active  int
	closed  bool
}

// entry is what is known about one identity; guarded by Manager.mu.
type entry struct {
	id           identity.Identity
	holds, waits int
	bundle       *mtls.Bundle // the last one, perhaps expired
	err          error        // of the last attempt
	failures     int          // in a row
	ended        time.Time    // of the last attempt
	due          time.Time    // of the next one
	busy         bool
	done         chan struct{} // closed at the end of the next attempt
	timer        *time.Timer   // to due, or to being forgotten
}

// valid is the certificate if it can be used at now.
func (e *entry) valid(now time.Time) *mtls.Bundle {
	if e.bundle != nil && now.Before(e.bundle.NotAfter) {
		return e.bundle
	}
	return nil
}

func (e *entry) needed() bool { return e.holds > 0 || e.waits > 0 }

// NewManager makes a manager; Close it in the end.
func NewManager(conf Config) *Manager {
	if conf.TTL <= 0 {
		conf.TTL = defaultTTL
	}
	if conf.Parallel <= 0 {
		conf.Parallel = defaultParallel
	}
	if conf.Timeout <= 0 {
		conf.Timeout = defaultTimeout
	}
	if conf.Retain == 0 {
		conf.Retain = defaultRetain
	}
	if conf.Logger == nil {
		conf.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{conf: conf, entries: make(map[identity.Identity]*entry), queue: newQueue()}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Close ends all fetches and waits for them; Get fails from then on.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	for _, e := range m.entries {
		e.stop()
	}
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
}

// Hold asks for a certificate of id to be there, fetched with priority p if
// there is none, and renewed until release is called. Release may be called
// more than once.
func (m *Manager) Hold(id identity.Identity, p Priority) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entry(id)
	e.holds++
	now := time.Now()
	switch {
	case m.closed || e.busy:
	case e.valid(now) != nil || e.failures > 0:
		m.schedule(e, now) // it may have been about to be forgotten
	default:
		m.request(e, p)
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		e.holds--
		m.letGo(e)
	})
}

// Current is the certificate of id if there is a valid one, else nil; it
// neither waits nor fetches.
func (m *Manager) Current(id identity.Identity) *mtls.Bundle {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[id]; e != nil {
		return e.valid(time.Now())
	}
	return nil
}

// Get returns the certificate of id: the present one at once, else the result
// of a fetch that goes before all others. A recent failure delays that fetch
// by a second at most. The error is a *reason.Error, CertificateUnavailable.
func (m *Manager) Get(ctx context.Context, id identity.Identity) (*mtls.Bundle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[id]; e != nil {
		if b := e.valid(time.Now()); b != nil {
			return b, nil
		}
	}
	if m.closed {
		return nil, unavailable(id, errClosed)
	}
	e := m.entry(id)
	e.waits++
	m.demand(e, time.Now())
	done := e.done

	m.mu.Unlock()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	case <-m.ctx.Done():
		err = errClosed
	}
	m.mu.Lock()

	e.waits--
	m.letGo(e)
	if b := e.valid(time.Now()); b != nil {
		return b, nil
	}
	if err == nil {
		err = e.err
	} else if e.err != nil {
		err = fmt.Errorf("%w (last attempt: %w)", err, e.err)
	}
	return nil, unavailable(id, err)
}

func unavailable(id identity.Identity, err error) error {
	return &reason.Error{Reason: reason.CertificateUnavailable, Detail: id.String(), Err: err}
}

func (m *Manager) entry(id identity.Identity) *entry {
	e := m.entries[id]
	if e == nil {
		e = &entry{id: id, done: make(chan struct{})}
		m.entries[id] = e
	}
	return e
}

// demand brings the next attempt forward because somebody waits.
func (m *Manager) demand(e *entry, now time.Time) {
	if e.busy {
		return
	}
	if e.failures > 0 {
		if at := e.ended.Add(firstRetry); at.After(now) {
			if at.Before(e.due) {
				e.due = at
			}
			m.schedule(e, now)
			return
		}
	}
	m.request(e, RealTime)
}

// request puts e in the queue and starts what may start.
func (m *Manager) request(e *entry, p Priority) {
	e.stop()
	m.queue.push(e.id, p)
	m.pump()
}

// pump starts fetches while there is room. The last place is for those that
// somebody waits for: slow answers to renewals must not hold up connections.
func (m *Manager) pump() {
	for m.active < m.conf.Parallel && !m.closed {
		floor := Background
		if m.conf.Parallel > 1 && m.active == m.conf.Parallel-1 {
			floor = RealTime
		}
		id, ok := m.queue.pop(floor)
		if !ok {
			return
		}
		e := m.entries[id]
		e.busy = true
		m.active++
		m.wg.Go(func() { m.attempt(e) })
	}
}

// attempt fetches once and files the result.
func (m *Manager) attempt(e *entry) {
	began := time.Now()
	b, err := m.fetch(e.id)
	if m.conf.Fetched != nil {
		m.conf.Fetched(e.id, time.Since(began), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.active--
	e.busy = false
	e.ended = now
	if err != nil {
		m.failed(e, err, now)
	} else {
		m.succeeded(e, b, now)
	}
	close(e.done)
	e.done = make(chan struct{})
	if e.needed() {
		m.schedule(e, now)
	} else {
		m.letGo(e)
	}
	m.pump()
}

func (m *Manager) succeeded(e *entry, b *mtls.Bundle, now time.Time) {
	log := m.conf.Logger.Debug
	if e.failures > 0 {
		log = m.conf.Logger.Info
	}
	e.bundle, e.err, e.failures = b, nil, 0
	e.due = renewAt(now, b.NotAfter, mathrand.Float64())
	log("certificate fetched", "identity", e.id, "expires", b.NotAfter, "renewal", e.due)
	for _, o := range m.entries {
		if o != e && o.bundle != nil {
			o.bundle = m.learnRoots(o.bundle, b)
		}
	}
}

func (m *Manager) failed(e *entry, err error, now time.Time) {
	e.err = err
	e.failures++
	var end time.Time
	level := slog.LevelError
	if b := e.valid(now); b != nil {
		end = b.NotAfter
		level = slog.LevelWarn
	}
	e.due = retryAt(now, end, e.failures, mathrand.Float64())
	if m.closed {
		return
	}
	m.conf.Logger.Log(m.ctx, level, "cannot get a certificate; trying again",
		"identity", e.id, "error", err, "failures", e.failures, "retry", e.due, "presentExpires", end)
}

// learnRoots adds to b the roots that newer knows and b does not: all
// identities live in one mesh, and who has not renewed yet must already accept
// peers below a new root. Roots go only with a renewal.
func (m *Manager) learnRoots(b, newer *mtls.Bundle) *mtls.Bundle {
	if bytes.Equal(b.RootsPEM, newer.RootsPEM) {
		return b
	}
	have, err := mtls.ParseCertificates(b.RootsPEM)
	if err != nil {
		return b
	}
	theirs, err := mtls.ParseCertificates(newer.RootsPEM)
	if err != nil {
		return b
	}
	text := slices.Clone(b.RootsPEM)
	for _, c := range theirs {
		if !slices.ContainsFunc(have, c.Equal) {
			text = append(text, encode(c)...)
		}
	}
	if len(text) == len(b.RootsPEM) {
		return b
	}
	with, err := b.WithRoots(text)
	if err != nil {
		m.conf.Logger.Warn("cannot add new roots to a certificate; it gets them when renewed", "identity", b.Identity, "error", err)
		return b
	}
	return with
}

// fetch makes a key, asks the CA, and checks the answer.
func (m *Manager) fetch(id identity.Identity) (*mtls.Bundle, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
	if err != nil {
		return nil, err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	ctx, cancel := context.WithTimeout(m.ctx, m.conf.Timeout)
	defer cancel()
	chain, err := m.conf.Sign.Sign(ctx, id, csr, m.conf.TTL)
	if err != nil {
		return nil, err
	}
	return mtls.NewBundle(id, key, chain)
}

// schedule has e fetched when due.
func (m *Manager) schedule(e *entry, now time.Time) {
	e.stop()
	if m.closed {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(e.due.Sub(now), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if e.timer != t || m.closed {
			return // stopped too late
		}
		m.request(e, m.urgency(e, time.Now()))
	})
	e.timer = t
}

// urgency of an attempt that is due.
func (m *Manager) urgency(e *entry, now time.Time) Priority {
	switch b := e.valid(now); {
	case e.waits > 0:
		return RealTime
	case b == nil:
		return Warmup
	default:
		return renewPriority(now, b.NotBefore, b.NotAfter)
	}
}

// letGo forgets e, after a while, once nobody needs it.
func (m *Manager) letGo(e *entry) {
	if e.needed() || e.busy || m.closed {
		return
	}
	m.queue.remove(e.id)
	e.stop()
	// A failure is remembered as well: who asks again and again must not
	// become an attack on the CA.
	if e.bundle == nil && e.failures == 0 || m.conf.Retain < 0 {
		delete(m.entries, e.id)
		return
	}
	var t *time.Timer
	t = time.AfterFunc(m.conf.Retain, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if e.timer == t && !e.needed() && !e.busy {
			delete(m.entries, e.id)
		}
	})
	e.timer = t
}

func (e *entry) stop() {
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
}

// States describes all identities for /config_dump, sorted.
func (m *Manager) States() []admin.Certificates {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	states := make([]admin.Certificates, 0, len(m.entries))
	for _, e := range m.entries {
		s := admin.Certificates{Identity: e.id.String(), CertChain: []admin.Certificate{}, RootCerts: []admin.Certificate{}}
		switch b := e.valid(now); {
		case b != nil:
			s.State = "Available"
			s.CertChain, s.RootCerts = describe(b.ChainPEM), describe(b.RootsPEM)
		case e.err != nil:
			s.State = "Unavailable: " + e.err.Error()
		case e.bundle != nil:
			s.State = "Unavailable: expired"
		default:
			s.State = "Initializing"
		}
		states = append(states, s)
	}
	slices.SortFunc(states, func(a, b admin.Certificates) int { return strings.Compare(a.Identity, b.Identity) })
	return states
}

func describe(text []byte) []admin.Certificate {
	list := []admin.Certificate{}
	certs, _ := mtls.ParseCertificates(text) // parsed before, when it arrived
	for _, c := range certs {
		list = append(list, admin.Certificate{
			PEM: encode(c), SerialNumber: c.SerialNumber.String(),
			ValidFrom: c.NotBefore.UTC(), ExpirationTime: c.NotAfter.UTC(),
		})
	}
	return list
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
