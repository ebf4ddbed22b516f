package jwt

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// Bounds of a token.
const (
	// MaxToken bounds a token, in bytes.
	MaxToken = 16 << 10
	// maxDepth bounds how deep claims are nested.
	maxDepth = 32
)

// Rule is what is accepted of one issuer.
type Rule struct {
	Issuer    string   // empty is any
	Audiences []string // one of them; none: not looked at
	Keys      *Keys    // nil while none are known
	Skew      time.Duration
	Spaced    []string // claims that are lists of words, beside scope and permission
}

// Token is a token that was read, and not verified.
type Token struct {
	text      string
	algorithm jose.SignatureAlgorithm
	keyID     string
	claims    map[string]any
	issuer    string
	subject   string
	audiences []string
	from      int64 // seconds since 1970; no bound: math.MinInt64
	until     int64 // math.MaxInt64
}

var encoding = base64.RawURLEncoding.Strict()

// Parse reads a token.
func Parse(text []byte) (*Token, Refusal) {
	if len(text) > MaxToken {
		return nil, TooLarge
	}
	head, rest, two := bytes.Cut(text, []byte("."))
	body, sig, three := bytes.Cut(rest, []byte("."))
	if !two || !three || bytes.IndexByte(sig, '.') >= 0 || len(head) == 0 || len(body) == 0 {
		return nil, NotThreeParts
	}
	t := &Token{text: string(text), from: math.MinInt64, until: math.MaxInt64}
	header, ok := object(head)
	if !ok {
		return nil, BadHeader
	}
	if r := t.header(header); r != Accepted {
		return nil, r
	}
	if t.claims, ok = object(body); !ok || !t.registered() {
		return nil, BadPayload
	}
	if !plain(sig) || len(sig) == 0 {
		return nil, BadSignature
	}
	if _, err := encoding.DecodeString(string(sig)); err != nil {
		return nil, BadSignature
	}
	return t, Accepted
}

// header reads what of the header counts. A header that demands more than this package
// does is refused (RFC 7515, 4.1.11; RFC 7797, 3).
func (t *Token) header(h map[string]any) Refusal {
	_, critical := h["crit"]
	_, raw := h["b64"]
	if critical || raw {
		return BadHeader
	}
	if id, there := h["kid"]; there {
		s, ok := id.(string)
		if !ok {
			return BadHeader
		}
		t.keyID = s
	}
	alg, _ := h["alg"].(string)
	t.algorithm = jose.SignatureAlgorithm(alg)
	if !slices.Contains(algorithms, t.algorithm) {
		return BadAlgorithm
	}
	return Accepted
}

// plain reports whether all bytes are of base64url: Go's decoder ignores line ends.
func plain(b []byte) bool {
	for _, c := range b {
		if (c < 'a' || 'z' < c) && (c < 'A' || 'Z' < c) && (c < '0' || '9' < c) && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// object decodes a JSON object. Names count with their case, and none comes twice.
func object(text []byte) (map[string]any, bool) {
	if !plain(text) {
		return nil, false
	}
	raw := make([]byte, encoding.DecodedLen(len(text)))
	n, err := encoding.Decode(raw, text)
	if err != nil || depth(raw[:n]) > maxDepth {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(raw[:n]))
	d.SetNumberType(json.UnmarshalJSONNumber)
	var out map[string]any
	if d.Decode(&out) != nil || out == nil {
		return nil, false
	}
	var more any
	return out, errors.Is(d.Decode(&more), io.EOF)
}

// depth returns how deep arrays and objects are nested in JSON.
func depth(text []byte) int {
	now, most, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			most = max(most, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return most
}

// registered reads the claims that decide, and reports whether they have their types.
func (t *Token) registered() bool {
	ok := text(t.claims, "iss", &t.issuer) && text(t.claims, "sub", &t.subject)
	ok = ok && date(t.claims, "exp", &t.until) && date(t.claims, "nbf", &t.from)
	switch aud := t.claims["aud"].(type) {
	case string:
		t.audiences = []string{aud}
	case []any:
		for _, a := range aud {
			s, is := a.(string)
			t.audiences, ok = append(t.audiences, s), ok && is
		}
	default:
		_, there := t.claims["aud"]
		ok = ok && !there
	}
	return ok
}

func text(claims map[string]any, name string, to *string) bool {
	v, there := claims[name]
	s, is := v.(string)
	*to = s
	return is || !there
}

// latest bounds dates, in seconds: sums with a skew do not overflow.
const latest = 1 << 53

func date(claims map[string]any, name string, to *int64) bool {
	v, there := claims[name]
	if !there {
		return true
	}
	n, is := v.(json.Number)
	if !is {
		return false
	}
	f, err := n.Float64()
	if err != nil || math.IsNaN(f) {
		return false
	}
	*to = int64(math.Floor(max(-latest, min(f, latest))))
	return true
}

// Issuer returns the claim iss, which is not verified.
func (t *Token) Issuer() string { return t.issuer }

// Check is CheckWithin for a token that comes alone.
func (t *Token) Check(r *Rule, now time.Time) (*Claims, Refusal) {
	tries := MaxTries
	return t.CheckWithin(r, now, &tries)
}

// CheckWithin returns the claims of a token that a rule accepts at a moment, or why it
// does not. It tries no more keys than tries, and subtracts those that it has tried.
func (t *Token) CheckWithin(r *Rule, now time.Time, tries *int) (*Claims, Refusal) {
	c := &Claims{Issuer: t.issuer, Subject: t.subject, values: t.claims, from: sum(t.from, -r.Skew), until: sum(t.until, r.Skew)}
	switch {
	case r.Issuer != "" && r.Issuer != t.issuer:
		return nil, UnknownIssuer
	case now.Unix() < c.from:
		return nil, NotYetValid
	case now.Unix() >= c.until:
		return nil, Expired
	case !t.isFor(r.Audiences):
		return nil, WrongAudience
	case r.Keys == nil:
		return nil, NoKeys
	}
	if refusal := t.signed(r.Keys, tries); refusal != Accepted {
		return nil, refusal
	}
	c.split(r.Spaced)
	c.Principal = c.Issuer + "/" + c.Subject
	return c, Accepted
}

func sum(seconds int64, d time.Duration) int64 {
	if seconds == math.MinInt64 || seconds == math.MaxInt64 {
		return seconds
	}
	return seconds + int64(d/time.Second)
}

// isFor reports whether one of the audiences is the token's. As in Envoy, the scheme of
// an address and the slash at its end do not count.
func (t *Token) isFor(audiences []string) bool {
	for _, want := range audiences {
		for _, got := range t.audiences {
			if bare(want) == bare(got) {
				return true
			}
		}
	}
	return len(audiences) == 0
}

func bare(audience string) string {
	if s, ok := strings.CutPrefix(audience, "https://"); ok {
		audience = s
	} else {
		audience = strings.TrimPrefix(audience, "http://")
	}
	return strings.TrimSuffix(audience, "/")
}

// signed checks the signature.
func (t *Token) signed(keys *Keys, tries *int) Refusal {
	suitable := keys.suitable(t.algorithm, t.keyID)
	if len(suitable) == 0 {
		return NoSuchKey
	}
	s, err := jose.ParseSignedCompact(t.text, algorithms)
	if err != nil {
		return NotVerified
	}
	for _, k := range suitable {
		if *tries--; *tries < 0 {
			return NotVerified
		}
		if _, err := s.Verify(k.public); err == nil {
			return Accepted
		}
	}
	return NotVerified
}
