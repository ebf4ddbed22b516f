package registry

import (
	"cmp"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// share is an entry as one of those that make up a host of its namespace.
type share struct {
	k     Ref
	e     *networkingv1.ServiceEntry
	scope meshconfig.Scope
	state binding.State
}

func (s share) age() seniority { return seniority{s.e.CreationTimestamp.Unix(), s.k} }

// shares returns the entries of a namespace that make up a host and are sent
// to proxies, the oldest first. A Kubernetes Service of the host takes all.
func (t *tables) shares(r *collection.Reader, c source.Cluster, host Host) []share {
	if t.ofService(r, c, host) {
		return nil
	}
	var out []share
	for k, e := range collection.Lookup(r, t.byHost, host) {
		s := share{k: k, e: e, scope: t.scope(r, k, e)}
		if s.scope == meshconfig.None {
			continue
		}
		s.state = t.entryState(r, k)
		if served(host.Hostname, e) || t.servedByWaypoint(r, k) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b share) int { return a.age().Compare(b.age()) })
	return out
}

// ofService reports whether a host is that of a Kubernetes Service of the same
// namespace.
func (t *tables) ofService(r *collection.Reader, c source.Cluster, host Host) bool {
	n, ok := t.serviceNamed(r, c, host.Hostname)
	if !ok || n.Namespace != host.Namespace {
		return false
	}
	s, there := collection.Fetch(r, t.kube, n)
	return there && s.Spec.Type != corev1.ServiceTypeExternalName
}

// serviceNamed is the Kubernetes Service of a cluster that a host is the name
// of.
func (t *tables) serviceNamed(r *collection.Reader, c source.Cluster, host string) (Ref, bool) {
	name, ok := strings.CutSuffix(host, ".svc."+t.cluster(r, c).domain)
	service, namespace, _ := strings.Cut(name, ".")
	return Ref{Cluster: c, Namespace: namespace, Name: service}, ok
}

// entryService makes one service of all entries of a host: their addresses and
// ports add up. Everything else is the oldest entry's, but for what protects:
// the narrowest visibility holds, and the first waypoint that is bound.
func (t *tables) entryService(r *collection.Reader, host Host, _ struct{}, emit func(string, *xds.Resource)) {
	all := t.shares(r, source.Cluster{}, host)
	if len(all) == 0 {
		return
	}
	oldest := all[0]
	ns, _ := collection.Fetch(r, t.namespaces, oldest.k.Home())
	out := &workloadpb.Service{
		Name:          oldest.k.Name,
		Namespace:     host.Namespace,
		Hostname:      host.Hostname,
		LoadBalancing: entryBalancing(oldest.e, ns.trafficDistribution),
		Canonical:     t.canonical(r, oldest.k.Cluster, host),
		// IpFamilies stays unknown. The address of a host says nothing of the
		// endpoints, and proxies tell Kubernetes Services by the families.
	}
	for _, s := range all {
		t.addShare(r, out, host, s)
		if out.Waypoint == nil && out.WeightedWaypoints == nil {
			bindService(out, s.state)
		}
		if out.Waypoint != nil && out.Waypoint == s.state.Waypoint {
			out.IngressUseWaypoint = ingressUsesWaypoint(s.e.Labels, ns)
		}
		if s.scope == meshconfig.Namespace {
			out.Visibility = workloadpb.Service_NAMESPACE
		}
	}
	if len(all) > 1 {
		for _, p := range out.Ports {
			p.TargetPort = 0 // an endpoint has the ports of its own entry only
		}
	}
	t.emitService(out, emit)
}

// addShare adds what one entry contributes to its host.
func (t *tables) addShare(r *collection.Reader, out *workloadpb.Service, host Host, s share) {
	for _, p := range portsOf(entryPorts(s.e)) {
		if !slices.ContainsFunc(out.Ports, func(o *workloadpb.Port) bool { return o.ServicePort == p.ServicePort }) {
			out.Ports = append(out.Ports, p)
		}
	}
	for _, san := range s.e.Spec.SubjectAltNames {
		if !slices.Contains(out.SubjectAltNames, san) {
			out.SubjectAltNames = append(out.SubjectAltNames, san)
		}
	}
	for _, p := range blocks(s.e, host.Hostname) {
		if t.rule(r, s.k, s.scope, p).dropped {
			continue
		}
		a := networkAddress(t.cluster(r, s.k.Cluster).network, p)
		if !slices.ContainsFunc(out.Addresses, func(o *workloadpb.NetworkAddress) bool { return sameAddress(a, o) }) {
			out.Addresses = append(out.Addresses, a)
		}
	}
}

func sameAddress(a, b *workloadpb.NetworkAddress) bool {
	return a.Network == b.Network && string(a.Address) == string(b.Address) &&
		(a.Length == nil) == (b.Length == nil) && a.GetLength() == b.GetLength()
}

func entryBalancing(e *networkingv1.ServiceEntry, nsDistribution string) *workloadpb.LoadBalancing {
	lb := &workloadpb.LoadBalancing{}
	prefer(lb, firstKnown(e.Annotations[wellknown.AnnotationTrafficDistribution], nsDistribution))
	if e.Spec.Resolution == networkingapi.ServiceEntry_NONE {
		lb.Mode, lb.RoutingPreference = workloadpb.LoadBalancing_PASSTHROUGH, nil
		lb.HealthPolicy = workloadpb.LoadBalancing_ALLOW_ALL // it has no endpoints whose health were known
	}
	return orNil(lb)
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
func (t *tables) canonical(r *collection.Reader, c source.Cluster, host Host) bool {
	if n, ok := t.serviceNamed(r, c, host.Hostname); ok {
		if _, taken := collection.Fetch(r, t.kube, n); taken {
			return false
		}
	}
	if owner, _ := collection.Fetch(r, t.owners, host.Hostname); owner.Namespace != host.Namespace {
		return false
	}
	for k, e := range collection.Lookup(r, t.byHost, host) {
		if t.scope(r, k, e) != meshconfig.Public {
			continue
		}
		for _, p := range blocks(e, host.Hostname) {
			if first, ok := collection.Fetch(r, t.owned.claims, p); ok && first.Namespace != host.Namespace {
				return false
			}
		}
	}
	return true
}
