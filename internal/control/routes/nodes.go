package routes

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// atNodes reports whether node proxies execute a route for a destination: one of
// connections, where no waypoint is asked for. A waypoint that is missing is not replaced.
func (o *object) atNodes(d *Destination) bool {
	return o.carries != route.Requests && d.Gateway == (source.Ref{}) && !d.Named && !d.Foreign
}

// toNodes sends the rules of a route to the node proxies that execute it: those of all
// clients, or of the namespace that the route is for.
func (t *Tables) toNodes(r *collection.Reader, o *object, attached []attachment, send func([]wire.Parent, func(*wire.Rule) (*xds.Resource, error))) {
	var all, own []wire.Parent
	for i := range attached {
		a := &attached[i]
		if a.dest == nil || t.in.Reach == nil || !o.atNodes(a.dest) {
			continue
		}
		for _, p := range a.ports {
			list := &all
			if p.Clients != "" {
				list = &own
			}
			if !slices.Contains(*list, p) && !a.requests(p.Port.Port) {
				*list = append(*list, p)
			}
		}
	}
	to := func(list []wire.Parent, kind string, namespaces []string) {
		if len(list) == 0 {
			return
		}
		for name, group := range t.in.Reach(r, namespaces) {
			send(list, func(w *wire.Rule) (*xds.Resource, error) { return named(name+"/"+kind, group, w) })
		}
	}
	to(all, "producer", nil)
	to(own, "consumer", []string{o.ref.Namespace})
}

// requests reports whether a port is declared to carry HTTP, where a route of connections
// has no effect.
func (a *attachment) requests(port uint16) bool {
	return slices.ContainsFunc(a.named, func(p Port) bool { return p.Number == port && p.Requests })
}
