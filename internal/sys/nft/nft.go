// Package nft redirects the traffic of one network namespace to the node
// proxy: a rule set as a pure value, and what it takes to put it into the
// kernel, to compare the kernel with it, and to take it out again.
//
// Everything is in one nftables table of the pod's namespace, changed in one
// transaction, beside one policy routing rule per address family.
//
// The host's namespace has two small tables (HostTableName), by which pods
// recognize connections that the host itself makes, such as the kubelet's
// probes. They redirect nothing.
//
// The table fails closed by construction: captured connections go to ports of
// the pod itself, and where no proxy listens the kernel answers with a reset.
package nft

import (
	"net/netip"

	"github.com/google/nftables"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// TableName is the table that holds every rule of the mesh in a namespace.
const TableName = "ambit"

// Config says what of a namespace is captured.
type Config struct {
	// IPv6 captures both families; without it, IPv6 is left alone.
	IPv6 bool
	// BypassInbound leaves connections to the pod alone (ingress mode).
	BypassInbound bool
	// CaptureDNS sends the pod's name look-ups to the proxy.
	CaptureDNS bool
	// RefuseUDP refuses the UDP of the pod that is not captured, but for answers.
	RefuseUDP bool
	// VirtualInterfaces carry the traffic of machines inside the pod: what
	// comes in from them is outbound.
	VirtualInterfaces []string
	// Probes are plaintext clients that are not captured, such as the kubelet.
	Probes []Probe
	// Quiesce captures nothing new, and keeps what captured connections need
	// to live on. It is the first step of taking the rules away: a connection
	// that was redirected needs the table for as long as it lasts.
	Quiesce bool
}

// step is a Config, and which of two steps it is to be written in.
type step struct {
	Config
	// settling is the first step of writing a table where none was: the
	// connections that are older than the table are not known yet.
	settling bool
}

// continues reports whether the connections that are older than the table are
// known, so that all others can be held to what connection tracking has of them.
func (s step) continues() bool { return !s.settling }

// Probe exempts plaintext connections from a source to ports of the pod. No
// ports means all of them.
type Probe struct {
	Source netip.Prefix
	Ports  []uint16
	// Host exempts only connections that the host of the pod itself makes, which
	// its own table proves (see HostRules). The source alone does not: whatever
	// the host passes on under its own address has it too.
	Host bool
}

// Ruleset is the content of a table.
type Ruleset struct {
	Table    string
	Bridge   bool // of the family bridge; otherwise of the family inet
	Timeouts []Timeout
	Sets     []Set
	Chains   []Chain
}

// tableID is what the kernel recognizes a table by.
type tableID struct {
	family nftables.TableFamily
	name   string
}

var podTable = tableID{nftables.TableFamilyINet, TableName}

func (id tableID) kernel() *nftables.Table {
	return &nftables.Table{Family: id.family, Name: id.name}
}

func (s Ruleset) id() tableID {
	if s.Bridge {
		return tableID{nftables.TableFamilyBridge, s.Table}
	}
	return tableID{nftables.TableFamilyINet, s.Table}
}

// Chain is a base chain. Its policy is to accept.
type Chain struct {
	Name     string
	Type     string // filter, nat or route
	Hook     string // prerouting, input, forward or output
	Priority int
	Rules    []Rule
}

// Rule does something with the packets that match everything.
type Rule struct {
	Match []Match
	Count bool // keep a counter of packets and bytes
	Do    Action
	Note  string // goes into the kernel as the rule's comment
}

// Chain priorities: those that iptables' tables of the same purpose have.
const (
	priorityRaw    = -300
	priorityMangle = -150
	priorityFilter = 0
	// priorityBridge is what the family bridge calls filter: before a bridge
	// shows its frames to the family inet.
	priorityBridge = -200
	// The first chain that translates a connection wins. A pod may have rules of
	// its own at -100, and which of two chains of one priority comes first would
	// depend on when the pod was enrolled. What comes in is the pod's own first:
	// it may pass it on to others. What goes out is captured first: the pod's
	// rules then apply to the proxy's connection.
	priorityInbound  = -99
	priorityOutbound = -101
)

// Rules computes the table for a namespace.
func Rules(cfg Config) Ruleset { return step{Config: cfg}.rules() }

func (s step) rules() Ruleset {
	cfg := s.Config
	set := Ruleset{Table: TableName, Sets: olderSets(s), Timeouts: []Timeout{lasting}}
	set.Chains = append(set.Chains, wireChain())
	if cfg.CaptureDNS && !cfg.Quiesce {
		set.Chains = append(set.Chains,
			Chain{Name: "raw-prerouting", Type: "filter", Hook: "prerouting", Priority: priorityRaw, Rules: []Rule{{
				Match: []Match{Proto{Number: protoUDP}, notFromProxy, SourcePort{53}},
				Do:    SetZone{zoneDNS}, Note: "answers to the proxy's own look-ups",
			}}},
			Chain{Name: "raw-output", Type: "filter", Hook: "output", Priority: priorityRaw, Rules: []Rule{{
				Match: []Match{Proto{Number: protoUDP}, fromProxy, DestPort{Port: 53}},
				Do:    SetZone{zoneDNS}, Note: "the proxy's own look-ups",
			}}},
		)
	}
	set.Chains = append(set.Chains,
		Chain{Name: "nat-prerouting", Type: "nat", Hook: "prerouting", Priority: priorityInbound, Rules: inboundRules(cfg)},
		Chain{Name: "nat-output", Type: "nat", Hook: "output", Priority: priorityOutbound, Rules: outboundRules(cfg)},
	)
	set.Chains = append(set.Chains, guardChains(s)...)
	if !cfg.IPv6 {
		for i := range set.Chains {
			if set.Chains[i].Name == zoneChain {
				continue // it is the same for every Config: see beginZone
			}
			set.Chains[i].Rules = append([]Rule{{Match: []Match{Family{IPv6: true}}, Do: Accept{}, Note: "IPv6 is not captured"}}, set.Chains[i].Rules...)
		}
	}
	return set
}

// returns brings the answers of programs to connections that the proxy makes back to the
// proxy. They come first in the chain output: each chain that a packet meets costs as
// much as several rules.
var returns = []Rule{
	{Match: []Match{Loopback{Out: true}, fromProxy}, Do: SetConnMark{Value: wellknown.MarkReturn, Mask: wellknown.MarkMask},
		Note: "connections that the proxy makes to the pod"},
	{Match: []Match{Loopback{Out: true}}, Do: Accept{}, Note: "loopback, and the pod calling its own address"},
	{Match: []Match{fromProxy}, Do: Accept{}, Note: "the proxy's own connections"},
	{Match: []Match{ConnMark{Value: wellknown.MarkReturn, Mask: wellknown.MarkMask}}, Do: RestoreMark{},
		Note: "their answers go back to the proxy, whatever their address"},
}

var (
	fromProxy    = Mark{Value: wellknown.MarkProxy, Mask: wellknown.MarkMask}
	notFromProxy = Mark{Value: wellknown.MarkProxy, Mask: wellknown.MarkMask, Not: true}
)

// newTCP matches the first packet of a connection and no other. A connection
// that is older than the table is tracked from its next packet on, and that
// packet passes the NAT chains as if it was the first; redirecting it would
// break the connection.
func newTCP() []Match {
	return []Match{Proto{Number: protoTCP}, Flags{Mask: flagFIN | flagSYN | flagRST | flagACK, Value: flagSYN}}
}

func inboundRules(cfg Config) []Rule {
	rules := []Rule{lasts}
	if cfg.Quiesce {
		return rules
	}
	for _, name := range cfg.VirtualInterfaces {
		rules = append(rules,
			Rule{Match: append([]Match{InInterface(name)}, newTCP()...), Count: true,
				Do: Redirect{wellknown.PortOutbound}, Note: "outbound of a machine inside the pod"},
			Rule{Match: []Match{InInterface(name), Proto{Number: protoTCP}}, Do: Accept{}, Note: "never inbound"})
	}
	if cfg.BypassInbound {
		return rules
	}
	rules = append(rules, Rule{Match: []Match{Loopback{}}, Do: Accept{}, Note: "the pod and its proxy among themselves"})
	for _, m := range probeMatches(cfg) {
		rules = append(rules, Rule{Match: m, Do: Accept{}, Note: "probe"})
	}
	return append(rules, Rule{
		Match: append(newTCP(), DestPort{Port: wellknown.PortHBONE, Not: true}, notFromProxy, ToItself{}),
		Count: true, Do: Redirect{wellknown.PortInbound}, Note: "plaintext to the pod, and not what it passes on",
	})
}

func outboundRules(cfg Config) []Rule {
	if cfg.Quiesce {
		return []Rule{lasts}
	}
	rules := []Rule{
		lasts,
		{Match: []Match{Loopback{Out: true}}, Do: Accept{}, Note: "loopback, and the pod calling its own address"},
		{Match: []Match{Proto{Number: protoTCP}, Mark{Value: wellknown.MarkReturn, Mask: wellknown.MarkMask}}, Do: Accept{}, Note: "replies on their way to the proxy"},
	}
	if cfg.CaptureDNS {
		rules = append(rules,
			Rule{Match: []Match{Proto{Number: protoUDP}, notFromProxy, DestPort{Port: 53}}, Count: true,
				Do: Redirect{wellknown.PortDNS}, Note: "look-ups"},
			Rule{Match: append(newTCP(), notFromProxy, DestPort{Port: 53}), Count: true,
				Do: Redirect{wellknown.PortDNS}, Note: "look-ups over TCP"})
	}
	return append(rules, Rule{
		Match: append(newTCP(), notFromProxy), Count: true,
		Do: Redirect{wellknown.PortOutbound}, Note: "outbound of the pod",
	})
}
