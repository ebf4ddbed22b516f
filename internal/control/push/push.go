// Package push hands what the registry derives to the discovery server, and
// counts it.
package push

import (
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Cache is where resources are served from; *xds.Cache is one.
type Cache interface {
	Update(typeURL string, set []*xds.Resource, removed []string)
	MarkSynced(typeURL string)
}

// Pusher is a registry.Publisher that fills a Cache.
type Pusher struct {
	Cache Cache
	// Updated, when set, is called with the numbers of every update.
	Updated func(typeURL string, set, removed int)
}

// Publish implements registry.Publisher. Policies go first: a workload must
// not name one that is not there yet. Policies that are gone go last.
func (p *Pusher) Publish(u registry.Update) {
	p.update(wellknown.TypeAuthorization, u.Policies, nil)
	p.update(wellknown.TypeAddress, u.Addresses, u.RemovedAddresses)
	p.update(wellknown.TypeAuthorization, nil, u.RemovedPolicies)
}

func (p *Pusher) update(typeURL string, set []*xds.Resource, removed []string) {
	if len(set)+len(removed) == 0 {
		return
	}
	p.Cache.Update(typeURL, set, removed)
	if p.Updated != nil {
		p.Updated(typeURL, len(set), len(removed))
	}
}

// Synced implements registry.Publisher.
func (p *Pusher) Synced() {
	p.Cache.MarkSynced(wellknown.TypeAuthorization)
	p.Cache.MarkSynced(wellknown.TypeAddress)
}
