package authz

import (
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
)

// principals are alternatives for the principal of a token. any: they refuse.
type principals struct {
	list []principal
	any  bool
}

// principal is issuer/subject. A subject may have slashes, so the parts are compared
// each by itself: a/b of the issuer x is not b of the issuer x/a.
type principal struct {
	whole           rbac.Text
	issuer, subject rbac.Text
}

// claim is a condition on one claim.
type claim struct {
	path       []string
	some, none texts
}

var anything = rbac.Text{Kind: rbac.Prefix}

func compilePrincipals(t texts) principals {
	out := principals{any: t.any}
	for _, w := range t.list {
		out.list = append(out.list, compilePrincipal(w))
	}
	return out
}

// compilePrincipal splits a condition at its last slash. One without a slash is of the
// end that it has.
func compilePrincipal(w rbac.Text) principal {
	p := principal{whole: w, issuer: anything, subject: anything}
	i := strings.LastIndexByte(w.Value, '/')
	issuer, subject := w.Value[:max(i, 0)], w.Value[i+1:]
	switch {
	case w.Kind == rbac.Presence:
		p.issuer, p.subject = w, w
	case w.Kind == rbac.Exact:
		p.issuer, p.subject = rbac.Text{Value: issuer}, rbac.Text{Value: subject}
	case w.Kind == rbac.Prefix && i < 0:
		p.issuer = w
	case w.Kind == rbac.Prefix:
		p.issuer, p.subject = rbac.Text{Value: issuer}, rbac.Text{Kind: rbac.Prefix, Value: subject}
	case i < 0:
		p.subject = w
	default:
		p.issuer, p.subject = rbac.Text{Kind: rbac.Suffix, Value: issuer}, rbac.Text{Value: subject}
	}
	return p
}

// match compares with tokens: in lists that allow, with the one that counts, if it has
// an issuer and a subject; in lists that refuse, with each, in both readings.
func (p principals) match(tokens []*jwt.Claims) bool {
	for i, t := range tokens {
		if i > 0 && !p.any {
			break
		}
		named := t.Issuer != "" && t.Subject != ""
		for j := range p.list {
			w := &p.list[j]
			if named && w.issuer.Matches(t.Issuer) && w.subject.Matches(t.Subject) || p.any && w.whole.Matches(t.Principal) {
				return true
			}
		}
	}
	return false
}

// value compares the claim of tokens, as principals do.
func (x *claim) value(tokens []*jwt.Claims, t texts) bool {
	for i, token := range tokens {
		if i > 0 && !t.any {
			break
		}
		if token.Match(x.path, t.list, t.any) {
			return true
		}
	}
	return false
}

// tokenHolds decides about the tokens of a request.
func (m *match) tokenHolds(tokens []*jwt.Claims) bool {
	if len(m.principals.list) > 0 && !m.principals.match(tokens) || m.notPrincipals.match(tokens) {
		return false
	}
	for i := range m.claims {
		x := &m.claims[i]
		if len(x.some.list) > 0 && !x.value(tokens, x.some) || len(x.none.list) > 0 && x.value(tokens, x.none) {
			return false
		}
	}
	return true
}
