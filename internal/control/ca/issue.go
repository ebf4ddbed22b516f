package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca/rotation"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// view is what is in force at one moment. Immutable.
type view struct {
	state   rotation.State
	signer  *signer // nil when the one in the state is not available here
	bundle  []byte
	roots   *x509.CertPool
	changed chan struct{} // closed when there is another bundle
}

func newView() *view { return &view{roots: x509.NewCertPool(), changed: make(chan struct{})} }

// next is the view of another state; v.changed is the caller's to close when
// the bundle is another.
func (v *view) next(st rotation.State, s *signer) (next *view, another bool) {
	next = &view{state: st, signer: s, bundle: st.Bundle(), roots: v.roots, changed: v.changed}
	if another = !bytes.Equal(next.bundle, v.bundle); another {
		next.changed = make(chan struct{})
		next.roots = x509.NewCertPool()
		next.roots.AppendCertsFromPEM(next.bundle)
	}
	return next, another
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

// DefaultTTL is the life of a certificate whose owner asks for none.
func (a *Authority) DefaultTTL() time.Duration { return a.conf.DefaultTTL }

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
	if err := a.record(now, ttl); err != nil && !a.shared() {
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
		return nil, nil, notAfter, fmt.Errorf("the CA's state in %s %w, and has not been for so long that no certificate can be recorded any more", a.line.book.store, ErrUnavailable)
	}
	return s, v.bundle, notAfter, nil
}

// record saves that certificates of this life are out.
func (a *Authority) record(now time.Time, ttl time.Duration) error {
	return a.change(func() error { a.line.issued(now, ttl); return nil })
}
