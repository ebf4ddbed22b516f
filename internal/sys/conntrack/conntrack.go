// Package conntrack changes the connection tracking of a network namespace: it forgets
// connections, and takes up again what it has forgotten, in another zone.
package conntrack

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Flow is a tracked connection.
type Flow struct {
	// Ends are its addresses and ports as who began it sends them, Answer as answers
	// carry them: in reverse order, and others where the connection is translated.
	Ends, Answer netlink.IPTuple
	// Own: one of the namespace's addresses has begun it. Local: one of them answers.
	Own, Local bool

	family  uint8
	mark    uint32
	timeout uint32               // seconds
	tcp     netlink.ProtoInfoTCP // of TCP
}

// Protocol returns the IP protocol.
func (f *Flow) Protocol() uint8 { return f.Ends.Protocol }

// Unanswered reports whether the connection is one of TCP that is being opened, and
// that nothing has answered.
func (f *Flow) Unanswered() bool {
	return f.Protocol() == unix.IPPROTO_TCP && f.tcp.State == nl.TCP_CONNTRACK_SYN_SENT
}

// Alive reports whether the connection is one of TCP of which at least one direction
// has not ended.
func (f *Flow) Alive() bool {
	ended := f.tcp.State == nl.TCP_CONNTRACK_TIME_WAIT || f.tcp.State == nl.TCP_CONNTRACK_CLOSE
	return f.Protocol() == unix.IPPROTO_TCP && !ended
}

// Marked reports whether the connection's mark has this value in the bits of mask.
func (f *Flow) Marked(value, mask uint32) bool { return f.mark&mask == value }

// Redirected reports whether packets go to another address or port than their sender
// gave them.
func (f *Flow) Redirected() bool {
	return !f.Answer.SrcIP.Equal(f.Ends.DstIP) || f.Answer.SrcPort != f.Ends.DstPort
}

// Masked reports whether packets go out under another address or port than their
// sender's.
func (f *Flow) Masked() bool {
	return !f.Answer.DstIP.Equal(f.Ends.SrcIP) || f.Answer.DstPort != f.Ends.SrcPort
}

// Flush forgets all connections of the namespace.
func Flush(ns *netns.NS) error {
	if err := ns.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
		return fmt.Errorf("clearing connection tracking: %w", err)
	}
	return nil
}

// Forget forgets the connections that match, and returns them.
func Forget(ns *netns.NS, match func(*Flow) bool) ([]Flow, error) {
	var gone []Flow
	err := ns.Do(func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("listing the addresses of the pod: %w", err)
		}
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter{addrs, match, &gone}); err != nil {
				return fmt.Errorf("clearing connection tracking: %w", err)
			}
		}
		return nil
	})
	return gone, err
}

// filter matches flows in a namespace with these addresses, and collects them.
type filter struct {
	addrs []netlink.Addr
	match func(*Flow) bool
	into  *[]Flow
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	has := func(ip net.IP) bool {
		return slices.ContainsFunc(f.addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip) })
	}
	found := Flow{
		Ends: flow.Forward, Answer: flow.Reverse, Own: has(flow.Forward.SrcIP), Local: has(flow.Reverse.SrcIP),
		family: flow.FamilyType, mark: flow.Mark, timeout: flow.TimeOut,
	}
	if tcp, is := flow.ProtoInfo.(*netlink.ProtoInfoTCP); is {
		found.tcp = *tcp
	}
	if !f.match(&found) {
		return false
	}
	*f.into = append(*f.into, found)
	return true
}
