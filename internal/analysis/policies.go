package analysis

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	apisecurity "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

// mention is a value of a policy that names somebody.
type mention struct{ field, attribute, value string }

func mentions(p *securityv1.AuthorizationPolicy) []mention {
	var out []mention
	add := func(field, attribute string, lists ...[]string) {
		for _, v := range slices.Concat(lists...) {
			out = append(out, mention{field, attribute, v})
		}
	}
	for i, r := range p.Spec.Rules {
		for j, f := range r.GetFrom() {
			at := fmt.Sprintf("spec.rules[%d].from[%d].source", i, j)
			s := f.GetSource()
			add(at+".principals", "source.principal", s.GetPrincipals())
			add(at+".notPrincipals", "source.principal", s.GetNotPrincipals())
			add(at+".namespaces", "source.namespace", s.GetNamespaces())
			add(at+".notNamespaces", "source.namespace", s.GetNotNamespaces())
			add(at+".serviceAccounts", "source.serviceAccount", s.GetServiceAccounts())
			add(at+".notServiceAccounts", "source.serviceAccount", s.GetNotServiceAccounts())
		}
		for j, w := range r.GetWhen() {
			add(fmt.Sprintf("spec.rules[%d].when[%d]", i, j), w.GetKey(), w.GetValues(), w.GetNotValues())
		}
	}
	return out
}

// names says which policies name somebody who does not exist, or who can
// never come with such an identity.
func (m *mesh) names() {
	for _, p := range m.policies {
		key := keyOf(source.AuthorizationPolicy.Kind, p)
		domains := policy.TrustDomains{Local: m.opts.TrustDomain, Aliases: m.opts.TrustDomainAliases}
		for _, n := range mentions(p) {
			var namespace, account string
			switch n.attribute {
			case "source.namespace":
				namespace = n.value
			case "source.serviceAccount":
				var qualified bool
				if namespace, account, qualified = strings.Cut(n.value, "/"); !qualified {
					namespace, account = p.Namespace, n.value
				}
			case "source.principal":
				parts := strings.Split(n.value, "/")
				if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
					continue // a pattern, or not a principal: admission's business
				}
				if td := parts[0]; !domains.Names(td) {
					m.foreign(key, n, td, p.Spec.Action)
					continue
				}
				namespace, account = parts[2], parts[4]
			default:
				continue
			}
			m.exists(key, n, namespace, account)
		}
	}
}

func (m *mesh) foreign(key source.Key, n mention, td string, action apisecurity.AuthorizationPolicy_Action) {
	effect := "the rule matches no client of this mesh"
	if action == apisecurity.AuthorizationPolicy_DENY {
		effect = "the rule denies no client of this mesh"
	}
	m.report(codeForeignTrustDomain, key, n.field, fmt.Sprintf("%s is of trust domain %s, and this mesh is %s: %s", n.value, td, m.opts.TrustDomain, effect), "name it in meshConfig.trustDomainAliases if it is an old name of this mesh, or write "+m.opts.TrustDomain+strings.TrimPrefix(n.value, td))
}

func (m *mesh) exists(key source.Key, n mention, namespace, account string) {
	if namespace == "" || strings.Contains(namespace, "*") || m.opts.Partial && len(m.namespaces) == 0 {
		return
	}
	if m.namespaces[namespace] == nil {
		m.report(codeNoNamespace, key, n.field, fmt.Sprintf("%s: there is no namespace %s", n.value, namespace), "correct the name, or create the namespace")
		return
	}
	if account == "" || account == "default" || strings.Contains(account, "*") || m.opts.Partial && !m.declared {
		return
	}
	if !m.accounts[namespace+"/"+account] {
		m.report(codeNoAccount, key, n.field, fmt.Sprintf("%s: there is no service account %s in namespace %s", n.value, account, namespace), "correct the name, or create the service account")
	}
}

// targets says which policies are for something that is not there, or that has
// no waypoint to enforce them.
func (m *mesh) targets() {
	each := func(key source.Key, one *apitype.PolicyTargetReference, refs []*apitype.PolicyTargetReference) {
		if one != nil {
			refs = append(slices.Clone(refs), one)
		}
		for i, ref := range refs {
			m.target(key, fmt.Sprintf("spec.targetRefs[%d]", i), ref)
		}
	}
	for _, p := range m.policies {
		each(keyOf(source.AuthorizationPolicy.Kind, p), p.Spec.TargetRef, p.Spec.TargetRefs)
	}
	for _, p := range m.tokens {
		each(keyOf(source.RequestAuthentication.Kind, p), p.Spec.TargetRef, p.Spec.TargetRefs)
	}
}

// authorizers reports policies of waypoints whose external authorizer cannot be asked.
func (m *mesh) authorizers() {
	if m.opts.Authorizers == nil {
		return
	}
	for _, p := range m.policies {
		if p.Spec.Action != apisecurity.AuthorizationPolicy_CUSTOM || p.Spec.TargetRef == nil && len(p.Spec.TargetRefs) == 0 {
			continue
		}
		if err := m.opts.Authorizers(p.Spec.GetProvider().GetName()); err != nil {
			m.report(codeAuthorizer, keyOf(source.AuthorizationPolicy.Kind, p), "spec.provider.name", fmt.Sprintf("%v: all that the rules match is denied", err),
				"correct the name, or the provider in meshConfig.extensionProviders")
		}
	}
}

// keys reports the keys of issuers that the control plane of a cluster could not fetch.
func (m *mesh) keys() {
	for _, p := range m.tokens {
		for _, c := range p.Status.GetConditions() {
			if c.GetType() == status.KeysFetched && c.GetStatus() == status.False {
				m.report(codeCondition, keyOf(source.RequestAuthentication.Kind, p), "spec.jwtRules", c.GetMessage(), "see the address named, and docs/authentication.md for those that the control plane does not connect to")
			}
		}
	}
}

// targetKinds are the kinds of targets whose objects are read.
var targetKinds = []*source.Kind{source.Gateway.Kind, source.Service.Kind, source.ServiceEntry.Kind}

func (m *mesh) target(key source.Key, field string, ref *apitype.PolicyTargetReference) {
	at := slices.IndexFunc(targetKinds, func(k *source.Kind) bool { return k.Name == ref.GetKind() })
	if at < 0 {
		return // not a kind that can be looked up
	}
	target := source.Key{Kind: targetKinds[at], Namespace: cmp.Or(ref.GetNamespace(), key.Namespace), Name: ref.GetName()}
	if _, there := m.origins[target]; !there {
		if !m.opts.Partial || m.has(target.Kind) {
			m.report(codeNoTarget, key, field, fmt.Sprintf("there is no %s: the policy is enforced nowhere", target), "correct the name, or create the target")
		}
		return
	}
	if target.Kind == source.Gateway.Kind {
		return
	}
	for _, c := range m.conditions[target] {
		if c.Type == status.WaypointBound && (c.Status == status.True || m.opts.Partial && c.Reason == status.ReasonWaypointIsNotReady) {
			return
		}
	}
	m.report(codeEnforcedNowhere, key, field, fmt.Sprintf("%s has no waypoint that could enforce the policy: it is enforced nowhere", target), "bind a waypoint with the label istio.io/use-waypoint, or write a policy with a selector, for what node proxies can see")
}

// strict says where mutual TLS is demanded beside pods that cannot offer it.
func (m *mesh) strict() {
	for _, ns := range m.strictNamespaces() {
		served, outside, example := false, 0, ""
		for _, p := range m.pods {
			switch {
			case p.Namespace != ns.name:
			case m.meshed(p):
				served = true
			default:
				if outside++; example == "" {
					example = p.Name
				}
			}
		}
		if served && outside > 0 {
			m.report(codeUnmeshedClients, ns.by, "", fmt.Sprintf("STRICT holds in namespace %s, and %d of its pods (%s among them) are not in the mesh: what they send to those that are is refused", ns.name, outside, example), "enrol them, or make exceptions with portLevelMtls")
		}
	}
}

type strictNamespace struct {
	name string
	by   source.Key // the PeerAuthentication
}

func (m *mesh) strictNamespaces() []strictNamespace {
	oldest := map[string]*policy.PeerAuthentication{}
	for _, p := range m.peers {
		pa := policy.ReadPeerAuthentication(p)
		if pa.Selector == nil && (oldest[pa.Namespace] == nil || policy.Older(&pa, oldest[pa.Namespace])) {
			oldest[pa.Namespace] = &pa
		}
	}
	var out []strictNamespace
	names := map[string]bool{}
	for _, p := range m.pods {
		names[p.Namespace] = true
	}
	for name := range names {
		by := oldest[name]
		if by == nil || by.Mode == policy.Unset {
			by = oldest[m.opts.RootNamespace]
		}
		if by != nil && by.Mode == policy.Strict {
			out = append(out, strictNamespace{name, source.Key{Kind: source.PeerAuthentication.Kind, Namespace: by.Namespace, Name: by.Name}})
		}
	}
	slices.SortFunc(out, func(a, b strictNamespace) int { return strings.Compare(a.name, b.name) })
	return out
}
