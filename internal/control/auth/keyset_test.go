package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// signed returns a token with these claims.
func signed(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, cl jwt.Claims) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return must(jwt.Signed(s).Claims(cl).Serialize())
}

// published returns the keys as an API server publishes them.
func published(t testing.TB, keys map[string]crypto.PublicKey) []byte {
	t.Helper()
	var set jose.JSONWebKeySet
	for kid, key := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key, KeyID: kid, Use: "sig"})
	}
	return must(json.Marshal(set))
}

func TestKeySet(t *testing.T) {
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	ecKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ec384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	stranger := must(rsa.GenerateKey(rand.Reader, 2048))
	set := must(ParseKeySet(published(t, map[string]crypto.PublicKey{
		"r": rsaKey.Public(), "e": ecKey.Public(), "e384": ec384.Public(), "weak": weak.Public(), "": stranger.Public(),
	})))
	set.keys = append([]jose.JSONWebKey{}, set.keys...)
	now := time.Unix(1_800_000_000, 0)
	good := jwt.Claims{
		Audience: jwt.Audience{"istio-ca", "other"}, Issuer: "https://anything",
		Expiry: jwt.NewNumericDate(now.Add(time.Hour)), NotBefore: jwt.NewNumericDate(now), IssuedAt: jwt.NewNumericDate(now),
	}
	change := func(f func(*jwt.Claims)) jwt.Claims { c := good; f(&c); return c }
	r := signed(t, jose.RS256, rsaKey, "r", good)
	parts := strings.Split(r, ".")
	for name, tt := range map[string]struct {
		token string
		ok    bool
	}{
		"RSA":                     {r, true},
		"elliptic curve":          {signed(t, jose.ES256, ecKey, "e", good), true},
		"another curve":           {signed(t, jose.ES384, ec384, "e384", good), true},
		"without a key's name":    {signed(t, jose.RS256, rsaKey, "", good), true},
		"key without a name":      {signed(t, jose.RS256, stranger, "any", good), true},
		"of the old kind":         {signed(t, jose.RS256, rsaKey, "r", jwt.Claims{}), true},
		"other audience":          {signed(t, jose.RS256, rsaKey, "r", change(func(c *jwt.Claims) { c.Audience = jwt.Audience{"api"} })), false},
		"expired":                 {signed(t, jose.RS256, rsaKey, "r", change(func(c *jwt.Claims) { c.Expiry = jwt.NewNumericDate(now.Add(-time.Hour)) })), false},
		"of the future":           {signed(t, jose.RS256, rsaKey, "r", change(func(c *jwt.Claims) { c.NotBefore = jwt.NewNumericDate(now.Add(time.Hour)) })), false},
		"made-up signature":       {parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])), false},
		"another token's":         {strings.Split(signed(t, jose.RS256, rsaKey, "r", jwt.Claims{}), ".")[0] + "." + parts[1] + ".", false},
		"another algorithm":       {signed(t, jose.RS512, rsaKey, "r", good), false},
		"HMAC":                    {signed(t, jose.HS256, []byte(strings.Repeat("k", 32)), "r", good), false},
		"weak key":                {signed(t, jose.RS256, weak, "weak", good), false},
		"key of another":          {signed(t, jose.ES256, ecKey, "r", good), false},
		"no token":                {"nonsense", false},
		"long":                    {strings.Repeat("a", maxToken+1), false},
		"signature of no account": {"eyJhbGciOiJub25lIn0.e30.", false},
	} {
		if err := set.Check(tt.token, "istio-ca", now); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	unnamed := must(ParseKeySet(published(t, map[string]crypto.PublicKey{"r": rsaKey.Public()})))
	if err := unnamed.Check(signed(t, jose.RS256, stranger, "new", good), "istio-ca", now); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
	if err := unnamed.Check(signed(t, jose.RS256, stranger, "r", good), "istio-ca", now); err == nil || errors.Is(err, ErrUnknownKey) {
		t.Errorf("known name, other key: %v", err)
	}
}

func TestKeySetsThatAreNone(t *testing.T) {
	many := map[string]crypto.PublicKey{}
	for range maxKeys + 1 {
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		many[string(must(json.Marshal(key.X)))] = key.Public()
	}
	for name, text := range map[string]string{
		"empty": "", "text": "hello", "no keys": `{"keys":[]}`, "a secret": `{"keys":[{"kty":"oct","k":"AAAA"}]}`,
		"for encryption": `{"keys":[{"kty":"EC","use":"enc","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`,
		"too many":       string(published(t, many)),
	} {
		if set, err := ParseKeySet([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, set)
		}
	}
	// One that cannot be read does not hide the others.
	if _, err := ParseKeySet([]byte(`{"keys":[{"kty":"new"},{"kty":"EC","use":"sig","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`)); err != nil {
		t.Error(err)
	}
}

func FuzzKeySet(f *testing.F) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	set := must(ParseKeySet(published(f, map[string]crypto.PublicKey{"e": key.Public()})))
	now := time.Unix(1_800_000_000, 0)
	good := signed(f, jose.ES256, key, "e", jwt.Claims{Audience: jwt.Audience{"istio-ca"}, Expiry: jwt.NewNumericDate(now.Add(time.Hour))})
	f.Add(good)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		// A fuzzer cannot sign: what is accepted has the claims of the good one.
		if set.Check(token, "istio-ca", now) == nil && strings.Split(token, ".")[1] != strings.Split(good, ".")[1] {
			t.Errorf("accepted %q", token)
		}
	})
}
