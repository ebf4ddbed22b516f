package app

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// rules keeps the routes that the control plane has sent.
type rules struct {
	config  atomic.Pointer[route.Config] // nil before the first have come
	changed chan struct{}                // has a value after a change
	judge   func()                       // after each change

	mu    sync.Mutex // guards store: it is dumped while it changes
	store *wire.Store
}

func newRules() *rules {
	return &rules{changed: make(chan struct{}, 1), store: wire.NewStore(), judge: func() {}}
}

// apply takes a response in.
func (r *rules) apply(d xds.Delta) []xds.Rejection {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []xds.Rejection
	for _, res := range d.Updated {
		if err := r.store.Set(res.Name, res.Body); err != nil {
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
		}
	}
	for _, name := range d.Removed {
		r.store.Remove(name)
	}
	r.config.Store(r.store.Config())
	r.judge()
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return out
}

// named returns the services that a configuration names, as names for the control
// plane, each once.
func named(c *route.Config) []string {
	if c == nil {
		return nil
	}
	set := map[string]struct{}{}
	for k := range c.Ports {
		set[k.Namespace+"/"+k.Hostname] = struct{}{}
	}
	for _, u := range c.Upstreams {
		set[u.Service.Namespace+"/"+u.Service.Hostname] = struct{}{}
	}
	return slices.Sorted(maps.Keys(set))
}
