package rbac

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/api/admin"
)

var (
	scopeNames  = [...]string{global: "Global", namespace: "Namespace", selector: "WorkloadSelector"}
	actionNames = [...]string{allow: "Allow", deny: "Deny"}
	textNames   = [...]string{Exact: admin.Exact, Prefix: admin.Prefix, Suffix: admin.Suffix, Presence: admin.Presence}
)

// Dump returns all policies for /config_dump, sorted by resource name.
func (s *Set) Dump() []admin.Policy {
	type named struct {
		name string
		p    *Policy
	}
	var list []named
	if s != nil {
		s.names.all(func(name string, p *Policy) bool {
			list = append(list, named{name, p})
			return true
		})
	}
	slices.SortFunc(list, func(a, b named) int { return cmp.Compare(a.name, b.name) })
	out := make([]admin.Policy, len(list))
	for i, n := range list {
		out[i] = n.p.dump()
	}
	return out
}

// MarshalJSON renders the policy as in /config_dump.
func (p *Policy) MarshalJSON() ([]byte, error) { return json.Marshal(p.dump()) }

func (p *Policy) dump() admin.Policy {
	d := admin.Policy{
		Name: p.name, Namespace: p.namespace, Scope: scopeNames[p.scope], Action: actionNames[p.action],
		Rules: [][][]admin.Match{}, DryRun: p.dryRun,
	}
	if p.broken != nil {
		d.Error = p.broken.Error()
	}
	for _, g := range p.rules {
		group := [][]admin.Match{}
		for _, c := range g {
			clause := []admin.Match{}
			for i := range c.matches {
				clause = append(clause, c.matches[i].dump())
			}
			if !c.always && len(clause) == 0 {
				// All of its matches were empty: shown as one, which is skipped.
				clause = append(clause, admin.Match{})
			}
			group = append(group, clause)
		}
		d.Rules = append(d.Rules, group)
	}
	return d
}

func (m *match) dump() admin.Match {
	return admin.Match{
		Namespaces: dumpTexts(m.namespaces), NotNamespaces: dumpTexts(m.notNamespaces),
		ServiceAccounts: dumpAccounts(m.accounts), NotServiceAccounts: dumpAccounts(m.notAccounts),
		Principals: dumpTexts(m.principals), NotPrincipals: dumpTexts(m.notPrincipals),
		SourceIPs: dumpPrefixes(m.sources), NotSourceIPs: dumpPrefixes(m.notSources),
		DestinationIPs: dumpPrefixes(m.destinations), NotDestinationIPs: dumpPrefixes(m.notDestinations),
		DestinationPorts: m.destinationPorts, NotDestinationPorts: m.notDestinationPorts,
	}
}

func dumpTexts(list []Text) []admin.Text {
	var out []admin.Text
	for _, t := range list {
		out = append(out, admin.Text{Kind: textNames[t.Kind], Value: t.Value})
	}
	return out
}

func dumpAccounts(list []account) []admin.Account {
	var out []admin.Account
	for _, a := range list {
		out = append(out, admin.Account{Namespace: a.namespace, ServiceAccount: a.name})
	}
	return out
}

func dumpPrefixes(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}
