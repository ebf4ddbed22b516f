// Package jwt verifies tokens of end users: JSON Web Tokens (RFC 7519) in compact form,
// by public keys. It is given keys, a token and a time, and returns claims or a refusal.
//
// A token has no influence on how it is verified, but for the name of the key: the
// algorithm must be one of the key's, and keys that a token brings along are ignored.
package jwt

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// algorithms are those of public keys. A published key never verifies an HMAC.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

var rsaAlgorithms = algorithms[:6]

// Bounds of a key set.
const (
	// MaxKeySet bounds the text of a key set, in bytes.
	MaxKeySet = 1 << 20
	// maxKeys bounds the keys of a set that are used.
	maxKeys = 100
	// minRSA and maxRSA bound the size of a key, in bits: a weaker one proves nothing, a
	// larger one makes checks expensive.
	minRSA, maxRSA = 2048, 8192
)

// Keys is a set of public keys. It is immutable.
type Keys struct {
	list []key
	text []byte
}

type key struct {
	id         string
	algorithms []jose.SignatureAlgorithm
	public     any
}

// ParseKeys reads a JSON Web Key Set (RFC 7517). Keys that cannot verify tokens here
// are left out; a set without any other is an error.
func ParseKeys(text []byte) (*Keys, error) {
	if len(text) > MaxKeySet {
		return nil, fmt.Errorf("key set of %d bytes: at most %d", len(text), MaxKeySet)
	}
	if depth(text) > maxDepth {
		return nil, fmt.Errorf("key set: nested deeper than %d", maxDepth)
	}
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("key set: no JSON Web Key Set: %w", err)
	}
	if raw.Keys == nil {
		return nil, errors.New(`key set: no JSON Web Key Set: it has no list "keys"`)
	}
	set := &Keys{}
	var publish jose.JSONWebKeySet
	for _, text := range raw.Keys {
		k, ok := parseKey(text)
		if !ok {
			continue
		}
		set.list = append(set.list, k)
		publish.Keys = append(publish.Keys, k.published())
	}
	switch n := len(set.list); {
	case n == 0:
		return nil, fmt.Errorf("key set: none of %d keys is a public key for signatures (RSA of %d to %d bits, P-256, P-384, P-521, Ed25519)", len(raw.Keys), minRSA, maxRSA)
	case n > maxKeys:
		return nil, fmt.Errorf("key set: %d keys, at most %d", n, maxKeys)
	}
	slices.SortStableFunc(publish.Keys, func(a, b jose.JSONWebKey) int { return cmp.Compare(a.KeyID, b.KeyID) })
	var err error
	if set.text, err = json.Marshal(publish); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	return set, nil
}

// Text returns the set as a JSON Web Key Set of public keys and nothing else.
func (k *Keys) Text() []byte { return k.text }

// Len returns the number of keys.
func (k *Keys) Len() int { return len(k.list) }

// Equal reports whether both sets have the same keys.
func (k *Keys) Equal(o *Keys) bool { return bytes.Equal(k.text, o.text) }

// published returns the key without anything that is not needed to verify.
func (k *key) published() jose.JSONWebKey {
	out := jose.JSONWebKey{Key: k.public, KeyID: k.id, Use: "sig"}
	if len(k.algorithms) == 1 {
		out.Algorithm = string(k.algorithms[0])
	}
	return out
}

func parseKey(text []byte) (key, bool) {
	var j jose.JSONWebKey
	if json.Unmarshal(text, &j) != nil || j.Use != "" && j.Use != "sig" {
		return key{}, false
	}
	j = j.Public() // of a private key that was published by mistake
	k := key{id: j.KeyID, public: j.Key}
	switch p := j.Key.(type) {
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < minRSA || n > maxRSA {
			return key{}, false
		}
		k.algorithms = rsaAlgorithms
	case *ecdsa.PublicKey:
		switch p.Curve.Params().BitSize {
		case 256:
			k.algorithms = []jose.SignatureAlgorithm{jose.ES256}
		case 384:
			k.algorithms = []jose.SignatureAlgorithm{jose.ES384}
		case 521:
			k.algorithms = []jose.SignatureAlgorithm{jose.ES512}
		}
	case ed25519.PublicKey:
		k.algorithms = []jose.SignatureAlgorithm{jose.EdDSA}
	}
	if !j.Valid() || len(k.algorithms) == 0 {
		return key{}, false
	}
	if j.Algorithm != "" {
		own := jose.SignatureAlgorithm(j.Algorithm)
		if !slices.Contains(k.algorithms, own) {
			return key{}, false
		}
		k.algorithms = []jose.SignatureAlgorithm{own}
	}
	return k, true
}

// MaxTries bounds the keys that are tried for the tokens of one request, and with them
// the cost of tokens that are forged.
const MaxTries = 8

// suitable returns the keys that may have signed a token: those of its key's name, and
// those without a name; all, for a token that names none.
func (k *Keys) suitable(alg jose.SignatureAlgorithm, id string) []*key {
	var out []*key
	for i := range k.list {
		c := &k.list[i]
		if id != "" && c.id != "" && c.id != id || !slices.Contains(c.algorithms, alg) {
			continue
		}
		if out = append(out, c); len(out) == MaxTries {
			break
		}
	}
	return out
}
