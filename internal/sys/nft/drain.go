package nft

import (
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
)

var proxyPorts = []uint16{wellknown.PortOutbound, wellknown.PortInbound, wellknown.PortHBONE, wellknown.PortDNS, wellknown.PortSOCKS5}

// Connections counts the connections to the proxy's ports in the namespace that
// the proxy still carries or is about to accept: what Remove would end. Those of
// which one direction has ended count; those that the proxy has closed do not.
func Connections(ns *netns.NS) (int, error) {
	all, err := sockets(ns)
	count := 0
	for _, s := range all {
		if !s.Orphaned && slices.Contains(proxyPorts, s.Local.Port()) {
			count++
		}
	}
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
