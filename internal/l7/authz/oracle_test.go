package authz

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/emptypb"
	"pgregory.net/rapid"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// request is what policies look at, in the words of the test.
type request struct {
	conn               rbac.Conn
	tcp                bool
	method, host, path string
	headers            [][2]string
	services           []Service
	notes              []Note
}

var web, other = Service{"shop", "web.shop.svc"}, Service{"shop", "other.shop.svc"}

// from returns a request of shop/client to the service web.
func from(method, host, path string, headers ...string) *request {
	r := &request{
		conn: rbac.Conn{
			Identity: identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "client"},
			Src:      netip.MustParseAddrPort("10.0.0.1:4711"), Dst: netip.MustParseAddrPort("10.9.0.1:80"),
		},
		method: method, host: host, path: path, services: []Service{web},
	}
	for i := 0; i < len(headers); i += 2 {
		r.headers = append(r.headers, [2]string{headers[i], headers[i+1]})
	}
	return r
}

func (r *request) head() *message.Head {
	if r.tcp {
		return nil
	}
	h := &message.Head{Method: []byte(r.method), Authority: []byte(r.host), Path: []byte(r.path)}
	for _, f := range r.headers {
		h.Add(message.NewKey(f[0]), []byte(f[1]))
	}
	return h
}

// judge decides by the policies as a gateway gets them.
func (r *request) judge(t interface{ Fatal(...any) }, policies ...*authzpb.Policy) *reason.Error {
	s := NewStore()
	for i, p := range policies {
		body, err := Encode(p)
		if err != nil {
			t.Fatal(err, p)
		}
		if err := s.Put(string(rune('a'+i)), body); err != nil {
			t.Fatal(err)
		}
	}
	r.notes = nil
	a := NewAccess(r.conn, r.services, func(n Note) { r.notes = append(r.notes, n) })
	a.Begin(s.Set(), r.head(), nil)
	return a.Judge()
}

// The oracle reads policies word by word from the protobuf, as Istio's pages say:
// values are compared with what was sent. A gateway may refuse more than it does.

func (r *request) asWritten(policies []*authzpb.Policy) bool {
	allows, allowed := false, false
	for _, p := range policies {
		if p.DryRun || !p.Everything && !slices.ContainsFunc(p.Services, func(s *authzpb.Service) bool {
			return slices.Contains(r.services, Service{s.Namespace, s.Hostname})
		}) {
			continue
		}
		hit := slices.ContainsFunc(p.Rules, func(rule *authzpb.Rule) bool { return r.fitsRule(rule, p.Action) })
		switch p.Action {
		case authzpb.Action_DENY:
			if hit {
				return false
			}
		case authzpb.Action_ALLOW:
			allows, allowed = true, allowed || hit
		}
	}
	return !allows || allowed
}

func (r *request) fitsRule(rule *authzpb.Rule, action authzpb.Action) bool {
	for _, c := range rule.Clauses {
		if !slices.ContainsFunc(c.Matches, func(m *authzpb.Match) bool { return r.fitsMatch(m, action) }) {
			return false
		}
	}
	return true
}

func (r *request) fitsMatch(m *authzpb.Match, action authzpb.Action) bool {
	for _, c := range m.Connection {
		one := &securitypb.Authorization{Name: "n", Namespace: "n", Action: securitypb.Action_DENY, Groups: []*securitypb.Group{{Rules: []*securitypb.Rules{{Matches: []*securitypb.Match{c}}}}}}
		p, _ := rbac.Compile(one) // it has an oracle of its own
		if !p.Matches(&r.conn) {
			return false
		}
	}
	if !inList(r.conn.Identity.TrustDomain, m.TrustDomains, m.NotTrustDomains) {
		return false
	}
	http := len(m.Hosts)+len(m.NotHosts)+len(m.Methods)+len(m.NotMethods)+len(m.Paths)+len(m.NotPaths)+len(m.Headers) > 0
	servers := len(m.ServerNames)+len(m.NotServerNames) > 0
	if r.tcp && (http || servers) {
		return action == authzpb.Action_DENY
	}
	path, _, _ := strings.Cut(r.path, "?")
	lower := func(l []*securitypb.StringMatch) (out []*securitypb.StringMatch) {
		for _, m := range l {
			switch t := m.MatchType.(type) {
			case *securitypb.StringMatch_Exact:
				m = exact(strings.ToLower(t.Exact))
			case *securitypb.StringMatch_Prefix:
				m = prefix(strings.ToLower(t.Prefix))
			case *securitypb.StringMatch_Suffix:
				m = suffix(strings.ToLower(t.Suffix))
			}
			out = append(out, m)
		}
		return out
	}
	if !inList(strings.ToLower(r.host), lower(m.Hosts), lower(m.NotHosts)) || !inList(r.method, m.Methods, m.NotMethods) || !inList("", m.ServerNames, m.NotServerNames) {
		return false
	}
	inPaths := func(l []*authzpb.PathMatch) bool {
		return slices.ContainsFunc(l, func(p *authzpb.PathMatch) bool {
			if t := p.GetTemplate(); t != "" {
				return fitsTemplate(strings.Split(t, "/"), strings.Split(path, "/"))
			}
			return inList(path, []*securitypb.StringMatch{p.GetText()}, nil)
		})
	}
	if len(m.Paths) > 0 && !inPaths(m.Paths) || inPaths(m.NotPaths) {
		return false
	}
	for _, h := range m.Headers {
		var lines []string
		for _, f := range r.headers {
			if strings.EqualFold(f[0], h.Name) {
				lines = append(lines, f[1])
			}
		}
		if strings.EqualFold(h.Name, "host") {
			lines = []string{r.host}
		}
		comma := ","
		if h.Name == "cookie" {
			comma = "; "
		}
		value := strings.Join(lines, comma)
		if len(lines) == 0 && len(h.Values) > 0 || len(lines) > 0 && !inList(value, h.Values, h.NotValues) {
			return false
		}
	}
	return true
}

func inList(s string, some, none []*securitypb.StringMatch) bool {
	hit := func(l []*securitypb.StringMatch) bool {
		for _, m := range l {
			switch t := m.GetMatchType().(type) {
			case *securitypb.StringMatch_Exact:
				if s == t.Exact {
					return true
				}
			case *securitypb.StringMatch_Prefix:
				if strings.HasPrefix(s, t.Prefix) {
					return true
				}
			case *securitypb.StringMatch_Suffix:
				if strings.HasSuffix(s, t.Suffix) {
					return true
				}
			default:
				if s != "" {
					return true
				}
			}
		}
		return false
	}
	return (len(some) == 0 || hit(some)) && !hit(none)
}

// fitsTemplate is how Envoy reads a template: {**} takes at least one segment, which
// may be empty.
func fitsTemplate(t, p []string) bool {
	switch {
	case len(t) == 0 || len(p) == 0:
		return len(t) == len(p)
	case t[0] == "{**}":
		return slices.ContainsFunc(p, func(string) bool { return true }) && func() bool {
			for n := 1; n <= len(p); n++ {
				if fitsTemplate(t[1:], p[n:]) {
					return true
				}
			}
			return false
		}()
	case t[0] == "{*}" && p[0] != "" || t[0] == p[0]:
		return fitsTemplate(t[1:], p[1:])
	}
	return false
}

func exact(s string) *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: s}}
}

func prefix(s string) *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Prefix{Prefix: s}}
}

func suffix(s string) *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Suffix{Suffix: s}}
}

func present() *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Presence{Presence: &emptypb.Empty{}}}
}

// text is a condition in the form of policies: a, a*, *a, *.
func text(s string) *securitypb.StringMatch {
	switch {
	case s == "*":
		return present()
	case strings.HasPrefix(s, "*"):
		return suffix(s[1:])
	case strings.HasSuffix(s, "*"):
		return prefix(s[:len(s)-1])
	}
	return exact(s)
}

func pathMatch(s string) *authzpb.PathMatch {
	if IsTemplate(s) {
		return &authzpb.PathMatch{MatchType: &authzpb.PathMatch_Template{Template: s}}
	}
	return &authzpb.PathMatch{MatchType: &authzpb.PathMatch_Text{Text: text(s)}}
}

// policy is one for the service web whose only rule has one clause for each match.
func policy(action authzpb.Action, matches ...*authzpb.Match) *authzpb.Policy {
	rule := &authzpb.Rule{Place: 3}
	for _, m := range matches {
		rule.Clauses = append(rule.Clauses, &authzpb.Clause{Matches: []*authzpb.Match{m}})
	}
	return &authzpb.Policy{
		Namespace: "shop", Name: "p", Action: action, Services: []*authzpb.Service{{Namespace: web.Namespace, Hostname: web.Hostname}}, Rules: []*authzpb.Rule{rule},
	}
}

var draw = struct{ hosts, methods, paths, values []string }{
	hosts:   []string{"a.com", "A.com", "a.com:80", "a.com.", "b.com", "a.com:*", "*.com", "a*", "*"},
	methods: []string{"GET", "get", "POST", "G*", "*ET", "*"},
	paths: []string{
		"/", "/a", "/a/b", "/a/", "/a/*", "*/b", "/a*", "*", "/a%2Fb", "/%61", "/a//b", "/a;x", "*b", "/{*}", "/a/{*}", "/{**}", "/{**}/b", "/a/{**}/", "/{*}/b/{**}", "/%7Ba", "/a.b", "/.a*",
	},
	values: []string{"x", "y", "x,y", "x*", "*y", "*", "x, y"},
}

func literal(l []string) []string {
	return slices.DeleteFunc(slices.Clone(l), func(s string) bool { return strings.ContainsAny(s, "*{") })
}

func drawTexts(t *rapid.T, from []string) (out []*securitypb.StringMatch) {
	for _, s := range rapid.SliceOfN(rapid.SampledFrom(from), 0, 2).Draw(t, "values") {
		out = append(out, text(s))
	}
	return out
}

func drawPaths(t *rapid.T) (out []*authzpb.PathMatch) {
	for _, s := range rapid.SliceOfN(rapid.SampledFrom(draw.paths), 0, 2).Draw(t, "paths") {
		out = append(out, pathMatch(s))
	}
	return out
}

func drawMatch(t *rapid.T) *authzpb.Match {
	m := &authzpb.Match{}
	switch rapid.IntRange(0, 6).Draw(t, "field") {
	case 0:
		m.Connection = []*securitypb.Match{{Namespaces: []*securitypb.StringMatch{text(rapid.SampledFrom([]string{"shop", "web", "s*"}).Draw(t, "ns"))}}}
	case 1:
		m.Hosts, m.NotHosts = drawTexts(t, draw.hosts), drawTexts(t, draw.hosts)
	case 2:
		m.Methods, m.NotMethods = drawTexts(t, draw.methods), drawTexts(t, draw.methods)
	case 3, 4:
		m.Paths, m.NotPaths = drawPaths(t), drawPaths(t)
	case 5:
		name := rapid.SampledFrom([]string{"x-a", "X-A", "x-b", "host", "cookie"}).Draw(t, "name")
		h := &authzpb.HeaderMatch{Name: name, Values: drawTexts(t, draw.values), NotValues: drawTexts(t, draw.values)}
		if len(h.Values)+len(h.NotValues) > 0 {
			m.Headers = append(m.Headers, h)
		}
	case 6:
		m.TrustDomains = []*securitypb.StringMatch{text(rapid.SampledFrom([]string{"td", "t*", "*d", "other"}).Draw(t, "domain"))}
	}
	if len(m.Connection)+len(m.TrustDomains)+len(m.Hosts)+len(m.NotHosts)+len(m.Methods)+len(m.NotMethods)+len(m.Paths)+len(m.NotPaths)+len(m.Headers) == 0 {
		m.NotMethods = []*securitypb.StringMatch{exact("NONE")}
	}
	return m
}

func drawPolicies(t *rapid.T) []*authzpb.Policy {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *authzpb.Policy {
		p := &authzpb.Policy{
			Namespace: "shop", Name: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "name"), DryRun: rapid.IntRange(0, 7).Draw(t, "dry") == 0,
			Action: rapid.SampledFrom([]authzpb.Action{authzpb.Action_ALLOW, authzpb.Action_ALLOW, authzpb.Action_DENY, authzpb.Action_DENY, authzpb.Action_AUDIT}).Draw(t, "action"),
		}
		if p.Everything = rapid.Bool().Draw(t, "everything"); !p.Everything {
			s := rapid.SampledFrom([]Service{web, other}).Draw(t, "service")
			p.Services = []*authzpb.Service{{Namespace: s.Namespace, Hostname: s.Hostname}}
		}
		for range rapid.IntRange(0, 2).Draw(t, "rules") {
			r := &authzpb.Rule{}
			for range rapid.IntRange(0, 2).Draw(t, "clauses") {
				c := &authzpb.Clause{}
				for range rapid.IntRange(1, 2).Draw(t, "matches") {
					c.Matches = append(c.Matches, drawMatch(t))
				}
				r.Clauses = append(r.Clauses, c)
			}
			p.Rules = append(p.Rules, r)
		}
		return p
	}), 0, 4).Draw(t, "policies")
}

func drawRequest(t *rapid.T) *request {
	r := from(rapid.SampledFrom(literal(draw.methods)).Draw(t, "method"), rapid.SampledFrom(literal(draw.hosts)).Draw(t, "host"), "")
	r.path = rapid.SampledFrom(append(literal(draw.paths), "/a/b/c", "/b", "/x/b/", "/a?/b", "/a/../b", "/a/./b", "/c/%2e%2e/a", `/a\b`, "//b", "*", "")).Draw(t, "path")
	for range rapid.IntRange(0, 3).Draw(t, "headers") {
		r.headers = append(r.headers, [2]string{rapid.SampledFrom([]string{"x-a", "X-A", "x_a", "x-b", "cookie"}).Draw(t, "name"), rapid.SampledFrom(append(literal(draw.values), "")).Draw(t, "value")})
	}
	r.tcp = rapid.IntRange(0, 9).Draw(t, "tcp") == 0
	r.services = rapid.SampledFrom([][]Service{{web}, {other}, {web, other}, nil}).Draw(t, "services")
	return r
}

// TestNeverMoreThanWritten: what is allowed is allowed by the policies as they are
// written, whatever the request.
func TestNeverMoreThanWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, r := drawPolicies(t), drawRequest(t)
		if err := r.judge(t, policies...); err == nil && !r.asWritten(policies) {
			t.Fatalf("%+v is allowed by %v", r, policies)
		}
	})
}

// TestExplain: an explanation decides as Judge does, reports nothing, and the first of its
// policies that decides is the one that Judge names.
func TestExplain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, r := drawPolicies(t), drawRequest(t)
		want := r.judge(t, policies...)
		s := NewStore()
		for i, p := range policies {
			body, err := Encode(p)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Put(string(rune('a'+i)), body)
		}
		a := NewAccess(r.conn, r.services, func(n Note) { t.Fatalf("reported: %+v", n) })
		a.Begin(s.Set(), r.head(), nil)
		all, got := a.Explain()
		if (got == nil) != (want == nil) || got != nil && (got.Reason != want.Reason || got.Detail != want.Detail) {
			t.Fatalf("Explain: %v, Judge: %v", got, want)
		}
		allows := false
		for _, p := range all {
			switch {
			case p.DryRun || p.Action == "AUDIT":
			case p.Action == "DENY" && p.Matches:
				if want == nil || want.Detail != fmt.Sprintf("%s, rule %d", p.Policy, p.Rule) {
					t.Fatalf("%+v denies, Judge: %v", p, want)
				}
				return
			case p.Action == "ALLOW":
				if allows = true; p.Matches {
					if want != nil {
						t.Fatalf("%+v allows, Judge: %v", p, want)
					}
					return
				}
			}
		}
		if allows != (want != nil) {
			t.Fatalf("ALLOW policies: %v, and none matches; Judge: %v", allows, want)
		}
	})
}

// TestExactlyAsWritten: a request that can be read in one way only gets what is
// written, no less.
func TestExactlyAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, r := drawPolicies(t), drawRequest(t)
		r.host, r.method = rapid.SampledFrom([]string{"a.com", "b.com"}).Draw(t, "plain host"), rapid.SampledFrom([]string{"GET", "POST"}).Draw(t, "plain method")
		r.path = rapid.SampledFrom([]string{"/", "/a", "/a/b", "/b", "/c/b/d", "/a.b"}).Draw(t, "plain path")
		r.headers = nil
		for _, name := range []string{"x-a", "x-b"} {
			if rapid.Bool().Draw(t, name) {
				r.headers = append(r.headers, [2]string{name, rapid.SampledFrom([]string{"x", "y"}).Draw(t, name)})
			}
		}
		for _, p := range policies { // the values that one reading is enough for, or that no path has
			for _, rule := range p.Rules {
				for _, c := range rule.Clauses {
					for _, m := range c.Matches {
						strip := func(l []*authzpb.PathMatch) []*authzpb.PathMatch {
							return slices.DeleteFunc(l, func(p *authzpb.PathMatch) bool {
								return p.GetTemplate() != "" || strings.ContainsAny(p.GetText().GetExact(), "%;") || strings.Contains(p.GetText().GetExact(), "//")
							})
						}
						m.Paths, m.NotPaths = strip(m.Paths), strip(m.NotPaths)
						if len(m.Paths)+len(m.NotPaths) == 0 && authzEmpty(m) {
							m.NotMethods = []*securitypb.StringMatch{exact("NONE")}
						}
						for _, l := range [][]*securitypb.StringMatch{m.Methods, m.NotMethods} {
							for i := range l {
								if l[i].GetExact() == "get" {
									l[i] = exact("PUT")
								}
							}
						}
						for _, l := range [][]*securitypb.StringMatch{m.Hosts, m.NotHosts} {
							for i := range l {
								if strings.HasPrefix(l[i].GetPrefix(), "a.com:") {
									l[i] = exact("c.com")
								}
							}
						}
					}
				}
			}
		}
		if err := r.judge(t, policies...); (err == nil) != r.asWritten(policies) {
			t.Fatalf("%+v: %v by %v", r, err, policies)
		}
	})
}

func authzEmpty(m *authzpb.Match) bool {
	return len(m.Connection)+len(m.TrustDomains)+len(m.Hosts)+len(m.NotHosts)+len(m.Methods)+len(m.NotMethods)+len(m.Headers) == 0
}
