package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// ServingConfig is the TLS configuration of the control plane's own server,
// with a certificate that the authority signs for names (DNS names and IP
// addresses). The certificate is renewed at half its life and when the signer
// changes. Clients are asked for a certificate and may come without; who they
// are is for auth.ClientCert to judge.
func (a *Authority) ServingConfig(names []string) (*tls.Config, error) {
	sv := &serving{a: a}
	for _, n := range names {
		switch ip := net.ParseIP(strings.Trim(n, "[]")); {
		case ip != nil:
			sv.sub.ips = append(sv.sub.ips, ip)
		case n == "" || strings.ContainsAny(n, " /:@"):
			return nil, fmt.Errorf("%q is neither a DNS name nor an IP address", n)
		default:
			sv.sub.dns = append(sv.sub.dns, n)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("a serving certificate needs at least one name")
	}
	if _, err := sv.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2"},
		GetCertificate: sv.get,
		ClientAuth:     tls.RequestClientCert,
		// A resumed session would outlive the authority's change of mind.
		SessionTicketsDisabled: true,
	}, nil
}

type serving struct {
	a   *Authority
	sub subject

	mu      sync.Mutex
	cert    *tls.Certificate
	signer  *signer
	renewAt time.Time
}

func (s *serving) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	current := s.a.view.Load().signer
	if s.cert != nil && s.signer == current && now.Before(s.renewAt) {
		return s.cert, nil
	}
	cert, signer, err := s.issue(now)
	if err != nil {
		if s.cert != nil && now.Before(s.cert.Leaf.NotAfter) {
			return s.cert, nil
		}
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	s.cert, s.signer = cert, signer
	s.renewAt = now.Add(cert.Leaf.NotAfter.Sub(now) / 2)
	return cert, nil
}

func (s *serving) issue(now time.Time) (*tls.Certificate, *signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer, _, notAfter, err := s.a.lease(now, 0)
	if err != nil {
		return nil, nil, err
	}
	der, err := signer.issue(s.sub, key.Public(), now, notAfter)
	if err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for _, c := range signer.chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, signer, nil
}
