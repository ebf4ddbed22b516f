// Package origin finds where datagrams were going before they were redirected, by asking
// connection tracking: for UDP the kernel has no SO_ORIGINAL_DST.
package origin

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Table is the connections that a namespace tracks. It is for one goroutine at a time.
type Table struct {
	fd       int
	sequence uint32
	request  [request6]byte
	answer   [4096]byte
}

// Open opens connection tracking of a namespace; nil is the process's own.
// The process needs CAP_NET_ADMIN there.
func Open(ns *netns.NS) (*Table, error) {
	fd := -1
	open := func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		return os.NewSyscallError("socket", err)
	}
	var err error
	if ns == nil {
		err = open()
	} else {
		err = ns.Do(open)
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("opening conntrack netlink: %w", err)
	}
	return &Table{fd: fd}, nil
}

// Close closes it.
func (o *Table) Close() {
	if o != nil {
		_ = unix.Close(o.fd)
	}
}

// Lengths of a question about a flow: netlink's header, netfilter's, and the tuple.
const (
	netlinkHeader   = 16
	netfilterHeader = 4
	attribute       = 4
	addresses4      = attribute + 2*(attribute+4)
	addresses6      = attribute + 2*(attribute+16)
	ports           = attribute + 3*(attribute+4)
	request4        = netlinkHeader + netfilterHeader + attribute + addresses4 + ports
	request6        = netlinkHeader + netfilterHeader + attribute + addresses6 + ports
	getFlow         = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	attributeKind   = 1<<14 - 1                         // without the flags of nesting and byte order
	maxRead         = 8                                 // datagrams that one question reads
)

// Attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	tupleOriginal, tupleReply              = 1, 2    // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
	tupleIP, tupleProtocol                 = 1, 2    // CTA_TUPLE_IP, CTA_TUPLE_PROTO
	ip4Source, ip4Target                   = 1, 2    // CTA_IP_V4_SRC, CTA_IP_V4_DST
	ip6Source, ip6Target                   = 3, 4    // CTA_IP_V6_SRC, CTA_IP_V6_DST
	protocolNumber, sourcePort, targetPort = 1, 2, 3 // CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
)

// UDP returns where a datagram from peer, which came to local, was going before it
// was redirected. The error is ENOENT (errors.Is) when connection tracking does not
// know it.
func (o *Table) UDP(peer, local netip.AddrPort) (netip.AddrPort, error) {
	o.sequence++
	request := o.ask(peer, local)
	if err := unix.Sendto(o.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return netip.AddrPort{}, os.NewSyscallError("sendto", err)
	}
	for range maxRead {
		n, _, err := unix.Recvfrom(o.fd, o.answer[:], unix.MSG_DONTWAIT)
		if err != nil {
			return netip.AddrPort{}, os.NewSyscallError("recvfrom", err)
		}
		b := o.answer[:n]
		if len(b) < netlinkHeader || binary.NativeEndian.Uint32(b[8:]) != o.sequence {
			continue // the answer to an earlier question, which had failed
		}
		return flowTarget(b)
	}
	return netip.AddrPort{}, unix.EAGAIN
}

// ask writes the question about the flow whose answers go from local to peer.
func (o *Table) ask(peer, local netip.AddrPort) []byte {
	family, size, src, dst := byte(unix.AF_INET), request4, uint16(ip4Source), uint16(ip4Target)
	if peer.Addr().Is6() {
		family, size, src, dst = unix.AF_INET6, request6, ip6Source, ip6Target
	}
	b := o.request[:0]
	b = binary.NativeEndian.AppendUint32(b, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, getFlow)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, o.sequence)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0, 0, 0)
	head := func(kind uint16, length int) {
		b = binary.NativeEndian.AppendUint16(b, uint16(length))
		b = binary.NativeEndian.AppendUint16(b, kind)
	}
	addr := func(kind uint16, a netip.Addr) {
		if a.Is4() {
			v := a.As4()
			head(kind, attribute+len(v))
			b = append(b, v[:]...)
			return
		}
		v := a.As16()
		head(kind, attribute+len(v))
		b = append(b, v[:]...)
	}
	head(unix.NLA_F_NESTED|tupleReply, size-netlinkHeader-netfilterHeader)
	head(unix.NLA_F_NESTED|tupleIP, size-netlinkHeader-netfilterHeader-attribute-ports)
	addr(src, local.Addr())
	addr(dst, peer.Addr())
	head(unix.NLA_F_NESTED|tupleProtocol, ports)
	head(protocolNumber, attribute+1)
	b = append(b, unix.IPPROTO_UDP, 0, 0, 0)
	head(sourcePort, attribute+2)
	b = append(binary.BigEndian.AppendUint16(b, local.Port()), 0, 0)
	head(targetPort, attribute+2)
	return append(binary.BigEndian.AppendUint16(b, peer.Port()), 0, 0)
}

// flowTarget reads the destination that the sender of a flow gave it, from the
// kernel's answer.
func flowTarget(b []byte) (netip.AddrPort, error) {
	none := netip.AddrPort{}
	if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
		if len(b) < netlinkHeader+4 {
			return none, unix.EPROTO
		}
		if code := int32(binary.NativeEndian.Uint32(b[netlinkHeader:])); code < 0 {
			return none, fmt.Errorf("looking a flow up: %w", unix.Errno(-code))
		}
		return none, unix.EPROTO
	}
	if len(b) < netlinkHeader+netfilterHeader {
		return none, unix.EPROTO
	}
	tuple := find(b[netlinkHeader+netfilterHeader:], tupleOriginal)
	ip := find(tuple, tupleIP)
	raw := find(ip, ip4Target)
	if raw == nil {
		raw = find(ip, ip6Target)
	}
	port := find(find(tuple, tupleProtocol), targetPort)
	a, ok := netip.AddrFromSlice(raw)
	if !ok || len(port) < 2 {
		return none, unix.EPROTO
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port)), nil
}

// find returns the content of an attribute in a list of them, nil without one.
func find(b []byte, kind uint16) []byte {
	for len(b) >= attribute {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attribute || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&attributeKind == kind {
			return b[attribute:n]
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}
