package authz

import (
	"testing"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
)

func some(v ...string) (out []*securitypb.StringMatch) {
	for _, s := range v {
		out = append(out, text(s))
	}
	return out
}

// TestTokens: what a policy says of the tokens of a request. The first token allows; each
// of them refuses, in any reading.
func TestTokens(t *testing.T) {
	token := func(iss, sub string, more map[string]any) *jwt.Claims {
		all := map[string]any{"iss": iss, "sub": sub}
		for k, v := range more {
			all[k] = v
		}
		return jwttest.Claims(t, all)
	}
	ann := token("https://a", "ann", map[string]any{"groups": []string{"dev", "ops"}, "level": 7, "org": map[string]any{"unit": "shop"}})
	slash := token("https://a", "x/y", nil) // as principal, it could be y of the issuer https://a/x
	nobody := token("https://a", "", nil)
	root := token("https://b", "root", map[string]any{"groups": "admin"})
	principals := func(v ...string) *authzpb.Match { return &authzpb.Match{RequestPrincipals: some(v...)} }
	notPrincipals := func(v ...string) *authzpb.Match { return &authzpb.Match{NotRequestPrincipals: some(v...)} }
	claims := func(values, not []*securitypb.StringMatch, path ...string) *authzpb.Match {
		return &authzpb.Match{Claims: []*authzpb.ClaimMatch{{Path: path, Values: values, NotValues: not}}}
	}
	for name, tt := range map[string]struct {
		match        *authzpb.Match
		tokens       []*jwt.Claims
		allow, deny_ bool // whether the match holds in an ALLOW, and in a DENY
	}{
		"exact":                            {principals("https://a/ann"), []*jwt.Claims{ann}, true, true},
		"another":                          {principals("https://a/bob"), []*jwt.Claims{ann}, false, false},
		"any":                              {principals("*"), []*jwt.Claims{ann}, true, true},
		"any, without a token":             {principals("*"), nil, false, false},
		"any, without a subject":           {principals("*"), []*jwt.Claims{nobody}, false, true},
		"all of an issuer":                 {principals("https://a/*"), []*jwt.Claims{ann}, true, true},
		"all of another issuer":            {principals("https://b/*"), []*jwt.Claims{ann}, false, false},
		"a subject of any issuer":          {principals("*/ann"), []*jwt.Claims{ann}, true, true},
		"a subject with a slash, itself":   {principals("https://a/x/y"), []*jwt.Claims{slash}, false, true},
		"a subject with a slash, as other": {principals("https://a/x/*"), []*jwt.Claims{slash}, false, true},
		"a subject with a slash, all":      {principals("https://a/*"), []*jwt.Claims{slash}, true, true},
		"the second token":                 {principals("https://b/root"), []*jwt.Claims{ann, root}, false, true},
		"not, without a token":             {notPrincipals("*"), nil, true, true},
		"not, with a token":                {notPrincipals("*"), []*jwt.Claims{ann}, false, false},
		"not, without a subject":           {notPrincipals("*"), []*jwt.Claims{nobody}, false, true},
		"not the second token":             {notPrincipals("https://b/*"), []*jwt.Claims{ann, root}, false, true},
		"a claim of a list":                {claims(some("ops"), nil, "groups"), []*jwt.Claims{ann}, true, true},
		"a claim that is not there":        {claims(some("*"), nil, "other"), []*jwt.Claims{ann}, false, false},
		"a nested claim":                   {claims(some("sh*"), nil, "org", "unit"), []*jwt.Claims{ann}, true, true},
		"a number":                         {claims(some("7"), nil, "level"), []*jwt.Claims{ann}, false, true},
		"a claim of the second token":      {claims(some("admin"), nil, "groups"), []*jwt.Claims{ann, root}, false, true},
		"not a claim":                      {claims(nil, some("ops"), "groups"), []*jwt.Claims{ann}, false, false},
		"not a claim, without a token":     {claims(nil, some("ops"), "groups"), nil, true, true},
		"not a number":                     {claims(nil, some("7"), "level"), []*jwt.Claims{ann}, false, true},
		"principal of one, claim of other": {&authzpb.Match{RequestPrincipals: some("https://a/ann"), Claims: claims(some("admin"), nil, "groups").Claims}, []*jwt.Claims{ann, root}, false, true},
	} {
		for action, want := range map[authzpb.Action]bool{allowing: tt.allow, denying: !tt.deny_} {
			s := NewStore()
			body, err := Encode(&authzpb.Policy{Namespace: "ns", Name: "p", Action: action, Everything: true, Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{tt.match}}}}}})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Put("p", body); err != nil {
				t.Fatal(err)
			}
			r := from("GET", "a", "/")
			a := NewAccess(r.conn, nil, nil)
			a.Begin(s.Set(), r.head(), tt.tokens)
			if got := a.Judge() == nil; got != want {
				t.Errorf("%s, %v: allowed %v, want %v", name, action, got, want)
			}
			// A connection without HTTP has no token to look at.
			a.Begin(s.Set(), nil, nil)
			if a.Judge() == nil {
				t.Errorf("%s, %v: a connection without HTTP is allowed", name, action)
			}
		}
	}
	for _, bad := range []*authzpb.Match{claims(nil, nil, "a"), claims(some("x"), nil), claims(some("x"), nil, "a", "")} {
		if _, err := Encode(&authzpb.Policy{Namespace: "ns", Name: "p", Action: allowing, Everything: true, Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{bad}}}}}}); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
