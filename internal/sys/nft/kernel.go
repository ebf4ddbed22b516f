package nft

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Apply makes the namespace redirect as cfg says: the routes that replies to
// the proxy need first, then all rules in one transaction. A namespace that is
// already right is not touched. The table's rules are replaced inside their
// chains, so that every packet meets either all old or all new rules.
//
// A table that is not there yet is written in three steps. From the first one on,
// new connections are captured. The guard comes when each packet that has passed
// the NAT chains without rules has left: the guard would refuse it. At last those
// that are older are listed, and all others are held to what connection tracking
// has of them.
func Apply(ns *netns.NS, cfg Config) error {
	if err := applyRouting(ns, cfg); err != nil {
		return fmt.Errorf("policy routing: %w", err)
	}
	chains, err := listChains(ns, podTable)
	if err != nil {
		return err
	}
	if len(chains) == 0 {
		if err := beginZone(ns); err != nil {
			return err
		}
		chains = []*nftables.Chain{{Name: zoneChain}}
	}
	want := Rules(cfg).possible().zoned(chains)
	differs, err := checkTable(ns, want)
	if err != nil || len(differs) == 0 {
		return err
	}
	sets, err := listSets(ns, want.id())
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(want.Sets, func(s Set) bool { return s.Connections && sets[s.Name].Name == "" }) {
		return writeTable(ns, want, nil)
	}
	first := step{Config: cfg, settling: true}
	rules := first.rules().possible().zoned(chains)
	if err := writeTable(ns, rules.unguarded(), nil); err != nil {
		return err
	}
	settle()
	if err := forgetOpening(ns); err != nil {
		return err
	}
	if err := writeTable(ns, rules, nil); err != nil {
		return err
	}
	list, err := older(ns)
	if err != nil {
		return err
	}
	return writeTable(ns, want, list)
}

// writeTable replaces the content of a table in one transaction. Sets of
// connections that the table does not have are made of the list. Chains that are
// no longer wanted are empty then, and go in a second transaction: see dropChains.
func writeTable(ns *netns.NS, want Ruleset, list []connection) error {
	have, err := listChains(ns, want.id())
	if err != nil {
		return err
	}
	sets, err := listSets(ns, want.id())
	if err != nil {
		return err
	}
	conn, err := open(ns, nftables.WithSockOptions(largeTransactions))
	if err != nil {
		return err
	}
	table := want.id().kernel()
	timeouts, err := missingTimeouts(conn, table, want.Timeouts)
	if err != nil {
		return err
	}
	conn.AddTable(table)
	for _, t := range timeouts {
		addTimeout(conn, table, t)
	}
	for _, s := range want.Sets {
		if s.Connections && sets[s.Name].Name == "" {
			err = addOlder(conn, table, s, list)
		} else if !s.Connections {
			err = writeSet(conn, table, s, sets[s.Name])
		}
		if err != nil {
			return err
		}
	}
	kept := sameChains(have, want)
	var gone []*nftables.Chain
	for _, c := range have {
		if c.Name != zoneChain || !kept[c.Name] {
			conn.FlushChain(c)
		}
		switch {
		case kept[c.Name]:
		case slices.ContainsFunc(want.Chains, func(w Chain) bool { return w.Name == c.Name }):
			conn.DelChain(c)
		default:
			gone = append(gone, c)
		}
	}
	for _, c := range want.Chains {
		chain := conn.AddChain(kernelChain(table, c))
		if c.Name == zoneChain {
			continue
		}
		for _, r := range c.Rules {
			conn.AddRule(kernelRule(table, chain, r))
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing nftables table %s: %w", want.Table, err)
	}
	if err := dropChains(ns, gone); err != nil {
		return err
	}
	for _, c := range want.Chains {
		if c.Name != zoneChain {
			continue
		}
		if differs, err := checkZone(ns, want.Table, c); err != nil || len(differs) == 0 {
			return err
		}
		return writeZone(ns, want.Table, c.Rules)
	}
	return nil
}

// dropChains deletes chains that have no rules. The kernel does not empty a chain
// that one transaction both empties and deletes: the chain keeps its old rules until
// it is unhooked, which is after all other chains have their new ones. So a packet
// would meet rules of both kinds.
func dropChains(ns *netns.NS, chains []*nftables.Chain) error {
	if len(chains) == 0 {
		return nil
	}
	conn, err := open(ns)
	if err != nil {
		return err
	}
	for _, c := range chains {
		conn.DelChain(c)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting chains of nftables table %s: %w", chains[0].Table.Name, err)
	}
	return nil
}

// Check compares the namespace with what Apply would make of it, and says what
// is missing, wrong or too much. Nothing means that all is as it should be.
func Check(ns *netns.NS, cfg Config) ([]string, error) {
	chains, err := listChains(ns, podTable)
	if err != nil {
		return nil, err
	}
	differs, err := checkTable(ns, Rules(cfg).possible().zoned(chains))
	if err != nil {
		return nil, err
	}
	routing, err := checkRouting(ns, cfg)
	return append(differs, routing...), err
}

// Present reports whether the namespace has Ambit's table, right or wrong.
func Present(ns *netns.NS) (bool, error) {
	t, err := ourTable(ns, podTable)
	return t != nil, err
}

// Remove takes out everything Apply puts in, and nothing else. Connections
// that are redirected at this time end; see Config.Quiesce.
func Remove(ns *netns.NS) error {
	if present, err := Present(ns); err != nil {
		return err
	} else if present {
		if err := endZone(ns); err != nil {
			return err
		}
	}
	if err := removeTable(ns, podTable); err != nil {
		return err
	}
	if err := removeRouting(ns); err != nil {
		return fmt.Errorf("policy routing: %w", err)
	}
	return nil
}

func removeTable(ns *netns.NS, id tableID) error {
	t, err := ourTable(ns, id)
	if err != nil || t == nil {
		return err
	}
	conn, err := open(ns)
	if err != nil {
		return err
	}
	conn.DelTable(t)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting nftables table %s: %w", id.name, err)
	}
	return nil
}

func open(ns *netns.NS, options ...nftables.ConnOption) (*nftables.Conn, error) {
	conn, err := nftables.New(append(options, nftables.WithNetNSFd(int(ns.File().Fd())))...)
	if err != nil {
		return nil, fmt.Errorf("opening nftables netlink: %w", err)
	}
	return conn, nil
}

func ourTable(ns *netns.NS, id tableID) (*nftables.Table, error) {
	conn, err := open(ns)
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTablesOfFamily(id.family)
	if err != nil {
		return nil, fmt.Errorf("listing nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == id.name {
			return t, nil
		}
	}
	return nil, nil
}

func listChains(ns *netns.NS, id tableID) ([]*nftables.Chain, error) {
	conn, err := open(ns)
	if err != nil {
		return nil, err
	}
	all, err := conn.ListChainsOfTableFamily(id.family)
	if err != nil {
		return nil, fmt.Errorf("listing nftables chains: %w", err)
	}
	var ours []*nftables.Chain
	for _, c := range all {
		if c.Table.Name == id.name {
			ours = append(ours, c)
		}
	}
	return ours, nil
}

// sameChains names the chains that can stay; a chain of another type, hook or
// priority has to be made anew.
func sameChains(have []*nftables.Chain, want Ruleset) map[string]bool {
	kept := map[string]bool{}
	for _, h := range have {
		for _, w := range want.Chains {
			if h.Name == w.Name && isChain(h, w) {
				kept[h.Name] = true
			}
		}
	}
	return kept
}

func isChain(have *nftables.Chain, want Chain) bool {
	k := kernelChain(have.Table, want)
	return have.Type == k.Type && have.Hooknum != nil && *have.Hooknum == *k.Hooknum &&
		have.Priority != nil && *have.Priority == *k.Priority &&
		(have.Policy == nil || *have.Policy == nftables.ChainPolicyAccept)
}

func kernelChain(t *nftables.Table, c Chain) *nftables.Chain {
	hook := nftables.ChainHookPrerouting
	switch c.Hook {
	case "input":
		hook = nftables.ChainHookInput
	case "output":
		hook = nftables.ChainHookOutput
	case "forward":
		hook = nftables.ChainHookForward
	}
	policy := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Table: t, Name: c.Name, Type: nftables.ChainType(c.Type), Hooknum: hook,
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority)), //nolint:gosec // small constants
		Policy:   &policy,
	}
}

func kernelRule(t *nftables.Table, c *nftables.Chain, r Rule) *nftables.Rule {
	k := &nftables.Rule{Table: t, Chain: c, Exprs: r.exprs()}
	if r.Note != "" {
		k.UserData = userdata.AppendString(nil, userdata.TypeComment, r.Note)
	}
	return k
}

func (r Rule) exprs() []expr.Any {
	var es []expr.Any
	for _, m := range r.Match {
		es = append(es, m.exprs()...)
	}
	if r.Count {
		es = append(es, &expr.Counter{})
	}
	return append(es, r.Do.exprs()...)
}

func checkTable(ns *netns.NS, want Ruleset) ([]string, error) {
	table, err := ourTable(ns, want.id())
	if err != nil {
		return nil, err
	}
	if table == nil {
		return []string{fmt.Sprintf("table %s %s is missing", want.family(), want.Table)}, nil
	}
	have, err := listChains(ns, want.id())
	if err != nil {
		return nil, err
	}
	sets, err := listSets(ns, want.id())
	if err != nil {
		return nil, err
	}
	conn, err := open(ns)
	if err != nil {
		return nil, err
	}
	timeouts, err := missingTimeouts(conn, table, want.Timeouts)
	if err != nil {
		return nil, err
	}
	differs := compareSets(want.Sets, sets)
	for _, t := range timeouts {
		differs = append(differs, "object "+t.Name+" is missing")
	}
	byName := map[string]*nftables.Chain{}
	for _, c := range have {
		byName[c.Name] = c
	}
	for _, w := range want.Chains {
		h := byName[w.Name]
		delete(byName, w.Name)
		if h == nil {
			differs = append(differs, "chain "+w.Name+" is missing")
			continue
		}
		if !isChain(h, w) {
			differs = append(differs, "chain "+w.Name+" has another type, hook, priority or policy")
		}
		if w.Name == zoneChain {
			zone, err := checkZone(ns, want.Table, w)
			if err != nil {
				return nil, err
			}
			differs = append(differs, zone...)
			continue
		}
		rules, err := conn.GetRules(table, h)
		if err != nil {
			return nil, fmt.Errorf("listing nftables chain %s: %w", w.Name, err)
		}
		differs = append(differs, compareRules(w, rules)...)
	}
	for name := range byName {
		differs = append(differs, "chain "+name+" does not belong there")
	}
	return differs, nil
}

func compareRules(want Chain, have []*nftables.Rule) []string {
	var differs []string
	for i, w := range want.Rules {
		if i >= len(have) {
			differs = append(differs, fmt.Sprintf("chain %s: missing: %s", want.Name, w))
			continue
		}
		if !sameExprs(w.exprs(), have[i].Exprs) {
			differs = append(differs, fmt.Sprintf("chain %s: rule %d is not: %s", want.Name, i, w))
		}
	}
	if extra := len(have) - len(want.Rules); extra > 0 {
		differs = append(differs, fmt.Sprintf("chain %s: %d rules too many", want.Name, extra))
	}
	return differs
}

// sameExprs compares what was asked for with what the kernel gave back, but
// for the values of counters.
func sameExprs(want, have []expr.Any) bool {
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if _, counter := want[i].(*expr.Counter); counter {
			if _, counter := have[i].(*expr.Counter); !counter {
				return false
			}
			continue
		}
		w := want[i]
		if ct, ok := w.(*expr.Ct); ok && ct.SourceRegister {
			// The library does not read back which register is written to
			// connection tracking, and no register says that one is.
			w = &expr.Ct{Key: ct.Key}
		}
		if !reflect.DeepEqual(w, have[i]) {
			return false
		}
	}
	return true
}

// Dump writes down everything in the namespace that this package could touch:
// all nftables tables with their chains, sets and rules, and all policy routing
// rules and routes. Two dumps are equal when nothing has changed; counters are
// left out.
func Dump(ns *netns.NS) (string, error) {
	var b strings.Builder
	conn, err := open(ns)
	if err != nil {
		return "", err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return "", fmt.Errorf("listing nftables tables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return "", fmt.Errorf("listing nftables chains: %w", err)
	}
	for _, t := range tables {
		fmt.Fprintf(&b, "table %d %s\n", t.Family, t.Name)
		for _, c := range chains {
			if c.Table.Name != t.Name || c.Table.Family != t.Family {
				continue
			}
			fmt.Fprintf(&b, "  chain %s %s\n", c.Name, c.Type)
			if t.Name == TableName && c.Name == zoneChain {
				continue // see zone.go
			}
			rules, err := conn.GetRules(t, c)
			if err != nil {
				return "", fmt.Errorf("listing nftables chain %s: %w", c.Name, err)
			}
			for _, r := range rules {
				b.WriteString("    ")
				for _, e := range r.Exprs {
					if _, counter := e.(*expr.Counter); counter {
						b.WriteString("counter ")
						continue
					}
					fmt.Fprintf(&b, "%T%+v ", e, reflect.Indirect(reflect.ValueOf(e)))
				}
				b.WriteByte('\n')
			}
		}
	}
	routing, err := dumpRouting(ns)
	b.WriteString(routing)
	return b.String(), err
}
