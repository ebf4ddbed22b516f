package hosts

import (
	"maps"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/ambit-mesh/ambit/internal/mesh/trie"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// edit makes the next index of one. What both have in common they share.
type edit struct {
	index
	epoch uint64
	own   bool // the map of ranges has been copied
}

// drop removes the service of a resource; it need not be there.
func (e *edit) drop(name string) {
	same := func(s *workload.Service) bool { return s.Key().String() == name }
	var svc *workload.Service
	for _, l := range e.byName.Get(trie.String(name)) {
		if same(l.Value) {
			svc = l.Value
		}
	}
	if svc == nil {
		return
	}
	e.byName = e.byName.Drop(e.epoch, trie.String(name), same)
	e.file(svc, func(g *group) *group { return g.without(svc) })
}

// put adds a service, of whose name there is none.
func (e *edit) put(name string, svc *workload.Service) {
	e.byName = e.byName.Put(e.epoch, trie.String(name), svc, func(*workload.Service) bool { return false })
	e.file(svc, func(g *group) *group { return g.with(svc) })
}

// file changes the groups of which a service is.
func (e *edit) file(svc *workload.Service, change func(*group) *group) {
	for n, r := range svc.CIDRs {
		if !contains(svc.CIDRs[:n], r) {
			e.editRange(r, change)
		}
	}
	host := strings.ToLower(svc.Hostname)
	if rest, wild := strings.CutPrefix(host, "*."); wild {
		e.wild = editHost(e.wild, e.epoch, host[len(host)-len(rest)-1:], change)
		return
	}
	if svc.ByName || host[0] == '*' || len(svc.VIPs)+len(svc.CIDRs) == 0 { // else it is what has these addresses
		e.byHost = editHost(e.byHost, e.epoch, host, change)
	}
}

func contains(all []workload.NetworkPrefix, r workload.NetworkPrefix) bool {
	for _, o := range all {
		if o == r {
			return true
		}
	}
	return false
}

func editHost(hosts trie.Map[named], epoch uint64, host string, change func(*group) *group) trie.Map[named] {
	same := func(n named) bool { return n.host == host }
	if next := change(at(hosts, host)); next != nil {
		return hosts.Put(epoch, trie.String(host), named{host, next}, same)
	}
	return hosts.Drop(epoch, trie.String(host), same)
}

func (e *edit) editRange(r workload.NetworkPrefix, change func(*group) *group) {
	if !e.own {
		e.ranges, e.own = maps.Clone(e.ranges), true
		if e.ranges == nil {
			e.ranges = map[string]*bart.Table[*group]{}
		}
	}
	table := e.ranges[r.Network]
	if table == nil {
		table = new(bart.Table[*group])
	}
	table = table.ModifyPersist(r.Prefix, func(old *group, _ bool) (*group, bool) {
		next := change(old)
		return next, next == nil
	})
	if e.ranges[r.Network] = table; table.Size() == 0 {
		delete(e.ranges, r.Network)
	}
}
