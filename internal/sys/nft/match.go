package nft

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	protoTCP = unix.IPPROTO_TCP
	protoUDP = unix.IPPROTO_UDP
)

// Match is one condition on a packet.
type Match interface {
	// String is the condition in the language of the nft program.
	String() string
	exprs() []expr.Any
}

// Action is what a rule does.
type Action interface {
	// String is the statement in the language of the nft program.
	String() string
	exprs() []expr.Any
}

// Proto matches the transport protocol.
type Proto struct {
	Number byte
	Not    bool
}

func (p Proto) String() string {
	name := map[byte]string{protoTCP: "tcp", protoUDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "ipv6-icmp"}[p.Number]
	if p.Not {
		return "meta l4proto != " + name
	}
	return "meta l4proto " + name
}

func (p Proto) exprs() []expr.Any {
	return metaIs(expr.MetaKeyL4PROTO, cmpOp(p.Not), []byte{p.Number})
}

// Family matches the network protocol.
type Family struct{ IPv6 bool }

func (f Family) String() string {
	if f.IPv6 {
		return "meta nfproto ipv6"
	}
	return "meta nfproto ipv4"
}

func (f Family) exprs() []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if f.IPv6 {
		proto = unix.NFPROTO_IPV6
	}
	return metaIs(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{proto})
}

// InInterface matches the interface a packet came in by.
type InInterface string

func (i InInterface) String() string { return fmt.Sprintf("iifname %q", string(i)) }
func (i InInterface) exprs() []expr.Any {
	return metaIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, ifname(string(i)))
}

// Loopback matches packets that come in by the loopback interface, or leave by it.
// Its index is 1 in each namespace (LOOPBACK_IFINDEX of linux/net.h), and to compare
// an index costs less than a name: half of a captured connection's packets match.
type Loopback struct{ Out bool }

func (l Loopback) String() string {
	if l.Out {
		return "oif lo"
	}
	return "iif lo"
}

func (l Loopback) exprs() []expr.Any {
	const loopback = 1
	key := expr.MetaKeyIIF
	if l.Out {
		key = expr.MetaKeyOIF
	}
	return metaIs(key, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(loopback))
}

// Mark matches the mark of a packet.
type Mark struct {
	Value, Mask uint32
	Not         bool
}

func (m Mark) String() string {
	return fmt.Sprintf("meta mark & %#x %s %#x", m.Mask, op(m.Not), m.Value)
}

func (m Mark) exprs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		mask(native(m.Mask), native(0)),
		&expr.Cmp{Op: cmpOp(m.Not), Register: 1, Data: native(m.Value)},
	}
}

// ConnMark matches the mark of a packet's connection.
type ConnMark struct{ Value, Mask uint32 }

func (m ConnMark) String() string { return fmt.Sprintf("ct mark & %#x == %#x", m.Mask, m.Value) }

func (m ConnMark) exprs() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		mask(native(m.Mask), native(0)),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(m.Value)},
	}
}

// Flags of TCP.
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// Flags matches the flags of a TCP packet; the protocol must have been matched.
type Flags struct {
	Mask, Value byte
	Not         bool
}

func (f Flags) String() string {
	return fmt.Sprintf("tcp flags & (%s) %s %s", flagNames(f.Mask), op(f.Not), flagNames(f.Value))
}

func (f Flags) exprs() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		mask([]byte{f.Mask}, []byte{0}),
		&expr.Cmp{Op: cmpOp(f.Not), Register: 1, Data: []byte{f.Value}},
	}
}

func flagNames(flags byte) string {
	var names []string
	for _, f := range []struct {
		bit  byte
		name string
	}{{flagFIN, "fin"}, {flagSYN, "syn"}, {flagRST, "rst"}, {flagACK, "ack"}} {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, " | ")
}

// Translated matches packets whose connection has another destination than its
// first packet had. It never matches a packet that is not tracked.
type Translated struct{}

func (Translated) String() string { return "ct status dnat" }

func (Translated) exprs() []expr.Any {
	const dnat = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		mask(native(dnat), native(0)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
	}
}

// SourcePort matches the source port; a protocol must have been matched.
type SourcePort struct{ Port uint16 }

func (p SourcePort) String() string { return fmt.Sprintf("th sport %d", p.Port) }
func (p SourcePort) exprs() []expr.Any {
	return portIs(0, expr.CmpOpEq, p.Port)
}

// DestPort matches the destination port; a protocol must have been matched.
type DestPort struct {
	Port uint16
	Not  bool
}

func (p DestPort) String() string {
	if p.Not {
		return fmt.Sprintf("th dport != %d", p.Port)
	}
	return fmt.Sprintf("th dport %d", p.Port)
}

func (p DestPort) exprs() []expr.Any { return portIs(2, cmpOp(p.Not), p.Port) }

// field is a field of the network header, which every family has elsewhere and
// calls otherwise.
type field struct{ v4, v6 place }

// place is where a field is, in bytes, and its name in the nft program.
type place struct {
	named      string
	at, length uint32
}

var (
	saddr = field{place{"ip saddr", 12, 4}, place{"ip6 saddr", 8, 16}}
	daddr = field{place{"ip daddr", 16, 4}, place{"ip6 daddr", 24, 16}}
	// hops are those that are left to a packet.
	hops = field{place{"ip ttl", 8, 1}, place{"ip6 hoplimit", 7, 1}}
	// inside is the protocol of what follows the header.
	inside = field{place{"ip protocol", 9, 1}, place{"ip6 nexthdr", 6, 1}}
)

func (f field) in(v6 bool) place {
	if v6 {
		return f.v6
	}
	return f.v4
}

func (f field) name(v6 bool) string { return f.in(v6).named }

func (f field) load(v6 bool) *expr.Payload {
	p := f.in(v6)
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: p.at, Len: p.length}
}

// SourceAddr matches the source address.
type SourceAddr struct{ Prefix netip.Prefix }

func (a SourceAddr) String() string {
	return fmt.Sprintf("%s %s", saddr.name(a.Prefix.Addr().Is6()), a.Prefix)
}

func (a SourceAddr) exprs() []expr.Any {
	addr := a.Prefix.Masked().Addr().AsSlice()
	bits := make([]byte, len(addr))
	for i := range a.Prefix.Bits() {
		bits[i/8] |= 0x80 >> (i % 8)
	}
	v6 := a.Prefix.Addr().Is6()
	return append(Family{v6}.exprs(),
		saddr.load(v6),
		mask(bits, make([]byte, len(addr))),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr},
	)
}

// NotToLinkLocal matches destinations of IPv6 that are not the link's own; the
// family must have been matched.
type NotToLinkLocal struct{}

func (NotToLinkLocal) String() string { return daddr.name(true) + " & ffc0:: != fe80::" }

func (NotToLinkLocal) exprs() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: daddr.v6.at, Len: 2},
		mask([]byte{0xff, 0xc0}, []byte{0, 0}),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0xfe, 0x80}},
	}
}

// States of connections, as bits; see ConnState.
const (
	stateInvalid   = expr.CtStateBitINVALID
	stateNew       = expr.CtStateBitNEW
	stateUntracked = expr.CtStateBitUNTRACKED
)

// ConnState matches packets whose connection is in one of the states; Not, in
// none of them. A packet that connection tracking cannot place is invalid.
type ConnState struct {
	States uint32
	Not    bool
}

func (s ConnState) String() string {
	var names []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{{stateInvalid, "invalid"}, {stateNew, "new"}, {stateUntracked, "untracked"}} {
		if s.States&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return fmt.Sprintf("ct state & (%s) %s 0", strings.Join(names, " | "), op(!s.Not))
}

func (s ConnState) exprs() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		mask(native(s.States), native(0)),
		&expr.Cmp{Op: cmpOp(!s.Not), Register: 1, Data: native(0)},
	}
}

// Answer matches packets that go back to who has begun.
type Answer struct{}

func (Answer) String() string { return "ct direction reply" }

func (Answer) exprs() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}}}
}

// ToLoopback matches the address that the kernel redirects the pod's own
// connections to.
type ToLoopback struct{ IPv6 bool }

func (l ToLoopback) addr() netip.Addr {
	if l.IPv6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (l ToLoopback) String() string { return daddr.name(l.IPv6) + " " + l.addr().String() }

func (l ToLoopback) exprs() []expr.Any {
	return append(Family(l).exprs(), daddr.load(l.IPv6), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: l.addr().AsSlice()})
}

// ToItself matches packets to an address of the namespace.
type ToItself struct{}

func (ToItself) String() string { return "fib daddr type local" }

func (ToItself) exprs() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(unix.RTN_LOCAL)},
	}
}

// ToSocket matches packets for a connection, or a listener, of the namespace's own
// programs. The kernel needs NFT_SOCKET.
type ToSocket struct{}

func (ToSocket) String() string { return "socket transparent <= 1" }

// exprs end the rule when there is no socket, whatever they load of it.
func (ToSocket) exprs() []expr.Any {
	return []expr.Any{&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}}
}

// DestIn matches a destination address that is in a set of the table.
type DestIn struct {
	IPv6 bool
	Set  string
	// Bridge is for tables of the family bridge, where the network protocol is
	// that of the frame.
	Bridge bool
}

func (d DestIn) String() string {
	return daddr.name(d.IPv6) + " @" + d.Set
}

func (d DestIn) exprs() []expr.Any {
	is := Family{d.IPv6}.exprs()
	if d.Bridge && d.IPv6 {
		is = EtherType(unix.ETH_P_IPV6).exprs()
	} else if d.Bridge {
		is = EtherType(unix.ETH_P_IP).exprs()
	}
	return append(is, daddr.load(d.IPv6), &expr.Lookup{SourceRegister: 1, SetName: d.Set})
}

// Hops matches the hops that are left to a packet; the family must have been
// matched.
type Hops struct {
	IPv6  bool
	Value byte
}

func (h Hops) String() string {
	return fmt.Sprintf("%s %d", hops.name(h.IPv6), h.Value)
}

func (h Hops) exprs() []expr.Any {
	return []expr.Any{hops.load(h.IPv6), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{h.Value}}}
}

// SetHops changes the hops that are left to a packet; the family must have been
// matched.
type SetHops struct {
	IPv6  bool
	Value byte
}

func (h SetHops) String() string {
	return fmt.Sprintf("%s set %d", hops.name(h.IPv6), h.Value)
}

func (h SetHops) exprs() []expr.Any {
	if h.IPv6 { // whose header has no checksum
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: []byte{h.Value}},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: hops.v6.at, Len: hops.v6.length},
		}
	}
	// A checksum is one of 16-bit words: the protocol's byte goes along.
	const word, checksumOffset = 2, 10
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: hops.v4.at, Len: word},
		mask([]byte{0, 0xff}, []byte{h.Value, 0}),
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: hops.v4.at, Len: word,
			CsumType: expr.CsumTypeInet, CsumOffset: checksumOffset,
		},
	}
}

// Accept ends the chain.
type Accept struct{}

func (Accept) String() string    { return "accept" }
func (Accept) exprs() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// Reset drops the packet, and ends the connection with a reset to its sender.
type Reset struct{}

func (Reset) String() string    { return "reject with tcp reset" }
func (Reset) exprs() []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

// Unreachable drops the packet, and reports to its sender that no program has the port.
type Unreachable struct{}

func (Unreachable) String() string { return "reject with icmpx port-unreachable" }

func (Unreachable) exprs() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

// Drop drops the packet.
type Drop struct{}

func (Drop) String() string    { return "drop" }
func (Drop) exprs() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// NoTrack keeps the packet out of connection tracking.
type NoTrack struct{}

func (NoTrack) String() string    { return "notrack" }
func (NoTrack) exprs() []expr.Any { return []expr.Any{&expr.Notrack{}} }

// Redirect sends the connection to a port of the namespace itself.
type Redirect struct{ Port uint16 }

func (r Redirect) String() string { return fmt.Sprintf("redirect to :%d", r.Port) }

func (r Redirect) exprs() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.Port)},
		&expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

// SetConnMark replaces the masked bits of the connection's mark.
type SetConnMark struct{ Value, Mask uint32 }

func (m SetConnMark) String() string {
	return fmt.Sprintf("ct mark set ct mark & %#x | %#x", ^m.Mask, m.Value)
}

func (m SetConnMark) exprs() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		mask(native(^m.Mask), native(m.Value)),
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}
}

// RestoreMark gives the packet the mark of its connection.
type RestoreMark struct{}

func (RestoreMark) String() string { return "meta mark set ct mark" }

func (RestoreMark) exprs() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

// SetZone tracks the packet's connection apart from those of other zones.
type SetZone struct{ Zone uint16 }

func (z SetZone) String() string { return fmt.Sprintf("ct zone set %d", z.Zone) }

func (z SetZone) exprs() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint16(z.Zone)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: 1, SourceRegister: true},
	}
}

func metaIs(key expr.MetaKey, o expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: o, Register: 1, Data: data}}
}

func portIs(offset uint32, o expr.CmpOp, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: o, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

func mask(and, xor []byte) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(and)), Mask: and, Xor: xor} //nolint:gosec // at most 16
}

// ifname pads a name to what the kernel compares. A longer name cannot be an
// interface's; it is cut and matches nothing.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b[:unix.IFNAMSIZ-1], name)
	return b
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func cmpOp(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

func op(not bool) string {
	if not {
		return "!="
	}
	return "=="
}
