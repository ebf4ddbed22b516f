// Package packet builds single IP packets by hand and sends them past the
// kernel's TCP. Tests of the redirection use it, and so does the self-test of a
// node agent: a program that opens a connection sends a SYN first, and whoever
// may open raw sockets sends whatever it likes.
package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flags of a TCP segment.
const (
	FIN byte = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Protocol numbers.
const (
	TCP    = unix.IPPROTO_TCP
	ICMP   = unix.IPPROTO_ICMP
	ICMPv6 = unix.IPPROTO_ICMPV6
)

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	// defaultHops are left to a packet that does not say otherwise.
	defaultHops = 64
)

// Signature is a TCP option that holds an MD5 signature of RFC 2385. TCP drops
// a segment with a signature that no socket asked for, and sends no reset: what
// connection tracking keeps of the segment stays.
func Signature() []byte {
	const kind, length = 19, 18
	option := make([]byte, length+2)
	option[0], option[1] = kind, length
	option[length], option[length+1] = 1, 1 // two options without effect, to full words
	return option
}

// Segment is a TCP segment.
type Segment struct {
	From, To    netip.AddrPort
	Flags       byte
	Seq, Ack    uint32
	Options     []byte // of full words
	Data        []byte
	BadChecksum bool
}

// Bytes returns the segment in wire format.
func (s Segment) Bytes() []byte {
	header := tcpHeader + len(s.Options)
	b := make([]byte, header, header+len(s.Data))
	binary.BigEndian.PutUint16(b[0:], s.From.Port())
	binary.BigEndian.PutUint16(b[2:], s.To.Port())
	binary.BigEndian.PutUint32(b[4:], s.Seq)
	binary.BigEndian.PutUint32(b[8:], s.Ack)
	b[12] = byte(header/4) << 4
	b[13] = s.Flags
	const window = 1024
	binary.BigEndian.PutUint16(b[14:], window)
	copy(b[tcpHeader:], s.Options)
	b = append(b, s.Data...)
	sum := checksum(pseudoHeader(s.From.Addr(), s.To.Addr(), TCP, len(b)), b)
	if s.BadChecksum {
		sum = ^sum
	}
	binary.BigEndian.PutUint16(b[16:], sum)
	return b
}

// Header is what a packet has in front of its payload.
type Header struct {
	From, To netip.Addr
	Protocol byte   // of the payload, or the first extension header
	Options  []byte // of IPv4, full words
	Hops     byte   // zero: 64
	// Fragment is where the payload begins in the whole one, in bytes, and More
	// reports whether others follow. IPv4 only: IPv6 has a header of its own.
	Fragment int
	More     bool
	ID       uint16
}

// Packet returns a payload with its IP header.
func Packet(h Header, payload []byte) []byte {
	if h.Hops == 0 {
		h.Hops = defaultHops
	}
	if h.To.Is6() {
		b := make([]byte, ipv6Header, ipv6Header+len(payload))
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload))) //nolint:gosec // a packet
		b[6], b[7] = h.Protocol, h.Hops
		copy(b[8:], h.From.AsSlice())
		copy(b[24:], h.To.AsSlice())
		return append(b, payload...)
	}
	const moreFragments, unit = 1 << 13, 8
	header := ipv4Header + len(h.Options)
	b := make([]byte, header, header+len(payload))
	b[0] = 4<<4 | byte(header/4)
	binary.BigEndian.PutUint16(b[2:], uint16(header+len(payload))) //nolint:gosec // a packet
	binary.BigEndian.PutUint16(b[4:], h.ID)
	place := uint16(h.Fragment / unit) //nolint:gosec // within a packet
	if h.More {
		place |= moreFragments
	}
	binary.BigEndian.PutUint16(b[6:], place)
	b[8], b[9] = h.Hops, h.Protocol
	copy(b[12:], h.From.AsSlice())
	copy(b[16:], h.To.AsSlice())
	copy(b[ipv4Header:], h.Options)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

// Of returns a segment with an IP header that nothing is special about.
func Of(s Segment) []byte {
	return Packet(Header{From: s.From.Addr(), To: s.To.Addr(), Protocol: TCP}, s.Bytes())
}

// Sender sends packets of one family from the network namespace it was made in.
type Sender struct {
	fd int
	v6 bool
}

// Open makes a sender. It needs the right to use raw sockets.
func Open(v6 bool) (*Sender, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket: %w", err)
	}
	return &Sender{fd, v6}, nil
}

// Send sends a packet with its IP header to the destination in it.
func (s *Sender) Send(packet []byte) error {
	var to unix.Sockaddr
	if s.v6 {
		to = &unix.SockaddrInet6{Addr: [16]byte(packet[24:])}
	} else {
		to = &unix.SockaddrInet4{Addr: [4]byte(packet[16:])}
	}
	return unix.Sendto(s.fd, packet, 0, to)
}

// Close frees the sender.
func (s *Sender) Close() error { return unix.Close(s.fd) }

// Error returns an ICMP message about a packet, for the family that the
// packet has. Rest is what follows the checksum, such as the size that a link
// allows.
func Error(h Header, kind, code byte, rest uint32, about []byte) []byte {
	const most = 128 // of a packet, far beyond its ports
	b := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	b = append(b, about[:min(len(about), most)]...)
	h.Protocol = ICMP
	if h.To.Is6() {
		h.Protocol = ICMPv6
		binary.BigEndian.PutUint16(b[2:], checksum(pseudoHeader(h.From, h.To, ICMPv6, len(b)), b))
	} else {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return Packet(h, b)
}

func pseudoHeader(from, to netip.Addr, protocol byte, length int) []byte {
	b := append(from.AsSlice(), to.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(length)) //nolint:gosec // a packet
	return binary.BigEndian.AppendUint32(b, uint32(protocol))
}

// checksum is the one of RFC 1071 over all parts; each but the last has an even
// length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for len(b) > 1 {
			sum += uint32(b[0])<<8 | uint32(b[1])
			b = b[2:]
		}
		if len(b) > 0 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum) //nolint:gosec // folded
}
