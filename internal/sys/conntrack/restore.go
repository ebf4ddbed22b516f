package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	socket "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Restore tracks TCP connections again that were forgotten, translated as before:
// what a sender's own ends identify is in the zone, answers are in none. Zone 0 is none.
// A connection whose ends another one has in the meantime is left out. One that the kernel
// refuses, such as when its table is full, does not keep the others from being tracked:
// the error joins all of these.
func Restore(ns *netns.NS, flows []Flow, zone uint16) error {
	if len(flows) == 0 {
		return nil
	}
	conn, err := socket.Dial(unix.NETLINK_NETFILTER, &socket.Config{NetNS: int(ns.File().Fd())})
	if err != nil {
		return fmt.Errorf("opening conntrack netlink: %w", err)
	}
	defer conn.Close() //nolint:errcheck // only closing
	var refused []error
	for i := range flows {
		m, err := flows[i].message(zone)
		if err == nil {
			_, err = conn.Execute(m)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			refused = append(refused, fmt.Errorf("tracking a connection again: %w", err))
		}
	}
	return errors.Join(refused...)
}

// Attributes of ctnetlink that the libraries do not name (linux/netfilter/nfnetlink_conntrack.h).
const (
	tupleZone = 3 // CTA_TUPLE_ZONE

	natSource = 6  // CTA_NAT_SRC
	natTarget = 13 // CTA_NAT_DST

	natIPv4     = 1 // CTA_NAT_V4_MINIP
	natIPv4Last = 2 // CTA_NAT_V4_MAXIP
	natPorts    = 3 // CTA_NAT_PROTO
	natIPv6     = 4 // CTA_NAT_V6_MINIP
	natIPv6Last = 5 // CTA_NAT_V6_MAXIP

	natPort     = 1 // CTA_PROTONAT_PORT_MIN
	natPortLast = 2 // CTA_PROTONAT_PORT_MAX

	tcpFlagsOriginal = 4 // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL
	tcpFlagsReply    = 5 // CTA_PROTOINFO_TCP_FLAGS_REPLY
)

// Bits of a connection (linux/netfilter/nf_conntrack_common.h, nf_conntrack_tcp.h).
const (
	seenReply = 1 << 1 // IPS_SEEN_REPLY
	assured   = 1 << 2 // IPS_ASSURED: it is not the first to go when the table is full
	confirmed = 1 << 3 // IPS_CONFIRMED: it is in the table
	liberal   = 1 << 3 // IP_CT_TCP_FLAG_BE_LIBERAL: windows are not checked
)

// message asks for the flow. The kernel works the answer's ends out of the
// translations, as it did for the first packet.
func (f *Flow) message(zone uint16) (socket.Message, error) {
	a := socket.NewAttributeEncoder()
	a.ByteOrder = binary.BigEndian
	a.Nested(nl.CTA_TUPLE_ORIG, func(a *socket.AttributeEncoder) error {
		if zone != 0 {
			a.Uint16(tupleZone, zone)
		}
		return tuple(a, f.Protocol(), f.Ends.SrcIP, f.Ends.DstIP, f.Ends.SrcPort, f.Ends.DstPort)
	})
	a.Nested(nl.CTA_TUPLE_REPLY, func(a *socket.AttributeEncoder) error {
		return tuple(a, f.Protocol(), f.Ends.DstIP, f.Ends.SrcIP, f.Ends.DstPort, f.Ends.SrcPort)
	})
	if f.Masked() {
		a.Nested(natSource, translated(f.Answer.DstIP, f.Answer.DstPort))
	}
	if f.Redirected() {
		a.Nested(natTarget, translated(f.Answer.SrcIP, f.Answer.SrcPort))
	}
	a.Uint32(nl.CTA_STATUS, f.status())
	a.Uint32(nl.CTA_TIMEOUT, f.timeout)
	a.Uint32(nl.CTA_MARK, f.mark)
	a.Nested(nl.CTA_PROTOINFO, func(a *socket.AttributeEncoder) error {
		a.Nested(nl.CTA_PROTOINFO_TCP, func(a *socket.AttributeEncoder) error {
			a.Uint8(nl.CTA_PROTOINFO_TCP_STATE, f.tcp.State)
			// The windows that both sides have announced are not known any more.
			a.Bytes(tcpFlagsOriginal, []byte{liberal, liberal})
			a.Bytes(tcpFlagsReply, []byte{liberal, liberal})
			return nil
		})
		return nil
	})
	data, err := a.Encode()
	return socket.Message{
		Header: socket.Header{
			Type:  unix.NFNL_SUBSYS_CTNETLINK << 8, // IPCTNL_MSG_CT_NEW is 0
			Flags: socket.Request | socket.Acknowledge | socket.Create | socket.Excl,
		},
		Data: append([]byte{f.family, unix.NFNETLINK_V0, 0, 0}, data...),
	}, err
}

func (f *Flow) status() uint32 {
	switch f.tcp.State {
	case nl.TCP_CONNTRACK_SYN_SENT, nl.TCP_CONNTRACK_SYN_SENT2:
		return confirmed
	case nl.TCP_CONNTRACK_SYN_RECV:
		return confirmed | seenReply
	}
	return confirmed | seenReply | assured
}

func tuple(a *socket.AttributeEncoder, protocol uint8, src, dst net.IP, srcPort, dstPort uint16) error {
	a.Nested(nl.CTA_TUPLE_IP, func(a *socket.AttributeEncoder) error {
		if v4 := src.To4(); v4 != nil {
			a.Bytes(nl.CTA_IP_V4_SRC, v4)
			a.Bytes(nl.CTA_IP_V4_DST, dst.To4())
			return nil
		}
		a.Bytes(nl.CTA_IP_V6_SRC, src)
		a.Bytes(nl.CTA_IP_V6_DST, dst)
		return nil
	})
	a.Nested(nl.CTA_TUPLE_PROTO, func(a *socket.AttributeEncoder) error {
		a.Uint8(nl.CTA_PROTO_NUM, protocol)
		a.Uint16(nl.CTA_PROTO_SRC_PORT, srcPort)
		a.Uint16(nl.CTA_PROTO_DST_PORT, dstPort)
		return nil
	})
	return nil
}

// translated writes one address and port to translate to.
func translated(ip net.IP, port uint16) func(*socket.AttributeEncoder) error {
	return func(a *socket.AttributeEncoder) error {
		if v4 := ip.To4(); v4 != nil {
			a.Bytes(natIPv4, v4)
			a.Bytes(natIPv4Last, v4)
		} else {
			a.Bytes(natIPv6, ip)
			a.Bytes(natIPv6Last, ip)
		}
		a.Nested(natPorts, func(a *socket.AttributeEncoder) error {
			a.Uint16(natPort, port)
			a.Uint16(natPortLast, port)
			return nil
		})
		return nil
	}
}

var _ netlink.CustomConntrackFilter = filter{}
