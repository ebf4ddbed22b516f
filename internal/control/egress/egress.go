// Package egress gives workloads what confines their connections to the outside: the mode of
// their outbound traffic policy, and the EgressPolicies that select them. It turns these
// objects into the policies that node proxies enforce, and into their status.
package egress

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	egresspb "github.com/ambit-mesh/ambit/api/egress"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Inputs are the tables that policies are made of.
type Inputs struct {
	Policies   *collection.Collection[source.Ref, *ambit.EgressPolicy]
	Namespaces *collection.Collection[source.Space, *corev1.Namespace]
	// Mode is that of the mesh: one row, or none.
	Mode          *collection.Collection[struct{}, egress.Mode]
	RootNamespace string
}

// Tables are what is made of EgressPolicies, and the modes of namespaces.
type Tables struct {
	in Inputs
	// Resources are what node proxies are sent.
	Resources *collection.Collection[string, *xds.Resource]
	made      *collection.Collection[source.Ref, *egress.Policy]
	settings  *collection.Collection[source.Space, egress.Setting]
	selectors *collection.Index[string, source.Ref, map[string]string] // by namespace
}

// New adds the derivations to the graph of the inputs.
func New(in Inputs) *Tables {
	t := &Tables{in: in}
	t.settings = collection.Map(in.Namespaces, "outbound traffic policies of namespaces", func(a, b egress.Setting) bool { return a == b },
		func(_ *collection.Reader, _ source.Space, n *corev1.Namespace) (egress.Setting, bool) {
			s := egress.Of(n.Labels, wellknown.LabelOutbound)
			return s, s.Set
		})
	t.selectors = collection.NewIndex(collection.Map(in.Policies, "selectors of EgressPolicies", maps.Equal[map[string]string, map[string]string],
		func(_ *collection.Reader, k source.Ref, p *ambit.EgressPolicy) (map[string]string, bool) {
			return p.Spec.GetSelector().GetMatchLabels(), k.Cluster.Own()
		}), func(k source.Ref, _ map[string]string) []string { return []string{k.Namespace} })
	t.made = collection.Map(in.Policies, "EgressPolicies as proxies get them", func(_, _ *egress.Policy) bool { return false },
		func(_ *collection.Reader, k source.Ref, p *ambit.EgressPolicy) (*egress.Policy, bool) {
			return Translate(p, in.RootNamespace), k.Cluster.Own()
		})
	return t
}

// Publish adds the resources: each is for the nodes of a policy's pods, which reach returns
// for some namespaces, and for nil of all.
func (t *Tables) Publish(reach func(*collection.Reader, []string) map[string]xds.Group) {
	t.Resources = collection.FlatMap(t.made, "EgressPolicies of nodes", func(a, b *xds.Resource) bool { return a.Name == b.Name && a.Version == b.Version }, source.Ref.Compare,
		func(r *collection.Reader, _ source.Ref, p *egress.Policy, emit func(string, *xds.Resource)) {
			body, err := p.Encode()
			if err != nil {
				return // Translate leaves none of these
			}
			namespaces := []string{p.Namespace}
			if p.Root {
				namespaces = nil
			}
			for name, group := range reach(r, namespaces) {
				res := xds.NewResource(wellknown.TypeEgress, name+"/"+p.Key(), nil, body)
				res.Groups = []xds.Group{group}
				emit(res.Name, res)
			}
		})
}

// Extensions returns what confines a workload. Without anything it has no extension, and its
// resource is what it was before there were such policies.
func (t *Tables) Extensions(r *collection.Reader, home source.Space, labels, annotations map[string]string) []*workloadpb.Extension {
	mesh, _ := collection.Fetch(r, t.in.Mode, struct{}{})
	ns, _ := collection.Fetch(r, t.settings, home)
	m := egress.Effective(mesh, ns, egress.Of(annotations, wellknown.AnnotationOutbound))
	var names []string
	for _, scope := range slices.Compact([]string{t.in.RootNamespace, home.Name}) {
		for k, want := range collection.Lookup(r, t.selectors, scope) {
			if source.HasAll(labels, want) {
				names = append(names, k.Namespace+"/"+k.Name)
			}
		}
	}
	slices.Sort(names)
	return append(m.Extensions(), egress.Select(names)...)
}

// Translate turns an object into the policy that node proxies enforce. What is wrong with
// the object makes one that refuses, and has the cause.
func Translate(p *ambit.EgressPolicy, root string) *egress.Policy {
	out := &egress.Policy{
		Namespace: p.Namespace, Name: p.Name, Root: p.Namespace == root, RootNamespace: root,
		DryRun: p.Spec.GetMode() == egresspb.EgressPolicySpec_DryRun, RefuseUDP: p.Spec.GetUdp() == egresspb.EgressPolicySpec_Refuse,
	}
	if invalid := Invalid(&p.Spec); invalid != "" {
		out.Invalid, out.DryRun = invalid, false
		return out
	}
	out.To, _ = egress.ReadEntries(p.Spec.GetTo())
	if _, err := out.Encode(); err != nil {
		out.To, out.Invalid, out.DryRun = nil, err.Error(), false
	}
	return out
}

// Invalid returns what is wrong with a spec, as field: cause; empty for nothing.
func Invalid(s *egresspb.EgressPolicySpec) string {
	if _, ok := egresspb.EgressPolicySpec_Mode_name[int32(s.GetMode())]; !ok {
		return fmt.Sprintf("mode: %d is neither Enforce nor DryRun", s.GetMode())
	}
	if _, ok := egresspb.EgressPolicySpec_UDP_name[int32(s.GetUdp())]; !ok {
		return fmt.Sprintf("udp: %d is neither Allow nor Refuse", s.GetUdp())
	}
	if _, err := egress.ReadEntries(s.GetTo()); err != nil {
		return err.Error()
	}
	return ""
}

// Warnings returns what an author may not expect of a spec that is valid, as field: text.
func Warnings(s *egresspb.EgressPolicySpec) (out []string) {
	for i, e := range s.GetTo() {
		if len(e.GetHosts()) == 0 && len(e.GetCidrs()) == 0 && len(e.GetPorts()) == 0 {
			out = append(out, fmt.Sprintf("to[%d]: the entry is empty, and allows every connection", i))
		}
	}
	if s.GetMode() == egresspb.EgressPolicySpec_DryRun && s.GetUdp() == egresspb.EgressPolicySpec_Refuse {
		out = append(out, "udp: DryRun refuses no UDP")
	}
	return out
}

// Condition returns the condition of an object.
func Condition(p *ambit.EgressPolicy, root string) status.Condition {
	m := Translate(p, root)
	if m.Invalid != "" {
		return status.No(status.ZtunnelAccepted, status.ReasonInvalid, "its pods reach nothing outside of the mesh until it is corrected: %s", m.Invalid)
	}
	scope := "pods of namespace " + p.Namespace
	if m.Root {
		scope = "pods of the mesh"
	}
	if len(p.Spec.GetSelector().GetMatchLabels()) > 0 {
		scope += " that it selects"
	}
	does := "node proxies enforce it for " + scope
	if m.DryRun {
		does = "node proxies report what it would refuse, for " + scope
	}
	parts := append([]string{does}, Warnings(&p.Spec)...)
	if m.HasHosts() {
		parts = append(parts, "its hosts need the capture of look-ups (docs/dns.md): pods without it reach no host")
	}
	return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted, "%s", strings.Join(parts, "; "))
}

// Condition returns the condition of an object.
func (t *Tables) Condition(p *ambit.EgressPolicy) status.Condition {
	return Condition(p, t.in.RootNamespace)
}
