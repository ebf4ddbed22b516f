package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	apisecurity "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/internal/control/policy"
	l7authz "github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

const toWaypoint = "attach the policy to a waypoint with targetRefs to match requests"

func (c *checker) authorizationPolicy(p *securityv1.AuthorizationPolicy) {
	c.selector("spec.selector.matchLabels", p.Spec.Selector)
	c.enforced(p.Namespace, &p.Spec)
	c.action(p)
	c.dryRun(p.Annotations)
	for i, r := range p.Spec.Rules {
		c.rule(fmt.Sprintf("spec.rules[%d]", i), r)
	}
	// The values, by the translation itself: whether or not it is for node
	// proxies, a value that means nothing means nothing anywhere.
	bare := p.DeepCopy()
	bare.Spec.TargetRef, bare.Spec.TargetRefs, bare.Spec.Selector = nil, nil, nil
	if bare.Spec.Action != apisecurity.AuthorizationPolicy_DENY {
		bare.Spec.Action = apisecurity.AuthorizationPolicy_ALLOW
	}
	for _, n := range policy.Translate(bare, c.root).Notes {
		if n.Problem != "" {
			c.invalid(n.Field, "%s", n.Problem)
		}
	}
	if a := policy.Translate(p, c.root); a.Policy != nil {
		c.effects(a)
	}
}

// attached is the part of a policy's spec that says where it acts.
type attached interface {
	GetSelector() *apitype.WorkloadSelector
	GetTargetRef() *apitype.PolicyTargetReference
	GetTargetRefs() []*apitype.PolicyTargetReference
}

func (c *checker) targets(namespace string, spec attached) (targeted bool) {
	refs := spec.GetTargetRefs()
	targeted = spec.GetTargetRef() != nil || len(refs) > 0
	if targeted && spec.GetSelector() != nil {
		c.invalid("spec.targetRefs", "a policy has either a selector or targetRefs, not both")
	}
	at := func(i int) string { return fmt.Sprintf("spec.targetRefs[%d]", i) }
	if spec.GetTargetRef() != nil {
		if len(refs) > 0 {
			c.invalid("spec.targetRef", "a policy has either targetRef or targetRefs, not both")
		}
		refs = []*apitype.PolicyTargetReference{spec.GetTargetRef()}
		at = func(int) string { return "spec.targetRef" }
	}
	for i, ref := range refs {
		switch {
		case ref.GetName() == "":
			c.invalid(at(i)+".name", "the target has no name")
		case ref.GetKind() == "":
			c.invalid(at(i)+".kind", "the target has no kind")
		case ref.GetNamespace() != "" && ref.GetNamespace() != namespace:
			c.invalid(at(i)+".namespace", "a policy can only target objects of its own namespace")
		case !targetable(ref.GetGroup(), ref.GetKind()):
			c.invalid(at(i)+".kind", "%s of group %q cannot be a target; those that can are Gateway, GatewayClass, Service and ServiceEntry", ref.GetKind(), ref.GetGroup())
		}
	}
	return targeted
}

// enforced is targets for a policy, which node proxies enforce when it has none.
func (c *checker) enforced(namespace string, spec attached) {
	if c.targets(namespace, spec) {
		c.say(Elsewhere, "", "make sure that the target has a waypoint",
			"the policy has targetRefs: only the waypoint of its target enforces it, node proxies do not")
	}
}

func targetable(group, kind string) bool {
	switch kind {
	case "Gateway", "GatewayClass":
		return group == "gateway.networking.k8s.io"
	case "Service":
		return group == "" || group == "core"
	case "ServiceEntry":
		return group == "networking.istio.io"
	}
	return false
}

func (c *checker) action(p *securityv1.AuthorizationPolicy) {
	if _, known := apisecurity.AuthorizationPolicy_Action_name[int32(p.Spec.Action)]; !known {
		c.invalid("spec.action", "%d is none of ALLOW, DENY, CUSTOM, AUDIT", p.Spec.Action)
	}
	provider := p.Spec.GetProvider()
	custom := p.Spec.Action == apisecurity.AuthorizationPolicy_CUSTOM
	switch {
	case custom && provider.GetName() == "":
		c.invalid("spec.provider.name", "action CUSTOM needs the name of the external authorizer")
	case !custom && provider != nil:
		c.invalid("spec.provider", "only action CUSTOM has a provider")
	}
	if p.Spec.TargetRef != nil || len(p.Spec.TargetRefs) > 0 {
		return
	}
	switch {
	case custom:
		c.say(Widened, "spec.action", "attach the policy to a waypoint with targetRefs",
			"node proxies cannot ask an external authorizer: everything the rules match is denied")
	case p.Spec.Action == apisecurity.AuthorizationPolicy_AUDIT:
		c.say(Ignored, "spec.action", "use a waypoint (targetRefs) to audit requests", "action AUDIT has no effect at node proxies")
	case p.Spec.Action == apisecurity.AuthorizationPolicy_DENY && len(p.Spec.Rules) == 0:
		c.say(Ineffectual, "spec.rules", "add a rule; {} matches everything", "a DENY policy without rules denies nothing")
	}
}

func (c *checker) dryRun(annotations map[string]string) {
	v, set := annotations[wellknown.AnnotationDryRun]
	if _, err := strconv.ParseBool(v); set && err != nil || set && v != "true" && v != "false" {
		c.invalid("metadata.annotations["+wellknown.AnnotationDryRun+"]", "%q is neither \"true\" nor \"false\"", v)
	}
}

// selector checks the labels by which something is chosen. Labels that nothing
// can have would select nothing, and the policy would hold nowhere.
func (c *checker) selector(at string, s *apitype.WorkloadSelector) {
	c.labels(at, s.GetMatchLabels())
}

// rule checks what the translation does not: it reports parts that are empty.
func (c *checker) rule(at string, r *apisecurity.Rule) {
	for i, f := range r.GetFrom() {
		field := fmt.Sprintf("%s.from[%d].source", at, i)
		s := f.GetSource()
		if accounts(s) && (len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) > 0) {
			c.invalid(field, "serviceAccounts cannot be combined with principals or namespaces, which they contain already")
		}
		c.lists(field, sourceLists(s))
		c.blocks(field+".remoteIpBlocks", s.GetRemoteIpBlocks())
		c.blocks(field+".notRemoteIpBlocks", s.GetNotRemoteIpBlocks())
	}
	for i, t := range r.GetTo() {
		field := fmt.Sprintf("%s.to[%d].operation", at, i)
		c.lists(field, operationLists(t.GetOperation()))
		c.templates(field+".paths", t.GetOperation().GetPaths())
		c.templates(field+".notPaths", t.GetOperation().GetNotPaths())
	}
	for i, w := range r.GetWhen() {
		c.condition(fmt.Sprintf("%s.when[%d]", at, i), w)
	}
}

// templates checks paths with operators.
func (c *checker) templates(at string, paths []string) {
	for i, p := range paths {
		if !l7authz.IsTemplate(p) {
			continue
		}
		if err := l7authz.CheckTemplate(p); err != nil {
			c.invalid(fmt.Sprintf("%s[%d]", at, i), "%v", err)
		}
	}
}

// list is a field of a match, by its name.
type list struct {
	name   string
	values []string
}

func sourceLists(s *apisecurity.Source) []list {
	return []list{
		{"principals", s.GetPrincipals()}, {"notPrincipals", s.GetNotPrincipals()},
		{"requestPrincipals", s.GetRequestPrincipals()}, {"notRequestPrincipals", s.GetNotRequestPrincipals()},
		{"namespaces", s.GetNamespaces()}, {"notNamespaces", s.GetNotNamespaces()},
		{"serviceAccounts", s.GetServiceAccounts()}, {"notServiceAccounts", s.GetNotServiceAccounts()},
		{"ipBlocks", s.GetIpBlocks()}, {"notIpBlocks", s.GetNotIpBlocks()},
		{"remoteIpBlocks", s.GetRemoteIpBlocks()}, {"notRemoteIpBlocks", s.GetNotRemoteIpBlocks()},
		{"trustDomains", s.GetTrustDomains()}, {"notTrustDomains", s.GetNotTrustDomains()},
	}
}

func operationLists(o *apisecurity.Operation) []list {
	return []list{
		{"hosts", o.GetHosts()}, {"notHosts", o.GetNotHosts()},
		{"ports", o.GetPorts()}, {"notPorts", o.GetNotPorts()},
		{"methods", o.GetMethods()}, {"notMethods", o.GetNotMethods()},
		{"paths", o.GetPaths()}, {"notPaths", o.GetNotPaths()},
	}
}

func accounts(s *apisecurity.Source) bool {
	return len(s.GetServiceAccounts())+len(s.GetNotServiceAccounts()) > 0
}

// The translation judges the values of these fields, and of conditions with
// these keys.
var (
	translatedFields = []string{"principals", "namespaces", "serviceAccounts", "ipBlocks", "ports"}
	translatedKeys   = []string{"source.ip", "source.principal", "source.namespace", "source.serviceAccount", "destination.ip", "destination.port"}
)

func byTranslation(key string) bool { return slices.Contains(translatedKeys, key) }

func (c *checker) lists(at string, lists []list) {
	for _, l := range lists {
		bare := strings.TrimPrefix(l.name, "not")
		bare = strings.ToLower(bare[:1]) + bare[1:]
		if slices.Contains(translatedFields, bare) {
			continue
		}
		for i, v := range l.values {
			if v == "" {
				c.invalid(fmt.Sprintf("%s.%s[%d]", at, l.name, i), "an empty string matches nothing")
			}
		}
	}
}

func (c *checker) blocks(at string, values []string) {
	for i, v := range values {
		p, err := netip.ParsePrefix(v)
		switch {
		case v != "" && !isBlock(v):
			c.invalid(fmt.Sprintf("%s[%d]", at, i), "%q is neither an address nor a CIDR block", v)
		case err == nil && rbac.Straddles(p):
			c.invalid(fmt.Sprintf("%s[%d]", at, i), "%q is larger than IPv4 in its IPv6 form and has it inside; write 0.0.0.0/0 for IPv4 and ::/0 for IPv6", v)
		}
	}
}

// attributes are the keys of conditions; those that end in [ take a name.
var attributes = []string{
	"source.ip", "source.principal", "source.namespace", "source.serviceAccount", "destination.ip", "destination.port",
	"source.trustDomain", "remote.ip", "connection.sni", "request.auth.principal", "request.auth.audiences", "request.auth.presenter",
	"request.headers[", "request.auth.claims[", "experimental.envoy.filters.",
}

func (c *checker) condition(at string, w *apisecurity.Condition) {
	key := w.GetKey()
	known := slices.ContainsFunc(attributes, func(a string) bool {
		switch a[len(a)-1] {
		case '[':
			return strings.HasPrefix(key, a) && strings.HasSuffix(key, "]") && len(key) > len(a)+1
		case '.':
			return strings.HasPrefix(key, a)
		}
		return key == a
	})
	switch {
	case key == "": // reported by the translation
	case !known, strings.HasPrefix(key, "request.auth.claims[") && policy.ClaimOf(key) == nil:
		c.invalid(at+".key", "%q is not an attribute of a connection or request", key)
	case !byTranslation(key) && slices.Contains(w.GetValues(), ""):
		c.invalid(at+".values", "an empty value or list matches nothing")
	case key == "remote.ip":
		c.blocks(at+".values", w.GetValues())
		c.blocks(at+".notValues", w.GetNotValues())
	}
}

// effects warns, rule by rule, what node proxies make of it.
func (c *checker) effects(a *policy.Authorization) {
	for i, effect := range a.Effects {
		var fields []string
		at := fmt.Sprintf("spec.rules[%d]", i)
		for _, n := range a.Notes {
			if n.Rule == i && n.Problem == "" {
				fields = append(fields, strings.TrimPrefix(n.Field, at+"."))
			}
		}
		if len(fields) == 0 {
			continue // exact, or wrong and refused
		}
		what := strings.Join(bounded(fields, 4), ", ")
		switch effect {
		case policy.Never:
			c.say(Narrowed, at, toWaypoint, "never allows: node proxies cannot see %s", what)
		case policy.Narrowed:
			c.say(Narrowed, at, toWaypoint, "allows less than written: node proxies cannot see %s", what)
		case policy.Widened:
			c.say(Widened, at, toWaypoint, "denies whatever its other fields match: node proxies cannot see %s", what)
		case policy.Everything:
			c.say(DeniesAll, at, toWaypoint, "denies EVERY connection: it has nothing but what node proxies cannot see (%s)", what)
		case policy.Exact:
		}
	}
}

func (c *checker) peerAuthentication(p *securityv1.PeerAuthentication) {
	c.selector("spec.selector.matchLabels", p.Spec.Selector)
	selects := len(p.Spec.Selector.GetMatchLabels()) > 0
	c.mode("spec.mtls.mode", p.Spec.Mtls)
	if len(p.Spec.PortLevelMtls) > 0 && !selects {
		c.invalid("spec.portLevelMtls", "modes of single ports need a selector; without one they would have no effect")
	}
	for _, port := range sortedPorts(p.Spec.PortLevelMtls) {
		at := fmt.Sprintf("spec.portLevelMtls[%d]", port)
		if port == 0 || port > 65535 {
			c.invalid(at, "%d is not a port", port)
		}
		c.mode(at+".mode", p.Spec.PortLevelMtls[port])
	}
	if selects && p.Namespace == c.root {
		c.say(Ignored, "spec.selector", "for workloads of other namespaces, put a policy into each of them",
			"a PeerAuthentication with a selector is for workloads of its own namespace, in the root namespace %s as well", c.root)
	}
}

func (c *checker) mode(at string, m *apisecurity.PeerAuthentication_MutualTLS) {
	mode := m.GetMode()
	if _, known := apisecurity.PeerAuthentication_MutualTLS_Mode_name[int32(mode)]; !known {
		c.invalid(at, "%d is none of UNSET, DISABLE, PERMISSIVE, STRICT", mode)
	}
	if mode == apisecurity.PeerAuthentication_MutualTLS_DISABLE {
		c.say(Ignored, at, "write PERMISSIVE, which it is treated as", "node proxies always use mutual TLS among themselves; DISABLE cannot turn that off")
	}
}

func sortedPorts[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// labels checks labels that something must be able to have.
func (c *checker) labels(at string, labels map[string]string) {
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if errs := validation.IsQualifiedName(k); len(errs) > 0 {
			c.invalid(at, "%q is not the key of a label: %s", k, errs[0])
		}
		if errs := validation.IsValidLabelValue(labels[k]); len(errs) > 0 {
			c.invalid(at+"["+k+"]", "%q is not the value of a label: %s", labels[k], errs[0])
		}
	}
}
