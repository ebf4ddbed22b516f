package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// FakeSigner is a CA inside the process, for tests and for FAKE_CA: it gives
// everybody what they ask for.
type FakeSigner struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

// NewFakeSigner has a root that nobody else has.
func NewFakeSigner() (*FakeSigner, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return newFake(key)
}

// NewSharedFakeSigner has the root key that seed stands for, the same in every
// process. Everybody can know it: it protects nothing.
func NewSharedFakeSigner(seed string) (*FakeSigner, error) {
	raw := sha256.Sum256([]byte("ambit fake CA " + seed))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw[:])
	if err != nil {
		return nil, err
	}
	return newFake(key)
}

func newFake(key *ecdsa.PrivateKey) (*FakeSigner, error) {
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "Ambit fake CA"},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	return &FakeSigner{key: key, root: root}, err
}

// Root is the certificate of the fake CA.
func (f *FakeSigner) Root() *x509.Certificate { return f.root }

// Key is the key of the fake CA, for tests that sign what Sign would not.
func (f *FakeSigner) Key() *ecdsa.PrivateKey { return f.key }

// Sign implements Signer.
func (f *FakeSigner) Sign(ctx context.Context, id identity.Identity, csrPEM []byte, ttl time.Duration) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(bytes.TrimSpace(csrPEM))
	if block == nil {
		return nil, errors.New("the request is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    now.Add(-2 * time.Minute), NotAfter: now.Add(ttl),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{u},
	}, f.root, csr.PublicKey, f.key)
	if err != nil {
		return nil, err
	}
	enc := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return []string{enc(der), enc(f.root.Raw)}, nil
}
