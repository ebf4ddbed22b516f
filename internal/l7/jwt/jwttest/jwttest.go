// Package jwttest signs tokens for tests.
package jwttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/l7/jwt"
)

// Issuer has a key.
type Issuer struct {
	t         testing.TB
	Name      string
	ID        string // of the key
	Algorithm jose.SignatureAlgorithm
	Private   crypto.Signer
}

// New makes an issuer that signs by an algorithm.
func New(t testing.TB, name, id string, alg jose.SignatureAlgorithm) *Issuer {
	t.Helper()
	i := &Issuer{t: t, Name: name, ID: id, Algorithm: alg}
	var err error
	switch alg { //nolint:exhaustive // all others are RSA's
	case jose.ES256:
		i.Private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		i.Private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		i.Private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case jose.EdDSA:
		_, i.Private, err = ed25519.GenerateKey(rand.Reader)
	default:
		i.Private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// Set returns the key set of several issuers.
func Set(issuers ...*Issuer) string {
	var set jose.JSONWebKeySet
	for _, i := range issuers {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: i.Private.Public(), KeyID: i.ID, Use: "sig"})
	}
	b, _ := json.Marshal(set) // public keys
	return string(b)
}

// Keys is Set, read.
func Keys(t testing.TB, issuers ...*Issuer) *jwt.Keys {
	t.Helper()
	k, err := jwt.ParseKeys([]byte(Set(issuers...)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Token signs claims, with the issuer's name unless they have one.
func (i *Issuer) Token(claims map[string]any) string {
	i.t.Helper()
	all := map[string]any{"iss": i.Name}
	for k, v := range claims {
		all[k] = v
	}
	b, err := json.Marshal(all)
	if err != nil {
		i.t.Fatal(err)
	}
	return i.Sign(nil, b)
}

// Sign signs a payload; header has more of the header.
func (i *Issuer) Sign(header map[string]any, payload []byte) string {
	i.t.Helper()
	o := &jose.SignerOptions{}
	if i.ID != "" {
		o.WithHeader("kid", i.ID)
	}
	for k, v := range header {
		o.WithHeader(jose.HeaderKey(k), v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: i.Algorithm, Key: i.Private}, o)
	if err != nil {
		i.t.Fatal(err)
	}
	sig, err := s.Sign(payload)
	if err != nil {
		i.t.Fatal(err)
	}
	text, err := sig.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

// Claims returns the claims of a token that is signed here and accepted now.
func Claims(t testing.TB, claims map[string]any) *jwt.Claims {
	t.Helper()
	i := New(t, "https://issuer.example", "", jose.EdDSA)
	token, refusal := jwt.Parse([]byte(i.Token(claims)))
	if refusal != jwt.Accepted {
		t.Fatal(refusal)
	}
	c, refusal := token.Check(&jwt.Rule{Keys: Keys(t, i)}, time.Unix(1e9, 0))
	if refusal != jwt.Accepted {
		t.Fatal(refusal)
	}
	return c
}

// Raw encodes the parts of a token without a valid signature.
func Raw(header, payload, signature string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(header)) + "." + e.EncodeToString([]byte(payload)) + "." + e.EncodeToString([]byte(signature))
}
