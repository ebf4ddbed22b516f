package policy

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	authnpb "github.com/ambit-mesh/ambit/api/authn"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
)

// clockSkew is how far clocks of issuers may be from those of gateways, in seconds, as
// in Istio.
const clockSkew = 60

// Tokens is a RequestAuthentication as gateways get it. It is immutable.
type Tokens struct {
	policy *authnpb.Authentication // lacks what it is for: see For
	// Keys has one for each rule.
	Keys []RuleKeys
	// Invalid are fields that mean nothing, for the status. No token of their rules is
	// accepted.
	Invalid []string
	// Ignored are fields without effect, for the status.
	Ignored []string
}

// RuleKeys is what is known of the keys of a rule.
type RuleKeys struct {
	Issuer string
	Source jwks.Source // the zero value: they are in the policy
	State  *jwks.State // nil before the first attempt to fetch them; nil without a Source
}

// SourceOf returns where the keys of a rule are fetched from; false when the rule has
// them itself, or names no place.
func SourceOf(namespace string, r *apisecurity.JWTRule) (jwks.Source, bool) {
	s := jwks.Source{Namespace: namespace, URI: r.GetJwksUri()}
	if s.URI == "" {
		s.Issuer = r.GetIssuer()
	}
	return s, r.GetJwks() == "" && jwks.CheckURI(s.String()) == nil
}

// TranslateTokens compiles a RequestAuthentication for gateways. keys returns what is
// known of a source, nil for nothing yet. A rule that has a mistake accepts no token.
func TranslateTokens(p *securityv1.RequestAuthentication, keys func(jwks.Source) *jwks.State) *Tokens {
	out := &Tokens{policy: &authnpb.Authentication{Namespace: p.Namespace, Name: p.Name}}
	for i, r := range p.Spec.GetJwtRules() {
		at := fmt.Sprintf("spec.jwtRules[%d]", i)
		one, mistakes := provider(r)
		k := RuleKeys{Issuer: r.GetIssuer()}
		if source, fetched := SourceOf(p.Namespace, r); fetched {
			k.Source, k.State, one.Source = source, keys(source), source.String()
			if k.State != nil {
				one.Jwks = k.State.Keys
			}
		}
		if r.GetTimeout() != nil {
			out.Ignored = append(out.Ignored, at+".timeout has no effect: no request waits while keys are fetched")
		}
		if len(mistakes) > 0 {
			one = closed(one)
			for _, m := range mistakes {
				out.Invalid = append(out.Invalid, at+"."+m)
			}
		}
		out.Keys = append(out.Keys, k)
		out.policy.Providers = append(out.policy.Providers, one)
	}
	whole := proto.CloneOf(out.policy)
	if whole.Everything = true; len(out.policy.Providers) > 0 {
		if _, err := authn.Compile(whole); err != nil {
			out.Invalid = append(out.Invalid, "spec: "+err.Error())
			out.policy.Providers = []*authnpb.Provider{{}}
		}
	}
	return out
}

// provider compiles a rule, and returns its mistakes.
func provider(r *apisecurity.JWTRule) (*authnpb.Provider, []string) {
	out := &authnpb.Provider{
		Issuer: r.GetIssuer(), Audiences: r.GetAudiences(), FromParams: r.GetFromParams(), FromCookies: r.GetFromCookies(),
		PayloadHeader: r.GetOutputPayloadToHeader(), Forward: r.GetForwardOriginalToken(), ClockSkewSeconds: clockSkew,
		SpaceDelimitedClaims: r.GetSpaceDelimitedClaims(),
	}
	for _, h := range r.GetFromHeaders() {
		out.FromHeaders = append(out.FromHeaders, &authnpb.Header{Name: h.GetName(), Prefix: h.GetPrefix()})
	}
	for _, o := range r.GetOutputClaimToHeaders() {
		out.ClaimHeaders = append(out.ClaimHeaders, &authnpb.ClaimHeader{Header: o.GetHeader(), Claim: strings.Split(o.GetClaim(), ".")})
	}
	mistakes := CheckTokenRule(r)
	if r.GetJwks() != "" {
		if set, err := jwt.ParseKeys([]byte(r.GetJwks())); err == nil {
			out.Jwks = string(set.Text())
		}
	}
	if len(mistakes) == 0 {
		alone := &authnpb.Authentication{Namespace: "a", Name: "b", Everything: true, Providers: []*authnpb.Provider{out}}
		if _, err := authn.Compile(alone); err != nil {
			mistakes = append(mistakes, strings.TrimPrefix(err.Error(), "providers[0]."))
		}
	}
	return out, mistakes
}

// CheckTokenRule returns the mistakes of a rule, each with its field.
func CheckTokenRule(r *apisecurity.JWTRule) (out []string) {
	wrong := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case r.GetJwks() != "" && r.GetJwksUri() != "":
		wrong("jwksUri: a rule has either jwks or jwksUri, not both")
	case r.GetJwks() != "":
		if _, err := jwt.ParseKeys([]byte(r.GetJwks())); err != nil {
			wrong("jwks: %v", err)
		}
	case r.GetJwksUri() != "":
		if err := jwks.CheckURI(r.GetJwksUri()); err != nil {
			wrong("jwksUri: %v", err)
		}
	case r.GetIssuer() == "":
		wrong("issuer: without it, and without jwks or jwksUri, no key can be found")
	default:
		if err := jwks.CheckURI(r.GetIssuer()); err != nil {
			wrong("issuer: keys are looked for at the issuer, and %v; set jwks or jwksUri", err)
		}
	}
	if name := r.GetOutputPayloadToHeader(); name != "" {
		if err := authn.CheckOutput(name); err != nil {
			wrong("outputPayloadToHeader: %v", err)
		}
	}
	for i, o := range r.GetOutputClaimToHeaders() {
		if err := authn.CheckOutput(o.GetHeader()); err != nil {
			wrong("outputClaimToHeaders[%d].header: %v", i, err)
		}
	}
	return out
}

// closed returns a provider that looks at the same places, as far as they mean
// anything, and accepts nothing. Headers that it would write, clients may not.
func closed(p *authnpb.Provider) *authnpb.Provider {
	ok := func(p *authnpb.Provider) bool {
		_, err := authn.Compile(&authnpb.Authentication{Namespace: "a", Name: "b", Everything: true, Providers: []*authnpb.Provider{p}})
		return err == nil
	}
	out := &authnpb.Provider{Issuer: p.Issuer}
	for _, part := range []*authnpb.Provider{
		{FromParams: p.FromParams}, {FromCookies: p.FromCookies}, {PayloadHeader: p.PayloadHeader},
	} {
		if ok(part) {
			proto.Merge(out, part)
		}
	}
	for _, h := range p.FromHeaders {
		if part := (&authnpb.Provider{FromHeaders: []*authnpb.Header{h}}); ok(part) {
			proto.Merge(out, part)
		}
	}
	for _, h := range p.ClaimHeaders {
		if part := (&authnpb.Provider{ClaimHeaders: []*authnpb.ClaimHeader{h}}); ok(part) {
			proto.Merge(out, part)
		}
	}
	if !ok(out) { // more of them than a gateway takes
		return &authnpb.Provider{Issuer: p.Issuer}
	}
	return out
}

// For returns the message of the policy for some services, or, without any, for
// everything that a gateway carries. What gateways would reject accepts no token.
func (t *Tokens) For(services []authz.Service) []byte {
	pb := proto.CloneOf(t.policy)
	pb.Everything = len(services) == 0
	for _, s := range services {
		pb.Services = append(pb.Services, &authnpb.Service{Namespace: s.Namespace, Hostname: s.Hostname})
	}
	body, err := authn.Encode(pb)
	if err != nil {
		pb.Providers = []*authnpb.Provider{{}}
		body, _ = authn.Encode(pb) // a gateway that gets no message refuses everything
	}
	return body
}
