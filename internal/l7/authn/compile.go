package authn

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	authnpb "github.com/ambit-mesh/ambit/api/authn"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/wire/strict"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Bounds of a policy.
const (
	maxMessage   = 4 << 20 // bytes
	maxServices  = 4096
	maxProviders = 64
	maxPlaces    = 32 // headers, parameters and cookies, each
	maxOutputs   = 64
	maxAudiences = 256
	maxPath      = 16
	maxSkew      = 10 * time.Minute
)

// Policy is a compiled policy. It is immutable.
type Policy struct {
	key        string // namespace/name
	everything bool
	services   []Service
	providers  []*Provider
	refusal    *reason.Error // of one that stands for a policy that cannot be read
}

// Decode reads a resource. It rejects what a gateway cannot execute.
func Decode(body []byte) (*Policy, error) {
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(body), maxMessage)
	}
	pb := &authnpb.Authentication{}
	if err := proto.Unmarshal(body, pb); err != nil {
		return nil, fmt.Errorf("message of type %s: %w", pb.ProtoReflect().Descriptor().FullName(), err)
	}
	return Compile(pb)
}

// Encode returns the message of a policy, or why a gateway cannot execute it.
func Encode(pb *authnpb.Authentication) ([]byte, error) {
	if _, err := Compile(pb); err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(pb)
}

// Compile compiles a policy, or returns why a gateway cannot execute it: a field, its
// value and the cause.
func Compile(pb *authnpb.Authentication) (*Policy, error) {
	if err := strict.Unknown(pb.ProtoReflect()); err != nil {
		return nil, err
	}
	p := &Policy{key: pb.GetNamespace() + "/" + pb.GetName(), everything: pb.GetEverything()}
	switch n := len(pb.GetServices()); {
	case pb.GetNamespace() == "" || pb.GetName() == "":
		return nil, errors.New("name: a policy has a namespace and a name")
	case p.everything == (n > 0) || n > maxServices:
		return nil, fmt.Errorf("services: %d, not 1 to %d; none beside everything", n, maxServices)
	case len(pb.GetProviders()) > maxProviders:
		return nil, fmt.Errorf("providers: %d, at most %d", len(pb.GetProviders()), maxProviders)
	}
	for i, s := range pb.GetServices() {
		if s.GetNamespace() == "" || s.GetHostname() == "" || s.GetHostname() != strings.ToLower(s.GetHostname()) {
			return nil, fmt.Errorf("services[%d]: %q of namespace %q is no name in lower case", i, s.GetHostname(), s.GetNamespace())
		}
		p.services = append(p.services, Service{s.GetNamespace(), s.GetHostname()})
	}
	for i, one := range pb.GetProviders() {
		out, err := compileProvider(one)
		if err != nil {
			return nil, fmt.Errorf("providers[%d].%w", i, err)
		}
		out.policy, out.place = p.key, i
		out.refusals()
		p.providers = append(p.providers, out)
	}
	return p, nil
}

func compileProvider(pb *authnpb.Provider) (*Provider, error) {
	p := &Provider{
		source: pb.GetSource(), params: pb.GetFromParams(), cookies: pb.GetFromCookies(), forward: pb.GetForward(),
		rule: jwt.Rule{
			Issuer: pb.GetIssuer(), Audiences: pb.GetAudiences(), Spaced: pb.GetSpaceDelimitedClaims(),
			Skew: time.Duration(pb.GetClockSkewSeconds()) * time.Second,
		},
	}
	switch {
	case len(p.rule.Audiences) > maxAudiences:
		return nil, fmt.Errorf("audiences: %d, at most %d", len(p.rule.Audiences), maxAudiences)
	case slices.Contains(p.rule.Audiences, ""):
		return nil, errors.New("audiences: one is empty")
	case len(pb.GetFromHeaders()) > maxPlaces || len(p.params) > maxPlaces || len(p.cookies) > maxPlaces:
		return nil, fmt.Errorf("from: more than %d places", maxPlaces)
	case slices.Contains(p.params, "") || slices.Contains(p.cookies, ""):
		return nil, errors.New("from: a name is empty")
	case len(pb.GetClaimHeaders()) > maxOutputs || len(p.rule.Spaced) > maxOutputs:
		return nil, fmt.Errorf("claims: more than %d", maxOutputs)
	case p.rule.Skew > maxSkew:
		return nil, fmt.Errorf("clock_skew_seconds: %v, at most %v", p.rule.Skew, maxSkew)
	}
	if text := pb.GetJwks(); text != "" {
		keys, err := jwt.ParseKeys([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("jwks: %w", err)
		}
		p.rule.Keys = keys
	}
	for i, h := range pb.GetFromHeaders() {
		name := strings.ToLower(h.GetName())
		if _, fault := message.CheckName(name); fault != nil {
			return nil, fmt.Errorf("from_headers[%d].name: %q: %w", i, h.GetName(), fault)
		}
		p.headers = append(p.headers, header{name, h.GetPrefix()})
	}
	if len(p.headers)+len(p.params)+len(p.cookies) == 0 {
		p.headers, p.params = []header{{"authorization", "Bearer "}}, []string{"access_token"}
	}
	return p, compileOutputs(p, pb)
}

func compileOutputs(p *Provider, pb *authnpb.Provider) error {
	if name := pb.GetPayloadHeader(); name != "" {
		if err := CheckOutput(name); err != nil {
			return fmt.Errorf("payload_header: %w", err)
		}
		p.payload = message.NewKey(strings.ToLower(name))
	}
	for i, o := range pb.GetClaimHeaders() {
		if err := CheckOutput(o.GetHeader()); err != nil {
			return fmt.Errorf("claim_headers[%d].header: %w", i, err)
		}
		if n := len(o.GetClaim()); n == 0 || n > maxPath || slices.Contains(o.GetClaim(), "") {
			return fmt.Errorf("claim_headers[%d].claim: %q does not name a claim", i, strings.Join(o.GetClaim(), "."))
		}
		p.outputs = append(p.outputs, output{message.NewKey(strings.ToLower(o.GetHeader())), o.GetClaim()})
	}
	return nil
}

// framing are headers that say where a message goes and ends, which no claim may.
var framing = []message.Name{
	message.Host, message.Connection, message.ContentLength, message.TransferEncoding, message.TE, message.TrailerName, message.Upgrade,
	message.KeepAlive, message.ProxyConnection, message.HTTP2Settings, message.Expect,
}

// CheckOutput returns why a header cannot get a claim.
func CheckOutput(name string) error {
	id, fault := message.CheckName(strings.ToLower(name))
	switch {
	case fault != nil:
		return fmt.Errorf("%q: %w", name, fault)
	case slices.Contains(framing, id):
		return fmt.Errorf("%q: the header decides where a request goes or ends", name)
	}
	return nil
}

// refusals makes the errors that the provider gives, so that a refusal costs no
// allocation.
func (p *Provider) refusals() {
	p.refused = make([]*reason.Error, len(jwt.Refusals())+1)
	for _, r := range jwt.Refusals() {
		why := reason.InvalidToken
		if r == jwt.WrongAudience {
			why = reason.TokenAudience
		}
		p.refused[r] = &reason.Error{Reason: why, Detail: "RequestAuthentication " + p.policy, Err: r}
	}
}

// sortProviders sorts by issuer, then by where the providers are written: the claims of
// the first that accepts a token count.
func sortProviders(list []*Provider) {
	slices.SortStableFunc(list, func(a, b *Provider) int {
		return cmp.Or(strings.Compare(a.rule.Issuer, b.rule.Issuer), strings.Compare(a.policy, b.policy), cmp.Compare(a.place, b.place))
	})
}
