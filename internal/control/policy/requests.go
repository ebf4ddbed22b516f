package policy

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Requests is an AuthorizationPolicy as gateways get it. It is immutable.
type Requests struct {
	// Policy lacks what it is for: see For.
	Policy *authzpb.Policy
	// Effects has for each rule what became of it, and Notes why.
	Effects []Effect
	Notes   []Note
	// Lossy is what gateways do not do as it is written, for people; empty when
	// everything is. Invalid reports whether a value is the cause.
	Lossy   string
	Invalid bool
}

// Authorizers returns the external authorizer of a name, or why there is none.
type Authorizers func(name string) (*authzpb.Provider, error)

// TranslateRequests compiles an AuthorizationPolicy for gateways, which see requests.
// What they cannot decide is treated as Translate does what node proxies cannot
// see: it never allows, and denies everything that the rest of its rule matches.
func (d TrustDomains) TranslateRequests(p *securityv1.AuthorizationPolicy, authorizers Authorizers) *Requests {
	c := compiler{namespace: p.Namespace, domains: d, requests: true}
	pb := &authzpb.Policy{Namespace: p.Namespace, Name: p.Name, DryRun: p.Annotations[wellknown.AnnotationDryRun] == "true"}
	var parts []string
	out := &Requests{Policy: pb}
	switch p.Spec.Action {
	case apisecurity.AuthorizationPolicy_ALLOW:
		pb.Action = authzpb.Action_ALLOW
	case apisecurity.AuthorizationPolicy_AUDIT:
		pb.Action = authzpb.Action_AUDIT
	case apisecurity.AuthorizationPolicy_DENY:
		pb.Action, c.deny = authzpb.Action_DENY, true
	case apisecurity.AuthorizationPolicy_CUSTOM:
		// Its rules match as those of a DENY: what is not certain is asked about.
		pb.Action, c.deny = authzpb.Action_CUSTOM, true
		var err error
		if pb.Provider, err = authorizers(p.Spec.GetProvider().GetName()); err != nil {
			pb.Action, pb.Unsupported, out.Invalid = authzpb.Action_DENY, fmt.Sprintf("no external authorizer can be asked: %v", err), true
			parts = append(parts, fmt.Sprintf("%v: everything that the rules match is denied", err))
		}
	default: // what a later version has
		pb.Action, c.deny = authzpb.Action_DENY, true
		pb.Unsupported = fmt.Sprintf("waypoints do not execute action %s yet", p.Spec.Action)
		parts = append(parts, pb.Unsupported+": everything that the rules match is denied")
	}
	c.each(p.Spec.Rules, func(place int, clauses []clause) {
		r := &authzpb.Rule{Place: uint32(place)}
		for _, cl := range clauses {
			out := &authzpb.Clause{}
			for i := range cl {
				out.Matches = append(out.Matches, cl[i].request)
			}
			r.Clauses = append(r.Clauses, out)
		}
		pb.Rules = append(pb.Rules, r)
	})
	out.Effects, out.Notes = c.effects, c.notes
	effect := "these rules never allow"
	switch pb.Action { //nolint:exhaustive // ALLOW is that
	case authzpb.Action_DENY:
		effect = "these rules deny everything that their other fields match"
	case authzpb.Action_CUSTOM:
		effect = "the external authorizer is asked about everything that the other fields of these rules match"
	case authzpb.Action_AUDIT:
		effect = "these rules report nothing"
	}
	unseen, invalid := c.lost()
	if len(unseen) > 0 {
		parts = append(parts, fmt.Sprintf("waypoints do not decide by %s yet, so %s", strings.Join(unseen, ", "), effect))
	}
	if len(invalid) > 0 {
		out.Invalid = true
		parts = append(parts, fmt.Sprintf("correct %s; until then %s", strings.Join(invalid, ", "), effect))
	}
	if _, err := authz.Encode(&authzpb.Policy{Namespace: pb.Namespace, Name: pb.Name, Action: pb.Action, Everything: true, Rules: pb.Rules, Provider: pb.Provider}); err != nil {
		parts = append(parts, fmt.Sprintf("waypoints cannot execute it, and deny everything that it is for: %v", err))
	}
	out.Lossy = strings.Join(parts, "; ")
	return out
}

// For returns the message of the policy for some services, or, without any, for
// everything that a gateway carries. What gateways would reject denies it all.
func (r *Requests) For(services []authz.Service) []byte {
	pb := proto.CloneOf(r.Policy)
	pb.Everything = len(services) == 0
	for _, s := range services {
		pb.Services = append(pb.Services, &authzpb.Service{Namespace: s.Namespace, Hostname: s.Hostname})
	}
	body, err := authz.Encode(pb)
	if err != nil {
		pb.Action, pb.Unsupported, pb.Rules = authzpb.Action_DENY, fmt.Sprintf("waypoints cannot execute it: %v", err), []*authzpb.Rule{{}}
		pb.Provider = nil
		body, _ = authz.Encode(pb) // a gateway that gets no message denies everything
	}
	return body
}

// request puts what a match says together, for gateways.
func (b *builder) request() *authzpb.Match {
	for _, m := range [...]*securitypb.Match{&b.m, &b.remote} {
		if proto.Size(m) > 0 {
			b.r.Connection = append(b.r.Connection, m)
		}
	}
	return &b.r
}

// whenRequest compiles a condition that only a gateway can decide, and reports whether
// it is one.
func (b *builder) whenRequest(w *apisecurity.Condition) bool {
	switch key := w.GetKey(); key {
	case "remote.ip":
		both(b, &b.remote.SourceIps, &b.remote.NotSourceIps, w, parseBlock)
	case "source.trustDomain":
		values(b, &b.r.TrustDomains, "values", b.c.trustDomains(w.GetValues()), false, parseString)
		values(b, &b.r.NotTrustDomains, "notValues", b.c.trustDomains(w.GetNotValues()), true, parseString)
	case "request.auth.principal":
		both(b, &b.r.RequestPrincipals, &b.r.NotRequestPrincipals, w, parseString)
	case "connection.sni":
		both(b, &b.r.ServerNames, &b.r.NotServerNames, w, parseString)
	default:
		if path := ClaimOf(key); path != nil {
			m := &authzpb.ClaimMatch{Path: path}
			both(b, &m.Values, &m.NotValues, w, parseString)
			if len(m.Values)+len(m.NotValues) > 0 {
				b.r.Claims = append(b.r.Claims, m)
			}
			return true
		}
		if path := toldOf(key); path != nil {
			m := &authzpb.ClaimMatch{Path: path}
			both(b, &m.Values, &m.NotValues, w, parseMetadata)
			if len(m.Values)+len(m.NotValues) > 0 {
				b.r.Metadata = append(b.r.Metadata, m)
			}
			return true
		}
		name, ok := headerOf(key)
		if !ok {
			return false
		}
		h := &authzpb.HeaderMatch{Name: name}
		both(b, &h.Values, &h.NotValues, w, parseString)
		if len(h.Values)+len(h.NotValues) > 0 {
			b.r.Headers = append(b.r.Headers, h)
		}
	}
	return true
}

// ClaimOf returns the claim that a key of a condition is about, from the outermost to the
// innermost; nil when it is about none: request.auth.claims[a][b], or one of the claims
// that have names of their own.
func ClaimOf(key string) []string {
	switch key {
	case "request.auth.audiences":
		return []string{"aud"}
	case "request.auth.presenter":
		return []string{"azp"}
	}
	return keysOf(key, "request.auth.claims")
}

// toldOf returns what a key of a condition names of the metadata of external authorizers.
// It is nil when the key is about none.
func toldOf(key string) []string { return keysOf(key, "experimental."+extauthz.MetadataNamespace) }

// parseMetadata reads a value. Istio writes one of a list in brackets.
func parseMetadata(s string) (*securitypb.StringMatch, error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			s = inner
		}
	}
	return parseString(s)
}

// keysOf returns a and b of a key NAME[a][b]; nil when the key is another one.
func keysOf(key, name string) []string {
	rest, ok := strings.CutPrefix(key, name+"[")
	inner, closed := strings.CutSuffix(rest, "]")
	if !ok || !closed {
		return nil
	}
	path := strings.Split(inner, "][")
	for _, name := range path {
		if name == "" || strings.ContainsAny(name, "[]") {
			return nil
		}
	}
	return path
}

// headerOf returns the name in request.headers[name]. A name that no header has, such
// as :path, is none.
func headerOf(key string) (string, bool) {
	rest, ok := strings.CutPrefix(key, "request.headers[")
	name, closed := strings.CutSuffix(rest, "]")
	if !ok || !closed {
		return "", false
	}
	if strings.EqualFold(name, ":authority") {
		return "host", true
	}
	_, fault := message.CheckName(name)
	return strings.ToLower(name), fault == nil
}

// trustDomains adds the other names of the trust domain to a list.
func (c *compiler) trustDomains(list []string) []string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v)
		if strings.Contains(v, "*") || !c.domains.Names(v) {
			continue
		}
		for _, own := range c.domains.All() {
			if own != v {
				out = append(out, own)
			}
		}
	}
	return out
}

// parsePath reads a path of an operation: a template, or one of the forms of a string.
func parsePath(s string) (*authzpb.PathMatch, error) {
	if authz.IsTemplate(s) {
		return &authzpb.PathMatch{MatchType: &authzpb.PathMatch_Template{Template: s}}, authz.CheckTemplate(s)
	}
	t, err := parseString(s)
	if err != nil {
		return nil, err
	}
	return &authzpb.PathMatch{MatchType: &authzpb.PathMatch_Text{Text: t}}, nil
}
