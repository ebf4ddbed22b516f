// Package egress decides which connections the policies of a pod let out of the mesh: the
// outbound traffic policy lets out what is in a registry, EgressPolicies what they list.
// What look-ups of the pod have led to is remembered for that. The decisions are pure; a
// Gate counts and reports.
package egress

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
)

// Conn is one connection that a pod makes.
type Conn struct {
	Snapshot *workload.Snapshot
	// Network is that of the node.
	Network string
	// Source is the pod's workload, which has its policy.
	Source   *workload.Workload
	Src, Dst netip.AddrPort
	// Host is the service that a look-up of the pod has led from.
	Host hosts.Match
	// Exempt are destinations that are never refused.
	Exempt Exempt
}

// Exempt are addresses of the mesh's own servers, which are in no registry where the
// control plane is no pod.
type Exempt []netip.AddrPort

// Servers returns the addresses among texts of the form host:port. A name is none: what
// has one is in the registry.
func Servers(texts ...string) (out Exempt) {
	for _, text := range texts {
		if at, err := netip.ParseAddrPort(text); err == nil {
			out = append(out, netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()))
		}
	}
	return out
}

func (e Exempt) has(at netip.AddrPort) bool { return slices.Contains(e, at) }

// Refusal returns what REGISTRY_ONLY has against a connection, whatever the pod's policy
// is; nil for nothing.
func (c *Conn) Refusal() *reason.Error {
	dst := netip.AddrPortFrom(c.Dst.Addr().Unmap(), c.Dst.Port())
	if dst.Addr().IsLoopback() || c.Exempt.has(dst) {
		return nil
	}
	ns := c.Source.Namespace
	found := c.Host.At(c.Snapshot, c.Network, dst.Addr(), ns)
	svc := found.Service
	if w := found.Workload; w != nil {
		if c.open(w, dst.Port()) {
			return nil
		}
		// The workload may be an endpoint that the namespace does not see. It does not
		// hide a service of the same address.
		svc = c.Snapshot.ServiceAt(c.Network, dst.Addr(), ns)
	}
	if svc == nil {
		return c.refuse("no service and no workload that namespace %s sees has this address and port", ns)
	}
	if _, ok := svc.TargetPort(dst.Port()); !ok {
		return c.refuse("%s has this address, and no such port", svc.Hostname)
	}
	return nil
}

func (c *Conn) refuse(format string, args ...any) *reason.Error {
	return &reason.Error{Reason: reason.NotInRegistry, Detail: c.Dst.String(), Err: fmt.Errorf(format, args...)}
}

// open reports whether a workload is in the registry for connections to its own address.
// A pod is, and so is what has a proxy of its own: that decides about ports. All others
// stand for hosts outside, of which the ports of services that the client sees count.
func (c *Conn) open(w *workload.Workload, port uint16) bool {
	if w.IsPod() || w.Protocol == workload.HBONE {
		return true
	}
	for i := range w.Services {
		m := &w.Services[i]
		svc := c.Snapshot.ServiceByName(m.Service.Namespace, m.Service.Hostname)
		if svc == nil || !svc.VisibleTo(c.Source.Namespace) {
			continue
		}
		if slices.ContainsFunc(m.Ports, func(p workload.Port) bool { return p.Target == port }) {
			return true
		}
	}
	return false
}

// Decide returns why a connection is refused by the pod's policy, and why it is only
// reported; nil and nil for one that is neither.
func Decide(c *Conn) (refused, reported *reason.Error) {
	switch c.Source.Outbound {
	case egress.AllowAny:
		return nil, nil
	case egress.DryRun:
		return nil, c.Refusal()
	default:
		return c.Refusal(), nil
	}
}

// Unknown lists the services that the decision needs and the directory does not have, as
// names for the control plane. It is for directories that are filled on demand.
func Unknown(s *workload.Snapshot, network string, source *workload.Workload, dst netip.Addr) (names []string) {
	if source == nil || source.Outbound == egress.AllowAny {
		return nil
	}
	w := s.Find(network, dst, source.Namespace).Workload
	if w == nil || w.IsPod() || w.Protocol == workload.HBONE {
		return nil
	}
	for i := range w.Services {
		if k := w.Services[i].Service; s.ServiceByName(k.Namespace, k.Hostname) == nil {
			names = append(names, k.String())
		}
	}
	return names
}
