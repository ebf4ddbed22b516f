package traffic

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// Dump lists rules and routes for /config_dump.
func (n *Node) Dump() *admin.Traffic {
	s, now := n.now.Load(), time.Now()
	out := &admin.Traffic{Rules: []admin.TrafficRule{}, Routes: []admin.TrafficRoute{}, Limits: n.Limits.Dump()}
	n.mu.Lock()
	groups := slices.Collect(maps.Values(n.groups))
	n.mu.Unlock()
	slices.SortFunc(groups, func(a, b *Group) int {
		return cmp.Or(cmp.Compare(a.key.service.String(), b.key.service.String()), cmp.Compare(a.key.port, b.key.port), cmp.Compare(a.key.client, b.key.client))
	})
	for _, r := range s.set.All() {
		row := admin.TrafficRule{Object: r.String(), Host: r.Host, Clients: r.VisibleTo, Own: r.Own, Settings: r.Text(), Groups: []admin.TrafficGroup{}}
		for _, g := range groups {
			if g.Rule() == r {
				row.Groups = append(row.Groups, admin.TrafficGroup{
					Clients: g.key.client, Service: g.key.service.String(), Port: g.key.port, Settings: g.Settings().String(), Connections: g.Active(), Refused: g.over.Load(),
					Ejected: slices.Sorted(maps.Keys(g.Ejected(now))),
				})
			}
		}
		out.Rules = append(out.Rules, row)
	}
	for k, p := range s.routes.Ports {
		add := func(clients string, c *route.Connections) {
			for _, t := range c.Targets() {
				row := admin.TrafficRoute{
					Object: t.Rule.Origin, Service: k.Namespace + "/" + k.Hostname, Port: k.Port, Clients: clients, Names: c.Names(t), Backends: Shares(t),
				}
				if t == c.Plain() || len(row.Names) > 0 {
					out.Routes = append(out.Routes, row)
				}
			}
		}
		if p.Connections != nil {
			add("", p.Connections)
		}
		for clients, c := range p.ClientConnections {
			add(clients, c)
		}
	}
	slices.SortFunc(out.Routes, func(a, b admin.TrafficRoute) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Clients, b.Clients), cmp.Compare(a.Object, b.Object))
	})
	return out
}

// Shares renders the backends of a rule with their shares of connections.
func Shares(t *route.Target) (out []string) {
	total := uint64(0)
	for i := range t.Rule.Backends {
		total += uint64(t.Rule.Backends[i].Weight)
	}
	for i := range t.Rule.Backends {
		b := &t.Rule.Backends[i]
		to := b.Name
		if to == "" {
			to = "none (" + b.Invalid + ")"
		}
		out = append(out, fmt.Sprintf("%d of %d to %s", b.Weight, total, to))
	}
	return out
}
