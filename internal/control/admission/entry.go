package admission

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func (c *checker) serviceEntry(e *networkingv1.ServiceEntry) {
	if len(e.Spec.Hosts) == 0 {
		c.invalid("spec.hosts", "the entry names no host")
	}
	wildcard := c.hosts(e)
	for i, a := range e.Spec.Addresses {
		if !isBlock(a) {
			c.invalid(fmt.Sprintf("spec.addresses[%d]", i), "%q is neither an address nor a CIDR block", a)
			continue
		}
		c.owned(e, fmt.Sprintf("spec.addresses[%d]", i), a)
	}
	c.ports(e.Spec.Ports)
	c.resolution(e, wildcard)
	if e.Spec.WorkloadSelector != nil && len(e.Spec.Endpoints) > 0 {
		c.invalid("spec.endpoints", "an entry has either endpoints or a workloadSelector, not both")
	}
	c.labels("spec.workloadSelector.labels", e.Spec.WorkloadSelector.GetLabels())
	named := map[string]bool{}
	for _, p := range e.Spec.Ports {
		named[p.GetName()] = true
	}
	for i, ep := range e.Spec.Endpoints {
		at := fmt.Sprintf("spec.endpoints[%d]", i)
		c.endpoint(at, ep)
		for _, name := range slices.Sorted(maps.Keys(ep.GetPorts())) {
			if !named[name] {
				c.invalid(at+".ports["+name+"]", "the entry has no port of this name")
			}
		}
	}
	c.visibility(e)
	c.distribution(e.Annotations)
	c.canary(e.Labels, e.Annotations)
	if s, set := e.Annotations[wellknown.AnnotationConnectStrategy]; set && !strings.EqualFold(s, "DEFAULT") && !strings.EqualFold(s, wellknown.StrategyRace) {
		c.say(Ignored, "metadata.annotations["+wellknown.AnnotationConnectStrategy+"]", "", "%q is neither DEFAULT nor %s", s, wellknown.StrategyRace)
	}
}

// owned warns of an address that is somebody else's, and of a range around such
// addresses.
func (c *checker) owned(e *networkingv1.ServiceEntry, at, address string) {
	if c.book == nil {
		return
	}
	p, err := netip.ParsePrefix(address)
	if err != nil {
		a, err := netip.ParseAddr(address)
		if err != nil {
			return
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.IsSingleIP() && slices.Equal(e.Spec.ExportTo, []string{"."}) {
		return // for clients of its own namespace, which it may decide
	}
	owners, more := c.book.Clashes(e.Namespace, p)
	if len(owners) == 0 {
		return
	}
	list := strings.Join(owners, ", ")
	if more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	if p.IsSingleIP() {
		c.say(Ignored, at, "remove it", "%s belongs to %s: proxies do not receive this claim", address, list)
		return
	}
	c.say(Ignored, at, "give narrower ranges", "%s contains the addresses of %s, which stay what they are", address, list)
}

// canary warns of a second waypoint, which gets nothing.
func (c *checker) canary(labels, annotations map[string]string) {
	name, set := labels[wellknown.LabelUseWaypointCanary]
	if !set || name == "" || name == wellknown.DataplaneModeNone {
		return
	}
	at := "metadata.labels[" + wellknown.LabelUseWaypointCanary + "]"
	weight, weighted := annotations[wellknown.AnnotationUseWaypointCanaryWeight]
	if n, err := strconv.Atoi(weight); weighted && (err != nil || n < 0 || n > 100) {
		c.say(Ignored, "metadata.annotations["+wellknown.AnnotationUseWaypointCanaryWeight+"]", "", "%q is not a whole number from 0 to 100", weight)
	}
	c.say(Ignored, at, "to change over, write it into the label "+wellknown.LabelUseWaypoint,
		"connections are not split between waypoints: %s gets none", name)
}

func (c *checker) hosts(e *networkingv1.ServiceEntry) (wildcard bool) {
	seen := map[string]bool{}
	for i, h := range e.Spec.Hosts {
		at := fmt.Sprintf("spec.hosts[%d]", i)
		name := strings.ToLower(strings.TrimSuffix(h, "."))
		switch {
		case h == "*":
			c.invalid(at, "* would take over every name; give a domain, as in *.example.com")
			continue
		case strings.HasPrefix(name, "*"):
			wildcard = true
			name = "x" + name[1:]
		}
		if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
			c.invalid(at, "%q is not a host name", h)
		}
		if seen[h] {
			c.invalid(at, "%q is there twice", h)
		}
		seen[h] = true
	}
	return wildcard
}

func (c *checker) ports(ports []*networkingapi.ServicePort) {
	numbers, names := map[uint32]bool{}, map[string]bool{}
	for i, p := range ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if p.GetNumber() == 0 || p.GetNumber() > 65535 {
			c.invalid(at+".number", "%d is not a port", p.GetNumber())
		}
		if p.GetTargetPort() > 65535 {
			c.invalid(at+".targetPort", "%d is not a port", p.GetTargetPort())
		}
		switch {
		case p.GetName() == "":
			c.invalid(at+".name", "the port has no name")
		case names[p.GetName()]:
			c.invalid(at+".name", "there are two ports %q", p.GetName())
		}
		if numbers[p.GetNumber()] {
			c.invalid(at+".number", "there are two ports %d", p.GetNumber())
		}
		numbers[p.GetNumber()], names[p.GetName()] = true, true
		c.protocol(at+".protocol", p.GetProtocol())
	}
}

func (c *checker) protocol(at, protocol string) {
	switch strings.ToUpper(protocol) {
	case "", "TCP", "TLS", "HTTP", "HTTP2", "HTTPS", "GRPC", "GRPC-WEB", "HTTP_PROXY", "MONGO", "REDIS", "MYSQL":
	case "UDP":
		c.say(Ignored, at, "nothing encrypts or controls UDP here; use a NetworkPolicy", "the mesh does not carry UDP: the port is left out")
	default:
		c.invalid(at, "%q is not a protocol; use TCP, TLS, HTTP, HTTP2, HTTPS or GRPC", protocol)
	}
}

func (c *checker) resolution(e *networkingv1.ServiceEntry, wildcard bool) {
	at := "spec.resolution"
	res := e.Spec.Resolution
	if res.Descriptor().Values().ByNumber(res.Number()) == nil {
		c.invalid(at, "%d is not a resolution", res)
	}
	blocks := slices.ContainsFunc(e.Spec.Addresses, func(a string) bool { return strings.Contains(a, "/") })
	switch res {
	case networkingapi.ServiceEntry_NONE:
		if len(e.Spec.Endpoints) > 0 {
			c.invalid("spec.endpoints", "with resolution NONE a connection goes where it was going; use STATIC or DNS for endpoints")
		}
	case networkingapi.ServiceEntry_STATIC:
		for i, ep := range e.Spec.Endpoints {
			if _, err := netip.ParseAddr(ep.GetAddress()); err != nil && ep.GetAddress() != "" && !strings.HasPrefix(ep.GetAddress(), "unix:") {
				c.invalid(fmt.Sprintf("spec.endpoints[%d].address", i), "%q is not an IP address, as resolution STATIC needs; use DNS for names", ep.GetAddress())
			}
		}
	case networkingapi.ServiceEntry_DNS, networkingapi.ServiceEntry_DNS_ROUND_ROBIN:
		if wildcard && len(e.Spec.Endpoints) == 0 && e.Spec.WorkloadSelector == nil {
			c.invalid(at, "a wildcard cannot be resolved; give endpoints, or use NONE or DYNAMIC_DNS")
		}
		if res == networkingapi.ServiceEntry_DNS_ROUND_ROBIN && len(e.Spec.Endpoints) > 1 {
			c.invalid("spec.endpoints", "resolution DNS_ROUND_ROBIN takes one endpoint")
		}
	case networkingapi.ServiceEntry_DYNAMIC_DNS:
		if e.Spec.WorkloadSelector != nil || len(e.Spec.Endpoints) > 0 {
			c.invalid("spec.endpoints", "resolution DYNAMIC_DNS finds the endpoints by the name a client asks for; list none")
		}
	}
	if blocks && res != networkingapi.ServiceEntry_STATIC && res != networkingapi.ServiceEntry_NONE {
		c.invalid("spec.addresses", "CIDR blocks need resolution NONE or STATIC")
	}
	if wildcard && res != networkingapi.ServiceEntry_NONE && res != networkingapi.ServiceEntry_DYNAMIC_DNS {
		c.say(Elsewhere, "spec.hosts", "bind one with the label "+wellknown.LabelUseWaypoint+", or use resolution NONE or DYNAMIC_DNS",
			"node proxies choose no endpoints for a wildcard: without a waypoint such hosts are not in the mesh")
	}
}

// visibility warns of scopes that are not kept: something is seen by more than
// its author meant.
func (c *checker) visibility(e *networkingv1.ServiceEntry) {
	to := e.Spec.ExportTo
	switch {
	case len(to) == 0, slices.Contains(to, "*"), slices.Equal(to, []string{"."}):
	default:
		c.say(Ignored, "spec.exportTo", `write ["."] for the own namespace; use an AuthorizationPolicy to decide who may call`,
			"exportTo is kept only for [\".\"] and [\"*\"]: this entry is visible to the whole mesh")
	}
}

func (c *checker) distribution(annotations map[string]string) {
	v, set := annotations[wellknown.AnnotationTrafficDistribution]
	switch v {
	case "PreferClose", "PreferSameZone", "PreferSameNode", "Any":
	default:
		if set {
			c.say(Ignored, "metadata.annotations["+wellknown.AnnotationTrafficDistribution+"]", "",
				"%q is none of PreferClose, PreferSameZone, PreferSameNode, Any", v)
		}
	}
}

func (c *checker) workloadEntry(e *networkingv1.WorkloadEntry) {
	c.endpoint("spec", &e.Spec)
}

// endpoint checks a WorkloadEntry or an endpoint of a ServiceEntry, which are
// the same message.
func (c *checker) endpoint(at string, e *networkingapi.WorkloadEntry) {
	addr, err := netip.ParseAddr(e.GetAddress())
	switch {
	case e.GetAddress() == "" && e.GetNetwork() == "":
		c.invalid(at+".address", "the endpoint has no address")
	case e.GetAddress() == "":
		c.say(Ignored, at+".address", "give its address", "without an address no node proxy can reach it")
	case strings.HasPrefix(e.GetAddress(), "unix:"):
		c.say(Ignored, at+".address", "give an IP address or a host name", "node proxies cannot reach a unix socket: nobody is sent there")
	case err == nil && addr.Zone() != "":
		c.invalid(at+".address", "%q has a zone, which means something only on one machine", e.GetAddress())
	case err != nil && len(validation.IsDNS1123Subdomain(strings.ToLower(strings.TrimSuffix(e.GetAddress(), ".")))) > 0:
		c.invalid(at+".address", "%q is neither an IP address nor a host name", e.GetAddress())
	}
	for _, name := range slices.Sorted(maps.Keys(e.GetPorts())) {
		if p := e.GetPorts()[name]; p == 0 || p > 65535 {
			c.invalid(at+".ports["+name+"]", "%d is not a port", p)
		}
		if name == "" {
			c.invalid(at+".ports", "a port has no name")
		}
	}
	c.labels(at+".labels", e.GetLabels())
	if sa := e.GetServiceAccount(); sa != "" && len(validation.IsDNS1123Subdomain(sa)) > 0 {
		c.invalid(at+".serviceAccount", "%q is not the name of a service account", sa)
	}
}

// gateway checks what makes a Gateway a waypoint; other classes are none of
// our business.
func (c *checker) gateway(g *gatewayv1.Gateway) {
	if g.Spec.GatewayClassName != waypointClass {
		return
	}
	switch v, set := g.Labels[wellknown.LabelWaypointFor]; {
	case !set, v == "service", v == "workload", v == "all", v == "none":
	default:
		c.say(Ignored, "metadata.labels["+wellknown.LabelWaypointFor+"]", "write service, workload, all or none",
			"%q is no kind of traffic: the waypoint serves nothing", v)
	}
	for _, l := range g.Spec.Listeners {
		if l.Port == wellknown.PortHBONE || l.Protocol == "HBONE" {
			return
		}
	}
	c.say(Ignored, "spec.listeners", "add {name: mesh, port: 15008, protocol: HBONE}", "a waypoint without an HBONE listener gets no traffic")
}

func isBlock(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Zone() == ""
	}
	_, err := netip.ParsePrefix(s)
	return err == nil
}

const waypointClass = "istio-waypoint"
