package egress

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bell"
)

// maxRetired bounds the policies that are kept after their removal, while workloads still
// name them.
const maxRetired = 1024

// Policies are the EgressPolicies of a node. Its methods may be called from any goroutine.
type Policies struct {
	log  *slog.Logger
	now  atomic.Pointer[map[string]*egress.Policy] // by namespace/name
	news bell.Bell

	mu        sync.Mutex        // guards what follows
	resources map[string]string // the keys of resources
	retired   []string          // keys without a resource, the oldest first
	changed   func()
}

// NewPolicies returns none.
func NewPolicies(log *slog.Logger) *Policies {
	p := &Policies{log: log, resources: map[string]string{}}
	p.now.Store(&map[string]*egress.Policy{})
	return p
}

// Follow has f called after every change.
func (p *Policies) Follow(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed = f
}

// Apply takes policies in. One that cannot be read is in force, and refuses.
func (p *Policies) Apply(d xds.Delta) (out []xds.Rejection) {
	p.mu.Lock()
	next := maps.Clone(*p.now.Load())
	for _, res := range d.Updated {
		key := keyOf(res.Name)
		policy, err := egress.Decode(res.Body)
		if err == nil && policy.Key() != key {
			policy, err = nil, errMisnamed
		}
		if err != nil {
			p.log.Error("an EgressPolicy cannot be read, and so refuses what its pods call outside of the mesh", "resource", res.Name, "error", err)
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
			ns, name, _ := strings.Cut(key, "/")
			policy = &egress.Policy{Namespace: ns, Name: name, Invalid: "the node proxy cannot read it: " + err.Error()}
		}
		p.resources[res.Name] = key
		next[key] = policy
		p.retired = slices.DeleteFunc(p.retired, func(k string) bool { return k == key })
	}
	for _, name := range d.Removed {
		key, ok := p.resources[name]
		delete(p.resources, name)
		if !ok || slices.Contains(slices.Collect(maps.Values(p.resources)), key) {
			continue
		}
		p.retired = append(p.retired, key)
	}
	for len(p.retired) > maxRetired {
		delete(next, p.retired[0])
		p.retired = p.retired[1:]
	}
	p.now.Store(&next)
	changed := p.changed
	p.mu.Unlock()
	p.news.Ring()
	if changed != nil {
		changed()
	}
	return out
}

var errMisnamed = errors.New("its name is not that of its resource")

// keyOf returns namespace/name of a resource's name, which has the group before it.
func keyOf(resource string) string {
	rest, name := cutLast(resource)
	_, ns := cutLast(rest)
	return ns + "/" + name
}

func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, '/')
	return s[:max(i, 0)], s[i+1:]
}

// Retired reports whether there are policies that were removed and may still be named.
func (p *Policies) Retired() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.retired) > 0
}

// Prune drops the removed policies that no workload names any more.
func (p *Policies) Prune(named func(key string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.retired) == 0 {
		return
	}
	next := maps.Clone(*p.now.Load())
	p.retired = slices.DeleteFunc(p.retired, func(key string) bool {
		if named(key) {
			return false
		}
		delete(next, key)
		return true
	})
	p.now.Store(&next)
}

// Of appends the policies of some names to buf. missing is a name without a policy.
func (p *Policies) Of(buf []*egress.Policy, names []string) (all []*egress.Policy, missing string) {
	now := *p.now.Load()
	for _, name := range names {
		policy := now[name]
		if policy == nil {
			return buf, name
		}
		buf = append(buf, policy)
	}
	return buf, ""
}

// Complete reports whether all policies of some names are here.
func (p *Policies) Complete(names []string) bool {
	now := *p.now.Load()
	for _, name := range names {
		if now[name] == nil {
			return false
		}
	}
	return true
}

// Await returns when all policies of some names are here, or ctx ends.
func (p *Policies) Await(ctx context.Context, names func() []string) {
	for {
		next := p.news.Next()
		if p.Complete(names()) {
			return
		}
		select {
		case <-next:
		case <-ctx.Done():
			return
		}
	}
}
