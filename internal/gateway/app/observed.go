package app

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

// observed keeps what the control plane has sent of what is observed.
type observed struct {
	set     atomic.Pointer[observe.Set] // nil before the first has come
	changed chan struct{}               // has a value after a change
	log     *slog.Logger

	mu    sync.Mutex // guards store: it is dumped while it changes
	store *observe.Store
}

func newObserved(namespace string, log *slog.Logger) *observed {
	return &observed{store: observe.NewStore(namespace, os.LookupEnv), log: log, changed: make(chan struct{}, 1)}
}

// apply takes a response in.
func (o *observed) apply(d xds.Delta) []xds.Rejection {
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

// names returns the services of collectors, as names for the control plane.
func (o *observed) names() (out []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.store.Collectors() {
		out = append(out, c.Service.Namespace+"/"+c.Service.Hostname)
	}
	return out
}

// overrides are what users want of metrics. It implements telemetry.Overrides.
type overrides struct{ *observed }

// Any implements telemetry.Overrides.
func (m overrides) Any() bool {
	s := m.set.Load()
	return s != nil && s.Metrics
}

// For implements telemetry.Overrides.
func (m overrides) For(namespace, hostname string) map[string]telemetry.Override {
	list := m.set.Load().For(observe.Service{Namespace: namespace, Hostname: hostname}).Metrics
	out := make(map[string]telemetry.Override, len(list))
	for name, o := range list {
		from := make(map[string]string, len(o.From))
		for label, v := range o.From {
			from[label] = v.ID()
		}
		out[name] = telemetry.Override{Disabled: o.Disabled, Remove: o.Remove, Set: o.Set, From: from}
	}
	return out
}

// dump lists the layers for /config_dump.
func (o *observed) dump() []admin.Telemetry {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.store.Summaries()
}
