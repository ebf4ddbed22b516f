package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/wire/strict"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Bounds of a policy. One as users write it is within them: Kubernetes stores no
// object that is larger than 1.5 MiB.
const (
	maxMessage  = 2 << 20 // bytes
	maxServices = 4096
	// maxValues bounds the values of all lists of a policy, and with them the cost of a
	// decision.
	maxValues = 65536
	// maxClaimPath bounds how deep a claim is.
	maxClaimPath = 16
)

// Decode reads a resource. It rejects what a gateway cannot execute.
func Decode(body []byte) (*Policy, error) {
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(body), maxMessage)
	}
	pb := &authzpb.Policy{}
	if err := proto.Unmarshal(body, pb); err != nil {
		return nil, fmt.Errorf("message of type %s: %w", pb.ProtoReflect().Descriptor().FullName(), err)
	}
	return Compile(pb)
}

// Compile compiles a policy, or returns why a gateway cannot execute it: a field, its
// value and the cause.
func Compile(pb *authzpb.Policy) (*Policy, error) {
	if err := strict.Unknown(pb.ProtoReflect()); err != nil {
		return nil, err
	}
	p := &Policy{key: pb.GetNamespace() + "/" + pb.GetName(), dryRun: pb.GetDryRun(), everything: pb.GetEverything()}
	switch pb.GetAction() {
	case authzpb.Action_ALLOW:
	case authzpb.Action_DENY:
		p.action = deny
	case authzpb.Action_AUDIT:
		p.action = audit
	case authzpb.Action_CUSTOM:
		p.action = custom
	default:
		return nil, fmt.Errorf("action: %v is none", pb.GetAction())
	}
	switch n := len(pb.GetServices()); {
	case pb.GetNamespace() == "" || pb.GetName() == "":
		return nil, errors.New("name: a policy has a namespace and a name")
	case p.everything == (n > 0) || n > maxServices:
		return nil, fmt.Errorf("services: %d, not 1 to %d; none beside everything", n, maxServices)
	case pb.GetUnsupported() != "" && p.action != deny:
		return nil, fmt.Errorf("unsupported: %q is for a DENY policy", pb.GetUnsupported())
	case (pb.GetProvider() != nil) != (p.action == custom):
		return nil, errors.New("provider: a CUSTOM policy has one, and no other has")
	}
	if p.action == custom {
		var err error
		if p.provider, err = extauthz.Compile(pb.GetProvider()); err != nil {
			return nil, fmt.Errorf("provider.%w", err)
		}
	}
	for i, s := range pb.GetServices() {
		if s.GetNamespace() == "" || s.GetHostname() == "" || s.GetHostname() != strings.ToLower(s.GetHostname()) {
			return nil, fmt.Errorf("services[%d]: %q of namespace %q is no name in lower case", i, s.GetHostname(), s.GetNamespace())
		}
		p.services = append(p.services, Service{s.GetNamespace(), s.GetHostname()})
	}
	// To be asked about is to be refused, perhaps: the rules of CUSTOM match as those of DENY.
	c := compiler{deny: p.action == deny || p.action == custom, allows: p.action == allow}
	for i, r := range pb.GetRules() {
		out, err := c.rule(r)
		if err != nil {
			return nil, fmt.Errorf("rules[%d].%w", i, err)
		}
		out.place = int(r.GetPlace())
		out.refusal = &reason.Error{Reason: reason.PolicyDenied, Detail: out.named(p.key)}
		if why := pb.GetUnsupported(); why != "" {
			out.refusal = reason.Errorf(reason.PolicyUnsupported, "%s", why)
			out.refusal.Detail = p.key
		}
		if p.provider != nil {
			out.refusal = reason.Errorf(reason.PolicyUnsupported, "external authorizer %s is asked about requests, and the connection carries no HTTP", p.provider.Name)
			out.refusal.Detail = out.named(p.key)
		}
		p.rules = append(p.rules, out)
	}
	if c.values > maxValues {
		return nil, fmt.Errorf("rules: %d values, at most %d", c.values, maxValues)
	}
	return p, nil
}

// named names the rule of a policy.
func (r *rule) named(policy string) string { return fmt.Sprintf("%s, rule %d", policy, r.place) }

// compiler compiles the rules of one policy, and counts their values.
type compiler struct {
	deny, allows bool
	values       int
}

// refuses reports whether a list of this policy refuses.
func (c *compiler) refuses(negative bool) bool { return c.deny && !negative || c.allows && negative }

func (c *compiler) rule(r *authzpb.Rule) (rule, error) {
	var out rule
	for i, cl := range r.GetClauses() {
		if len(cl.GetMatches()) == 0 {
			return rule{}, fmt.Errorf("clauses[%d]: no matches", i)
		}
		var alternatives clause
		for j, m := range cl.GetMatches() {
			one, err := c.match(m)
			if err != nil {
				return rule{}, fmt.Errorf("clauses[%d].matches[%d].%w", i, j, err)
			}
			alternatives = append(alternatives, one)
		}
		out.clauses = append(out.clauses, alternatives)
	}
	return out, nil
}

func (c *compiler) match(m *authzpb.Match) (match, error) {
	out := match{deny: c.deny}
	if proto.Size(m) == 0 {
		return out, errors.New("match: no field is set")
	}
	for i, conn := range m.GetConnection() {
		cond, err := rbac.CompileCondition(conn, c.deny)
		if err != nil {
			return out, fmt.Errorf("connection[%d].%w", i, err)
		}
		c.values += proto.Size(conn) / 4 // at least as many
		out.connection = append(out.connection, cond)
	}
	var err error
	list := func(field string, from []*securitypb.StringMatch) (all []rbac.Text) {
		for i, pb := range from {
			t, bad := rbac.CompileText(pb)
			if bad != nil && err == nil {
				err = fmt.Errorf("%s[%d]: %w", field, i, bad)
			}
			all = append(all, t)
		}
		c.values += len(from)
		return all
	}
	some := func(field string, from []*securitypb.StringMatch) texts {
		return texts{list(field, from), c.refuses(false)}
	}
	none := func(field string, from []*securitypb.StringMatch) texts {
		return texts{list(field, from), c.refuses(true)}
	}
	out.domains, out.notDomains = list("trust_domains", m.GetTrustDomains()), list("not_trust_domains", m.GetNotTrustDomains())
	out.servers, out.notServers = list("server_names", m.GetServerNames()), list("not_server_names", m.GetNotServerNames())
	out.hosts, out.notHosts = some("hosts", m.GetHosts()), none("not_hosts", m.GetNotHosts())
	out.methods, out.notMethods = some("methods", m.GetMethods()), none("not_methods", m.GetNotMethods())
	for i, h := range m.GetHeaders() {
		name := strings.ToLower(h.GetName())
		id, fault := message.CheckName(name)
		if fault != nil {
			return out, fmt.Errorf("headers[%d].name: %q: %w", i, h.GetName(), fault)
		}
		x := header{name: name, id: id, some: some("headers.values", h.GetValues()), none: none("headers.not_values", h.GetNotValues())}
		if len(x.some.list)+len(x.none.list) == 0 {
			return out, fmt.Errorf("headers[%d]: %q has no values", i, name)
		}
		out.headers = append(out.headers, x)
	}
	out.principals = compilePrincipals(some("request_principals", m.GetRequestPrincipals()))
	out.notPrincipals = compilePrincipals(none("not_request_principals", m.GetNotRequestPrincipals()))
	claims := func(field string, from []*authzpb.ClaimMatch) (all []claim) {
		for i, cl := range from {
			x := claim{path: cl.GetPath(), some: some(field+".values", cl.GetValues()), none: none(field+".not_values", cl.GetNotValues())}
			switch n := len(x.path); {
			case err != nil:
			case n == 0 || n > maxClaimPath || slices.Contains(x.path, ""):
				err = fmt.Errorf("%s[%d].path: %q does not name a value", field, i, x.path)
			case len(x.some.list)+len(x.none.list) == 0:
				err = fmt.Errorf("%s[%d]: %q has no values", field, i, x.path)
			}
			all = append(all, x)
		}
		return all
	}
	out.claims, out.metadata = claims("claims", m.GetClaims()), claims("metadata", m.GetMetadata())
	if err != nil {
		return out, err
	}
	if out.paths, err = c.paths("paths", m.GetPaths(), false); err != nil {
		return out, err
	}
	if out.notPaths, err = c.paths("not_paths", m.GetNotPaths(), true); err != nil {
		return out, err
	}
	out.aboutServers = len(out.servers)+len(out.notServers) > 0
	out.aboutHTTP = len(out.hosts.list)+len(out.notHosts.list)+len(out.methods.list)+len(out.notMethods.list)+
		len(out.paths.list)+len(out.notPaths.list)+len(out.headers)+len(out.principals.list)+len(out.notPrincipals.list)+len(out.claims)+len(out.metadata) > 0
	return out, nil
}

func (c *compiler) paths(field string, from []*authzpb.PathMatch, negative bool) (paths, error) {
	out := paths{any: c.refuses(negative)}
	c.values += len(from)
	for i, pb := range from {
		var p path
		var err error
		switch t := pb.GetMatchType().(type) {
		case *authzpb.PathMatch_Text:
			var text rbac.Text
			if text, err = rbac.CompileText(t.Text); err == nil {
				p = compilePath(text)
			}
		case *authzpb.PathMatch_Template:
			p, err = compileTemplatePath(t.Template)
		default:
			err = errors.New("no known kind of match")
		}
		if err != nil {
			return out, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		out.list = append(out.list, p)
	}
	return out, nil
}

// Encode returns the message of a policy, or why a gateway cannot execute it.
func Encode(pb *authzpb.Policy) ([]byte, error) {
	if _, err := Compile(pb); err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(pb)
}
