package limits

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Inputs are the tables that limits are made of. Limits are configuration of the control
// plane's own cluster.
type Inputs struct {
	Limits *collection.Collection[source.Ref, *ambit.RateLimit]
	// Pods are those of all clusters. PodUID returns the ID of a pod's cluster, and the
	// pod's own.
	Pods   *collection.Collection[source.Ref, *corev1.Pod]
	PodUID func(*collection.Reader, source.Ref) (cluster, uid string)
	// Host returns the host name of a Service; ok is false when there is none.
	Host func(*collection.Reader, source.Ref) (host string, ok bool)
}

// Tables are what is made of RateLimits.
type Tables struct {
	in   Inputs
	pods *collection.Collection[source.Ref, placed]
	// byNamespace are the pods of a namespace.
	byNamespace *collection.Index[string, source.Ref, placed]
	// Made has the result of each object, Resources are what node proxies are sent.
	Made      *collection.Collection[source.Ref, *Made]
	Resources *collection.Collection[string, *xds.Resource]
}

// placed is what limits depend on of a pod.
type placed struct {
	node      access.Node
	namespace string
	uid       string
	labels    map[string]string
}

func same(a, b placed) bool {
	return a.node == b.node && a.namespace == b.namespace && a.uid == b.uid && maps.Equal(a.labels, b.labels)
}

// New adds the derivations to the graph of the inputs.
func New(in Inputs) *Tables {
	t := &Tables{in: in}
	t.pods = collection.Map(in.Pods, "pods as limited", same, func(r *collection.Reader, k source.Ref, p *corev1.Pod) (placed, bool) {
		if p.Spec.NodeName == "" || source.Ended(p) {
			return placed{}, false
		}
		cluster, uid := in.PodUID(r, k)
		return placed{access.Node{Cluster: cluster, Name: p.Spec.NodeName}, k.Namespace, uid, p.Labels}, true
	})
	t.byNamespace = collection.NewIndex(t.pods, func(_ source.Ref, p placed) []string { return []string{p.namespace} })
	t.Made = collection.Map(in.Limits, "results of RateLimits", func(_, _ *Made) bool { return false },
		func(_ *collection.Reader, _ source.Ref, o *ambit.RateLimit) (*Made, bool) { return Translate(o), true })
	t.Resources = collection.FlatMap(t.Made, "rate limits of nodes", func(a, b *xds.Resource) bool { return a.Name == b.Name && a.Version == b.Version }, source.Ref.Compare,
		func(r *collection.Reader, k source.Ref, m *Made, emit func(string, *xds.Resource)) {
			if m.limit == nil {
				return
			}
			l := *m.limit
			l.Hosts, _ = t.hosts(r, k, m)
			if l.Service != nil {
				// One that does not exist answers nothing: failureMode decides then.
				s := *l.Service
				host, _ := t.in.Host(r, k.At(k.Namespace, m.service))
				s.Hostname = strings.ToLower(host)
				l.Service = &s
			}
			for node, uids := range t.reach(r, k, m) {
				here := l
				here.Workloads = uids
				if len(here.Hosts) == 0 && len(uids) == 0 {
					continue
				}
				body, err := here.Encode()
				if err != nil {
					continue // more pods of a node than a message has: their number is bounded by Kubernetes
				}
				res := xds.NewResource(wellknown.TypeRateLimit, fmt.Sprintf("node/%s/%s/%s/%s", node.Cluster, node.Name, k.Namespace, k.Name), nil, body)
				res.Groups = []xds.Group{access.NodeGroup(node)}
				emit(res.Name, res)
			}
		})
	return t
}

// hosts returns the host names of the targets, and the names of those that do not exist.
func (t *Tables) hosts(r *collection.Reader, k source.Ref, m *Made) (hosts, absent []string) {
	for _, name := range m.services {
		if host, ok := t.in.Host(r, k.At(k.Namespace, name)); ok {
			hosts = append(hosts, strings.ToLower(host))
		} else {
			absent = append(absent, name)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts), absent
}

// reach returns the nodes that a limit concerns, and the pods that it selects on each. The
// endpoints of a Service are pods of its namespace.
func (t *Tables) reach(r *collection.Reader, k source.Ref, m *Made) map[access.Node][]string {
	out := map[access.Node][]string{}
	for at := range collection.Lookup(r, t.byNamespace, k.Namespace) {
		p, ok := collection.Fetch(r, t.pods, at)
		switch {
		case !ok:
		case len(m.services) > 0:
			out[p.node] = nil
		case source.HasAll(p.labels, m.selector):
			out[p.node] = append(out[p.node], p.uid)
		}
	}
	for _, uids := range out {
		slices.Sort(uids)
	}
	return out
}

// Condition returns the condition of a RateLimit.
func (t *Tables) Condition(r *collection.Reader, k source.Ref) (status.Condition, bool) {
	m, ok := collection.Fetch(r, t.Made, k)
	if !ok {
		return status.Condition{}, false
	}
	if m.limit == nil {
		return status.No(status.ZtunnelAccepted, status.ReasonInvalid, "it has no effect: correct %s", strings.Join(m.Invalid, "; correct ")), true
	}
	_, absent := t.hosts(r, k, m)
	if m.service != "" {
		if _, ok := t.in.Host(r, k.At(k.Namespace, m.service)); !ok {
			absent = append(absent, m.service)
		}
	}
	for i, name := range absent {
		absent[i] = "there is no Service " + k.Namespace + "/" + name
	}
	pods := 0
	for _, uids := range t.reach(r, k, m) {
		pods += len(uids)
	}
	what := "the node proxies of the pods behind " + cmp.Or(strings.Join(m.services, ", "), "its selector")
	does := " refuse connections beyond "
	if m.limit.DryRun {
		does = " count connections beyond it, and refuse none: "
	}
	text := what + does + m.limit.Text() + ", for each pod by itself"
	switch {
	case len(absent) > 0:
		return status.No(status.ZtunnelAccepted, status.ReasonTargetNotFound, "%s; %s", strings.Join(absent, "; "), text), true
	case len(m.services) == 0 && pods == 0:
		return status.No(status.ZtunnelAccepted, status.ReasonTargetNotFound, "the selector matches no pod that runs; %s", text), true
	}
	return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted, "%s", text), true
}
