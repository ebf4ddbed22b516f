package rbac

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	securitypb "github.com/ambit-mesh/ambit/api/security"
)

// Update is one resource: its name and what it holds. A nil Policy is a
// resource that could not be decoded: it denies the namespace of its name.
type Update struct {
	Name   string // of the resource, namespace/name
	Policy *securitypb.Authorization
}

// Rejection is a policy that could not be compiled and now fails closed.
type Rejection struct {
	Name string
	Err  error
}

// Store is the writer's side: it applies deltas and publishes Sets. All
// methods may be called from any goroutine.
type Store struct {
	current atomic.Pointer[Set]
	mu      sync.Mutex // serializes writers and guards the rest
	subs    []*subscription
	leaving []string // names of the retired, the oldest first
}

// maxRetired bounds the policies that are kept after their removal. Beyond it
// the oldest is dropped; who still names it is refused.
const maxRetired = 1024

type subscription struct{ fn func(*Set) }

// NewStore returns an empty Store.
func NewStore() *Store {
	s := &Store{}
	s.current.Store(&Set{})
	return s
}

// Set returns the present policies.
func (s *Store) Set() *Set { return s.current.Load() }

// Apply sets and removes policies (by resource name). Policies that cannot be
// compiled are in force, closed, and returned.
func (s *Store) Apply(set []Update, removed []string) []Rejection {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.current.Load()
	var rejected []Rejection
	changed := false
	for _, u := range set {
		p, err := undecodable(u.Name)
		if u.Policy != nil {
			p, err = Compile(u.Policy)
		}
		if err != nil {
			rejected = append(rejected, Rejection{u.Name, err})
		}
		next.remove(u.Name)
		next.add(u.Name, p)
		changed = true
	}
	retired := s.retire(&next, set, removed)
	for _, name := range removed {
		changed = next.remove(name) || changed
	}
	next.retired = retired
	if !changed {
		return rejected
	}
	s.current.Store(&next)
	for _, sub := range s.subs {
		sub.fn(&next)
	}
	return rejected
}

// retire returns what is kept of removed policies after an Apply: workloads and
// policies come separately, so a workload may still name a policy that is gone.
func (s *Store) retire(next *Set, set []Update, removed []string) map[string]*Policy {
	out := maps.Clone(next.retired)
	for _, u := range set {
		delete(out, u.Name)
	}
	for _, name := range removed {
		p, ok := next.names.get(name)
		if _, shared := p.appliesTo(); !ok || shared {
			continue // only policies of some workloads are named
		}
		if out == nil {
			out = map[string]*Policy{}
		}
		out[name] = p
		s.leaving = append(s.leaving, name)
	}
	s.leaving = slices.DeleteFunc(s.leaving, func(name string) bool { _, kept := out[name]; return !kept })
	if over := len(s.leaving) - maxRetired; over > 0 {
		for _, name := range s.leaving[:over] {
			delete(out, name)
		}
		s.leaving = slices.Delete(s.leaving, 0, over)
	}
	return out
}

// Prune drops the removed policies that no workload names any more.
func (s *Store) Prune(named func(name string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	if len(old.retired) == 0 {
		return
	}
	next := *old
	next.retired = map[string]*Policy{}
	for name, p := range old.retired {
		if named(name) {
			next.retired[name] = p
		}
	}
	s.leaving = slices.DeleteFunc(s.leaving, func(name string) bool { return !named(name) })
	s.current.Store(&next)
}

// Retired counts the policies that were removed and may still be named.
func (s *Set) Retired() int { return len(s.retired) }

// Subscribe calls fn after every Apply that changed something, on the
// goroutine of Apply, after the new Set is visible. fn must be quick and must
// not call Apply or Subscribe. The result ends the subscription.
func (s *Store) Subscribe(fn func(*Set)) (cancel func()) {
	sub := &subscription{fn}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs = append(slices.Clone(s.subs), sub)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.subs = slices.DeleteFunc(slices.Clone(s.subs), func(o *subscription) bool { return o == sub })
	}
}

// add and remove change a Set that nobody sees yet.
func (s *Set) add(name string, p *Policy) {
	s.names.set(name, p)
	s.size++
	if ns, ok := p.appliesTo(); ok {
		var list []*Policy
		if old, ok := s.namespaces.get(ns); ok {
			list = slices.Clone(old.policies)
		}
		list = append(list, p)
		slices.SortStableFunc(list, func(a, b *Policy) int { return cmp.Compare(a.key, b.key) })
		s.namespaces.set(ns, &scoped{list})
	}
}

func (s *Set) remove(name string) bool {
	p, ok := s.names.get(name)
	if !ok {
		return false
	}
	s.names.unset(name)
	s.size--
	ns, ok := p.appliesTo()
	if !ok {
		return true
	}
	old, _ := s.namespaces.get(ns)
	list := slices.DeleteFunc(slices.Clone(old.policies), func(o *Policy) bool { return o == p })
	if len(list) == 0 {
		s.namespaces.unset(ns)
	} else {
		s.namespaces.set(ns, &scoped{list})
	}
	return true
}

// appliesTo returns the namespace whose workloads need not name the policy;
// empty is all of them.
func (p *Policy) appliesTo() (ns string, ok bool) {
	if p == nil {
		return "", false
	}
	switch p.scope {
	case global:
		return "", true
	case namespace:
		return p.namespace, true
	case selector:
	}
	return "", false
}

// cowShards spreads a map so that a change copies one part: of 10,000
// policies some 150.
const cowShards = 64

// cow is a map that is copied on write, a shard at a time. Its copies share
// all shards.
type cow[V any] struct{ shards [cowShards]map[string]V }

var cowSeed = maphash.MakeSeed()

func (c *cow[V]) shard(key string) *map[string]V {
	return &c.shards[maphash.String(cowSeed, key)%cowShards]
}

func (c *cow[V]) get(key string) (V, bool) {
	v, ok := (*c.shard(key))[key]
	return v, ok
}

func (c *cow[V]) set(key string, v V) {
	s := c.shard(key)
	m := make(map[string]V, len(*s)+1)
	maps.Copy(m, *s)
	m[key] = v
	*s = m
}

func (c *cow[V]) unset(key string) {
	s := c.shard(key)
	m := maps.Clone(*s)
	delete(m, key)
	*s = m
}

func (c *cow[V]) all(yield func(string, V) bool) {
	for _, m := range c.shards {
		for k, v := range m {
			if !yield(k, v) {
				return
			}
		}
	}
}
