package nft

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	socket "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// A connection that is older than the table was never redirected and goes on as
// before. Connection tracking may learn of it at any packet, or lose it, so the
// table lists such connections by their ends, but for those in TIME_WAIT: what they
// still send or get changes nothing for a program. A table that somebody has deleted
// is written anew like the first one: what goes past the proxy at that time goes
// on.

// connection is a TCP connection as a socket of the namespace has it.
type connection struct{ local, remote netip.AddrPort }

// Sets of the connections that are older than the table.
const (
	olderIPv4 = "older-ipv4"
	olderIPv6 = "older-ipv6"
)

func olderSets(cfg step) []Set {
	if !cfg.continues() {
		return nil
	}
	sets := []Set{{Name: olderIPv4, Connections: true}}
	if cfg.IPv6 {
		sets = append(sets, Set{Name: olderIPv6, IPv6: true, Connections: true})
	}
	return sets
}

func olderKey(v6 bool) nftables.SetDatatype {
	addr := nftables.TypeIPAddr
	if v6 {
		addr = nftables.TypeIP6Addr
	}
	return nftables.MustConcatSetType(addr, nftables.TypeInetService, addr, nftables.TypeInetService)
}

// Older matches packets of the connections in a set: those that the namespace
// sends, or those it receives.
type Older struct {
	IPv6 bool
	Set  string
	In   bool
}

func (o Older) String() string {
	local, remote := saddr.name(o.IPv6)+" . th sport", daddr.name(o.IPv6)+" . th dport"
	if o.In {
		local, remote = remote, local
	}
	return local + " . " + remote + " @" + o.Set
}

func (o Older) exprs() []expr.Any {
	// The registers of the four parts of the key, which lie side by side. The
	// kernel names the first of four by the long register that they make up.
	registers := [4]uint32{unix.NFT_REG_1, unix.NFT_REG32_01, unix.NFT_REG32_02, unix.NFT_REG32_03}
	if o.IPv6 {
		registers = [4]uint32{unix.NFT_REG_1, unix.NFT_REG_2, unix.NFT_REG32_05, unix.NFT_REG32_09}
	}
	const sport, dport = 0, 2
	fields := []struct {
		addr field
		port uint32
	}{{saddr, sport}, {daddr, dport}}
	if o.In {
		slices.Reverse(fields)
	}
	es := Family{o.IPv6}.exprs()
	for i, f := range fields {
		addr := f.addr.load(o.IPv6)
		addr.DestRegister = registers[2*i]
		es = append(es, addr, &expr.Payload{DestRegister: registers[2*i+1], Base: expr.PayloadBaseTransportHeader, Offset: f.port, Len: 2})
	}
	return append(es, &expr.Lookup{SourceRegister: registers[0], SetName: o.Set})
}

// older lists the connections of the namespace that the proxy does not carry.
func older(ns *netns.NS) ([]connection, error) {
	all, err := connections(ns)
	if err != nil {
		return nil, err
	}
	return uncaptured(all), nil
}

func connections(ns *netns.NS) ([]connection, error) {
	sockets, err := sockets(ns)
	all := make([]connection, len(sockets))
	for i := range sockets {
		all[i] = connection{sockets[i].Local, sockets[i].Remote}
	}
	return all, err
}

// uncaptured leaves out the connections whose other end is in the namespace:
// those between the pod and its proxy, and those of the pod with itself. An end
// that is redirected to the proxy believes to be connected to somebody else; the
// proxy's end names it.
func uncaptured(all []connection) []connection {
	byEnds := make(map[connection]bool, len(all))
	atProxy := map[netip.AddrPort]bool{}
	for _, c := range all {
		byEnds[c] = true
		if p := c.local.Port(); p == wellknown.PortOutbound || p == wellknown.PortDNS {
			atProxy[c.remote] = true
		}
	}
	var rest []connection
	for _, c := range all {
		inside := byEnds[connection{c.remote, c.local}] || atProxy[c.local] || c.local.Addr().IsLoopback()
		if !inside {
			rest = append(rest, c)
		}
	}
	return rest
}

// key is a connection as an element of a set: ports are padded to full words.
func (c connection) key() []byte {
	var b []byte
	for _, end := range []netip.AddrPort{c.local, c.remote} {
		b = append(b, end.Addr().AsSlice()...)
		b = append(b, binaryutil.BigEndian.PutUint16(end.Port())...)
		b = append(b, 0, 0)
	}
	return b
}

// addOlder adds to a transaction what makes a set of those connections of the
// list that have its family.
func addOlder(conn *nftables.Conn, table *nftables.Table, s Set, list []connection) error {
	set := &nftables.Set{Table: table, Name: s.Name, Concatenation: true, KeyType: olderKey(s.IPv6)}
	if err := conn.AddSet(set, nil); err != nil {
		return fmt.Errorf("nftables set %s: %w", s.Name, err)
	}
	seen := map[connection]bool{}
	var elements []nftables.SetElement
	for _, c := range list {
		if c.local.Addr().Is6() == s.IPv6 && c.remote.Addr().Is6() == s.IPv6 && !seen[c] {
			seen[c] = true
			elements = append(elements, nftables.SetElement{Key: c.key()})
		}
	}
	for part := range slices.Chunk(elements, maxElements) {
		if err := conn.SetAddElements(set, part); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	return nil
}

// roomForOlder is for one transaction with 100,000 connections of IPv6.
const roomForOlder = 16 << 20

func largeTransactions(c *socket.Conn) error { return c.SetWriteBuffer(roomForOlder) }
