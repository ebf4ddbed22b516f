package traffic

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	rules "github.com/ambit-mesh/ambit/internal/mesh/traffic"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Inputs are the tables that rules are made of. Rules are configuration of the control
// plane's own cluster.
type Inputs struct {
	Rules *collection.Collection[source.Ref, *networkingv1.DestinationRule]
	// Pods are those of all clusters. ID returns the ID of a cluster.
	Pods  *collection.Collection[source.Ref, *corev1.Pod]
	ID    func(*collection.Reader, source.Cluster) string
	Place func(*collection.Reader) Place
}

// Tables are what is made of DestinationRules.
type Tables struct {
	// Made has the result of each object, Resources are what node proxies are sent.
	Made      *collection.Collection[source.Ref, *Made]
	Resources *collection.Collection[string, *xds.Resource]
	nodes     *collection.Index[string, home, struct{}] // with pods, by namespace
	hosts     *collection.Index[host, source.Ref, *Made]
}

type home struct {
	namespace string
	node      access.Node
}

// host is one of a namespace.
type host struct{ namespace, name string }

// New adds the derivations to the graph of the inputs.
func New(in Inputs) *Tables {
	t := &Tables{}
	homes := collection.FlatMap(in.Pods, "nodes with pods of a namespace", func(_, _ struct{}) bool { return true }, source.Ref.Compare,
		func(r *collection.Reader, k source.Ref, p *corev1.Pod, emit func(home, struct{})) {
			if p.Spec.NodeName != "" && !source.Ended(p) {
				emit(home{k.Namespace, access.Node{Cluster: in.ID(r, k.Cluster), Name: p.Spec.NodeName}}, struct{}{})
			}
		})
	t.nodes = collection.NewIndex(homes, func(h home, _ struct{}) []string { return []string{h.namespace} })
	t.Made = collection.Map(in.Rules, "results of DestinationRules", func(_, _ *Made) bool { return false },
		func(r *collection.Reader, k source.Ref, d *networkingv1.DestinationRule) (*Made, bool) {
			return Translate(d, in.Place(r)), k.Cluster.Own()
		})
	t.hosts = collection.NewIndex(t.Made, func(_ source.Ref, m *Made) []host {
		if m.rule == nil {
			return nil
		}
		return []host{{m.rule.Namespace, m.rule.Host}}
	})
	t.Resources = collection.FlatMap(t.Made, "rules of connections", func(a, b *xds.Resource) bool { return a.Name == b.Name && a.Version == b.Version }, source.Ref.Compare,
		func(r *collection.Reader, k source.Ref, m *Made, emit func(string, *xds.Resource)) {
			if m.rule == nil {
				return
			}
			body, err := m.rule.Encode()
			if err != nil {
				return // was encoded before
			}
			for name, group := range t.Reach(r, reach(m.rule, in.Place(r).Domain)) {
				res := xds.NewResource(wellknown.TypeTraffic, name+"/"+k.Namespace+"/"+k.Name, nil, body)
				res.Groups = []xds.Group{group}
				emit(res.Name, res)
			}
		})
	return t
}

// Reach returns the groups of node proxies that have pods in one of some namespaces, by the
// start of the names of their resources; for nil, that of all.
func (t *Tables) Reach(r *collection.Reader, namespaces []string) map[string]xds.Group {
	if namespaces == nil {
		return map[string]xds.Group{"nodes": access.AllNodes}
	}
	out := map[string]xds.Group{}
	for _, ns := range namespaces {
		for h := range collection.Lookup(r, t.nodes, ns) {
			out[fmt.Sprintf("node/%s/%s", h.node.Cluster, h.node.Name)] = access.NodeGroup(h.node)
		}
	}
	return out
}

// reach returns the namespaces whose clients a rule can be for; nil is all. A rule of
// neither the root namespace nor that of a service is for its own clients alone.
func reach(r *rules.Rule, domain string) []string {
	own := []string{r.Namespace}
	switch {
	case r.Own, !r.Root && !serves(r, domain):
		return own
	case r.VisibleTo != nil:
		return append(own, r.VisibleTo...)
	}
	return nil
}

// serves reports whether a rule may be for a service of its own namespace.
func serves(r *rules.Rule, domain string) bool {
	name, kube := strings.CutSuffix(r.Host, ".svc."+domain)
	if !kube {
		return true
	}
	namespace := name[strings.LastIndexByte(name, '.')+1:]
	return namespace == r.Namespace || namespace == "*"
}

// Condition returns the condition of a DestinationRule.
func (t *Tables) Condition(r *collection.Reader, k source.Ref) (status.Condition, bool) {
	m, ok := collection.Fetch(r, t.Made, k)
	if !ok {
		return status.Condition{}, false
	}
	if m.rule == nil {
		return m.condition(""), true
	}
	var first *rules.Rule
	for _, other := range collection.Lookup(r, t.hosts, host{m.rule.Namespace, m.rule.Host}) {
		o := other.rule
		if first == nil || cmp.Or(cmp.Compare(o.Created, first.Created), strings.Compare(o.Name, first.Name)) < 0 {
			first = o
		}
	}
	if first != nil && first.Name != m.rule.Name {
		return m.condition(fmt.Sprintf("it has no effect: %s, which is older, is for the same host", first)), true
	}
	return m.condition(""), true
}

// condition renders what acts, and what does not. idle is why nothing does.
func (m *Made) condition(idle string) status.Condition {
	if len(m.Invalid) > 0 {
		return status.No(status.ZtunnelAccepted, status.ReasonInvalid, "it has no effect: correct %s", strings.Join(m.Invalid, "; correct "))
	}
	var parts []string
	acts := slices.DeleteFunc(slices.Clone(m.Honoured), func(f string) bool { return f == "host" || f == "exportTo" })
	switch {
	case idle != "":
		parts = append(parts, idle)
	case !m.Effective() || len(acts) == 0:
		parts = append(parts, "no field of it acts at node proxies")
	default:
		parts = append(parts, "node proxies honour "+strings.Join(acts, ", ")+", for connections to services without a waypoint")
	}
	if len(m.Refused) > 0 {
		parts = append(parts, "not honoured: "+strings.Join(m.Refused, "; "))
	}
	parts = append(parts, "waypoints do not read it")
	text := strings.Join(parts, "; ")
	switch {
	case idle != "":
		return status.No(status.ZtunnelAccepted, status.ReasonConflicted, "%s", text)
	case len(m.Refused) > 0 || len(acts) == 0:
		return status.No(status.ZtunnelAccepted, status.ReasonUnsupportedValue, "%s", text)
	}
	return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted, "%s", text)
}
