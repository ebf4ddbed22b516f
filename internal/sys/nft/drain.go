package nft

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft/numbers"
)

var proxyPorts = []uint16{numbers.PortOutbound, numbers.PortInbound, numbers.PortHBONE, numbers.PortDNS, numbers.PortSOCKS5}

// Connections counts the established connections to the proxy's ports in the
// namespace: what Remove would end.
func Connections(ns *netns.NS) (int, error) {
	const established = 1 // TCP_ESTABLISHED
	count := 0
	err := ns.Do(func() error {
		for _, f := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := netlink.SocketDiagTCP(f)
			if err != nil {
				return fmt.Errorf("listing TCP sockets: %w", err)
			}
			for _, s := range sockets {
				if s.State == established && slices.Contains(proxyPorts, s.ID.SourcePort) {
					count++
				}
			}
		}
		return nil
	})
	return count, err
}
