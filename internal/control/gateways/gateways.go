// Package gateways decides what the status of a GatewayClass and of a Gateway
// says: who answers for it, whether its proxies run, and at which addresses.
package gateways

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Names of classes and of their controllers are Istio's.
const (
	ClassRemote = "istio-remote"

	controllerWaypoint = "istio.io/mesh-controller"
	controllerRemote   = "istio.io/unmanaged-gateway"
)

// controllers are those that this control plane is, with what it does for their
// classes.
var controllers = map[gatewayv1.GatewayController]string{
	controllerWaypoint: "Gateways of the class are waypoints",
	controllerRemote:   "Gateways of the class are those of other networks; nothing is deployed for them",
}

// Classes returns the GatewayClasses that are made where they are missing.
func Classes() []*gatewayv1.GatewayClass {
	class := func(name string, controller gatewayv1.GatewayController, description string) *gatewayv1.GatewayClass {
		return &gatewayv1.GatewayClass{
			TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "GatewayClass"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelPartOf: partOf}},
			Spec:       gatewayv1.GatewayClassSpec{ControllerName: controller, Description: &description},
		}
	}
	return []*gatewayv1.GatewayClass{
		class(wellknown.ClassWaypoint, controllerWaypoint, "Waypoints: proxies of a namespace that see HTTP"),
		class(ClassRemote, controllerRemote, "Gateways of other networks, which this cluster does not run"),
	}
}

// The label by which uninstalling recognizes Ambit's classes.
const (
	labelPartOf = "app.kubernetes.io/part-of"
	partOf      = "ambit"
)

// ClassStatus is the part of a GatewayClass's status that the control plane
// writes.
var ClassStatus = status.Owned{Conditions: []string{status.Accepted}}

// OwnClass reports whether the control plane answers for a GatewayClass.
func OwnClass(c *gatewayv1.GatewayClass) bool {
	_, own := controllers[c.Spec.ControllerName]
	return own
}

// Class returns the conditions of a GatewayClass that OwnClass accepts.
func Class(c *gatewayv1.GatewayClass) []status.Condition {
	if c.Spec.ParametersRef != nil {
		return []status.Condition{status.No(status.Accepted, status.ReasonInvalidParameters, "spec.parametersRef is not supported: remove it")}
	}
	return []status.Condition{status.Yes(status.Accepted, status.ReasonAccepted, "%s", controllers[c.Spec.ControllerName])}
}

// Status is the part of a Gateway's status that the control plane writes.
var Status = status.Owned{
	Conditions: []string{status.Accepted, status.Programmed, status.ResolvedRefs},
	Lists:      []status.List{{Name: listeners, Key: "name"}},
}

const (
	listeners      = "listeners"
	addresses      = "addresses"
	attachedRoutes = "attachedRoutes"
	supportedKinds = "supportedKinds"
)

// Own reports whether the control plane answers for a Gateway.
func Own(g *gatewayv1.Gateway) bool {
	return g.Spec.GatewayClassName == wellknown.ClassWaypoint || g.Spec.GatewayClassName == ClassRemote
}

// Seen is a Gateway's status as the object has it.
func Seen(g *gatewayv1.Gateway) status.State {
	s := status.State{Conditions: status.SeenIn(g.Status.Conditions)}
	if len(g.Status.Addresses) > 0 {
		s.Fields = []status.Field{{Name: addresses, JSON: status.KeyOf(g.Status.Addresses)}}
	}
	for _, l := range g.Status.Listeners {
		s.Entries = append(s.Entries, status.Entry{List: listeners, Key: status.KeyOf(l.Name), Conditions: status.SeenIn(l.Conditions), Fields: []status.Field{
			{Name: attachedRoutes, JSON: status.KeyOf(l.AttachedRoutes)}, {Name: supportedKinds, JSON: status.KeyOf(kindsOf(l.SupportedKinds))},
		}})
	}
	return s
}

// kindsOf makes an empty list of none, as the API has it.
func kindsOf(k []gatewayv1.RouteGroupKind) []gatewayv1.RouteGroupKind {
	if k == nil {
		return []gatewayv1.RouteGroupKind{}
	}
	return k
}

// Backing is what exists of a Gateway's proxies.
type Backing struct {
	Service bool     // that of the Gateway exists
	Name    string   // of the Service, namespace/name
	IPs     []string // of the Service
	Ready   int      // pods that are ready
	// Parameters is why the ConfigMaps that change the objects cannot be applied.
	Parameters error
}

// Describe returns the status of a Gateway that Own accepts. domain is that of
// the names of Services.
func Describe(g *gatewayv1.Gateway, b Backing, domain string) []status.Section {
	invalid := 0
	var list []status.Section
	programmed := programmed(g, b)
	for _, l := range g.Spec.Listeners {
		s := listener(l, programmed)
		if c, _ := s.Condition(status.Accepted); c.Status != status.True {
			invalid++
		}
		list = append(list, s)
	}
	top := status.Section{Conditions: []status.Condition{accepted(g, b, invalid), programmed, status.Yes(status.ResolvedRefs, status.ReasonResolvedRefs, "every reference is resolved")}}
	if own := published(g, b, programmed, domain); len(own) > 0 {
		top.Fields = []status.Field{{Name: addresses, JSON: status.KeyOf(own)}}
	}
	return append([]status.Section{top}, list...)
}

func accepted(g *gatewayv1.Gateway, b Backing, invalid int) status.Condition {
	switch n := len(g.Spec.Listeners); {
	case invalid > 0 && invalid == n:
		return status.No(status.Accepted, status.ReasonListenersNotValid, "no listener is valid: a waypoint has one of protocol HBONE and port %d", wellknown.PortHBONE)
	case invalid > 0:
		return status.Yes(status.Accepted, status.ReasonListenersNotValid, "%d of %d listeners are not valid; see their conditions", invalid, n)
	case b.Parameters != nil:
		return status.No(status.Accepted, status.ReasonInvalidParameters, "what runs is not changed: %s", b.Parameters)
	case g.Spec.GatewayClassName == ClassRemote:
		return status.Yes(status.Accepted, status.ReasonAccepted, "a gateway of another network")
	}
	serves := g.Labels[wellknown.LabelWaypointFor]
	if serves == "" {
		serves = "service"
	}
	return status.Yes(status.Accepted, status.ReasonAccepted, "a waypoint for %s traffic", serves)
}

// programmed is about the proxies of a Gateway, and their addresses.
func programmed(g *gatewayv1.Gateway, b Backing) status.Condition {
	no := func(reason, format string, args ...any) status.Condition {
		return status.No(status.Programmed, reason, format, args...)
	}
	switch {
	case g.Spec.GatewayClassName == ClassRemote && len(g.Spec.Addresses) == 0:
		return no(status.ReasonAddressNotAssigned, "spec.addresses is empty: give the address of the other network's gateway")
	case g.Spec.GatewayClassName == ClassRemote:
		return status.Yes(status.Programmed, status.ReasonProgrammed, "the gateway is of another network: nothing is deployed for it")
	case !b.Service && !deploy.Managed(g):
		return no(status.ReasonAddressNotUsable, "spec.addresses does not name a Service that exists: give one address of type Hostname, such as name.%s.svc.cluster.local", g.Namespace)
	case !b.Service:
		return no(status.ReasonAddressNotAssigned, "there is no Service %s yet: see the log of ambitd", b.Name)
	case len(b.IPs) == 0:
		return no(status.ReasonAddressNotAssigned, "Service %s has no address yet", b.Name)
	case !deploy.Managed(g):
		return status.Yes(status.Programmed, status.ReasonProgrammed, "assigned to Service %s of spec.addresses, port %d: its pods are not Ambit's", b.Name, wellknown.PortHBONE)
	case b.Ready == 0 && len(g.Status.Addresses) > 0:
		return no(status.ReasonNoResources, "no pod of Service %s is ready: connections to the services of the waypoint fail until one is", b.Name)
	case b.Ready == 0:
		return no(status.ReasonNoResources, "no pod of Service %s is ready: connections go without the waypoint until one is", b.Name)
	}
	return status.Yes(status.Programmed, status.ReasonProgrammed, "assigned to Service %s, port %d; ready pods: %d", b.Name, wellknown.PortHBONE, b.Ready)
}

// published returns the addresses of a Gateway, nil to leave them as they are.
// They are given when the first pod is ready, and stay: without them, clients
// would go around the waypoint and its policies.
func published(g *gatewayv1.Gateway, b Backing, programmed status.Condition, domain string) []gatewayv1.GatewayStatusAddress {
	switch {
	case g.Spec.GatewayClassName == ClassRemote || !deploy.Managed(g):
		if programmed.Status != status.True {
			return nil
		}
		var out []gatewayv1.GatewayStatusAddress
		for _, a := range g.Spec.Addresses {
			out = append(out, gatewayv1.GatewayStatusAddress(a))
		}
		return out
	case programmed.Status != status.True && (len(g.Status.Addresses) == 0 || len(b.IPs) == 0):
		return nil
	}
	return deploy.Addresses(g, domain, b.IPs)
}

// listener returns the entry of a listener. Routes do not attach to the
// listeners of these classes: they name services.
func listener(l gatewayv1.Listener, gateway status.Condition) status.Section {
	s := status.Section{List: listeners, Key: status.KeyOf(l.Name), Fields: []status.Field{
		{Name: attachedRoutes, JSON: status.KeyOf(0)}, {Name: supportedKinds, JSON: status.KeyOf(kindsOf(nil))},
	}}
	ok := status.Yes(status.Accepted, status.ReasonAccepted, "the listener is valid")
	programmed := gateway
	if !strings.EqualFold(string(l.Protocol), "HBONE") {
		ok = status.No(status.Accepted, status.ReasonUnsupportedProtocol, "a waypoint does not listen for protocol %s: it has one listener, of protocol HBONE and port %d", l.Protocol, wellknown.PortHBONE)
	}
	if ok.Status != status.True {
		programmed = status.No(status.Programmed, status.ReasonInvalid, "the listener is not valid")
	}
	s.Conditions = []status.Condition{
		ok, status.No(status.Conflicted, status.ReasonNoConflicts, "no other listener is in its place"),
		status.Yes(status.ResolvedRefs, status.ReasonResolvedRefs, "every reference is resolved"), programmed,
	}
	return s
}

// ServiceOf returns namespace and name of the Service of a Gateway's proxies: the
// one that is made for it, or the one that spec.addresses names.
func ServiceOf(g *gatewayv1.Gateway, domain string) (namespace, name string, ok bool) {
	if deploy.Managed(g) {
		name, ok = deploy.Name(g)
		return g.Namespace, name, ok
	}
	at := slices.IndexFunc(g.Spec.Addresses, func(a gatewayv1.GatewaySpecAddress) bool {
		return a.Type != nil && *a.Type == gatewayv1.HostnameAddressType
	})
	if at < 0 {
		return "", "", false
	}
	host, ok := strings.CutSuffix(g.Spec.Addresses[at].Value, ".svc."+domain)
	name, namespace, ok2 := strings.Cut(host, ".")
	return namespace, name, ok && ok2
}
