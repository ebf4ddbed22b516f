// Package outside finds where connections to hosts outside of the mesh go: to an address of
// a name that the gateway looks up, or to the address that the client has called.
package outside

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/resolve"
)

// maxKept bounds the endpoints that are remembered, so that each has one identity.
const maxKept = 4096

// Finder finds addresses for one loop.
type Finder struct {
	// Names returns the addresses of a name, if they are known.
	Names func(host string) (addrs []netip.Addr, err error, known bool) //nolint:revive // the answer is a pair

	kept map[key]*host
}

type key struct {
	service workload.NamespacedName
	at      netip.AddrPort
}

// host is one address outside.
type host struct {
	workload *workload.Workload
	// name of the resources that stand at the address, if it is in the mesh after all.
	name string
}

// Call is what a client has called.
type Call struct {
	// Service is where the connection goes. Own: it is what the client has called.
	Service *workload.Service
	Own     bool
	Port    uint16
	// Where has the directory, as the client's namespace sees it.
	Where *place.Whereabouts
	// Like has the family that is preferred.
	Like   netip.Addr
	Random func(uint64) uint64
}

// Locate completes an endpoint that has no address in the directory. missing is a name that
// has to be looked up first, or the name of a resource that has to be requested; the error
// stands until then.
func (f *Finder) Locate(up *workload.Upstream, d *place.Destination, c Call) (missing []string, err *reason.Error) {
	switch {
	case up.Direct:
		return f.direct(up, d, c)
	case up.Workload != nil && !up.Addr.IsValid() && up.Workload.Hostname != "":
		var addrs []netip.Addr
		if addrs, missing, err = f.addresses(up.Workload.Hostname, c); err == nil {
			up.Addr = addrs[0]
		}
	}
	return missing, err
}

// direct goes where the client's connection was going.
func (f *Finder) direct(up *workload.Upstream, d *place.Destination, c Call) (missing []string, err *reason.Error) {
	addrs := []netip.Addr{d.Addr}
	switch {
	case !c.Own:
		return nil, reason.Errorf(reason.NoHealthyUpstream, "service %s sends each connection to the address that was called, and the client has called another service", c.Service.Key())
	case d.Named != "":
		if addrs, missing, err = f.addresses(d.Named, c); err != nil {
			return missing, err
		}
	case c.Service.ByName:
		return nil, reason.Errorf(reason.NoHealthyUpstream, "service %s is found by the name that the client has called, and it has called an address", c.Service.Key())
	case !d.Addr.IsValid():
		return nil, reason.Errorf(reason.NoHealthyUpstream, "service %s sends each connection to the address that was called, and the client has called a name", c.Service.Key())
	}
	up.Port = c.Port
	if target, ok := c.Service.TargetPort(c.Port); ok && target != 0 {
		up.Port = target
	}
	var h *host
	for _, a := range addrs {
		h = f.host(c.Service, c.Where.Network, netip.AddrPortFrom(a, up.Port))
		if missing, err = h.outside(a, c); err == nil {
			up.Direct, up.Addr, up.Workload = false, a, h.workload
		}
		if err == nil || len(missing) > 0 {
			break
		}
	}
	return missing, err
}

// outside returns an error if an address is in the mesh. A client chooses the name, and who
// has the name its addresses: neither may use this gateway's identity, or its place in the
// network, to reach a pod or a Service.
func (h *host) outside(a netip.Addr, c Call) (missing []string, err *reason.Error) {
	switch {
	case c.Where.Snapshot.Find(c.Where.Network, a, c.Where.Namespace).InMesh():
		return nil, reason.Errorf(reason.NoHealthyUpstream, "service %s is outside of the mesh, and %s is in it (call the pod or Service by its own name)", c.Service.Key(), a)
	case !c.Where.Has(h.name):
		return []string{h.name}, reason.Errorf(reason.UnknownDestination, "%s: the control plane has not answered yet what it is", a)
	}
	return nil, nil
}

// addresses returns those of a name that a gateway connects to, in the order of trying: one
// at least, or an error.
func (f *Finder) addresses(host string, c Call) (out []netip.Addr, missing []string, err *reason.Error) {
	if f.Names == nil {
		return nil, nil, reason.Errorf(reason.NoHealthyUpstream, "%s has no address", host)
	}
	addrs, failed, known := f.Names(host)
	switch {
	case !known:
		return nil, []string{host}, reason.Errorf(reason.NoHealthyUpstream, "resolving %s: no answer has come yet", host)
	case failed != nil:
		return nil, nil, reason.Errorf(reason.NoHealthyUpstream, "resolving %s: %w", host, failed)
	}
	out = slices.DeleteFunc(resolve.Order(addrs, !c.Like.IsValid() || c.Like.Unmap().Is4(), c.Random), func(a netip.Addr) bool { return !Reachable(a) })
	if len(out) == 0 {
		return nil, nil, reason.Errorf(reason.NoHealthyUpstream, "resolving %s: it has no address that a gateway connects to", host)
	}
	return out, nil, nil
}

// Reachable reports whether an answer of a name server may lead a gateway to an address. None
// leads to the gateway itself, or to what is only on its link.
func Reachable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// host returns what stands for an address outside.
func (f *Finder) host(svc *workload.Service, network string, at netip.AddrPort) *host {
	k := key{svc.Key(), at}
	if h := f.kept[k]; h != nil {
		return h
	}
	if f.kept == nil || len(f.kept) >= maxKept {
		f.kept = map[key]*host{}
	}
	h := &host{
		workload: &workload.Workload{UID: "outside/" + svc.Key().String() + "/" + at.String(), Healthy: true, Traits: &workload.Traits{Namespace: svc.Namespace, Network: network}},
		name:     workload.AddressName(network, at.Addr()),
	}
	f.kept[k] = h
	return h
}

// Called notes the name that a request is for, where the service is found by names. It reports
// whether the service has it.
func Called(d *place.Destination, authority []byte) bool {
	name := strings.ToLower(strings.TrimSuffix(string(message.HostOf(authority)), "."))
	if _, err := egress.ParseHost(name); err != nil || name[0] == '*' || !hosts.Covers(d.Service.Hostname, name) {
		return false
	}
	d.Named = name
	return true
}
