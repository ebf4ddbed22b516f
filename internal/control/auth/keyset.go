package auth

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// signatureAlgorithms are those with which API servers sign tokens. All are of
// public keys: a published key never verifies an HMAC.
var signatureAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

const (
	// maxKeys bounds a key set. An API server has one key, or a few while they
	// are changed; a token without a key's name is checked against all of them.
	maxKeys = 16
	// minRSA and maxRSA bound the size of a key, in bits: a weaker one proves
	// nothing, a larger one makes checks expensive.
	minRSA, maxRSA = 2048, 8192
)

// ErrUnknownKey is matched by the error about a token whose key is not in the
// set. The key may be new.
var ErrUnknownKey = errors.New("the token is signed by a key that the API server does not publish")

// KeySet holds the public keys of a token issuer. It does not change.
type KeySet struct{ keys []jose.JSONWebKey }

// ParseKeySet reads a JSON Web Key Set (RFC 7517). Keys that cannot sign tokens
// here are left out; a set without any other is an error.
func ParseKeySet(text []byte) (*KeySet, error) {
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	set := &KeySet{}
	for _, text := range raw.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(text, &key) == nil && usable(key) {
			set.keys = append(set.keys, key)
		}
	}
	switch n := len(set.keys); {
	case n == 0:
		return nil, errors.New("key set: no key that signs tokens")
	case n > maxKeys:
		return nil, fmt.Errorf("key set: %d keys, at most %d are used", n, maxKeys)
	}
	return set, nil
}

func usable(key jose.JSONWebKey) bool {
	if key.Use != "" && key.Use != "sig" {
		return false
	}
	switch k := key.Key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSA && k.N.BitLen() <= maxRSA
	case *ecdsa.PublicKey:
		return true
	}
	return false
}

// Check reports why a token cannot be valid: its form, its key, its signature,
// its time or its audience. It returns nil for a token that the API server may
// accept. The issuer's name is left to the API server, which can have several.
func (s *KeySet) Check(token, audience string, now time.Time) error {
	if len(token) > maxToken {
		return fmt.Errorf("longer than %d bytes", maxToken)
	}
	t, err := jwt.ParseSigned(token, signatureAlgorithms)
	if err != nil {
		return err
	}
	if len(t.Headers) != 1 {
		return errors.New("not one signature")
	}
	cl, err := s.verified(t)
	if err != nil {
		return err
	}
	// A token without a time or an audience is of the old kind, which lives in a
	// Secret; the API server decides about it.
	if len(cl.Audience) > 0 && !slices.Contains(cl.Audience, audience) {
		return fmt.Errorf("the token is for %q, not for %s", []string(cl.Audience), audience)
	}
	return cl.ValidateWithLeeway(jwt.Expected{Time: now}, leeway)
}

// verified returns the claims of a token that one of the keys has signed.
func (s *KeySet) verified(t *jwt.JSONWebToken) (jwt.Claims, error) {
	kid := t.Headers[0].KeyID
	err := fmt.Errorf("%w (kid %.64q)", ErrUnknownKey, kid)
	for _, key := range s.keys {
		if kid != "" && key.KeyID != "" && key.KeyID != kid {
			continue
		}
		var cl jwt.Claims
		if err = t.Claims(key.Key, &cl); err == nil {
			return cl, nil
		}
	}
	return jwt.Claims{}, err
}
