package nft

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	socket "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/conntrack"
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
//
//	no table ──► between, forgotten ──► zone ──► all rules ──► between, forgotten ──► no table
//	             (beginZone)                                   (endZone)

// Zones of connection tracking.
const (
	// zoneDNS keeps the proxy's own look-ups apart from the pod's: both may use
	// the same ports at the same time.
	zoneDNS = 1
	// zoneWire has what comes from outside, by the ends that its sender gave it.
	zoneWire = 2
)

const zoneChain = "zone"

// zoned are the protocols of connections that have the zone.
var zoned = []uint8{protoTCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}

// wireChain puts connections from outside into their zone. Errors about a packet
// are looked up where the packet's connection is.
func wireChain() Chain { return outside(SetOriginalZone{zoneWire}) }

// between is the chain between two ways of tracking, with the zone and without:
// nothing from outside is tracked. A connection that is tracked in both ways has
// the same answers twice. The kernel then drops its packets, or gives it another
// port, at which no program listens.
//
// A pod with rules of its own for address translation has no program for what
// these rules would send elsewhere: the kernel would answer with a reset. There,
// packets are dropped, and their senders repeat them. What accepts a connection of the
// pod's own programs passes: repeated, it would come at the same time as the program's
// repeated SYN, which is to be captured.
func between(translates, sockets bool) Chain {
	if !translates {
		return outside(NoTrack{})
	}
	chain := outside(Drop{})
	if sockets {
		accepts := Flags{Mask: flagSYN | flagACK, Value: flagSYN | flagACK}
		chain.Rules = slices.Insert(chain.Rules, 1, Rule{
			Match: []Match{Proto{Number: protoTCP}, accepts, ToSocket{}}, Do: Accept{}, Note: "to a program of the pod",
		})
	}
	return chain
}

func outside(do Action) Chain {
	chain := Chain{Name: zoneChain, Type: "filter", Hook: "prerouting", Priority: priorityRaw, Rules: []Rule{
		{Match: []Match{Loopback{}}, Do: Accept{}, Note: "from the pod itself"},
	}}
	for _, protocol := range zoned {
		chain.Rules = append(chain.Rules, Rule{
			Match: []Match{Proto{Number: protocol}}, Do: do, Note: "from outside",
		})
	}
	return chain
}

// beginZone makes the table with nothing but this chain. It comes before all
// others, and is the same for every Config. What is tracked without the zone is
// forgotten, and taken up again at the next packet. A connection from outside
// that the pod's own rules translate may end by that.
func beginZone(ns *netns.NS) error {
	translates, err := translatesItself(ns)
	if err != nil {
		return err
	}
	if err := writeBetween(ns, nil, translates); err != nil {
		return err
	}
	settle() // what is tracked without the zone is in the table now
	// Captured connections are those of a table that somebody has deleted, and
	// are in their zone.
	captured, err := Connections(ns)
	if err == nil && captured == 0 {
		err = retrack(ns, zoneWire, translates)
	}
	if err != nil {
		return err
	}
	return writeZone(ns, TableName, wireChain().Rules)
}

// endZone is the last step before the table goes: it holds nothing but a chain by
// which nothing from outside is tracked, and what was tracked is forgotten.
func endZone(ns *netns.NS) error {
	have, err := listChains(ns, podTable)
	if err != nil {
		return err
	}
	translates, err := translatesItself(ns)
	if err != nil {
		return err
	}
	if err := writeBetween(ns, have, translates); err != nil {
		return err
	}
	settle() // what is tracked with the zone is in the table now
	return retrack(ns, 0, translates)
}

// writeBetween makes a table of one chain. have are the chains of the table that
// there is: one transaction empties them, and the next one deletes them.
func writeBetween(ns *netns.NS, have []*nftables.Chain, translates bool) error {
	gone, err := replaceBy(ns, have, between(translates, true))
	if translates && errors.Is(err, unix.ENOENT) {
		// The kernel does not look for sockets. Of the connections that are being
		// opened right now, some are reset.
		gone, err = replaceBy(ns, have, between(translates, false))
	}
	if err != nil {
		return fmt.Errorf("writing nftables table %s: %w", TableName, err)
	}
	return dropChains(ns, gone)
}

// replaceBy makes the chain the only one of the table that has rules, and returns the
// others.
func replaceBy(ns *netns.NS, have []*nftables.Chain, chain Chain) (others []*nftables.Chain, err error) {
	conn, err := open(ns)
	if err != nil {
		return nil, err
	}
	table := conn.AddTable(podTable.kernel())
	for _, c := range have {
		conn.FlushChain(c)
		if c.Name != zoneChain {
			others = append(others, c)
		}
	}
	kernel := conn.AddChain(kernelChain(table, chain))
	for _, r := range chain.Rules {
		conn.AddRule(kernelRule(table, kernel, r))
	}
	return others, conn.Flush()
}

// retrack has connection tracking take up what it tracks in another way from now on:
// in the zone, or in none. A connection of the pod's own programs is forgotten, and
// taken up again at its next packet. Of a pod that translates, this is not enough for
// what somebody else has begun: the first packet could be an answer, which no rule
// translates. So translated connections are tracked again at once, as they were. When
// the pod joins, those that it has begun and that nothing has answered are forgotten,
// to be captured.
// The pod's other connections are tracked in the same way with the zone and without,
// and may be translated.
func retrack(ns *netns.NS, zone uint16, translates bool) error {
	if !translates {
		return conntrack.Flush(ns)
	}
	passed, err := conntrack.Forget(ns, func(f *conntrack.Flow) bool {
		joins := zone != 0
		return slices.Contains(zoned, f.Protocol()) && (!f.Own || joins && f.Unanswered())
	})
	if err != nil {
		return err
	}
	passed = slices.DeleteFunc(passed, func(f conntrack.Flow) bool {
		translated := f.Redirected() || f.Masked()
		captured := f.Local && slices.Contains(proxyPorts, f.Answer.SrcPort)
		return f.Own || f.Protocol() != protoTCP || !translated || captured
	})
	// What is not tracked again may end, as it did without this. To stop here would leave
	// the pod behind the chain that drops packets.
	_ = conntrack.Restore(ns, passed, zone)
	return nil
}

// forgetOpening removes from connection tracking the connections that the pod has
// begun, that nothing has answered, and that are not redirected. Their first packet
// passed the NAT chains before these had rules, and would not meet them again when
// the pod repeats it.
func forgetOpening(ns *netns.NS) error {
	_, err := conntrack.Forget(ns, func(f *conntrack.Flow) bool { return f.Own && f.Unanswered() && !f.Redirected() })
	return err
}

// translatesItself reports whether the namespace has rules for address
// translation that are not Ambit's: those of nftables, or of the iptables before.
func translatesItself(ns *netns.NS) (bool, error) {
	conn, err := open(ns)
	if err != nil {
		return false, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return false, fmt.Errorf("listing nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Type == nftables.ChainTypeNAT && (c.Table.Name != podTable.name || c.Table.Family != podTable.family) {
			return true, nil
		}
	}
	for _, path := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"} {
		var names []byte
		if err := ns.Do(func() (err error) { names, err = os.ReadFile(path); return err }); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("reading the tables of iptables: %w", err)
		}
		if slices.Contains(strings.Fields(string(names)), "nat") {
			return true, nil
		}
	}
	return false, nil
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
// that its sender gave it, and without a zone as an answer. It ends the chain.
type SetOriginalZone struct{ Zone uint16 }

func (z SetOriginalZone) String() string {
	return fmt.Sprintf("ct original zone set %d accept", z.Zone)
}

// exprs lacks the direction, which raw adds.
func (z SetOriginalZone) exprs() []expr.Any {
	return append(SetZone(z).exprs(), Accept{}.exprs()...)
}

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
