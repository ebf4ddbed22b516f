package auth

import (
	"context"
	"maps"
	"sync/atomic"
)

// Clusters judges the tokens of several clusters, each by an authenticator of
// its own. A caller's claim only selects which one is asked: that one proves
// where the caller is. A token is shown to one cluster, so that no cluster
// collects the tokens of another.
type Clusters struct {
	local string
	// known is replaced as a whole.
	known atomic.Pointer[map[string]Authenticator]
}

// NewClusters returns Clusters with one cluster, which also judges the tokens of
// callers that claim a cluster that is not known, or none.
func NewClusters(local string, a Authenticator) *Clusters {
	c := &Clusters{local: local}
	c.known.Store(&map[string]Authenticator{local: a})
	return c
}

// Set adds or replaces a cluster; nil removes it. The local one stays.
func (c *Clusters) Set(cluster string, a Authenticator) {
	for {
		old := c.known.Load()
		next := maps.Clone(*old)
		switch {
		case a != nil:
			next[cluster] = a
		case cluster != c.local:
			delete(next, cluster)
		}
		if c.known.CompareAndSwap(old, &next) {
			return
		}
	}
}

// of returns which cluster is asked, and its authenticator.
func (c *Clusters) of(claimed string) (string, Authenticator) {
	known := *c.known.Load()
	if a, ok := known[claimed]; ok {
		return claimed, a
	}
	return c.local, known[c.local]
}

// Authenticate implements Authenticator.
func (c *Clusters) Authenticate(ctx context.Context, cr Credentials) (Caller, error) {
	cluster, a := c.of(cr.Cluster)
	caller, err := a.Authenticate(ctx, cr)
	caller.Cluster = cluster
	return caller, err
}

// Screen implements Screener.
func (c *Clusters) Screen(cr Credentials) (Caller, error) {
	cluster, a := c.of(cr.Cluster)
	s, ok := a.(Screener)
	if !ok {
		return Caller{}, ErrUndecided
	}
	caller, err := s.Screen(cr)
	caller.Cluster = cluster
	return caller, err
}
