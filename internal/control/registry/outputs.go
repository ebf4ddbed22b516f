package registry

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// output is one type of what the registry serves.
type output struct {
	typeURL string
	// collections hold the resources of the type. No name is in two of them.
	collections func(*tables.Tables) []*tables.Resources
	// fixed are served from the start, whatever the objects; nil for none.
	fixed func(tables.Options) []*xds.Resource
}

// outputs are all types that are served. The first ones are published before
// those that name their resources.
var outputs = []output{
	{
		typeURL: wellknown.TypeAuthorization,
		collections: func(t *tables.Tables) []*tables.Resources {
			return []*tables.Resources{t.Authorizations, t.Converted, t.Closed}
		},
		fixed: func(o tables.Options) []*xds.Resource {
			strict := policy.StrictPolicy(o.RootNamespace)
			return []*xds.Resource{tables.Encode(wellknown.TypeAuthorization, tables.PolicyName(strict), nil, strict)}
		},
	},
	{
		typeURL:     wellknown.TypeAuthentication,
		collections: func(t *tables.Tables) []*tables.Resources { return t.Targets.Tokens },
	},
	{
		typeURL:     wellknown.TypePolicy,
		collections: func(t *tables.Tables) []*tables.Resources { return t.Targets.Resources },
	},
	{
		typeURL:     wellknown.TypeTelemetry,
		collections: func(t *tables.Tables) []*tables.Resources { return t.Targets.Layers },
	},
	{
		typeURL:     wellknown.TypeTraffic,
		collections: func(t *tables.Tables) []*tables.Resources { return []*tables.Resources{t.Traffic.Resources} },
	},
	{
		typeURL:     wellknown.TypeRateLimit,
		collections: func(t *tables.Tables) []*tables.Resources { return []*tables.Resources{t.Limits.Resources} },
	}, {
		typeURL:     wellknown.TypeEgress,
		collections: func(t *tables.Tables) []*tables.Resources { return []*tables.Resources{t.Egress.Resources} },
	},
	{
		typeURL:     wellknown.TypeHost,
		collections: func(t *tables.Tables) []*tables.Resources { return []*tables.Resources{t.Hosts} },
	},
	{
		typeURL: wellknown.TypeAddress,
		collections: func(t *tables.Tables) []*tables.Resources {
			return []*tables.Resources{t.Services, t.PodWorkloads, t.EntryWorkloads, t.InlineWorkloads, t.SliceWorkloads}
		},
	},
	{
		typeURL:     wellknown.TypeRoute,
		collections: func(t *tables.Tables) []*tables.Resources { return t.Routes.Resources },
	},
}

// Types returns the type URLs of everything that is served, in the order of
// their publication.
func Types() []string {
	out := make([]string, 0, len(outputs))
	for _, o := range outputs {
		out = append(out, o.typeURL)
	}
	return out
}

// Update is what changed for clients, by type, in the order of Types. A type
// without changes is not in it. Resources are never changed once published.
type Update []xds.Changes

// pending collects the changes of a turn, by the place of their type in outputs: the
// last one of each name, nil for a removal.
type pending []map[string]*xds.Resource

func newPending() pending {
	p := make(pending, len(outputs))
	for i := range outputs {
		p[i] = map[string]*xds.Resource{}
	}
	return p
}

// follow makes a registry collect what changes in its outputs.
func (p pending) follow(t *tables.Tables) {
	for i, o := range outputs {
		for _, c := range o.collections(t) {
			c.OnChange(func(changes []collection.Change[string, *xds.Resource]) {
				for _, c := range changes {
					if p[i][c.Key] = nil; c.Has {
						p[i][c.Key] = c.New
					}
				}
			})
		}
	}
}

// take returns what was collected, in the same order in every run, and forgets
// it.
func (p pending) take() Update {
	var u Update
	for i := range p {
		if len(p[i]) == 0 {
			continue
		}
		c := xds.Changes{TypeURL: outputs[i].typeURL}
		for name, resource := range p[i] {
			if resource == nil {
				c.Removed = append(c.Removed, name)
			} else {
				c.Set = append(c.Set, resource)
			}
		}
		p[i] = map[string]*xds.Resource{}
		slices.SortFunc(c.Set, byName)
		slices.Sort(c.Removed)
		u = append(u, c)
	}
	return u
}

func byName(a, b *xds.Resource) int { return strings.Compare(a.Name, b.Name) }

// fixedUpdate is what is served whatever the objects.
func fixedUpdate(o tables.Options) Update {
	var u Update
	for _, out := range outputs {
		if out.fixed != nil {
			u = append(u, xds.Changes{TypeURL: out.typeURL, Set: out.fixed(o)})
		}
	}
	return u
}

// Resources returns everything published, of every type in the order of Types,
// by name: for dumps.
func (r *Registry) Resources() []xds.Changes {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]xds.Changes, 0, len(outputs))
	for _, o := range outputs {
		of := xds.Changes{TypeURL: o.typeURL}
		for _, c := range o.collections(r.t) {
			for _, resource := range c.All() {
				of.Set = append(of.Set, resource)
			}
		}
		if o.fixed != nil {
			of.Set = append(of.Set, o.fixed(r.opts)...)
		}
		slices.SortFunc(of.Set, byName)
		all = append(all, of)
	}
	return all
}
