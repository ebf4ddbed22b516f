package tables

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// coreKey names the part of a service that one object makes: a Kubernetes
// Service all of it, each ServiceEntry of a host its own ports and selector.
type coreKey struct {
	host    Host
	entry   string // name of the ServiceEntry; empty for a Kubernetes Service
	cluster source.Cluster
}

func (k coreKey) Compare(o coreKey) int {
	return cmp.Or(k.host.Compare(o.host), strings.Compare(k.entry, o.entry), k.cluster.Compare(o.cluster))
}

// core is what workloads need to know of such a part.
type core struct {
	selector map[string]string
	ports    []service.Port
	created  int64 // Unix seconds
	// publish: endpoints that are not ready are used as well.
	publish bool
}

func sameCore(a, b *core) bool {
	return maps.Equal(a.selector, b.selector) && slices.Equal(a.ports, b.ports) &&
		a.created == b.created && a.publish == b.publish
}

// Hostname returns the host name of a Kubernetes Service.
func (t *Tables) Hostname(r *collection.Reader, n Ref) string {
	return n.Name + "." + n.Namespace + ".svc." + t.Cluster(r, n.Cluster).Domain
}

// kubeKey is the key of a Kubernetes Service.
func (t *Tables) kubeKey(r *collection.Reader, n Ref) coreKey {
	return coreKey{host: Host{n.Namespace, t.Hostname(r, n)}, cluster: n.Cluster}
}

func (t *Tables) serviceCore(r *collection.Reader, k Ref, s *corev1.Service, emit func(coreKey, *core)) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	emit(t.kubeKey(r, k), &core{
		selector: s.Spec.Selector, ports: service.Ports(s),
		created: s.CreationTimestamp.Unix(), publish: s.Spec.PublishNotReadyAddresses,
	})
}

func (t *Tables) serviceResource(r *collection.Reader, k Ref, s *corev1.Service, emit func(string, *xds.Resource)) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	ns, _ := collection.Fetch(r, t.Namespaces, k.Home())
	out := &workloadpb.Service{
		Name:          k.Name,
		Namespace:     k.Namespace,
		Hostname:      t.Hostname(r, k),
		Ports:         service.WirePorts(service.Ports(s)),
		LoadBalancing: service.Balancing(s, ns.trafficDistribution),
		IpFamilies:    service.Families(s),
		Canonical:     true,
	}
	if len(s.Spec.Selector) == 0 {
		for _, p := range out.Ports {
			p.TargetPort = 0 // the endpoint slices say, each for its own endpoints
		}
	}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil { // not: "None"
			out.Addresses = append(out.Addresses, service.NetworkAddress(t.Cluster(r, k.Cluster).Network, netip.PrefixFrom(a, a.BitLen())))
		}
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.Extensions = []*workloadpb.Extension{{Name: wellknown.ExtensionClientAffinity}}
	}
	state := t.serviceState(r, k)
	bindService(out, state)
	out.IngressUseWaypoint = out.Waypoint != nil && ingressUsesWaypoint(s.Labels, ns)
	t.emitService(out, emit)
}

// bindService sets what proxies need of the waypoint of a service.
func bindService(out *workloadpb.Service, s binding.State) {
	out.Waypoint, out.WeightedWaypoints = s.Waypoint, accepting(s)
	if s.Taken && (s.Waypoint != nil || len(s.Accepts) > 0) {
		out.Extensions = append(out.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionEndpointsTaken})
	}
	if s.Waypoint == nil || !s.Endpoints {
		return
	}
	beside := &structpb.ListValue{}
	for _, p := range s.Beside {
		beside.Values = append(beside.Values, structpb.NewStringValue(p))
	}
	// Made here, it marshals.
	config := &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.ListValue"}
	config.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(beside)
	out.Extensions = append(out.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionEndpoints, Config: config})
}

// accepting are the waypoints that take the traffic of a service and that clients do
// not go to: they have no weight.
func accepting(s binding.State) (out []*workloadpb.WeightedWaypoint) {
	for _, a := range s.Accepts {
		out = append(out, &workloadpb.WeightedWaypoint{Destination: a})
	}
	return out
}

func (t *Tables) emitService(s *workloadpb.Service, emit func(string, *xds.Resource)) {
	name := Host{s.Namespace, s.Hostname}.String()
	var aliases []string
	for _, a := range s.Addresses {
		if a.Length == nil {
			aliases = append(aliases, service.AddressAlias(a.Network, a.Address))
		}
	}
	emit(name, Encode(wellknown.TypeAddress, name, aliases, &workloadpb.Address{Type: &workloadpb.Address_Service{Service: s}}))
}

func (t *Tables) entryCores(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(coreKey, *core)) {
	if t.Scope(r, k, e) == meshconfig.None {
		return
	}
	c := &core{selector: e.Spec.WorkloadSelector.GetLabels(), ports: service.EntryPorts(e), created: e.CreationTimestamp.Unix()}
	for _, h := range e.Spec.Hosts {
		if t.OfService(r, k.Cluster, Host{k.Namespace, h}) {
			continue // as in Istio, the Service alone has the host
		}
		if service.Served(h, e) || t.servedByWaypoint(r, k) {
			emit(coreKey{Host{k.Namespace, h}, k.Name, k.Cluster}, c)
		}
	}
}

// servedByWaypoint reports whether a ServiceEntry has a waypoint that can be used.
func (t *Tables) servedByWaypoint(r *collection.Reader, k Ref) bool {
	target, _ := collection.Fetch(r, t.Bound.Entries, k)
	return target.Address != nil
}
