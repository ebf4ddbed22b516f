package nft

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Timeout is how long connection tracking keeps silent TCP connections, by their
// state, whatever the namespace has for others.
type Timeout struct {
	Name   string
	Policy []stateTimeout
}

type stateTimeout struct {
	state uint16
	name  string
	keep  time.Duration
}

const day = 24 * time.Hour

// lasting keeps a connection of which one side has ended as long as one that
// both sides use: with the tracking goes the redirection, and what comes late
// would be lost. 5 days are the kernel's own for a connection in use. Dead ones
// end earlier, by the keep-alives of the proxy.
var lasting = Timeout{Name: "lasting", Policy: []stateTimeout{
	{expr.CtStateTCPSYNSENT, "syn_sent", 2 * time.Minute},
	{expr.CtStateTCPSYNRECV, "syn_recv", time.Minute},
	{expr.CtStateTCPESTABLISHED, "established", 5 * day},
	{expr.CtStateTCPFINWAIT, "fin_wait", 5 * day},
	{expr.CtStateTCPCLOSEWAIT, "close_wait", 5 * day},
	// Both have ended; what is not yet acknowledged is sent again for minutes.
	{expr.CtStateTCPLASTACK, "last_ack", time.Hour},
	{expr.CtStateTCPTIMEWAIT, "time_wait", 2 * time.Minute},
	{expr.CtStateTCPCLOSE, "close", 10 * time.Second},
	{expr.CtStateTCPSYNSENT2, "syn_sent2", 2 * time.Minute},
	// A stopped reader lets its peer ask again every two minutes.
	{expr.CtStateTCPRETRANS, "retrans", time.Hour},
	{expr.CtStateTCPUNACK, "unacknowledged", time.Hour},
}}

// lasts is the first rule of the NAT chains, which see each connection once.
var lasts = Rule{Do: SetTimeout{lasting.Name}, Note: "silence does not end a redirection"}

func (t Timeout) String() string {
	var parts []string
	for _, p := range t.Policy {
		parts = append(parts, fmt.Sprintf("%s: %d", p.name, int(p.keep.Seconds())))
	}
	return fmt.Sprintf("ct timeout %s { protocol tcp; policy = { %s } }", t.Name, strings.Join(parts, ", "))
}

// SetTimeout gives a connection that begins a Timeout of the table.
type SetTimeout struct{ Name string }

func (s SetTimeout) String() string { return fmt.Sprintf("ct timeout set %q", s.Name) }

func (s SetTimeout) exprs() []expr.Any {
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_CT_TIMEOUT, Name: s.Name}}
}

// marshalling guards the library's table of defaults, which it changes.
var marshalling sync.Mutex

func addTimeout(conn *nftables.Conn, table *nftables.Table, t Timeout) {
	policy := expr.CtStatePolicyTimeout{}
	for _, p := range t.Policy {
		policy[p.state] = uint32(p.keep.Seconds())
	}
	marshalling.Lock()
	defer marshalling.Unlock()
	conn.AddObj(&nftables.NamedObj{
		Table: table, Name: t.Name, Type: nftables.ObjTypeCtTimeout,
		Obj: &expr.CtTimeout{L3Proto: unix.NFPROTO_INET, L4Proto: unix.IPPROTO_TCP, Policy: policy},
	})
}

// missingTimeouts are those that a table does not have. Their content is not
// compared: another one would have another name.
func missingTimeouts(conn *nftables.Conn, table *nftables.Table, want []Timeout) ([]Timeout, error) {
	if len(want) == 0 {
		return nil, nil
	}
	marshalling.Lock()
	defer marshalling.Unlock()
	all, err := conn.GetNamedObjects(table)
	if err != nil {
		return nil, fmt.Errorf("listing nftables objects: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(want), func(t Timeout) bool {
		return slices.ContainsFunc(all, func(o nftables.Obj) bool {
			n, ok := o.(*nftables.NamedObj)
			return ok && n.Type == nftables.ObjTypeCtTimeout && n.Name == t.Name
		})
	}), nil
}

// KeepsTimeouts reports whether this kernel lets a table say how long
// connections are tracked. It asks once.
var KeepsTimeouts = sync.OnceValue(func() bool {
	ns, err := netns.New()
	if err != nil {
		return false
	}
	defer func() { _ = ns.Close() }()
	conn, err := open(ns)
	if err != nil {
		return false
	}
	addTimeout(conn, conn.AddTable(podTable.kernel()), lasting)
	return conn.Flush() == nil
})

// possible leaves out of a table what this kernel does not have.
func (s Ruleset) possible() Ruleset {
	if len(s.Timeouts) == 0 || KeepsTimeouts() {
		return s
	}
	s.Timeouts = nil
	for i, c := range s.Chains {
		s.Chains[i].Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r Rule) bool {
			_, is := r.Do.(SetTimeout)
			return is
		})
	}
	return s
}
