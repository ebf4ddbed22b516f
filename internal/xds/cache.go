package xds

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Cache holds what a Server serves. All methods may be called from any
// goroutine. Nothing of a type is served before MarkSynced was called for it.
type Cache struct {
	// mu guards everything below. It is taken before the lock of a session,
	// and never held during IO.
	mu       sync.RWMutex
	types    map[string]*table
	sessions map[*session]struct{}
	progress chan struct{} // closed when a client has answered; nil if nobody waits
	waiting  atomic.Int32  // calls of Accepted
}

// table is the resources of one type.
type table struct {
	synced    bool
	resources map[string]entry
	aliases   map[string][]string            // to the names of resources
	parts     map[string]map[string]struct{} // resources by what they are With
	groups    map[Group]map[string]struct{}  // resources by their Groups
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
			parts: make(map[string]map[string]struct{}), groups: make(map[Group]map[string]struct{})}
		c.types[typeURL] = t
	}
	return t
}

// Changes are what changes of one type: resources that are set, and names of
// resources that are removed.
type Changes struct {
	TypeURL string
	Set     []*Resource
	Removed []string
}

// Update sets and removes resources of a type, as Publish does.
func (c *Cache) Update(typeURL string, set []*Resource, removed []string) {
	c.Publish(Changes{TypeURL: typeURL, Set: set, Removed: removed})
}

// Publish applies changes of several types as one: no client is sent a state
// between them. Resources whose version is unchanged cost nothing downstream.
// An empty Version is filled by VersionOf. The Cache keeps the resources; they
// must not change any more.
func (c *Cache) Publish(updates ...Changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := make([]typeChanges, 0, len(updates))
	for _, u := range updates {
		if changes := c.table(u.TypeURL).apply(u); len(changes) > 0 {
			changed = append(changed, typeChanges{u.TypeURL, changes})
		}
	}
	if len(changed) == 0 {
		return
	}
	for s := range c.sessions {
		s.changed(changed)
	}
}

// typeChanges are the changes of one type.
type typeChanges struct {
	typeURL string
	changes []change
}

// change is a resource that changed.
type change struct {
	name          string
	old, resource *Resource // before and after; nil where there is none
	added         bool      // the client did not follow the resource before
	late          bool      // a removal, or of a resource that is Late
}

// apply changes the table and returns what is different since.
func (t *table) apply(u Changes) []change {
	var changes []change
	for _, r := range u.Set {
		r = r.sealed(u.TypeURL)
		old := t.resources[r.Name]
		if old.Resource != nil && old.Version == r.Version && slices.Equal(old.Aliases, r.Aliases) &&
			slices.Equal(old.With, r.With) && slices.Equal(old.Groups, r.Groups) {
			continue
		}
		t.store(r, old)
		changes = append(changes, change{name: r.Name, old: old.Resource, resource: r, added: old.Resource == nil, late: r.Late})
	}
	for _, name := range u.Removed {
		if old, had := t.resources[name]; had {
			t.discard(old)
			changes = append(changes, change{name: name, old: old.Resource, late: true})
		}
	}
	return changes
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
	for _, w := range r.With {
		include(t.parts, w, r.Name)
	}
	for _, g := range r.Groups {
		include(t.groups, g, r.Name)
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
	for _, w := range r.With {
		exclude(t.parts, w, r.Name)
	}
	for _, g := range r.Groups {
		exclude(t.groups, g, r.Name)
	}
}

// include adds a name to the set of a key, and exclude takes it out.
func include[K comparable](sets map[K]map[string]struct{}, k K, name string) {
	set := sets[k]
	if set == nil {
		set = make(map[string]struct{})
		sets[k] = set
	}
	set[name] = struct{}{}
}

func exclude[K comparable](sets map[K]map[string]struct{}, k K, name string) {
	if delete(sets[k], name); len(sets[k]) == 0 {
		delete(sets, k)
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
	delete(c.sessions, s)
	c.mu.Unlock()
	c.advanced()
}
