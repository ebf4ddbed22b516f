package jwt_test

import (
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
)

var now = time.Unix(1_800_000_000, 0)

func check(token string, r *jwt.Rule) (*jwt.Claims, jwt.Refusal) {
	t, refusal := jwt.Parse([]byte(token))
	if refusal != jwt.Accepted {
		return nil, refusal
	}
	return t.Check(r, now)
}

// TestAlgorithms: each algorithm of public keys verifies by its own key, and by no other.
func TestAlgorithms(t *testing.T) {
	all := []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}
	for _, alg := range all {
		i := jwttest.New(t, "https://a", "k", alg)
		r := &jwt.Rule{Issuer: "https://a", Keys: jwttest.Keys(t, i)}
		token := i.Token(map[string]any{"sub": "s"})
		if c, refusal := check(token, r); refusal != jwt.Accepted || c.Principal != "https://a/s" {
			t.Errorf("%s: %v", alg, refusal)
		}
		other := jwttest.New(t, "https://a", "k", alg)
		if _, refusal := check(token, &jwt.Rule{Keys: jwttest.Keys(t, other)}); refusal != jwt.NotVerified {
			t.Errorf("%s by another key of its kind: %v", alg, refusal)
		}
		for _, wrong := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.EdDSA} {
			if wrong[:2] == alg[:2] || wrong == jose.RS256 && alg[:2] == "PS" {
				continue
			}
			if _, refusal := check(token, &jwt.Rule{Keys: jwttest.Keys(t, jwttest.New(t, "https://a", "k", wrong))}); refusal != jwt.NoSuchKey {
				t.Errorf("%s by a key for %s: %v", alg, wrong, refusal)
			}
		}
	}
}

// hmacToken is signed by a secret.
func hmacToken(alg, payload string, secret []byte) string {
	e := base64.RawURLEncoding
	text := e.EncodeToString([]byte(`{"alg":"`+alg+`","kid":"k"}`)) + "." + e.EncodeToString([]byte(payload))
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(text))
	return text + "." + e.EncodeToString(m.Sum(nil))
}

// TestForgeries: what a token says of itself does not make it valid.
func TestForgeries(t *testing.T) {
	i, attacker := jwttest.New(t, "https://a", "k", jose.RS256), jwttest.New(t, "https://a", "k", jose.RS256)
	public := i.Private.Public().(*rsa.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	r := &jwt.Rule{Issuer: "https://a", Audiences: []string{"me"}, Keys: jwttest.Keys(t, i), Skew: time.Minute}
	claims := func(more string) []byte { return []byte(`{"iss":"https://a","sub":"s","aud":"me"` + more + `}`) }
	payload := string(claims(""))
	good := i.Sign(nil, claims(""))
	if _, refusal := check(good, r); refusal != jwt.Accepted {
		t.Fatal(refusal)
	}
	parts := strings.Split(good, ".")
	jwk, err := json.Marshal(jose.JSONWebKey{Key: attacker.Private.Public(), KeyID: "k"})
	if err != nil {
		t.Fatal(err)
	}
	foreign := jwttest.New(t, "https://a", "other", jose.RS256)
	for name, tt := range map[string]struct {
		token string
		want  jwt.Refusal
	}{
		"alg none":                        {jwttest.Raw(`{"alg":"none"}`, payload, ""), jwt.BadAlgorithm},
		"alg None, with a signature":      {jwttest.Raw(`{"alg":"None"}`, payload, "x"), jwt.BadAlgorithm},
		"no alg":                          {jwttest.Raw(`{"kid":"k"}`, payload, "x"), jwt.BadAlgorithm},
		"alg that is no text":             {jwttest.Raw(`{"alg":["RS256"]}`, payload, "x"), jwt.BadAlgorithm},
		"alg twice":                       {jwttest.Raw(`{"alg":"none","alg":"RS256"}`, payload, "x"), jwt.BadHeader},
		"ALG":                             {jwttest.Raw(`{"ALG":"RS256"}`, payload, "x"), jwt.BadAlgorithm},
		"HS256 by the public key":         {hmacToken("HS256", payload, der), jwt.BadAlgorithm},
		"HS256 by the public key, as PEM": {hmacToken("HS256", payload, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), jwt.BadAlgorithm},
		"HS256 by the modulus":            {hmacToken("HS256", payload, public.N.Bytes()), jwt.BadAlgorithm},
		"RS256 that is an HMAC":           {hmacToken("RS256", payload, der), jwt.NotVerified},
		"another key, its own in jwk":     {attacker.Sign(map[string]any{"jwk": json.RawMessage(jwk)}, claims("")), jwt.NotVerified},
		"jku":                             {attacker.Sign(map[string]any{"jku": "https://evil/keys"}, claims("")), jwt.NotVerified},
		"x5u":                             {attacker.Sign(map[string]any{"x5u": "https://evil/keys"}, claims("")), jwt.NotVerified},
		"another key's name":              {foreign.Sign(nil, claims("")), jwt.NoSuchKey},
		"kid that is a number":            {jwttest.Raw(`{"alg":"RS256","kid":7}`, payload, "x"), jwt.BadHeader},
		"crit":                            {i.Sign(map[string]any{"crit": []string{"x"}, "x": 1}, claims("")), jwt.BadHeader},
		"b64 false":                       {jwttest.Raw(`{"alg":"RS256","kid":"k","b64":false}`, payload, "x"), jwt.BadHeader},
		"another issuer":                  {i.Sign(nil, []byte(`{"iss":"https://b","aud":"me"}`)), jwt.UnknownIssuer},
		"no issuer":                       {i.Sign(nil, []byte(`{"aud":"me"}`)), jwt.UnknownIssuer},
		"issuer with a slash":             {i.Sign(nil, []byte(`{"iss":"https://a/","aud":"me"}`)), jwt.UnknownIssuer},
		"another audience":                {i.Sign(nil, []byte(`{"iss":"https://a","aud":["you","them"]}`)), jwt.WrongAudience},
		"no audience":                     {i.Sign(nil, []byte(`{"iss":"https://a"}`)), jwt.WrongAudience},
		"expired":                         {i.Sign(nil, claims(fmt.Sprintf(`,"exp":%d`, now.Add(-time.Minute).Unix()))), jwt.Expired},
		"expired long ago":                {i.Sign(nil, claims(`,"exp":-1e300`)), jwt.Expired},
		"not yet":                         {i.Sign(nil, claims(fmt.Sprintf(`,"nbf":%d`, now.Add(time.Minute+time.Second).Unix()))), jwt.NotYetValid},
		"exp as a text":                   {i.Sign(nil, claims(`,"exp":"9999999999"`)), jwt.BadPayload},
		"exp null":                        {i.Sign(nil, claims(`,"exp":null`)), jwt.BadPayload},
		"exp too large":                   {i.Sign(nil, claims(`,"exp":1e999`)), jwt.BadPayload},
		"exp twice":                       {i.Sign(nil, claims(`,"exp":1,"exp":9999999999`)), jwt.BadPayload},
		"aud of other types":              {i.Sign(nil, []byte(`{"iss":"https://a","aud":["me",1]}`)), jwt.BadPayload},
		"sub that is a number":            {i.Sign(nil, []byte(`{"iss":"https://a","aud":"me","sub":1}`)), jwt.BadPayload},
		"more behind the payload":         {i.Sign(nil, append(claims(""), " {}"...)), jwt.BadPayload},
		"payload that is a list":          {i.Sign(nil, []byte(`[]`)), jwt.BadPayload},
		"payload that is null":            {i.Sign(nil, []byte(`null`)), jwt.BadPayload},
		"deep":                            {i.Sign(nil, claims(`,"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40))), jwt.BadPayload},
		"huge":                            {i.Sign(nil, claims(`,"x":"`+strings.Repeat("x", jwt.MaxToken)+`"`)), jwt.TooLarge},
		"another payload":                 {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://a","sub":"root","aud":"me"}`)) + "." + parts[2], jwt.NotVerified},
		"another signature":               {parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString([]byte("x")), jwt.NotVerified},
		"no signature":                    {parts[0] + "." + parts[1] + ".", jwt.BadSignature},
		"line end in the signature":       {parts[0] + "." + parts[1] + "." + parts[2][:9] + "\n" + parts[2][9:], jwt.BadSignature},
		"line end in the payload":         {parts[0] + "." + parts[1][:4] + "\n" + parts[1][4:] + "." + parts[2], jwt.BadPayload},
		"padding":                         {parts[0] + "." + parts[1] + "." + parts[2] + "==", jwt.BadSignature},
		"two parts":                       {parts[0] + "." + parts[1], jwt.NotThreeParts},
		"five parts":                      {good + ".x.y", jwt.NotThreeParts},
		"nothing":                         {"", jwt.NotThreeParts},
		"JSON":                            {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, jwt.NotThreeParts},
	} {
		if c, refusal := check(tt.token, r); refusal != tt.want || c != nil {
			t.Errorf("%s: %v, want %v", name, refusal, tt.want)
		}
	}
	if _, refusal := check(good, &jwt.Rule{Issuer: "https://a"}); refusal != jwt.NoKeys {
		t.Errorf("without keys: %v", refusal)
	}
}

// TestAccepted: what a rule leaves open, and what clocks and writers differ in.
func TestAccepted(t *testing.T) {
	i := jwttest.New(t, "https://a", "k", jose.ES256)
	unnamed := *i
	unnamed.ID = ""
	r := &jwt.Rule{Audiences: []string{"https://api.example/", "b"}, Keys: jwttest.Keys(t, i), Skew: time.Minute}
	for name, token := range map[string]string{
		"no exp":                  i.Token(map[string]any{"aud": "b"}),
		"exp within the skew":     i.Token(map[string]any{"aud": "b", "exp": now.Add(-59 * time.Second).Unix()}),
		"nbf within the skew":     i.Token(map[string]any{"aud": "b", "nbf": now.Add(time.Minute).Unix()}),
		"exp with a fraction":     i.Token(map[string]any{"aud": "b", "exp": float64(now.Unix()) + 0.5}),
		"audience without scheme": i.Token(map[string]any{"aud": "api.example"}),
		"audience with http":      i.Token(map[string]any{"aud": []string{"x", "http://api.example"}}),
		"any issuer":              i.Token(map[string]any{"aud": "b", "iss": "anybody"}),
		"no kid":                  unnamed.Sign(nil, []byte(`{"aud":"b"}`)),
		"a type":                  i.Sign(map[string]any{"typ": "at+jwt"}, []byte(`{"aud":"b"}`)),
	} {
		if _, refusal := check(token, r); refusal != jwt.Accepted {
			t.Errorf("%s: %v", name, refusal)
		}
	}
	// A key without a name is tried for a token that names one.
	if _, refusal := check(i.Token(map[string]any{"aud": "b"}), &jwt.Rule{Keys: jwttest.Keys(t, &unnamed)}); refusal != jwt.Accepted {
		t.Errorf("a key without a name: %v", refusal)
	}
}

// TestKeySets: of a key set, public keys for signatures count, and nothing else is passed
// on.
func TestKeySets(t *testing.T) {
	i := jwttest.New(t, "a", "k", jose.RS256)
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.Private, KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwt.ParseKeys(private)
	if err != nil || strings.Contains(string(set.Text()), `"d"`) || set.Len() != 1 {
		t.Fatalf("%s, error %v", set.Text(), err)
	}
	again, err := jwt.ParseKeys(set.Text())
	if err != nil || !again.Equal(set) {
		t.Errorf("%s, error %v", again.Text(), err)
	}
	public := strings.TrimSuffix(strings.TrimPrefix(jwttest.Set(i), `{"keys":[`), `]}`)
	for name, tt := range map[string]struct {
		text string
		want string // of the error; "" for none
	}{
		"not JSON":             {`<html>`, "no JSON Web Key Set"},
		"JSON of others":       {`{"error":"x"}`, `no list "keys"`},
		"a list":               {`[]`, "no JSON Web Key Set"},
		"no keys":              {`{"keys":[]}`, "none of 0 keys"},
		"a secret":             {`{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, "none of 1 keys"},
		"for encryption":       {`{"keys":[` + strings.Replace(public, `"use":"sig"`, `"use":"enc"`, 1) + `]}`, "none of 1 keys"},
		"an algorithm of HMAC": {`{"keys":[` + strings.Replace(public, `"use"`, `"alg":"HS256","use"`, 1) + `]}`, "none of 1 keys"},
		"a small key":          {`{"keys":[{"kty":"RSA","e":"AQAB","n":"` + base64.RawURLEncoding.EncodeToString(append([]byte{0x80}, make([]byte, 127)...)) + `"}]}`, "none of 1 keys"},
		"one of two":           {`{"keys":[{"kty":"oct","k":"c2VjcmV0"},` + public + `]}`, ""},
		"too many":             {`{"keys":[` + strings.TrimSuffix(strings.Repeat(public+",", 101), ",") + `]}`, "at most 100"},
		"too large":            {`{"keys":[` + strings.Repeat(" ", jwt.MaxKeySet) + `]}`, "bytes"},
		"deep":                 {`{"keys":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`, "deeper"},
	} {
		_, err := jwt.ParseKeys([]byte(tt.text))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The algorithm of a key is kept.
	pinned, err := jwt.ParseKeys([]byte(`{"keys":[` + strings.Replace(public, `"use"`, `"alg":"RS512","use"`, 1) + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, refusal := check(i.Token(nil), &jwt.Rule{Keys: pinned}); refusal != jwt.NoSuchKey {
		t.Errorf("RS256 by a key for RS512: %v", refusal)
	}
}

// TestClaims: claims are found by paths and compared as policies say.
func TestClaims(t *testing.T) {
	c := jwttest.Claims(t, map[string]any{
		"sub": "ann", "a": map[string]any{"b": map[string]any{"c": "deep"}}, "list": []any{"x", "y", 7}, "n": 12345678901, "yes": true, "none": nil,
		"scope": "read write", "empty": "", "f": 1.5,
	})
	exact := func(s string) []rbac.Text { return []rbac.Text{{Value: s}} }
	for _, tt := range []struct {
		path          string
		value         []rbac.Text
		strict, loose bool
	}{
		{"sub", exact("ann"), true, true}, {"sub", exact("an"), false, false}, {"sub", []rbac.Text{{Kind: rbac.Prefix, Value: "an"}}, true, true},
		{"a.b.c", exact("deep"), true, true}, {"a.b", exact("deep"), false, false}, {"a.b.c.d", exact("deep"), false, false}, {"b", exact("deep"), false, false},
		{"list", exact("y"), true, true}, {"list", exact("z"), false, false}, {"list", exact("7"), false, true}, {"list", []rbac.Text{{Kind: rbac.Presence}}, true, true},
		{"n", exact("12345678901"), false, true}, {"yes", exact("true"), false, true}, {"none", []rbac.Text{{Kind: rbac.Presence}}, false, true},
		{"a", []rbac.Text{{Kind: rbac.Presence}}, false, true}, {"missing", []rbac.Text{{Kind: rbac.Presence}}, false, false}, {"empty", []rbac.Text{{Kind: rbac.Presence}}, false, true},
		{"scope", exact("write"), true, true}, {"scope", exact("read write"), false, true}, {"scope", exact("rea"), false, false},
	} {
		path := strings.Split(tt.path, ".")
		if strict, loose := c.Match(path, tt.value, false), c.Match(path, tt.value, true); strict != tt.strict || loose != tt.loose {
			t.Errorf("%s %v: %v and loosely %v", tt.path, tt.value, strict, loose)
		}
	}
	for path, want := range map[string]string{
		"sub": "ann", "n": "12345678901", "f": "1.5", "yes": "true", "scope": "read write", "a.b.c": "deep",
		"list": base64.StdEncoding.EncodeToString([]byte(`["x","y",7]`)), "a.b": base64.StdEncoding.EncodeToString([]byte(`{"c":"deep"}`)),
	} {
		if got, ok := c.Text(strings.Split(path, ".")); got != want || !ok {
			t.Errorf("%s is %q", path, got)
		}
	}
	for _, path := range []string{"missing", "none", "sub.x"} {
		if got, ok := c.Text(strings.Split(path, ".")); ok {
			t.Errorf("%s is %q", path, got)
		}
	}
}

// TestChangedTokens: a token in which any byte was changed is not accepted with other
// claims.
func TestChangedTokens(t *testing.T) {
	i := jwttest.New(t, "https://a", "k", jose.EdDSA)
	r := &jwt.Rule{Issuer: "https://a", Keys: jwttest.Keys(t, i)}
	good := []byte(i.Token(map[string]any{"sub": "s"}))
	rapid.Check(t, func(t *rapid.T) {
		bad := append([]byte(nil), good...)
		at := rapid.IntRange(0, len(bad)-1).Draw(t, "at")
		bad[at] = rapid.Byte().Draw(t, "byte")
		if _, refusal := check(string(bad), r); refusal == jwt.Accepted && bad[at] != good[at] {
			t.Fatalf("%q is accepted", bad)
		}
	})
}

// TestTries: the keys that are tried for tokens of one request are bounded.
func TestTries(t *testing.T) {
	var all []*jwttest.Issuer
	for n := range 12 {
		all = append(all, jwttest.New(t, "https://a", fmt.Sprint(n), jose.EdDSA))
	}
	forged := jwttest.New(t, "https://a", "", jose.EdDSA).Token(nil)
	r := &jwt.Rule{Keys: jwttest.Keys(t, all...)}
	token, _ := jwt.Parse([]byte(forged))
	tries := jwt.MaxTries
	if _, refusal := token.CheckWithin(r, now, &tries); refusal != jwt.NotVerified || tries != 0 {
		t.Errorf("%v, %d tries are left", refusal, tries)
	}
	good, _ := jwt.Parse([]byte(all[0].Token(nil)))
	if _, refusal := good.CheckWithin(r, now, &tries); refusal != jwt.NotVerified {
		t.Errorf("without a try left: %v", refusal)
	}
	if _, refusal := good.Check(r, now); refusal != jwt.Accepted {
		t.Errorf("alone: %v", refusal)
	}
}

// TestCache: what is remembered is within bounds, of a party's own, and ends with the token.
func TestCache(t *testing.T) {
	c := jwt.NewCache[string, int]()
	i := jwttest.New(t, "a", "", jose.EdDSA)
	keys := jwttest.Keys(t, i)
	put := func(party string, n, length int) jwt.Sum {
		text := fmt.Appendf(nil, "%s %d", party, n)
		token, _ := jwt.Parse([]byte(i.Token(map[string]any{"exp": now.Add(time.Hour).Unix()})))
		claims, refusal := token.Check(&jwt.Rule{Keys: keys}, now)
		if refusal != jwt.Accepted {
			t.Fatal(refusal)
		}
		s := jwt.SumOf(text)
		c.Put(party, &s, length, claims, n)
		return s
	}
	first := put("a", 0, 1000)
	if v, ok := c.Get("a", &first, now); v != 0 || !ok {
		t.Error("a token is not remembered")
	}
	if _, ok := c.Get("b", &first, now); ok {
		t.Error("a token of one party is another's")
	}
	if _, ok := c.Get("a", &first, now.Add(time.Hour)); ok {
		t.Error("a token outlives its end")
	}
	for n := 1; n <= 1100; n++ {
		put("a", n, 1000)
	}
	if _, ok := c.Get("a", &first, now); ok || c.Size() > 1<<20 {
		t.Errorf("the oldest token is still there, of %d bytes", c.Size())
	}
	for n := range 40 {
		for k := range 30 {
			put(fmt.Sprint("p", n), k, 16<<10)
		}
	}
	if c.Size() > 8<<20 {
		t.Errorf("%d bytes", c.Size())
	}
	c.Keep(func(p string) bool { return p == "a" })
	if c.Size() == 0 || c.Size() > 1<<20 {
		t.Errorf("%d bytes", c.Size())
	}
	c.Keep(func(string) bool { return false })
	if c.Size() != 0 {
		t.Errorf("%d bytes of nobody", c.Size())
	}
}

func FuzzToken(f *testing.F) {
	i := jwttest.New(f, "https://a", "k", jose.EdDSA)
	r := &jwt.Rule{Issuer: "https://a", Audiences: []string{"me"}, Keys: jwttest.Keys(f, i), Skew: time.Minute}
	good := i.Token(map[string]any{"aud": "me", "sub": "s", "x": map[string]any{"y": []int{1}}})
	f.Add(good)
	f.Add(jwttest.Raw(`{"alg":"none"}`, `{"iss":"https://a"}`, ""))
	f.Add(hmacToken("HS256", `{"iss":"https://a","aud":"me"}`, []byte("x")))
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if c, refusal := check(token, r); (refusal == jwt.Accepted) != (c != nil) || c != nil && token != good {
			t.Fatalf("%q: %v", token, refusal)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte(jwttest.Set(jwttest.New(f, "a", "k", jose.ES256), jwttest.New(f, "a", "l", jose.RS256))))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := jwt.ParseKeys(text)
		if err != nil {
			return
		}
		if again, err := jwt.ParseKeys(k.Text()); err != nil || !again.Equal(k) {
			t.Fatalf("%s is not what it was: %v", k.Text(), err)
		}
	})
}
