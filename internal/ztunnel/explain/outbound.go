package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	modes "github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// Outbound returns what happens to a connection of a pod.
func Outbound(w *World, q *verdict.Question) (*verdict.Verdict, error) {
	ns, name, err := q.PodName()
	if err != nil {
		return nil, err
	}
	v := verdict.New(verdict.RoleClient)
	info, accepting, served := w.Served(ns, name)
	source := w.pod(ns, name)
	if served {
		source = w.local(info)
	}
	switch {
	case !served && source == nil:
		return nil, unknown("no pod %s/%s: the proxy of %s has no such workload", ns, name, w.Node)
	case !served && w.Node != "" && source.Node != w.Node:
		return nil, bad("pod %s/%s runs on node %s, and this is the proxy of node %s", ns, name, source.Node, w.Node)
	}
	if !served && source.Protocol == workload.HBONE {
		return w.unserved(v, source)
	}
	like := netip.Addr{}
	if source != nil {
		like = address(source, netip.Addr{})
	}
	dst, err := w.find(q.To, ns, name, like)
	if err != nil {
		return nil, err
	}
	v.Called, v.Captured = dst, served
	if !served {
		return w.uncaptured(v, source, dst)
	}
	return w.captured(v, info, source, accepting, dst, w.first(q, ns, dst.Port())), nil
}

// unserved is a pod in the mesh that this proxy does not serve.
func (w *World) unserved(v *verdict.Verdict, source *workload.Workload) (*verdict.Verdict, error) {
	if source.NativeTunnel || slices.ContainsFunc(source.Services, func(m workload.Membership) bool {
		return slices.ContainsFunc(m.Ports, func(p workload.Port) bool { return p.Service == wellknown.PortHBONE })
	}) {
		return nil, bad("pod %s is a proxy, which makes tunnels itself: ask about one of its clients", podName(source))
	}
	v.Steps = append(v.Steps, verdict.Step{
		Step: verdict.StepCapture, Object: "Pod " + podName(source), Says: "the pod is captured, and the proxy of its node does not serve it", Decides: true,
	})
	return v.Refuse(errNotListening), nil
}

func (w *World) captured(v *verdict.Verdict, info bootstrap.Workload, source *workload.Workload, accepting bool, dst netip.AddrPort, first traffic.First) *verdict.Verdict {
	object := "Pod " + info.Namespace + "/" + info.Name
	step := verdict.Step{Step: verdict.StepCapture, Object: object}
	if !accepting {
		step.Says, step.Decides = "the pod is captured, and its proxy does not accept connections yet", true
		v.Steps = append(v.Steps, step)
		return v.Refuse(errNotListening)
	}
	if source == nil {
		step.Says, step.Decides = "the pod is captured, and the control plane has not sent its workload", true
		v.Steps = append(v.Steps, step)
		return v.Refuse(reason.Errorf(reason.UnknownSource, "%s/%s (service account %s)", info.Namespace, info.Name, info.ServiceAccount))
	}
	step.Says = "the pod is in the mesh as " + source.Identity().String()
	v.Steps = append(v.Steps, step)
	host := w.host(info.Namespace, info.Name, dst, first)
	at := w.owner(v, dst, source.Namespace, &host)
	src := netip.AddrPortFrom(address(source, dst.Addr()), 0)
	if err := w.egress(v, &egress.Conn{Snapshot: w.Snapshot, Network: w.Network, Source: source, Src: src, Dst: dst, Host: host, Exempt: w.Exempt}); err != nil {
		return v.Refuse(err)
	}
	r, re := route.Outbound(route.Out{
		Snapshot: w.Snapshot, Network: w.Network, Source: source, Src: src, Dst: dst, Load: w.Load, Rand: lowest,
		Traffic: w.Traffic, Roll: w.connectionRoute(v, traffic.Call{Client: source.Namespace, Service: at.Service, Port: dst.Port(), First: first}), First: first, Host: host,
	})
	if re != nil {
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepEndpoint, Says: "there is no next hop", Object: object, Decides: true})
		return v.Refuse(re)
	}
	if err := w.rule(v, &r); err != nil {
		return v.Refuse(err)
	}
	if err := w.egressPolicies(v, egress.Conn{Snapshot: w.Snapshot, Network: w.Network, Source: source, Src: src, Dst: dst, Host: host}, &r); err != nil {
		return v.Refuse(err)
	}
	return w.hop(v, source, src.Addr(), &r)
}

// egress adds the decision of the pod's outbound traffic policy, and returns why it refuses.
func (w *World) egress(v *verdict.Verdict, conn *egress.Conn) *reason.Error {
	source := conn.Source
	refused, reported := egress.Decide(conn)
	step := verdict.Step{Step: verdict.StepPolicy, Object: "Pod " + podName(source), Rule: source.Outbound.String()}
	switch {
	case (refused != nil || reported != nil) && w.Gate != nil && w.Gate.Listed(w.Egress(source.Namespace, source.Name), conn):
		refused = nil
		step.Says = "the destination is in no registry, and an EgressPolicy lists it"
	case refused != nil:
		step.Says, step.Decides = "its outbound traffic policy refuses what is in no registry", true
	case reported != nil:
		step.Says = "REGISTRY_ONLY would refuse the connection; the outbound traffic policy only reports it"
	case source.Outbound == modes.RegistryOnly:
		step.Says = "its outbound traffic policy allows what is in a registry"
	default:
		return nil
	}
	v.Steps = append(v.Steps, step)
	return refused
}

// egressPolicies adds the decision of the pod's EgressPolicies about where the route leads, and
// returns why they refuse.
func (w *World) egressPolicies(v *verdict.Verdict, conn egress.Conn, r *route.Route) *reason.Error {
	if w.Gate == nil {
		return nil
	}
	object, says, err, ok := w.Gate.Explain(w.Egress(conn.Source.Namespace, conn.Source.Name), &egress.Attempt{Conn: conn, Route: r})
	if ok {
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Object: object, Says: says, Decides: err != nil})
	}
	return err
}

// owner adds what has the address that was called.
func (w *World) owner(v *verdict.Verdict, dst netip.AddrPort, namespace string, host *hosts.Match) workload.Destination {
	at := host.At(w.Snapshot, w.Network, dst.Addr(), namespace)
	step := verdict.Step{Step: verdict.StepDestination}
	switch {
	case at.Service != nil && at.Service == host.Service:
		v.Service = at.Service.Key().String()
		step.Object = serviceObject(at.Service)
		step.Says = fmt.Sprintf("%s is an answer to a look-up of the pod for %s, which is port %d of %s", dst, host.Name, dst.Port(), at.Service.Hostname)
	case at.Service != nil:
		v.Service = at.Service.Key().String()
		step.Object = serviceObject(at.Service)
		step.Says = fmt.Sprintf("%s is port %d of %s", dst, dst.Port(), at.Service.Hostname)
		if _, ok := at.Service.TargetPort(dst.Port()); !ok {
			step.Says = fmt.Sprintf("%s is an address of %s, which has no port %d", dst.Addr(), at.Service.Hostname, dst.Port())
		}
	case at.Workload != nil:
		step.Object = kindOf(at.Workload) + " " + podName(at.Workload)
		step.Says = fmt.Sprintf("%s is an address of the %s itself", dst, strings.ToLower(kindOf(at.Workload)))
	default:
		step.Says = dst.String() + " belongs to no service and no workload of the mesh"
	}
	v.Steps = append(v.Steps, step)
	return at
}

// hop adds the way that a route takes.
func (w *World) hop(v *verdict.Verdict, source *workload.Workload, src netip.Addr, r *route.Route) *verdict.Verdict {
	host := ""
	if r.Service != nil {
		host = r.Service.Hostname
	}
	if r.Via == route.Passthrough {
		v.Add(verdict.StepTunnel, "the connection goes to "+r.Next.String()+" as it is, without a tunnel")
		v.Next = &verdict.Next{To: verdict.ToOutside, Authority: r.Next.String()}
		return v
	}
	next := &verdict.Next{
		To: verdict.ToPod, Namespace: r.Workload.Namespace, Name: r.Workload.Name, Node: r.Workload.Node, UID: r.Workload.UID,
		Tunnel: r.Protocol != connect.TCP, Source: src.String(), Host: host, Authority: r.Target.String(),
	}
	if next.Tunnel {
		next.Identity = source.Identity().String()
	} else {
		next.Authority = r.Next.String()
	}
	v.Next = next
	step := verdict.Step{Step: verdict.StepEndpoint, Object: kindOf(r.Workload) + " " + podName(r.Workload)}
	switch {
	case r.Protocol == connect.DoubleHBONE:
		next.To = verdict.ToOutside
		step.Says = "the endpoint is in network " + r.Workload.Network + ", behind its gateway"
	case r.Via == route.ServiceWaypoint || r.Via == route.WorkloadWaypoint:
		next.To = verdict.ToWaypoint
		w.waypoint(v, r)
		step.Says = "a pod of the waypoint was chosen"
	case r.Service != nil:
		step.Says = "an endpoint of the service was chosen" + w.endpoints(r.Service, r.Workload.UID)
	default:
		step.Says = "the connection goes to the pod"
	}
	v.Steps = append(v.Steps, step)
	if r.Hostname != "" {
		v.Add(verdict.StepTunnel, "the address of "+r.Hostname+" is looked up by DNS")
		next.To, next.Authority = verdict.ToOutside, r.Hostname
		return v
	}
	if !next.Tunnel {
		v.Add(verdict.StepTunnel, fmt.Sprintf("the %s is not in the mesh: plaintext to %s", strings.ToLower(kindOf(r.Workload)), r.Next))
		return v
	}
	var expected []string
	for _, id := range r.Identities {
		expected = append(expected, id.String())
	}
	if source.ServiceAccount == wellknown.NoServiceAccount {
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepTunnel, Says: "a tunnel needs an identity, and the pod has no service account", Decides: true})
		return v.Refuse(reason.Errorf(reason.CertificateUnavailable, "pod %s has no service account", podName(source)))
	}
	v.Add(verdict.StepTunnel, fmt.Sprintf("mutual TLS to %s for %s; the other side must be %s", r.Next, r.Target, some(expected)))
	return v
}

// waypoint adds why the connection goes to a waypoint.
func (w *World) waypoint(v *verdict.Verdict, r *route.Route) {
	step := verdict.Step{Step: verdict.StepWaypoint, Object: "Gateway " + r.Workload.Namespace + "/" + w.gatewayName(r.Workload)}
	switch {
	case r.Via == route.WorkloadWaypoint:
		step.Says = "the workload uses a waypoint"
	case len(r.Service.WeightedWaypoints) > 0:
		step.Says = "the service uses several waypoints, by weight; this is one of them"
	default:
		step.Says = "the service uses a waypoint"
	}
	v.Steps = append(v.Steps, step)
}

// gatewayName returns the name of the service in front of a waypoint's pod, which is
// that of its Gateway.
func (w *World) gatewayName(pod *workload.Workload) string {
	for i := range pod.Services {
		m := &pod.Services[i]
		for _, p := range m.Ports {
			if p.Service == wellknown.PortHBONE {
				if s := w.Snapshot.ServiceByName(m.Service.Namespace, m.Service.Hostname); s != nil {
					return s.Name
				}
			}
		}
	}
	if len(pod.Services) > 0 {
		name, _, _ := strings.Cut(pod.Services[0].Service.Hostname, ".")
		return name
	}
	return pod.Name
}

// uncaptured is a connection that no proxy of its client carries.
func (w *World) uncaptured(v *verdict.Verdict, source *workload.Workload, dst netip.AddrPort) (*verdict.Verdict, error) {
	v.Steps = append(v.Steps, verdict.Step{
		Step: verdict.StepCapture, Object: "Pod " + podName(source),
		Says: "the pod is not in the mesh: it connects in plaintext, without an identity, and passes no waypoint",
	})
	at := w.owner(v, dst, source.Namespace, &hosts.Match{})
	to := at.Workload
	next := dst
	if at.Service != nil {
		up, err := w.Snapshot.Pick(workload.Query{Service: at.Service, Client: source, Dialled: dst.Addr(), Port: dst.Port(), Load: w.Load, Rand: lowest})
		if err != nil {
			v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepEndpoint, Says: "the node has no endpoint to send the connection to", Object: serviceObject(at.Service), Decides: true})
			return v.Refuse(err), nil
		}
		if to = up.Workload; to != nil && up.Addr.IsValid() {
			next = netip.AddrPortFrom(up.Addr, up.Port)
			v.Steps = append(v.Steps, verdict.Step{
				Step: verdict.StepEndpoint, Object: kindOf(to) + " " + podName(to),
				Says: "the node's load balancing of services chooses an endpoint" + w.endpoints(at.Service, to.UID),
			})
		}
	}
	if to == nil || !next.Addr().IsValid() {
		v.Next = &verdict.Next{To: verdict.ToOutside, Authority: next.String()}
		return v, nil
	}
	v.Next = &verdict.Next{
		To: verdict.ToPod, Namespace: to.Namespace, Name: to.Name, Node: to.Node, UID: to.UID, Authority: next.String(),
		Source: address(source, next.Addr()).String(),
	}
	return v, nil
}

// find returns the address that a program of a namespace calls by a text: an address, a
// name of a service as DNS has it, svc/NAME.NAMESPACE or pod/NAME.NAMESPACE, each with
// or without a port. A pod calls hosts outside by what its look-ups have led to.
func (w *World) find(to, namespace, pod string, like netip.Addr) (netip.AddrPort, error) {
	none := netip.AddrPort{}
	host, port, err := split(to)
	if err != nil {
		return none, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap().WithZone("")
		if port == 0 {
			if port, err = w.onlyPort(w.Snapshot.Find(w.Network, a, namespace).Service, to); err != nil {
				return none, err
			}
		}
		return netip.AddrPortFrom(a, port), nil
	}
	kind, name, qualified := strings.Cut(host, "/")
	if !qualified {
		kind, name = "", host
	}
	switch kind {
	case "", "svc", "service":
		if s := w.service(name, namespace); s != nil && (kind != "" || len(s.VIPs) > 0 || s.Mode != workload.Passthrough) {
			return w.serviceAddress(s, to, port, namespace, like)
		}
		if kind == "" {
			if p := w.named(name, namespace); p != nil {
				return podAddress(p, to, port, like)
			}
			if a, err := w.lookedUp(to, name, namespace, pod, like); err != nil || a.IsValid() {
				if err == nil && port == 0 {
					err = bad("destination %q has no port: write HOST:PORT, or --port", to)
				}
				return netip.AddrPortFrom(a, port), err
			}
		}
	case "pod":
		if p := w.named(name, namespace); p != nil {
			return podAddress(p, to, port, like)
		}
	default:
		return none, bad("destination %q: there are pod/ and svc/", to)
	}
	return none, unknown("destination %q: no service or pod of the mesh has this name, as a client in namespace %s calls it", to, namespace)
}

func split(to string) (host string, port uint16, err error) {
	host = to
	if i := strings.LastIndexByte(to, ':'); i >= 0 && (strings.Count(to, ":") == 1 || strings.HasSuffix(to[:i], "]")) {
		n, err := strconv.ParseUint(to[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, bad("destination %q: %q is not a port from 1 to 65535", to, to[i+1:])
		}
		host, port = to[:i], uint16(n)
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" {
		return "", 0, bad("destination %q has no host", to)
	}
	return host, port, nil
}

// Candidates returns the host names that DNS tries for a name.
func Candidates(name, namespace, domain string) []string {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, "."); ok {
		return []string{rest}
	}
	svc := ".svc." + domain
	return []string{name + "." + namespace + svc, name + svc, name + "." + domain, name}
}

func (w *World) service(name, namespace string) *workload.Service {
	for _, host := range Candidates(name, namespace, w.Domain) {
		if s := w.Snapshot.ServiceByHostname(host, namespace); s != nil {
			return s
		}
	}
	return nil
}

// named returns the pod of NAME or NAME.NAMESPACE, nil without one.
func (w *World) named(name, namespace string) *workload.Workload {
	if p := w.pod(namespace, name); p != nil {
		return p
	}
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		return w.pod(name[i+1:], name[:i])
	}
	return nil
}

func (w *World) onlyPort(s *workload.Service, to string) (uint16, error) {
	if s == nil {
		return 0, bad("destination %q has no port: write HOST:PORT, or --port", to)
	}
	if len(s.Ports) != 1 {
		sorted := slices.SortedFunc(slices.Values(s.Ports), func(a, b workload.Port) int { return cmp.Compare(a.Service, b.Service) })
		var ports []string
		for _, p := range sorted {
			ports = append(ports, strconv.Itoa(int(p.Service)))
		}
		return 0, bad("destination %q has no port: the service has %s (write HOST:PORT, or --port)", to, strings.Join(ports, ", "))
	}
	return s.Ports[0].Service, nil
}

func (w *World) serviceAddress(s *workload.Service, to string, port uint16, namespace string, like netip.Addr) (netip.AddrPort, error) {
	if port == 0 {
		var err error
		if port, err = w.onlyPort(s, to); err != nil {
			return netip.AddrPort{}, err
		}
	}
	var best netip.Addr
	for _, a := range s.VIPs {
		if a.Network == w.Network && (!best.IsValid() || like.IsValid() && a.Addr.Is4() == like.Is4() && best.Is4() != like.Is4()) {
			best = a.Addr
		}
	}
	if best.IsValid() {
		return netip.AddrPortFrom(best, port), nil
	}
	// DNS has the addresses of the endpoints of a headless service.
	for e := range w.Snapshot.Endpoints(s) {
		if a := address(e, like); e.Healthy && a.IsValid() && (!best.IsValid() || a.Less(best)) {
			best = a
		}
	}
	if !best.IsValid() {
		return netip.AddrPort{}, unknown("destination %q: %s has no address here (give the address that its name resolves to)", to, serviceObject(s))
	}
	return netip.AddrPortFrom(best, port), nil
}

func podAddress(p *workload.Workload, to string, port uint16, like netip.Addr) (netip.AddrPort, error) {
	if port == 0 {
		return netip.AddrPort{}, bad("destination %q has no port: write pod/NAME.NAMESPACE:PORT, or --port", to)
	}
	a := address(p, like)
	if !a.IsValid() {
		return netip.AddrPort{}, unknown("destination %q: pod %s has no address", to, podName(p))
	}
	return netip.AddrPortFrom(a, port), nil
}
