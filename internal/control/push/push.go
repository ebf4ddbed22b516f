// Package push hands what the registry derives to the discovery server, and
// counts it.
package push

import (
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Cache is where resources are served from; *xds.Cache is one.
type Cache interface {
	Publish(updates ...xds.Changes)
	MarkSynced(typeURL string)
}

// Pusher is a registry.Publisher that fills a Cache.
type Pusher struct {
	Cache Cache
	// Updated, when set, is called with the numbers of every update of a type.
	Updated func(typeURL string, set, removed int)
}

// Publish implements registry.Publisher. A client is never sent a workload that
// names a policy which the client lacks: the cache applies all types as one
// change.
func (p *Pusher) Publish(u registry.Update) {
	p.Cache.Publish(u...)
	if p.Updated == nil {
		return
	}
	for _, c := range u {
		p.Updated(c.TypeURL, len(c.Set), len(c.Removed))
	}
}

// Synced implements registry.Publisher.
func (p *Pusher) Synced() {
	for _, url := range registry.Types() {
		p.Cache.MarkSynced(url)
	}
}
