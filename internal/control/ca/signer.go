package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca/rotation"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// backdate is how far in the past certificates begin to be valid, for nodes
// whose clock is behind.
const backdate = 2 * time.Minute

// signer is a key that signs, with the certificates that make it trusted.
// Immutable.
type signer struct {
	id   string
	cert *x509.Certificate
	key  crypto.Signer
	// chain goes between leaf and root: the signing certificate first; empty
	// when the root itself signs.
	chain []*x509.Certificate
	root  *x509.Certificate
	roots []*x509.Certificate
	// notAfter is when the first certificate of the path expires.
	notAfter time.Time
}

// until is the end of a certificate of that life: not beyond the CA's own.
func (s *signer) until(now time.Time, ttl time.Duration) time.Time {
	notAfter := now.Add(ttl)
	if notAfter.After(s.notAfter) {
		return s.notAfter
	}
	return notAfter
}

// subject is what a certificate is for.
type subject struct {
	identity identity.Identity
	dns      []string
	ips      []net.IP
}

// issue signs a certificate for both TLS roles.
func (s *signer) issue(sub subject, pub crypto.PublicKey, now, notAfter time.Time) (der []byte, err error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	notBefore := now.Add(-backdate)
	if notBefore.Before(s.cert.NotBefore) {
		notBefore = s.cert.NotBefore
	}
	t := &x509.Certificate{
		// Zero is not a serial number (RFC 5280, 4.1.2.2).
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		DNSNames:              sub.dns,
		IPAddresses:           sub.ips,
	}
	if _, ok := pub.(*rsa.PublicKey); ok {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	if !sub.identity.IsZero() {
		u, err := url.Parse(sub.identity.String())
		if err != nil {
			return nil, err
		}
		t.URIs = []*url.URL{u}
	}
	return x509.CreateCertificate(rand.Reader, t, s.cert, pub, s.key)
}

// prove signs a throw-away certificate and verifies it as a peer would. It
// finds what no single field shows: a wrong key, path lengths, name and usage
// constraints above.
func (s *signer) prove(trustDomain string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	id := identity.Identity{TrustDomain: trustDomain, Namespace: "probe", ServiceAccount: "probe"}
	der, err := s.issue(subject{identity: id}, key.Public(), now, s.notAfter)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	vo := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	for _, c := range s.chain {
		vo.Intermediates.AddCert(c)
	}
	for _, c := range s.roots {
		vo.Roots.AddCert(c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		vo.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(vo); err != nil {
			return fmt.Errorf("a certificate signed by %q would not be accepted: %w", s.cert.Subject, err)
		}
	}
	return nil
}

// newSelfSigned makes a root that signs leaves itself.
func newSelfSigned(trustDomain string, now time.Time, ttl time.Duration) (*signer, rotation.Generation, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, rotation.Generation{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, rotation.Generation{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, rotation.Generation{}, err
	}
	keyID := sha256.Sum256(spki)
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		// The generations of one mesh get names of their own, so that path
		// building never has to try.
		Subject:               pkix.Name{Organization: []string{trustDomain}, CommonName: "Ambit root " + hex.EncodeToString(keyID[:4])},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          keyID[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, rotation.Generation{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, rotation.Generation{}, err
	}
	certPEM := string(encodeCert(der))
	keyPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	s, err := loadSelfSigned(certPEM, keyPEM)
	if err != nil {
		return nil, rotation.Generation{}, err
	}
	g := s.generation()
	g.Cert, g.Key = certPEM, keyPEM
	return s, g, nil
}

func loadSelfSigned(certPEM, keyPEM string) (*signer, error) {
	block, _ := pem.Decode([]byte(certPEM))
	if block == nil {
		return nil, errors.New("root certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := parseKey([]byte(keyPEM))
	if err != nil {
		return nil, err
	}
	return &signer{
		id: fingerprint(cert), cert: cert, key: key, root: cert,
		roots: []*x509.Certificate{cert}, notAfter: cert.NotAfter,
	}, nil
}

func (s *signer) generation() rotation.Generation {
	g := rotation.Generation{SignerID: s.id, Root: fingerprint(s.root)}
	for _, r := range s.roots {
		g.Roots = append(g.Roots, fingerprint(r))
	}
	return g
}

// rootPEMs is the PEM of the roots by fingerprint.
func (s *signer) rootPEMs() map[string]string {
	m := make(map[string]string, len(s.roots))
	for _, r := range s.roots {
		m[fingerprint(r)] = string(encodeCert(r.Raw))
	}
	return m
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// parseKey reads a private key in any of the three PEM forms in use.
func parseKey(text []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			return nil, errors.New("no private key in PEM form")
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PARAMETERS":
			continue // OpenSSL writes it in front of the key
		default:
			return nil, fmt.Errorf("a PEM block of type %q where the private key should be", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		s, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		return s, checkKey(s.Public())
	}
}

// RSA sizes: below 2048 is weak, above 4096 makes verification a burden that
// a caller could put on every peer.
const minRSA, maxRSA = 2048, 4096

// checkKey admits the keys that TLS 1.3 peers of the mesh can verify.
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("the curve %s is not among P-256 and P-384", k.Curve.Params().Name)
		}
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("an RSA key of %d bits is not between %d and %d", n, minRSA, maxRSA)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("a key of type %T is not supported", pub)
}
