// Package mtls is mutual TLS between workloads: it turns a certificate and a
// set of roots into tls.Configs that admit exactly the peers they should, and
// says why when they do not.
package mtls

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// maxChain bounds the certificates of one PEM text: real chains have two or
// three, real root bundles a handful.
const maxChain = 64

// Bundle is what one workload needs to speak mutual TLS: its certificate and
// key, and the roots it trusts. It is immutable once made and shared by
// pointer; the tls.Configs made of it are kept with it.
type Bundle struct {
	Identity identity.Identity
	// Cert has the leaf first, then its intermediates, without the root.
	Cert  tls.Certificate
	Roots *x509.CertPool
	// RootsPEM is what Roots was made of; ChainPEM is Cert's chain.
	RootsPEM, ChainPEM  []byte
	NotBefore, NotAfter time.Time

	mu      sync.Mutex
	servers map[Options]*tls.Config
}

// NewBundle checks and assembles the answer of a CA. chain has the leaf
// first, then one intermediate per element, and last the PEM of all roots.
// The leaf must carry id and nothing else, belong to key, and verify for both
// TLS roles against the roots at this moment.
func NewBundle(id identity.Identity, key crypto.Signer, chain []string) (*Bundle, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("certificate of %s: the CA sent %d elements, at least leaf and root are needed", id, len(chain))
	}
	chainPEM := []byte(joinPEM(chain[:len(chain)-1]))
	certs, err := ParseCertificates(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: chain: %w", id, err)
	}
	rootsPEM := []byte(joinPEM(chain[len(chain)-1:]))
	roots, err := ParseCertificates(rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: roots: %w", id, err)
	}
	leaf := certs[0]
	got, err := certificateIdentity(leaf)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	if got != id {
		return nil, fmt.Errorf("certificate of %s: the CA sent one of %s instead", id, got)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("certificate of %s: the CA sent one for another key", id)
	}
	b := &Bundle{
		Identity:  id,
		Cert:      tls.Certificate{PrivateKey: key, Leaf: leaf},
		Roots:     x509.NewCertPool(),
		RootsPEM:  rootsPEM,
		ChainPEM:  chainPEM,
		NotBefore: leaf.NotBefore,
		NotAfter:  leaf.NotAfter,
	}
	for _, c := range certs {
		b.Cert.Certificate = append(b.Cert.Certificate, c.Raw)
		// Behind an intermediate that has expired the leaf is worth nothing.
		if c.NotAfter.Before(b.NotAfter) {
			b.NotAfter = c.NotAfter
		}
	}
	for _, c := range roots {
		b.Roots.AddCert(c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := verifyChain(certs, b.Roots, usage); err != nil {
			return nil, fmt.Errorf("certificate of %s does not verify against the roots that came with it: %w", id, err)
		}
	}
	return b, nil
}

// WithRoots is b with other roots: the same certificate and key. rootsPEM
// must hold at least one certificate and nothing else.
func (b *Bundle) WithRoots(rootsPEM []byte) (*Bundle, error) {
	roots, err := ParseCertificates(rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("roots for %s: %w", b.Identity, err)
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	return &Bundle{
		Identity: b.Identity, Cert: b.Cert, Roots: pool, RootsPEM: rootsPEM, ChainPEM: b.ChainPEM,
		NotBefore: b.NotBefore, NotAfter: b.NotAfter,
	}, nil
}

// ParseCertificates reads a PEM text that holds between 1 and 64
// certificates and no other block.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			break
		}
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("text that is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of type %q among certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if len(certs) == maxChain {
			return nil, fmt.Errorf("more than %d certificates", maxChain)
		}
		certs = append(certs, c)
		text = rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}

func joinPEM(parts []string) string {
	var s strings.Builder
	for _, p := range parts {
		s.WriteString(strings.TrimSpace(p))
		s.WriteByte('\n')
	}
	return s.String()
}
