package nft

import (
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/conntrack"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
)

var proxyPorts = []uint16{wellknown.PortOutbound, wellknown.PortInbound, wellknown.PortHBONE, wellknown.PortDNS, wellknown.PortSOCKS5}

// Connections counts the connections of the namespace that Remove would end: those to
// the proxy's ports that the proxy still carries or is about to accept, and those from
// outside that reach a program under another port than their client's. Connections of
// which one direction has ended count; those that the proxy has closed do not.
func Connections(ns *netns.NS) (int, error) {
	all, err := sockets(ns)
	count := 0
	for _, s := range all {
		if !s.Orphaned && slices.Contains(proxyPorts, s.Local.Port()) {
			count++
		}
	}
	if err != nil || count > 0 {
		return count, err // the others matter once these have ended
	}
	return masked(ns)
}

// masked counts the connections from outside for which a program of the pod sees
// another port than their client's. The kernel gives them one while it tracks a
// connection that the proxy has made to the program under the client's address and port
// (see zone.go). Without any rule in the namespace, the kernel translates nothing, and
// such a connection would be reset. A pod with rules of its own keeps them.
//
// What is tracked of the proxy's connections is forgotten, so that no client gets another
// port from then on. One that still ends is tracked again.
func masked(ns *netns.NS) (int, error) {
	if translates, err := translatesItself(ns); translates || err != nil {
		return 0, err
	}
	count := 0
	_, err := conntrack.Forget(ns, func(f *conntrack.Flow) bool {
		if f.Local && !f.Own && f.Masked() && !f.Redirected() && f.Alive() {
			count++
		}
		return f.Marked(wellknown.MarkReturn, wellknown.MarkMask)
	})
	return count, err
}

// sockets lists the TCP connections of the namespace. Those in TIME_WAIT are left
// out: there may be tens of thousands, and no program has them any more.
func sockets(ns *netns.NS) ([]sockdiag.Socket, error) {
	var all []sockdiag.Socket
	err := ns.Do(func() error {
		d, err := sockdiag.Open()
		if err != nil {
			return fmt.Errorf("listing TCP sockets: %w", err)
		}
		defer d.Close()
		all, err = d.List(sockdiag.Connected | sockdiag.Opening)
		return err
	})
	return all, err
}
