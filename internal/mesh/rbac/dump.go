package rbac

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
)

// The shape of /config_dump. Existing tools parse it, so names and cases
// follow upstream; error is ours.
type (
	policyDump struct {
		Name      string          `json:"name"`
		Namespace string          `json:"namespace"`
		Scope     string          `json:"scope"`
		Action    string          `json:"action"`
		Rules     [][][]matchDump `json:"rules"`
		DryRun    bool            `json:"dryRun"`
		Error     string          `json:"error,omitempty"`
	}
	matchDump struct {
		Namespaces          []textDump     `json:"namespaces,omitempty"`
		NotNamespaces       []textDump     `json:"notNamespaces,omitempty"`
		ServiceAccounts     []accountDump  `json:"serviceAccounts,omitempty"`
		NotServiceAccounts  []accountDump  `json:"notServiceAccounts,omitempty"`
		Principals          []textDump     `json:"principals,omitempty"`
		NotPrincipals       []textDump     `json:"notPrincipals,omitempty"`
		SourceIPs           []netip.Prefix `json:"sourceIps,omitempty"`
		NotSourceIPs        []netip.Prefix `json:"notSourceIps,omitempty"`
		DestinationIPs      []netip.Prefix `json:"destinationIps,omitempty"`
		NotDestinationIPs   []netip.Prefix `json:"notDestinationIps,omitempty"`
		DestinationPorts    []uint16       `json:"destinationPorts,omitempty"`
		NotDestinationPorts []uint16       `json:"notDestinationPorts,omitempty"`
	}
	textDump    map[string]any
	accountDump struct {
		Namespace      string `json:"namespace"`
		ServiceAccount string `json:"serviceAccount"`
	}
)

var (
	scopeNames  = [...]string{global: "Global", namespace: "Namespace", selector: "WorkloadSelector"}
	actionNames = [...]string{allow: "Allow", deny: "Deny"}
	textNames   = [...]string{Exact: "Exact", Prefix: "Prefix", Suffix: "Suffix"}
)

// Dump renders all policies as the JSON array of /config_dump, sorted by
// resource name.
func (s *Set) Dump() (json.RawMessage, error) {
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
	out := make([]policyDump, len(list))
	for i, n := range list {
		out[i] = n.p.dump()
	}
	return json.Marshal(out)
}

// MarshalJSON renders the policy as in /config_dump.
func (p *Policy) MarshalJSON() ([]byte, error) { return json.Marshal(p.dump()) }

func (p *Policy) dump() policyDump {
	d := policyDump{
		Name: p.name, Namespace: p.namespace, Scope: scopeNames[p.scope], Action: actionNames[p.action],
		Rules: [][][]matchDump{}, DryRun: p.dryRun,
	}
	if p.broken != nil {
		d.Error = p.broken.Error()
	}
	for _, g := range p.rules {
		group := [][]matchDump{}
		for _, c := range g {
			clause := []matchDump{}
			for i := range c.matches {
				clause = append(clause, c.matches[i].dump())
			}
			if !c.always && len(clause) == 0 {
				// All of its matches were empty: shown as one, which is skipped.
				clause = append(clause, matchDump{})
			}
			group = append(group, clause)
		}
		d.Rules = append(d.Rules, group)
	}
	return d
}

func (m *match) dump() matchDump {
	return matchDump{
		Namespaces: dumpTexts(m.namespaces), NotNamespaces: dumpTexts(m.notNamespaces),
		ServiceAccounts: dumpAccounts(m.accounts), NotServiceAccounts: dumpAccounts(m.notAccounts),
		Principals: dumpTexts(m.principals), NotPrincipals: dumpTexts(m.notPrincipals),
		SourceIPs: m.sources, NotSourceIPs: m.notSources,
		DestinationIPs: m.destinations, NotDestinationIPs: m.notDestinations,
		DestinationPorts: m.destinationPorts, NotDestinationPorts: m.notDestinationPorts,
	}
}

func dumpTexts(list []Text) []textDump {
	var out []textDump
	for _, t := range list {
		if t.Kind == Presence {
			out = append(out, textDump{"Presence": []string{}})
		} else {
			out = append(out, textDump{textNames[t.Kind]: t.Value})
		}
	}
	return out
}

func dumpAccounts(list []account) []accountDump {
	var out []accountDump
	for _, a := range list {
		out = append(out, accountDump{a.namespace, a.name})
	}
	return out
}
