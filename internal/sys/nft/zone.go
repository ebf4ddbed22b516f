package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	socket "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// The proxy connects to a program under the address of the client that is
// connected to the proxy. Both connections have the same addresses and the same
// port of the program; when the proxy happens to take the port that the client
// has, connection tracking would take the one for the other. So what comes from
// outside is looked up by its sender's ends in a zone of its own. Answers are
// looked up where everything else is: no zone has to be chosen for what the pod
// sends.
//
// The library has no direction of a zone. Rules of this chain are written and
// read here, after the others.

// Zones of connection tracking.
const (
	// zoneDNS keeps the proxy's own look-ups apart from the pod's: both may use
	// the same ports at the same time.
	zoneDNS = 1
	// zoneWire has what comes from outside, by the ends that its sender gave it.
	zoneWire = 2
)

const zoneChain = "zone"

// wireChain puts connections from outside into their zone. Errors about a packet
// are looked up where the packet's connection is.
func wireChain() Chain {
	chain := Chain{Name: zoneChain, Type: "filter", Hook: "prerouting", Priority: priorityRaw}
	for _, protocol := range []byte{protoTCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		chain.Rules = append(chain.Rules, Rule{
			Match: []Match{NotInInterface("lo"), Proto{Number: protocol}},
			Do:    SetOriginalZone{zoneWire}, Note: "from outside",
		})
	}
	return chain
}

// beginZone makes the table with nothing but this chain. No packet from outside
// may have been tracked without its zone: the packets that follow would begin a
// second connection with the same answers. So the chain comes before all others,
// is the same for every Config, and what the pod's own rules have had tracked is
// forgotten, and taken up again at the next packet.
func beginZone(ns *netns.NS) error {
	conn, err := open(ns)
	if err != nil {
		return err
	}
	chain := wireChain()
	table := conn.AddTable(podTable.kernel())
	conn.AddChain(kernelChain(table, chain))
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", TableName, err)
	}
	if err := writeZone(ns, TableName, chain.Rules); err != nil {
		return err
	}
	// Captured connections are those of a table that somebody has deleted, and
	// are in their zone.
	captured, err := Connections(ns)
	if err == nil && captured == 0 {
		err = ns.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	}
	if err != nil {
		return fmt.Errorf("clearing connection tracking: %w", err)
	}
	return nil
}

// zoned leaves the chain out of a table that an earlier version has written
// without it: connections of that table are tracked without the zone. The pod
// gets it when it joins the mesh the next time.
func (s Ruleset) zoned(have []*nftables.Chain) Ruleset {
	if len(have) > 0 && !slices.ContainsFunc(have, func(c *nftables.Chain) bool { return c.Name == zoneChain }) {
		s.Chains = slices.DeleteFunc(slices.Clone(s.Chains), func(c Chain) bool { return c.Name == zoneChain })
	}
	return s
}

// SetOriginalZone has connection tracking look a packet up in a zone by the ends
// that its sender gave it, and without a zone as an answer.
type SetOriginalZone struct{ Zone uint16 }

func (z SetOriginalZone) String() string { return fmt.Sprintf("ct original zone set %d", z.Zone) }

// exprs lacks the direction, which raw adds.
func (z SetOriginalZone) exprs() []expr.Any { return SetZone(z).exprs() }

const inet = byte(unix.NFPROTO_INET)

// raw is the rule's expressions as the kernel takes them.
func (r Rule) raw() ([]byte, error) {
	var list []socket.Attribute
	for _, e := range r.exprs() {
		var b []byte
		var err error
		if ct, is := e.(*expr.Ct); is && ct.Key == expr.CtKeyZONE {
			b, err = originalZone(ct.Register)
		} else {
			b, err = expr.Marshal(inet, e)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, socket.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
	}
	return socket.MarshalAttributes(list)
}

// originalZone sets the zone of the original direction from a register.
func originalZone(register uint32) ([]byte, error) {
	const original = 0 // IP_CT_DIR_ORIGINAL
	data, err := socket.MarshalAttributes([]socket.Attribute{
		{Type: unix.NFTA_CT_KEY, Data: binaryutil.BigEndian.PutUint32(uint32(expr.CtKeyZONE))},
		{Type: unix.NFTA_CT_SREG, Data: binaryutil.BigEndian.PutUint32(register)},
		{Type: unix.NFTA_CT_DIRECTION, Data: []byte{original}},
	})
	if err != nil {
		return nil, err
	}
	return socket.MarshalAttributes([]socket.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte("ct\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: data},
	})
}

// comment is what a rule of this chain is recognized by.
func (r Rule) comment() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, r.String())
}

func dialNetfilter(ns *netns.NS) (*socket.Conn, error) {
	conn, err := socket.Dial(unix.NETLINK_NETFILTER, &socket.Config{NetNS: int(ns.File().Fd())})
	if err != nil {
		return nil, fmt.Errorf("opening nftables netlink: %w", err)
	}
	return conn, nil
}

func message(family byte, resource uint16, kind int, flags socket.HeaderFlags, attributes ...socket.Attribute) (socket.Message, error) {
	b, err := socket.MarshalAttributes(attributes)
	return socket.Message{
		Header: socket.Header{Type: socket.HeaderType(kind), Flags: socket.Request | flags}, //nolint:gosec // a constant
		Data:   append([]byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}, b...),
	}, err
}

func ofChain(table string) []socket.Attribute {
	return []socket.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(table + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(zoneChain + "\x00")},
	}
}

// writeZone replaces the rules of the chain, which exists, in one transaction.
func writeZone(ns *netns.NS, table string, rules []Rule) error {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
	messages := make([]socket.Message, len(rules)+3)
	var err error
	add := func(i int, family byte, resource uint16, kind int, flags socket.HeaderFlags, attributes ...socket.Attribute) {
		m, merr := message(family, resource, kind, flags, attributes...)
		messages[i] = m
		if err == nil {
			err = merr
		}
	}
	add(0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, unix.NFNL_MSG_BATCH_BEGIN, 0)
	add(1, inet, 0, subsystem|unix.NFT_MSG_DELRULE, socket.Acknowledge, ofChain(table)...)
	for i, r := range rules {
		raw, rerr := r.raw()
		if err == nil {
			err = rerr
		}
		add(2+i, inet, 0, subsystem|unix.NFT_MSG_NEWRULE, socket.Acknowledge|socket.Create|socket.Append, append(ofChain(table),
			socket.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: raw},
			socket.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: r.comment()},
		)...)
	}
	add(len(rules)+2, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, unix.NFNL_MSG_BATCH_END, 0)
	if err != nil {
		return err
	}
	conn, err := dialNetfilter(ns)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.SendMessages(messages); err != nil {
		return fmt.Errorf("writing nftables chain %s: %w", zoneChain, err)
	}
	for range len(rules) + 1 {
		if _, err := conn.Receive(); err != nil {
			return fmt.Errorf("writing nftables chain %s: %w", zoneChain, err)
		}
	}
	return nil
}

// checkZone reports what of the chain is not so. The rules are recognized by
// their comments.
func checkZone(ns *netns.NS, table string, want Chain) ([]string, error) {
	conn, err := dialNetfilter(ns)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	m, err := message(inet, 0, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, socket.Dump, ofChain(table)...)
	if err != nil {
		return nil, err
	}
	replies, err := conn.Execute(m)
	if err != nil {
		return nil, fmt.Errorf("listing nftables chain %s: %w", zoneChain, err)
	}
	var have []string
	for _, reply := range replies {
		const header = 4
		attributes, err := socket.UnmarshalAttributes(reply.Data[min(header, len(reply.Data)):])
		if err != nil {
			return nil, fmt.Errorf("listing nftables chain %s: %w", zoneChain, err)
		}
		for _, a := range attributes {
			if a.Type == unix.NFTA_RULE_USERDATA {
				text, _ := userdata.GetString(a.Data, userdata.TypeComment)
				have = append(have, text)
			}
		}
	}
	var differs []string
	for i, r := range want.Rules {
		if i >= len(have) || have[i] != r.String() {
			differs = append(differs, fmt.Sprintf("chain %s: missing: %s", want.Name, r))
		}
	}
	if len(have) > len(want.Rules) {
		differs = append(differs, fmt.Sprintf("chain %s: %d rules too many", want.Name, len(have)-len(want.Rules)))
	}
	return differs, nil
}
