package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The nodes lead service addresses to pods, so that services work before, and
// without, the mesh. This is what kube-proxy is on a cluster.

const forwardTable = "ambit-lab"

// Registers: one for the comparison at hand, two for the translation.
const (
	regMatch = 1
	regAddr  = 1
	regPort  = 2
)

// Program replaces a namespace's rules in one transaction.
func Program(sp *Space, rules []Forward) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(sp.Ns.File().Fd())))
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: forwardTable}
	// Made first, so that there is one to delete.
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	services := c.AddChain(&nftables.Chain{Table: t, Name: "services"})
	hook := func(name string, kind nftables.ChainType, h *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: h, Priority: prio})
	}
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: services.Name}}
	pre := hook("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := hook("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	c.AddRule(&nftables.Rule{Table: t, Chain: pre, Exprs: jump})
	c.AddRule(&nftables.Rule{Table: t, Chain: out, Exprs: jump})
	post := hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	fwd := hook("refuse-forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	own := hook("refuse-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)

	seen := map[netip.Addr]bool{}
	for _, f := range rules {
		for i := range f.To {
			c.AddRule(&nftables.Rule{Table: t, Chain: services, Exprs: f.translate(i)})
			if a := f.To[i].Addr(); !seen[a] {
				seen[a] = true
				c.AddRule(&nftables.Rule{Table: t, Chain: post, Exprs: hairpin(a)})
			}
		}
	}
	for _, p := range []netip.Prefix{ServiceNetwork4, ServiceNetwork6} {
		for _, ch := range []*nftables.Chain{fwd, own} {
			for _, e := range refuse(p) {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: e})
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// translate sends what is for the service to its i-th pod, with a chance that
// makes all pods equal when the rules are tried one after the other.
func (f Forward) translate(i int) []expr.Any {
	proto := byte(unix.IPPROTO_TCP)
	if f.Udp {
		proto = unix.IPPROTO_UDP
	}
	e := matchAddr(f.Vip.Addr(), true)
	e = append(e,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regMatch},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: []byte{proto}},
		&expr.Payload{DestRegister: regMatch, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: binaryutil.BigEndian.PutUint16(f.Vip.Port())},
	)
	e = append(e, f.chance(i)...)
	return append(e,
		&expr.Immediate{Register: regAddr, Data: f.To[i].Addr().AsSlice()},
		&expr.Immediate{Register: regPort, Data: binaryutil.BigEndian.PutUint16(f.To[i].Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family(f.Vip.Addr()), RegAddrMin: regAddr, RegProtoMin: regPort},
	)
}

func (f Forward) chance(i int) []expr.Any {
	n := uint32(len(f.To)) //nolint:gosec // a handful
	if f.Stick && n > 1 {
		off, size := addrField(f.Vip.Addr(), false)
		return []expr.Any{
			&expr.Payload{DestRegister: regMatch, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: size},
			&expr.Hash{SourceRegister: regMatch, DestRegister: regMatch, Length: size, Modulus: n, Type: expr.HashTypeJenkins},
			&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: binaryutil.NativeEndian.PutUint32(uint32(i))}, //nolint:gosec // a handful
		}
	}
	left := n - uint32(i) //nolint:gosec // a handful
	if left <= 1 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: regMatch, Modulus: left, Type: unix.NFT_NG_RANDOM},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// hairpin hides a pod that reaches itself through a service behind its node:
// it would take a packet from its own address for a forgery.
func hairpin(a netip.Addr) []expr.Any {
	return append(append(matchAddr(a, false), matchAddr(a, true)...), &expr.Masq{})
}

// refuse answers for services without a ready pod.
func refuse(p netip.Prefix) [][]expr.Any {
	match := matchPrefix(p)
	tcp := append(append([]expr.Any{}, match...),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regMatch},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	)
	other := append(append([]expr.Any{}, match...),
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH},
	)
	return [][]expr.Any{tcp, other}
}

func family(a netip.Addr) uint32 {
	if a.Is6() {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// addrField is where an address is in the IP header, in bytes.
func addrField(a netip.Addr, dst bool) (offset, size uint32) {
	switch {
	case a.Is6() && dst:
		return 24, 16
	case a.Is6():
		return 8, 16
	case dst:
		return 16, 4
	}
	return 12, 4
}

func matchFamily(a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: regMatch},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: []byte{byte(family(a))}},
	}
}

func matchAddr(a netip.Addr, dst bool) []expr.Any {
	off, size := addrField(a, dst)
	return append(matchFamily(a),
		&expr.Payload{DestRegister: regMatch, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: size},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: a.AsSlice()},
	)
}

func matchPrefix(p netip.Prefix) []expr.Any {
	off, _ := addrField(p.Addr(), true)
	n := uint32(p.Bits() / 8) //nolint:gosec // at most 16
	return append(matchFamily(p.Addr()),
		&expr.Payload{DestRegister: regMatch, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regMatch, Data: p.Addr().AsSlice()[:n]},
	)
}

// Forward is one port of one address of a service.
type Forward struct {
	Vip   netip.AddrPort
	Udp   bool
	To    []netip.AddrPort
	Stick bool // ClientIP affinity
}
