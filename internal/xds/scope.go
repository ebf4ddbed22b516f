package xds

import (
	"slices"
)

// Group is a set of resources of one type. A resource names its groups (see
// Resource.Groups), and a Scope names those that a client may have. Clients
// cannot ask for a group: it is no name of a resource.
type Group string

// Scope is what one client may have of one type. The zero Scope is nothing.
// For what is outside, the client gets the same answers as for what does not
// exist.
type Scope struct {
	// All is every resource, by wildcard and by name.
	All bool
	// Groups are what a wildcard brings when it is not All. Their members may
	// be asked for by name, too.
	Groups []Group
	// Unasked are groups whose members come with a subscription to single names.
	Unasked []Group
	// Within reports whether a resource may be asked for by name, though it is
	// in none of the groups. It gets the resource's name, never an alias. It is
	// called while the Cache is locked: it must neither wait nor use the Cache.
	// Nil permits none.
	Within func(name string) bool
}

// permits reports whether a resource is in the scope.
func (s *Scope) permits(r *Resource) bool {
	return s.All || shares(r.Groups, s.Groups) || shares(r.Groups, s.Unasked) || s.Within != nil && s.Within(r.Name)
}

// shares reports whether two lists have a member in common.
func shares(a, b []Group) bool {
	return slices.ContainsFunc(a, func(g Group) bool { return slices.Contains(b, g) })
}

// groups are what the client follows besides the names that it asks for.
func (w *watch) groups() []Group {
	if w.wildcard {
		return w.scope.Groups
	}
	return w.scope.Unasked
}

// tracks reports whether the watch lists what the client has. Only the watch of
// a client that follows all resources of a type does without.
func (w *watch) tracks() bool { return !w.wildcard || !w.scope.All }

// get returns a resource that exists and that the client may have. A client
// that follows everything in groups has no more than that and what it asks for.
func (w *watch) get(t *table, name string) (*Resource, bool) {
	r, ok := t.resources[name]
	if !ok || !w.allows(t, r.Resource) {
		return nil, false
	}
	return r.Resource, true
}

func (w *watch) allows(t *table, r *Resource) bool {
	return w.scope.All || w.scope.permits(r) && (!w.wildcard || w.asked(t, r))
}

// resolve returns the names of the resources that a client means by a name or
// an alias, and that it may have.
func (w *watch) resolve(t *table, name string) []string {
	names := t.resolve(name)
	if w.scope.All {
		return names
	}
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, ok := w.get(t, n); return !ok })
}

// members returns the names of the resources in groups, each once.
func (t *table) members(groups []Group) []string {
	var out []string
	for i, g := range groups {
		for name := range t.groups[g] {
			if !shares(t.resources[name].Groups, groups[:i]) {
				out = append(out, name)
			}
		}
	}
	return out
}

// asked reports whether a client, whose watch tracks, has asked for a resource:
// by a wildcard, by a name or an alias, or by asking for what it is a part of.
func (w *watch) asked(t *table, r *Resource) bool {
	return w.named(r) || slices.ContainsFunc(r.With, func(of string) bool {
		if has(w.names, of) {
			return true
		}
		whole, ok := t.resources[of]
		return ok && w.scope.permits(whole.Resource) && w.named(whole.Resource)
	})
}

// named is asked for the resource itself.
func (w *watch) named(r *Resource) bool {
	return shares(r.Groups, w.groups()) || has(w.names, r.Name) ||
		slices.ContainsFunc(r.Aliases, func(a string) bool { return has(w.names, a) })
}

// joins reports whether a client of single names has something that a resource
// is a part of, whatever that is called now.
func (w *watch) joins(r *Resource) bool {
	return !w.wildcard && slices.ContainsFunc(r.With, func(of string) bool { return has(w.held, of) || has(w.pending, of) })
}

// seen returns a change of the cache as a client sees it whose watch tracks: a
// resource that the client begins to follow is added, and one that it may not
// have any more is removed. It reports false when the client sees nothing.
func (w *watch) seen(t *table, c change) (change, bool) {
	held := has(w.held, c.name)
	if c.resource != nil && w.allows(t, c.resource) && (held || w.asked(t, c.resource) || w.joins(c.resource)) {
		c.added = !held
		return c, true
	}
	was := c.old != nil && w.scope.permits(c.old)
	return change{name: c.name, late: true}, was && (held || has(w.pending, c.name))
}
