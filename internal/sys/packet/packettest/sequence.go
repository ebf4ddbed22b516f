// Package packettest attacks the redirection of a pod: it sends packets that a
// program never sends, and then connects from the same port.
package packettest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/sys/packet"
)

// flagSets is how many sets of TCP flags there are. The first sequences are all
// of them, with and without a signature; the others are drawn.
const (
	flagSets   = 256
	exhaustive = 2 * flagSets
	longest    = 4
)

// Sequence returns the packets of a sequence, by its number. Numbers and seed
// give the same packets every time.
func Sequence(seed uint64, number int, from, to netip.AddrPort) [][]byte {
	if number < exhaustive {
		s := packet.Segment{From: from, To: to, Flags: byte(number % flagSets), Seq: 1, Ack: 1}
		if number >= flagSets {
			s.Options = packet.Signature()
		}
		return [][]byte{packet.Of(s)}
	}
	d := draw{rand.New(rand.NewPCG(seed, uint64(number))), from, to} //nolint:gosec // no secret
	var all [][]byte
	for range 1 + d.IntN(longest) {
		all = append(all, d.packets()...)
	}
	return all
}

// draw makes packets at random.
type draw struct {
	*rand.Rand
	from, to netip.AddrPort
}

func (d draw) v6() bool { return d.to.Addr().Is6() }

func (d draw) oneIn(n int) bool { return d.IntN(n) == 0 }

func (d draw) packets() [][]byte {
	switch {
	case d.oneIn(6):
		return [][]byte{d.icmp()}
	case d.oneIn(5):
		return d.fragments()
	}
	return [][]byte{d.whole()}
}

// flags favours those that connection tracking and TCP tell apart.
func (d draw) flags() byte {
	likely := []byte{
		packet.ACK, packet.SYN | packet.ACK, packet.FIN | packet.ACK, packet.RST | packet.ACK, packet.PSH | packet.ACK,
		packet.SYN, packet.RST, packet.FIN, packet.SYN | packet.FIN, packet.SYN | packet.RST, packet.SYN | packet.ECE | packet.CWR, 0,
	}
	if i := d.IntN(len(likely) + 4); i < len(likely) {
		return likely[i]
	}
	return byte(d.Uint32())
}

func (d draw) segment() packet.Segment {
	s := packet.Segment{
		From: d.from, To: d.to, Flags: d.flags(), Seq: d.Uint32(), Ack: d.Uint32(),
		Options: d.options(), BadChecksum: d.oneIn(8),
	}
	if d.oneIn(3) {
		s.Data = d.bytes(1 + d.IntN(64))
	}
	return s
}

func (d draw) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(d.Uint32())
	}
	return b
}

// options returns options of TCP, right ones and wrong ones.
func (d draw) options() []byte {
	list := [][]byte{
		nil, nil,
		packet.Signature(), packet.Signature(), packet.Signature(),
		{2, 4, 0x05, 0xb4},                                // largest segment
		append([]byte{1, 1, 8, 10}, d.bytes(8)...),        // timestamps
		{1, 1, 4, 2},                                      // selective acknowledgement permitted
		append([]byte{1, 1, 5, 10}, d.bytes(8)...),        // selective acknowledgement
		{1, 3, 3, 7},                                      // window scale
		{34, 2, 1, 1},                                     // asks for a cookie of Fast Open
		append([]byte{1, 1, 34, 10}, d.bytes(8)...),       // Fast Open with a cookie
		append([]byte{29, 16, 0, 0}, d.bytes(12)...),      // authentication of RFC 5925
		append([]byte{30, 12, 0x01, 0x81}, d.bytes(8)...), // multipath
		{19, 40, 0, 0},                                    // longer than the header
		d.bytes(4 * (1 + d.IntN(10))),                     // anything
	}
	return list[d.IntN(len(list))]
}

func (d draw) header(protocol byte) packet.Header {
	h := packet.Header{From: d.from.Addr(), To: d.to.Addr(), Protocol: protocol, ID: uint16(d.Uint32())} //nolint:gosec // any
	if d.oneIn(2) {
		h.Hops = byte(1 + d.IntN(255))
	}
	if !d.v6() && d.oneIn(6) {
		h.Options = [][]byte{{1, 1, 1, 1}, {7, 7, 4, 0, 0, 0, 0, 0}, {131, 7, 4, 10, 0, 0, 1, 0}, {148, 4, 0, 0}}[d.IntN(4)]
	}
	return h
}

// whole returns a segment in one packet.
func (d draw) whole() []byte {
	b := d.segment().Bytes()
	if d.v6() && d.oneIn(3) {
		first, b := d.extended(packet.TCP, b)
		return packet.Packet(d.header(first), b)
	}
	return packet.Packet(d.header(packet.TCP), b)
}

// Extension headers of IPv6.
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	destination = 60
)

// extended puts extension headers in front of a payload.
func (d draw) extended(protocol byte, b []byte) (first byte, all []byte) {
	for range 1 + d.IntN(3) {
		var header []byte
		var kind byte
		switch d.IntN(4) {
		case 0:
			kind, header = hopByHop, []byte{protocol, 0, 1, 4, 0, 0, 0, 0}
		case 1:
			kind, header = destination, []byte{protocol, 0, 1, 4, 0, 0, 0, 0}
		case 2:
			kind, header = routing, []byte{protocol, 0, byte(d.IntN(5)), 0, 0, 0, 0, 0}
		case 3: // a fragment that is the whole
			kind, header = fragment, append([]byte{protocol, 0, 0, 0}, d.bytes(4)...)
		}
		b = append(header, b...)
		protocol = kind
	}
	return protocol, b
}

// fragments returns a segment in pieces: all, in any order, overlapping, or not
// all.
func (d draw) fragments() [][]byte {
	const unit = 8
	s := d.segment()
	s.Data = append(s.Data, d.bytes(unit*3)...)
	b := s.Bytes()
	cut := unit * (1 + d.IntN(len(b)/unit-1))
	begin := cut
	if d.oneIn(4) {
		begin -= unit
	}
	id := d.Uint32()
	h := d.header(packet.TCP)
	piece := func(at int, b []byte, more bool) []byte {
		if !d.v6() {
			h := h
			h.ID, h.Fragment, h.More = uint16(id), at, more //nolint:gosec // any
			return packet.Packet(h, b)
		}
		place := uint16(at) //nolint:gosec // within a packet
		if more {
			place |= 1
		}
		header := binary.BigEndian.AppendUint16([]byte{packet.TCP, 0}, place)
		header = binary.BigEndian.AppendUint32(header, id)
		h := h
		h.Protocol = fragment
		return packet.Packet(h, append(header, b...))
	}
	all := [][]byte{piece(0, b[:cut], true), piece(begin, b[begin:], false)}
	if d.oneIn(2) {
		all[0], all[1] = all[1], all[0]
	}
	if d.oneIn(4) {
		all = all[:1]
	}
	return all
}

// icmp returns an error about a packet of the connection, in either direction.
func (d draw) icmp() []byte {
	about := packet.Segment{From: d.to, To: d.from, Flags: d.flags(), Seq: d.Uint32(), Ack: d.Uint32()}
	if d.oneIn(2) {
		about.From, about.To = about.To, about.From
	}
	kinds := []byte{3, 3, 4, 11, 12}
	if d.v6() {
		kinds = []byte{1, 2, 3, 4}
	}
	mtu := uint32(d.IntN(1600)) //nolint:gosec // positive
	return packet.Error(d.header(0), kinds[d.IntN(len(kinds))], byte(d.IntN(16)), mtu, packet.Of(about))
}
