package xds

import (
	"maps"
	"slices"
	"sync"
)

// Cache holds what a Server serves. All methods may be called from any
// goroutine. Nothing of a type is served before MarkSynced was called for it.
type Cache struct {
	// mu guards everything below. It is taken before the lock of a session,
	// and never held during IO.
	mu       sync.RWMutex
	types    map[string]*table
	sessions map[*session]struct{}
}

// table is the resources of one type.
type table struct {
	synced    bool
	resources map[string]entry
	aliases   map[string][]string            // to the names of resources
	parts     map[string]map[string]struct{} // resources by what they are With
	// names is every name, shared by the clients that start with all of
	// them; nil after a change of the set. Who holds the cache's lock for
	// reading takes listing as well.
	names   []string
	listing sync.Mutex
	// listed is the size of a list of all resources, in bytes.
	listed int
	// numbers are how many were given to entries, free those given back.
	numbers int
	free    []int
}

// entry is a resource, with a small number of its own while it is there.
type entry struct {
	*Resource
	number int
}

// all returns every name.
func (t *table) all() []string {
	t.listing.Lock()
	defer t.listing.Unlock()
	if t.names == nil {
		t.names = slices.Collect(maps.Keys(t.resources))
	}
	return t.names
}

// NewCache returns an empty Cache.
func NewCache() *Cache {
	return &Cache{types: make(map[string]*table), sessions: make(map[*session]struct{})}
}

func (c *Cache) table(typeURL string) *table {
	t := c.types[typeURL]
	if t == nil {
		t = &table{resources: make(map[string]entry), aliases: make(map[string][]string),
			parts: make(map[string]map[string]struct{})}
		c.types[typeURL] = t
	}
	return t
}

// Update sets and removes resources of a type. Resources whose version is
// unchanged cost nothing downstream. An empty Version is filled by VersionOf.
// The Cache keeps the resources; they must not change any more.
func (c *Cache) Update(typeURL string, set []*Resource, removed []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.table(typeURL)
	var changes []change
	for _, r := range set {
		r = r.sealed(typeURL)
		old := t.resources[r.Name]
		if old.Resource != nil && old.Version == r.Version && slices.Equal(old.Aliases, r.Aliases) && slices.Equal(old.With, r.With) {
			continue
		}
		t.store(r, old)
		changes = append(changes, change{name: r.Name, aliases: r.Aliases, with: r.With, late: r.Late && old.Resource != nil})
	}
	for _, name := range removed {
		if old, had := t.resources[name]; had {
			t.discard(old)
			changes = append(changes, change{name: name, late: true})
		}
	}
	if len(changes) == 0 {
		return
	}
	for s := range c.sessions {
		s.changed(typeURL, changes)
	}
}

// change names a resource that changed, what else it is called, and what it is
// a part of.
type change struct {
	name          string
	aliases, with []string
	late          bool // a removal, or of a resource that is Late and not new
}

func (t *table) store(r *Resource, old entry) {
	number := old.number
	if old.Resource != nil {
		t.listed -= old.listed()
		t.unalias(old.Resource)
	} else {
		number = t.number()
		t.names = nil
	}
	for _, a := range r.Aliases {
		t.aliases[a] = append(t.aliases[a], r.Name)
	}
	for _, g := range r.With {
		set := t.parts[g]
		if set == nil {
			set = make(map[string]struct{})
			t.parts[g] = set
		}
		set[r.Name] = struct{}{}
	}
	t.resources[r.Name] = entry{r, number}
	t.listed += r.listed()
}

// number is one that no entry has.
func (t *table) number() int {
	if n := len(t.free); n > 0 {
		number := t.free[n-1]
		t.free = t.free[:n-1]
		return number
	}
	t.numbers++
	return t.numbers - 1
}

func (t *table) discard(old entry) {
	t.unalias(old.Resource)
	t.free = append(t.free, old.number)
	t.listed -= old.listed()
	delete(t.resources, old.Name)
	t.names = nil
}

func (t *table) unalias(r *Resource) {
	for _, a := range r.Aliases {
		rest := slices.DeleteFunc(t.aliases[a], func(n string) bool { return n == r.Name })
		if len(rest) == 0 {
			delete(t.aliases, a)
		} else {
			t.aliases[a] = rest
		}
	}
	for _, g := range r.With {
		if delete(t.parts[g], r.Name); len(t.parts[g]) == 0 {
			delete(t.parts, g)
		}
	}
}

// resolve returns the names of the resources a client means by name.
func (t *table) resolve(name string) []string {
	names := t.aliases[name]
	if _, ok := t.resources[name]; ok && !slices.Contains(names, name) {
		names = append(slices.Clone(names), name)
	}
	return names
}

// aliasesOf and groupsOf are those of a resource, none for one that is gone.
func (t *table) aliasesOf(name string) []string {
	if r, ok := t.resources[name]; ok {
		return r.Aliases
	}
	return nil
}

func (t *table) groupsOf(name string) []string {
	if r, ok := t.resources[name]; ok {
		return r.With
	}
	return nil
}

// MarkSynced opens a type for clients: its resources are complete.
func (c *Cache) MarkSynced(typeURL string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.table(typeURL)
	if t.synced {
		return
	}
	t.synced = true
	for s := range c.sessions {
		s.signal()
	}
}

// Get returns a resource by name.
func (c *Cache) Get(typeURL, name string) (Resource, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if t := c.types[typeURL]; t != nil {
		if r, ok := t.resources[name]; ok {
			return *r.Resource, true
		}
	}
	return Resource{}, false
}

// Len counts the resources of a type.
func (c *Cache) Len(typeURL string) int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if t := c.types[typeURL]; t != nil {
		return len(t.resources)
	}
	return 0
}

// ListBytes returns the size of a request that lists every resource of every
// type, as a client sends one when it connects again.
func (c *Cache) ListBytes() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := 0
	for _, t := range c.types {
		n += t.listed
	}
	return n
}

// Resources returns the resources of a type, sorted by name.
func (c *Cache) Resources(typeURL string) []Resource {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t := c.types[typeURL]
	if t == nil {
		return nil
	}
	out := make([]Resource, 0, len(t.resources))
	for _, name := range slices.Sorted(maps.Keys(t.resources)) {
		out = append(out, *t.resources[name].Resource)
	}
	return out
}

func (c *Cache) join(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[s] = struct{}{}
}

func (c *Cache) leave(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, s)
}
