// Package observed keeps what the control plane has sent of what users want to have
// observed: layers, and the settings that they come to.
package observed

import (
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Layers are those of a proxy. Its methods may be called from any goroutine.
type Layers struct {
	set     atomic.Pointer[observe.Set] // nil before the first has come
	changed chan struct{}               // has a value after a change
	log     *slog.Logger

	mu    sync.Mutex // guards store: it is dumped while it changes
	store *observe.Store
}

// New returns no layers in the language of a role, for a gateway in a namespace, or for a node
// proxy without one.
func New(g *observe.Language, namespace string, log *slog.Logger) *Layers {
	return &Layers{store: observe.NewStore(g, namespace, os.LookupEnv), log: log, changed: make(chan struct{}, 1)}
}

// Set returns the layers of this moment, nil before the first have come.
func (o *Layers) Set() *observe.Set { return o.set.Load() }

// Changed has a value after a change.
func (o *Layers) Changed() <-chan struct{} { return o.changed }

// Apply takes a response in. A layer that is rejected leaves what was there before.
func (o *Layers) Apply(d xds.Delta) []xds.Rejection {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []xds.Rejection
	for _, res := range d.Updated {
		if err := o.store.Put(res.Name, res.Body); err != nil {
			o.log.Error("telemetry rejected: what was in effect stays", "resource", res.Name, "error", err)
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
		}
	}
	for _, name := range d.Removed {
		o.store.Remove(name)
	}
	o.set.Store(o.store.Set())
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return out
}

// Names returns the services of collectors, as names for the control plane.
func (o *Layers) Names() (out []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.store.Collectors() {
		out = append(out, c.Service.Namespace+"/"+c.Service.Hostname)
	}
	return out
}

// Any implements telemetry.Overrides.
func (o *Layers) Any() bool {
	s := o.set.Load()
	return s != nil && s.Metrics
}

// Overrides returns what settings change of metrics.
func Overrides(s *observe.Settings) map[string]telemetry.Override {
	out := make(map[string]telemetry.Override, len(s.Metrics))
	for name, o := range s.Metrics {
		from := make(map[string]string, len(o.From))
		for label, v := range o.From {
			from[label] = v.ID()
		}
		out[name] = telemetry.Override{Disabled: o.Disabled, Remove: o.Remove, Set: o.Set, From: from}
	}
	return out
}

// OfServices are the overrides of a gateway. It implements telemetry.Overrides.
type OfServices struct{ *Layers }

// For implements telemetry.Overrides.
func (m OfServices) For(t telemetry.Traffic) map[string]telemetry.Override {
	return Overrides(m.Set().For(observe.Service{Namespace: t.Service.Namespace, Hostname: t.Service.Hostname}))
}

// Dump lists the layers for /config_dump.
func (o *Layers) Dump() []admin.Telemetry {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.store.Summaries()
}
