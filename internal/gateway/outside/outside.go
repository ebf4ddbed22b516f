// Package outside finds where connections to hosts outside of the mesh go: to an address of
// a name that the gateway looks up, or to the address that the client has called.
package outside

import (
	"net/netip"
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

	kept map[key]*workload.Workload
}

type key struct {
	service workload.NamespacedName
	at      netip.AddrPort
}

// Call is what a client has called.
type Call struct {
	// Service is where the connection goes. Own: it is what the client has called.
	Service *workload.Service
	Own     bool
	Port    uint16
	// Network is the gateway's own.
	Network string
	// Like has the family that is preferred.
	Like   netip.Addr
	Random func(uint64) uint64
}

// Locate completes an endpoint that has no address in the directory. missing is a name that
// has to be looked up first; the error stands until then.
func (f *Finder) Locate(up *workload.Upstream, d *place.Destination, c Call) (missing []string, err *reason.Error) {
	switch {
	case up.Direct:
		return f.direct(up, d, c)
	case up.Workload != nil && !up.Addr.IsValid() && up.Workload.Hostname != "":
		up.Addr, missing, err = f.address(up.Workload.Hostname, c)
	}
	return missing, err
}

// direct goes where the client's connection was going.
func (f *Finder) direct(up *workload.Upstream, d *place.Destination, c Call) (missing []string, err *reason.Error) {
	at := d.Addr
	switch {
	case !c.Own:
		return nil, reason.Errorf(reason.NoHealthyUpstream, "service %s sends each connection to the address that was called, and the client has called another service", c.Service.Key())
	case d.Named != "":
		if at, missing, err = f.address(d.Named, c); err != nil {
			return missing, err
		}
	case c.Service.ByName:
		return nil, reason.Errorf(reason.NoHealthyUpstream, "service %s is found by the name that the client has called, and it has called an address", c.Service.Key())
	case !at.IsValid():
		return nil, reason.Errorf(reason.NoHealthyUpstream, "service %s sends each connection to the address that was called, and the client has called a name", c.Service.Key())
	}
	up.Port = c.Port
	if target, ok := c.Service.TargetPort(c.Port); ok && target != 0 {
		up.Port = target
	}
	up.Direct, up.Addr, up.Workload = false, at, f.endpoint(c.Service, c.Network, netip.AddrPortFrom(at, up.Port))
	return nil, nil
}

// address returns an address of a name.
func (f *Finder) address(host string, c Call) (a netip.Addr, missing []string, err *reason.Error) {
	if f.Names == nil {
		return a, nil, reason.Errorf(reason.NoHealthyUpstream, "%s has no address", host)
	}
	addrs, failed, known := f.Names(host)
	switch {
	case !known:
		return a, []string{host}, reason.Errorf(reason.NoHealthyUpstream, "resolving %s: no answer has come yet", host)
	case failed != nil:
		return a, nil, reason.Errorf(reason.NoHealthyUpstream, "resolving %s: %w", host, failed)
	}
	for _, a := range resolve.Order(addrs, !c.Like.IsValid() || c.Like.Unmap().Is4(), c.Random) {
		if Reachable(a) {
			return a, nil, nil
		}
	}
	return a, nil, reason.Errorf(reason.NoHealthyUpstream, "resolving %s: it has no address that a gateway connects to", host)
}

// Reachable reports whether an answer of a name server may lead a gateway to an address. None
// leads to the gateway itself, or to what is only on its link.
func Reachable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// endpoint returns what stands for an address outside.
func (f *Finder) endpoint(svc *workload.Service, network string, at netip.AddrPort) *workload.Workload {
	k := key{svc.Key(), at}
	if w := f.kept[k]; w != nil {
		return w
	}
	if f.kept == nil || len(f.kept) >= maxKept {
		f.kept = map[key]*workload.Workload{}
	}
	w := &workload.Workload{UID: "outside/" + svc.Key().String() + "/" + at.String(), Healthy: true, Traits: &workload.Traits{Namespace: svc.Namespace, Network: network}}
	f.kept[k] = w
	return w
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
