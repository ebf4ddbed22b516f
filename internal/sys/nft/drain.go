package nft

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

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
				if s.State == established && wellknown.IsProxyPort(s.ID.SourcePort) {
					count++
				}
			}
		}
		return nil
	})
	return count, err
}
