package tables

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

const (
	// WaypointClass is the class of Gateways that are waypoints.
	WaypointClass = wellknown.ClassWaypoint
	// annotationInboundBinding says how a waypoint wants connections handed
	// over: PROXY or PROXY/<port>.
	annotationInboundBinding = "ambient.istio.io/waypoint-inbound-binding"
)

// Waypoint is a Gateway of the waypoint class.
type Waypoint struct {
	address *workloadpb.GatewayAddress // nil until it has one
	serves  string                     // istio.io/waypoint-for
	from    gatewayv1.FromNamespaces   // namespaces that may use it: Same, All, Selector
	chosen  *metav1.LabelSelector
	binding *workloadpb.ApplicationTunnel
	account string // of its proxies
}

// waypointForNothing is a waypoint that no traffic goes to, by its own label.
const waypointForNothing = "none"

func sameWaypoint(a, b *Waypoint) bool {
	return a.serves == b.serves && a.from == b.from && a.account == b.account && equality.Semantic.DeepEqual(a.chosen, b.chosen) &&
		proto.Equal(a.address, b.address) && proto.Equal(a.binding, b.binding)
}

func (t *Tables) readWaypoint(r *collection.Reader, k Ref, g *gatewayv1.Gateway) (*Waypoint, bool) {
	if g.Spec.GatewayClassName != WaypointClass {
		return nil, false
	}
	w := &Waypoint{serves: g.Labels[wellknown.LabelWaypointFor], from: gatewayv1.NamespacesFromSame}
	if w.serves == "" {
		w.serves = "service"
	}
	for _, l := range g.Spec.Listeners {
		if l.Port != wellknown.PortHBONE && l.Protocol != "HBONE" {
			continue
		}
		if l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil && value(l.AllowedRoutes.Namespaces.From) != "" {
			w.from, w.chosen = *l.AllowedRoutes.Namespaces.From, l.AllowedRoutes.Namespaces.Selector
		}
		break
	}
	w.address = t.gatewayAddress(r, k, g)
	w.account, _ = deploy.Account(g)
	w.binding = parseBinding(g.Annotations[annotationInboundBinding])
	return w, true
}

// gatewayAddress prefers a name: it stays when addresses change, and has those
// of both families.
func (t *Tables) gatewayAddress(r *collection.Reader, k Ref, g *gatewayv1.Gateway) *workloadpb.GatewayAddress {
	var first *workloadpb.GatewayAddress
	for _, a := range g.Status.Addresses {
		out := &workloadpb.GatewayAddress{HboneMtlsPort: wellknown.PortHBONE}
		if value(a.Type) == gatewayv1.HostnameAddressType {
			if a.Value == "" {
				continue
			}
			out.Destination = &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: k.Namespace, Hostname: a.Value}}
			return out
		}
		if addr, err := netip.ParseAddr(a.Value); err == nil && first == nil {
			out.Destination = &workloadpb.GatewayAddress_Address{Address: &workloadpb.NetworkAddress{Network: t.Cluster(r, k.Cluster).Network, Address: addr.Unmap().AsSlice()}}
			first = out
		}
	}
	return first
}

// value returns what p points to, or the zero value for nil.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func parseBinding(s string) *workloadpb.ApplicationTunnel {
	proto, port, _ := strings.Cut(s, "/")
	if proto != "PROXY" {
		return nil
	}
	n, _ := strconv.ParseUint(port, 10, 16) // absent: the destination's own port
	return &workloadpb.ApplicationTunnel{Protocol: workloadpb.ApplicationTunnel_PROXY, Port: uint32(n)}
}

// waypointUse is what the labels of an object ask for.
type waypointUse struct {
	name, namespace string
	set             bool // asked at all, also for none
}

func useWaypoint(labels map[string]string) waypointUse {
	n, ok := labels[wellknown.LabelUseWaypoint]
	return waypointUse{n, labels[wellknown.LabelUseWaypointNamespace], ok && n != ""}
}

// ingressUse is what labels say of gateways' traffic, "" if nothing.
func ingressUse(labels map[string]string) string { return labels[wellknown.LabelIngressUseWaypoint] }

// ingressUsesWaypoint reports whether gateways send what is for a service to its
// waypoint, by the labels of the service, else those of its namespace.
func ingressUsesWaypoint(labels map[string]string, ns namespaceInfo) bool {
	yes, err := strconv.ParseBool(cmp.Or(ingressUse(labels), ns.ingressUse))
	return err == nil && yes
}

// Traffic is what a waypoint can be for.
type Traffic string

// The kinds of traffic, as the label istio.io/waypoint-for has them.
const (
	TrafficService  Traffic = "service"
	TrafficWorkload Traffic = "workload"
)

// WantedWaypoint is the waypoint that an object asks for by its labels (own),
// else by those of its namespace.
func (t *Tables) WantedWaypoint(r *collection.Reader, home Space, labels map[string]string) (name Ref, own, asked bool) {
	use := useWaypoint(labels)
	own = use.set
	if !own {
		info, _ := collection.Fetch(r, t.Namespaces, home)
		use = info.use
	}
	if !use.set || use.name == wellknown.DataplaneModeNone {
		return Ref{}, own, false
	}
	return Space{Cluster: home.Cluster, Name: cmp.Or(use.namespace, home.Name)}.At(use.name), own, true
}

// allotted resolves the waypoint that an object asks for, which may be without an
// address. The waypoint is nil when there is none that the object may use, and the
// condition when the object asks for none.
func (t *Tables) allotted(r *collection.Reader, home Space, labels map[string]string, what Traffic) (Ref, *Waypoint, *status.Condition) {
	name, own, asked := t.WantedWaypoint(r, home, labels)
	if !asked {
		return Ref{}, nil, nil
	}
	w, ok := collection.Fetch(r, t.waypoints, name)
	no := func(reason, format string, args ...any) *status.Condition {
		c := status.No(status.WaypointBound, reason, format, args...)
		return &c
	}
	where := name.String()
	switch {
	case !ok:
		return name, nil, no(status.ReasonTargetNotFound, "there is no waypoint %s; create a Gateway of class %s, or remove the label %s", where, WaypointClass, wellknown.LabelUseWaypoint)
	case w.serves != string(what) && w.serves != "all":
		if !own {
			return Ref{}, nil, nil // a namespace's waypoint for the other kind of traffic
		}
		return name, nil, no(status.ReasonUnsupportedTrafficType, "waypoint %s is for %s traffic, not for that of a %s; see its label %s", where, w.serves, what, wellknown.LabelWaypointFor)
	case !t.mayUse(r, w, name.Home(), home):
		return name, nil, no(status.ReasonAttachmentDenied, "waypoint %s does not admit namespace %s; see allowedRoutes of its listener", where, home.Name)
	case w.address == nil:
		return name, w, no(status.ReasonWaypointIsNotReady, "waypoint %s has no address yet; see its pods", where)
	}
	c := status.Yes(status.WaypointBound, status.ReasonWaypointAccepted, "bound to waypoint %s", where)
	return name, w, &c
}

func (t *Tables) mayUse(r *collection.Reader, w *Waypoint, home, user Space) bool {
	switch {
	case home == user || w.from == gatewayv1.NamespacesFromAll:
		return true
	case w.from == gatewayv1.NamespacesFromSelector:
		sel, err := metav1.LabelSelectorAsSelector(w.chosen)
		if err != nil {
			return false
		}
		l, _ := collection.Fetch(r, t.nsLabels, user)
		return sel.Matches(labelSet(l))
	}
	return false
}

// labelSet lets a selector look at labels.
type labelSet map[string]string

func (s labelSet) Has(k string) bool              { _, ok := s[k]; return ok }
func (s labelSet) Get(k string) string            { return s[k] }
func (s labelSet) Lookup(k string) (string, bool) { v, ok := s[k]; return v, ok }
