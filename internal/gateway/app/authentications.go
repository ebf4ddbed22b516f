package app

import (
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// authentications keeps what the control plane has sent of tokens that are accepted.
type authentications struct {
	set     atomic.Pointer[authn.Set] // nil before the first have come
	changed func()                    // after each change
	log     *slog.Logger

	mu    sync.Mutex // guards store: it is dumped while it changes
	store *authn.Store
}

func newAuthentications(log *slog.Logger) *authentications {
	return &authentications{store: authn.NewStore(), log: log, changed: func() {}}
}

// apply takes a response in.
func (a *authentications) apply(d xds.Delta) []xds.Rejection {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []xds.Rejection
	for _, res := range d.Updated {
		if err := a.store.Put(res.Name, res.Body); err != nil {
			a.log.Error("request authentication rejected: everything is refused until it is replaced", "resource", res.Name, "error", err)
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
		}
	}
	for _, name := range d.Removed {
		a.store.Remove(name)
	}
	a.set.Store(a.store.Set())
	a.changed()
	return out
}

// dump lists them for /config_dump.
func (a *authentications) dump() []admin.Authentication {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.store.Summaries()
}
