package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// A bridge passes frames between its ports and takes no hop. A pod that has
// another pod at its bridge can send with the node's address and with all hops.
// So the host has a second table, of the family bridge: it takes the hop of
// frames to pods. Frames that the host sends itself do not meet its hook.

// BridgeRules computes the host's table for frames that a bridge passes between
// its ports.
//
// All segments are changed, and not only a SYN: the flags are in the second
// fragment if the sender has cut the first one short enough. In IPv6, TCP may be
// behind extension headers. Only ICMPv6 is left alone, because hosts refuse
// neighbour discovery with fewer hops.
func BridgeRules(pods []netip.Addr) Ruleset {
	set := Ruleset{Table: HostTableName, Bridge: true, Sets: podSets(pods)}
	forward := Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: priorityBridge}
	// Linux removes tags of VLAN 0 from what it receives, any number of them. The
	// bridge has removed one tag. No table sees the packet behind another one.
	for _, tag := range []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD} {
		forward.Rules = append(forward.Rules, Rule{
			Match: []Match{InVLAN(0), EtherType(tag)}, Count: true, Do: Drop{}, Note: "hides a packet behind two tags",
		})
	}
	for _, s := range set.Sets {
		carries := Carries{IPv6: s.IPv6, Protocol: protoTCP}
		if s.IPv6 {
			carries = Carries{IPv6: true, Protocol: unix.IPPROTO_ICMPV6, Not: true}
		}
		forward.Rules = append(forward.Rules, Rule{
			Match: []Match{DestIn{IPv6: s.IPv6, Set: s.Name, Bridge: true}, carries, Hops{IPv6: s.IPv6, Value: hostHops}}, Count: true,
			Do: SetHops{IPv6: s.IPv6, Value: hostHops - 1}, Note: "connections of others",
		})
	}
	set.Chains = []Chain{forward}
	return set
}

// writeBridges writes the host's table of the family bridge. A kernel without
// the family is enough where no bridge can join pods.
func writeBridges(host *netns.NS, want Ruleset) error {
	err := writeTable(host, want, nil)
	if !lacksBridges(err) {
		return err
	}
	bridges, lerr := joining(host)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	return unguarded(bridges)
}

// lacksBridges reports whether an error of writing a table is that of a kernel
// without the family.
func lacksBridges(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENOENT)
}

// unguarded is the error about bridges of a host whose kernel has no nftables
// for them. The switch bridge-nf-call-iptables does not replace it: it leaves
// out frames with a VLAN tag, which a pod can add.
func unguarded(bridges []string) error {
	if len(bridges) == 0 {
		return nil
	}
	return fmt.Errorf("this kernel has no nftables for bridges, and pods are ports of %s: a pod there could send as if it were the kubelet "+
		"(load the module nf_tables_bridge, or use a kernel with CONFIG_NF_TABLES_BRIDGE)", strings.Join(bridges, ", "))
}

func joining(host *netns.NS) (bridges []string, err error) {
	err = withLinks(host, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		bridges = bridgesOf(links)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	return bridges, nil
}

func withLinks(ns *netns.NS, fn func(h *netlink.Handle) error) error {
	return ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
}

// bridgesOf names the bridges among the links that have ports which may be a
// pod's: pairs of virtual interfaces.
func bridgesOf(links []netlink.Link) []string {
	masters := map[int]bool{}
	for _, l := range links {
		if l.Type() == "veth" {
			masters[l.Attrs().MasterIndex] = true
		}
	}
	var names []string
	for _, l := range links {
		if l.Type() == "bridge" && masters[l.Attrs().Index] {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names
}

// EtherType matches the protocol of a frame.
type EtherType uint16

func (e EtherType) String() string {
	name := map[EtherType]string{unix.ETH_P_8021Q: "8021q", unix.ETH_P_8021AD: "8021ad", unix.ETH_P_IP: "ip", unix.ETH_P_IPV6: "ip6"}[e]
	return "meta protocol " + name
}

func (e EtherType) exprs() []expr.Any {
	return metaIs(expr.MetaKeyPROTOCOL, expr.CmpOpEq, binaryutil.BigEndian.PutUint16(uint16(e)))
}

// InVLAN matches the VLAN of a tagged frame, together with EtherType. It comes
// first: the nft program cannot list a table in which it follows the tag.
type InVLAN uint16

// vlanBits are those of a tag that number the VLAN.
const vlanBits = 0x0fff

func (v InVLAN) String() string { return fmt.Sprintf("@nh,0,16 & %#x == %d", vlanBits, v) }

func (v InVLAN) exprs() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2},
		mask(binaryutil.BigEndian.PutUint16(vlanBits), []byte{0, 0}),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(v))},
	}
}

// Carries matches the protocol that the network header names; the family must
// have been matched. In IPv6 that may be an extension header.
type Carries struct {
	IPv6     bool
	Protocol byte
	Not      bool
}

func (c Carries) String() string {
	return fmt.Sprintf("%s %s %d", inside.name(c.IPv6), op(c.Not), c.Protocol)
}

func (c Carries) exprs() []expr.Any {
	return []expr.Any{inside.load(c.IPv6), &expr.Cmp{Op: cmpOp(c.Not), Register: 1, Data: []byte{c.Protocol}}}
}

var (
	inetHostTable   = tableID{nftables.TableFamilyINet, HostTableName}
	bridgeHostTable = tableID{nftables.TableFamilyBridge, HostTableName}
)
