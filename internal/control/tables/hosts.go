package tables

import (
	"cmp"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Share is an entry as one of those that make up a host of its namespace.
type Share struct {
	Key   Ref
	Entry *networkingv1.ServiceEntry
	Scope meshconfig.Scope
	state binding.State
}

func (s Share) age() seniority { return seniority{s.Entry.CreationTimestamp.Unix(), s.Key} }

// Shares returns the entries of a namespace that make up a host and are sent
// to proxies, the oldest first. A Kubernetes Service of the host takes all.
func (t *Tables) Shares(r *collection.Reader, c source.Cluster, host Host) []Share {
	return t.shares(r, c, host, func(k Ref, e *networkingv1.ServiceEntry) bool {
		return service.Served(host.Hostname, e) || t.servedByWaypoint(r, k)
	})
}

func (t *Tables) shares(r *collection.Reader, c source.Cluster, host Host, counts func(Ref, *networkingv1.ServiceEntry) bool) []Share {
	if t.OfService(r, c, host) {
		return nil
	}
	var out []Share
	for k, e := range collection.Lookup(r, t.byHost, host) {
		s := Share{Key: k, Entry: e, Scope: t.Scope(r, k, e)}
		if s.Scope == meshconfig.None {
			continue
		}
		s.state = t.entryState(r, k)
		if counts(k, e) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Share) int { return a.age().Compare(b.age()) })
	return out
}

// Addressed returns an entry with the addresses that are allocated for it.
func (t *Tables) Addressed(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry) *networkingv1.ServiceEntry {
	if own, ok := collection.Fetch(r, t.entries, k); ok {
		return own
	}
	return e
}

// OfService reports whether a host is that of a Kubernetes Service of the same
// namespace.
func (t *Tables) OfService(r *collection.Reader, c source.Cluster, host Host) bool {
	n, ok := t.serviceNamed(r, c, host.Hostname)
	if !ok || n.Namespace != host.Namespace {
		return false
	}
	s, there := collection.Fetch(r, t.kube, n)
	return there && s.Spec.Type != corev1.ServiceTypeExternalName
}

// serviceNamed is the Kubernetes Service of a cluster that a host is the name
// of.
func (t *Tables) serviceNamed(r *collection.Reader, c source.Cluster, host string) (Ref, bool) {
	name, ok := strings.CutSuffix(host, ".svc."+t.Cluster(r, c).Domain)
	service, namespace, _ := strings.Cut(name, ".")
	return Ref{Cluster: c, Namespace: namespace, Name: service}, ok
}

// entryService makes one service of all entries of a host: their addresses and
// ports add up. Everything else is the oldest entry's, but for what protects:
// the narrowest visibility holds, and the first waypoint that is bound.
func (t *Tables) entryService(r *collection.Reader, host Host, _ struct{}, emit func(string, *xds.Resource)) {
	if all := t.Shares(r, source.Cluster{}, host); len(all) > 0 {
		t.emitService(t.merge(r, host, all), emit)
	}
}

// lookedUp makes the service of a host that node proxies find by the look-ups of pods. It is
// a resource of a type of its own: what is not Ambit's would answer look-ups for it.
func (t *Tables) lookedUp(r *collection.Reader, host Host, _ struct{}, emit func(string, *xds.Resource)) {
	all := t.shares(r, source.Cluster{}, host, func(_ Ref, e *networkingv1.ServiceEntry) bool { return service.Passed(host.Hostname, e) })
	if len(all) == 0 {
		return
	}
	res := Encode(wellknown.TypeHost, host.String(), nil, t.merge(r, host, all))
	for _, s := range all {
		if to, bound := collection.Fetch(r, t.Bound.Entries, s.Key); bound {
			res.Groups = append(res.Groups, access.GatewayGroup(access.Gateway{Cluster: t.Opts.ClusterID, Namespace: to.Namespace, Name: to.Name}))
		}
	}
	emit(res.Name, res)
}

// merge makes one service of entries.
func (t *Tables) merge(r *collection.Reader, host Host, all []Share) *workloadpb.Service {
	oldest := all[0]
	ns, _ := collection.Fetch(r, t.Namespaces, oldest.Key.Home())
	out := &workloadpb.Service{
		Name:          oldest.Key.Name,
		Namespace:     host.Namespace,
		Hostname:      host.Hostname,
		LoadBalancing: service.EntryBalancing(oldest.Entry, ns.trafficDistribution),
		Extensions:    service.EntryExtensions(oldest.Entry),
		Canonical:     t.canonical(r, oldest.Key.Cluster, host),
		// IpFamilies stays unknown. The address of a host says nothing of the
		// endpoints, and proxies tell Kubernetes Services by the families.
	}
	for _, s := range all {
		t.addShare(r, out, host, s)
		if out.Waypoint == nil && out.WeightedWaypoints == nil {
			bindService(out, s.state)
		}
		if out.Waypoint != nil && out.Waypoint == s.state.Waypoint {
			out.IngressUseWaypoint = ingressUsesWaypoint(s.Entry.Labels, ns)
		}
		if s.Scope == meshconfig.Namespace {
			out.Visibility = workloadpb.Service_NAMESPACE
		}
	}
	if len(all) > 1 {
		for _, p := range out.Ports {
			p.TargetPort = 0 // an endpoint has the ports of its own entry only
		}
	}
	return out
}

// addShare adds what one entry contributes to its host.
func (t *Tables) addShare(r *collection.Reader, out *workloadpb.Service, host Host, s Share) {
	for _, p := range service.WirePorts(service.EntryPorts(s.Entry)) {
		if !slices.ContainsFunc(out.Ports, func(o *workloadpb.Port) bool { return o.ServicePort == p.ServicePort }) {
			out.Ports = append(out.Ports, p)
		}
	}
	for _, san := range s.Entry.Spec.SubjectAltNames {
		if !slices.Contains(out.SubjectAltNames, san) {
			out.SubjectAltNames = append(out.SubjectAltNames, san)
		}
	}
	for _, p := range blocks(s.Entry, host.Hostname) {
		if t.Rule(r, s.Key, s.Scope, p).dropped {
			continue
		}
		a := service.NetworkAddress(t.Cluster(r, s.Key.Cluster).Network, p)
		if !slices.ContainsFunc(out.Addresses, func(o *workloadpb.NetworkAddress) bool { return service.SameAddress(a, o) }) {
			out.Addresses = append(out.Addresses, a)
		}
	}
}

// seniority orders entries by age: who comes later takes no host away from
// who was first.
type seniority struct {
	created int64 // Unix seconds
	name    Ref
}

func (s seniority) Compare(o seniority) int {
	return cmp.Or(cmp.Compare(s.created, o.created), s.name.Compare(o.name))
}

// canonical reports whether a host of a namespace is the one for clients of
// the namespaces that have none of their own. The oldest entry decides, unless
// the host is that of a Kubernetes Service. A host with an address that an
// older entry claims is not canonical, so that proxies prefer the older one.
func (t *Tables) canonical(r *collection.Reader, c source.Cluster, host Host) bool {
	if n, ok := t.serviceNamed(r, c, host.Hostname); ok {
		if _, taken := collection.Fetch(r, t.kube, n); taken {
			return false
		}
	}
	if owner, _ := collection.Fetch(r, t.owners, host.Hostname); owner.Namespace != host.Namespace {
		return false
	}
	for k, e := range collection.Lookup(r, t.byHost, host) {
		if t.Scope(r, k, e) != meshconfig.Public {
			continue
		}
		for _, p := range blocks(e, host.Hostname) {
			if first, ok := collection.Fetch(r, t.Owned.claims, p); ok && first.Namespace != host.Namespace {
				return false
			}
		}
	}
	return true
}
