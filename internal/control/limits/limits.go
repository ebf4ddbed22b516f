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
	in Inputs
	// Made has the result of each object, Resources are what node proxies are sent.
	Made      *collection.Collection[source.Ref, *Made]
	Resources *collection.Collection[string, *xds.Resource]
	// selecting has the nodes with pods that a limit selects, by the limit.
	selecting *collection.Index[source.Ref, share, struct{}]
}

// placed is what limits depend on of a pod.
type placed struct {
	node   access.Node
	uid    string
	labels map[string]string
}

func same(a, b placed) bool {
	return a.node == b.node && a.uid == b.uid && maps.Equal(a.labels, b.labels)
}

// share is a limit at a node, member a pod of it. The endpoints of Services are known to
// node proxies: shares of Services have one member without a pod.
type (
	share struct {
		limit source.Ref
		node  access.Node
	}
	member struct {
		share
		pod source.Ref
	}
)

func (a share) compare(b share) int {
	return cmp.Or(a.limit.Compare(b.limit), strings.Compare(a.node.Cluster, b.node.Cluster), strings.Compare(a.node.Name, b.node.Name))
}

// New adds the derivations to the graph of the inputs. A pod that changes costs the limits of
// its namespace, and of these the shares of its node.
func New(in Inputs) *Tables {
	t := &Tables{in: in}
	pods := collection.Map(in.Pods, "pods as limited", same, func(r *collection.Reader, k source.Ref, p *corev1.Pod) (placed, bool) {
		if p.Spec.NodeName == "" || source.Ended(p) {
			return placed{}, false
		}
		cluster, uid := in.PodUID(r, k)
		return placed{access.Node{Cluster: cluster, Name: p.Spec.NodeName}, uid, p.Labels}, true
	})
	t.Made = collection.Map(in.Limits, "results of RateLimits", func(_, _ *Made) bool { return false },
		func(_ *collection.Reader, k source.Ref, o *ambit.RateLimit) (*Made, bool) {
			return Translate(o), k.Cluster.Own()
		})
	byNamespace := collection.NewIndex(t.Made, func(k source.Ref, m *Made) []string {
		if m.limit == nil {
			return nil
		}
		return []string{k.Namespace}
	})
	members := collection.FlatMap(pods, "pods of rate limits", func(a, b string) bool { return a == b }, source.Ref.Compare,
		func(r *collection.Reader, k source.Ref, p placed, emit func(member, string)) {
			for limit, m := range collection.Lookup(r, byNamespace, k.Namespace) {
				switch at := (share{limit, p.node}); {
				case len(m.services) > 0:
					emit(member{share: at}, "")
				case source.HasAll(p.labels, m.selector):
					emit(member{at, k}, p.uid)
				}
			}
		})
	shares := collection.Reduce(members, "rate limits at nodes", slices.Equal[[]string], func(a, b member) int {
		return cmp.Or(a.compare(b.share), a.pod.Compare(b.pod))
	}, func(m member, _ string) (share, bool) { return m.share, true }, func(_ *collection.Reader, _ share, rows []collection.Row[member, string]) ([]string, bool) {
		var uids []string
		for _, row := range rows {
			if row.Value != "" {
				uids = append(uids, row.Value)
			}
		}
		slices.Sort(uids)
		return uids, true
	})
	t.selecting = collection.NewIndex(collection.Map(shares, "nodes with limited pods", func(_, _ struct{}) bool { return true },
		func(_ *collection.Reader, _ share, uids []string) (struct{}, bool) { return struct{}{}, len(uids) > 0 },
	), func(s share, _ struct{}) []source.Ref { return []source.Ref{s.limit} })
	t.Resources = collection.FlatMap(shares, "rate limits of nodes", func(a, b *xds.Resource) bool { return a.Name == b.Name && a.Version == b.Version }, share.compare, t.publish)
	return t
}

// publish emits what the node proxy of a share is sent.
func (t *Tables) publish(r *collection.Reader, at share, uids []string, emit func(string, *xds.Resource)) {
	k := at.limit
	m, ok := collection.Fetch(r, t.Made, k)
	if !ok || m.limit == nil {
		return
	}
	l := *m.limit
	l.Hosts, _ = t.hosts(r, k, m)
	l.Workloads = uids
	if len(l.Hosts) == 0 && len(uids) == 0 {
		return
	}
	if l.Service != nil {
		// One that does not exist answers nothing: failureMode decides then.
		s := *l.Service
		host, _ := t.in.Host(r, k.At(k.Namespace, m.service))
		s.Hostname = strings.ToLower(host)
		l.Service = &s
	}
	body, err := l.Encode()
	if err != nil {
		return // more pods of a node than a message has: their number is bounded by Kubernetes
	}
	res := xds.NewResource(wellknown.TypeRateLimit, fmt.Sprintf("node/%s/%s/%s/%s", at.node.Cluster, at.node.Name, k.Namespace, k.Name), nil, body)
	res.Groups = []xds.Group{access.NodeGroup(at.node)}
	emit(res.Name, res)
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

// selects reports whether a limit selects a pod that runs.
func (t *Tables) selects(r *collection.Reader, k source.Ref) bool {
	for range collection.Lookup(r, t.selecting, k) {
		return true
	}
	return false
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
	what := "the node proxies of the pods behind " + cmp.Or(strings.Join(m.services, ", "), "its selector")
	does := " refuse connections beyond "
	if m.limit.DryRun {
		does = " count connections beyond it, and refuse none: "
	}
	text := what + does + m.limit.Text() + ", for each pod by itself"
	switch {
	case len(absent) > 0:
		return status.No(status.ZtunnelAccepted, status.ReasonTargetNotFound, "%s; %s", strings.Join(absent, "; "), text), true
	case len(m.services) == 0 && !t.selects(r, k):
		return status.No(status.ZtunnelAccepted, status.ReasonTargetNotFound, "the selector matches no pod that runs; %s", text), true
	}
	return status.Yes(status.ZtunnelAccepted, status.ReasonAccepted, "%s", text), true
}
