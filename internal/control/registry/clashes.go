package registry

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Clashes returns what other namespaces have in an address or range, for
// people, at most a few, and how much more there is. It looks at every object
// for a range.
func (r *Registry) Clashes(namespace string, p netip.Prefix) (owners []string, more int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p = tables.Plain(p)
	if p.IsSingleIP() {
		if o := r.t.Owner(collection.Untracked(), source.Cluster{}, p.Addr(), namespace); o != "" {
			owners = append(owners, o)
		}
		return owners, 0
	}
	var found []string
	add := func(kind, ns, name string, addrs []netip.Addr) {
		if ns != namespace && slices.ContainsFunc(addrs, p.Contains) {
			found = append(found, kind+" "+name)
		}
	}
	for k, addrs := range r.t.Owned.Services.All() {
		if !k.Cluster.Own() {
			continue
		}
		add(source.Service.Name, k.Namespace, k.String(), addrs)
	}
	for k, l := range r.t.Owned.Pods.All() {
		if l.Network == r.opts.Network {
			add(source.Pod.Name, k.Namespace, k.String(), l.Addrs)
		}
	}
	slices.Sort(found)
	n := min(len(found), tables.MaxClashes)
	return found[:n], len(found) - n
}
