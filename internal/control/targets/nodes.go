package targets

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// placed is what is observed of a pod depends on.
type placed struct {
	node      access.Node
	namespace string
	uid       string
	labels    map[string]string
}

func samePlaced(a, b placed) bool {
	return a.node == b.node && a.namespace == b.namespace && a.uid == b.uid && maps.Equal(a.labels, b.labels)
}

func compareNodes(a, b access.Node) int {
	return cmp.Or(strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Name, b.Name))
}

// observeNodes derives what node proxies are sent of Telemetry objects: those that are for
// a pod of the node. An object is for pods of its own namespace alone, unless it is one of
// the root namespace without a selector. whole are the objects of each namespace that have
// neither a selector nor targets.
func (t *Tables) observeNodes(whole *collection.Index[source.Space, source.Ref, *telemetryv1.Telemetry]) {
	pods := collection.Map(t.in.Pods, "pods as observed", samePlaced, func(r *collection.Reader, k source.Ref, p *corev1.Pod) (placed, bool) {
		if p.Spec.NodeName == "" || source.Ended(p) {
			return placed{}, false
		}
		cluster, uid := t.in.PodUID(r, k)
		return placed{access.Node{Cluster: cluster, Name: p.Spec.NodeName}, k.Namespace, uid, p.Labels}, true
	})
	byNode := collection.NewIndex(pods, func(_ source.Ref, p placed) []access.Node { return []access.Node{p.node} })
	selecting := collection.NewIndex(t.in.Telemetry, func(k source.Ref, p *telemetryv1.Telemetry) []source.Space {
		if Selects(p) {
			return []source.Space{k.Home()}
		}
		return nil
	})
	nodes := collection.FlatMap(pods, "nodes with pods", func(_, _ struct{}) bool { return true }, source.Ref.Compare,
		func(_ *collection.Reader, _ source.Ref, p placed, emit func(access.Node, struct{})) {
			emit(p.node, struct{}{})
		})
	layers := collection.FlatMap(nodes, "telemetry of nodes", sameResource, compareNodes,
		func(r *collection.Reader, node access.Node, _ struct{}, emit func(string, *xds.Resource)) {
			send := func(name string, body []byte) {
				res := xds.NewResource(wellknown.TypeTelemetry, fmt.Sprintf("node/%s/%s/%s", node.Cluster, node.Name, name), nil, body)
				res.Groups = []xds.Group{access.NodeGroup(node)}
				emit(res.Name, res)
			}
			mesh, _ := collection.Fetch(r, t.in.Mesh, struct{}{})
			send("mesh", mesh.NodeLayer(func(host string) (string, bool) { return t.in.HostOwner(r, host) }))
			object := func(at source.Ref, root bool, workloads []string) {
				if m, ok := collection.Fetch(r, t.in.Layers, at); ok && m.Nodes.Effective {
					for side, body := range m.Nodes.Messages(root, workloads) {
						send(at.Namespace+"/"+at.Name+"/"+side, body)
					}
				}
			}
			here := map[string][]placed{}
			for k := range collection.Lookup(r, byNode, node) {
				if p, ok := collection.Fetch(r, pods, k); ok {
					here[p.namespace] = append(here[p.namespace], p)
				}
			}
			// Objects are of the control plane's own cluster.
			for at := range collection.Lookup(r, whole, source.Space{Name: t.in.RootNamespace}) {
				object(at, true, nil)
			}
			for namespace, list := range here {
				space := source.Space{Name: namespace}
				for at := range collection.Lookup(r, selecting, space) {
					p, _ := collection.Fetch(r, t.in.Telemetry, at)
					if uids := selected(p, list); len(uids) > 0 {
						object(at, false, uids)
					}
				}
				if namespace == t.in.RootNamespace {
					continue
				}
				for at := range collection.Lookup(r, whole, space) {
					object(at, false, nil)
				}
			}
		})
	t.Layers = append(t.Layers, layers)
}

// selected returns the UIDs of the pods that an object selects, in order.
func selected(p *telemetryv1.Telemetry, pods []placed) (uids []string) {
	for _, one := range pods {
		if matches(p.Spec.GetSelector().GetMatchLabels(), one.labels) {
			uids = append(uids, one.uid)
		}
	}
	slices.Sort(uids)
	return uids
}

func matches(selector, labels map[string]string) bool {
	return len(selector) > 0 && source.HasAll(labels, selector)
}

// Selects reports whether a Telemetry is for pods by their labels.
func Selects(p *telemetryv1.Telemetry) bool {
	return len(p.Spec.GetSelector().GetMatchLabels()) > 0 && p.Spec.GetTargetRef() == nil && len(p.Spec.GetTargetRefs()) == 0
}

// ObservedAtNodes returns the condition of a Telemetry without targets, for node proxies.
func ObservedAtNodes(k source.Ref, p *telemetryv1.Telemetry, m *telemetry.Made, root string) status.Condition {
	n := m.Nodes
	where := "node proxies, for pods of namespace " + k.Namespace
	switch {
	case Selects(p):
		where += " that the selector matches"
	case k.Namespace == root:
		where = "node proxies, for every pod"
	}
	parts := []string{"honoured by " + where}
	if !n.Effective {
		parts = []string{"nothing of it has an effect at node proxies"}
	}
	if len(n.Invalid) > 0 {
		parts = append(parts, "correct "+strings.Join(n.Invalid, "; correct "))
	}
	if len(n.Refused) > 0 {
		parts = append(parts, "not at node proxies: "+strings.Join(n.Refused, "; "))
	}
	text := strings.Join(parts, "; ")
	switch {
	case len(n.Invalid) > 0:
		return status.No(status.ZtunnelAccepted, status.ReasonInvalid, "%s", text)
	case !n.Effective, Selects(p) && len(n.Refused) > 0:
		return status.No(status.ZtunnelAccepted, status.ReasonUnsupportedValue, "%s", text)
	}
	return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted, "%s", text)
}
