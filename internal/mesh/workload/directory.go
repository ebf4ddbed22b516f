package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/trie"
)

// Options configures a Directory.
type Options struct {
	// TrustDomain is that of workloads that name none; empty means the
	// default trust domain.
	TrustDomain string
	// PreferredNamespace wins among services of one host name when neither
	// the client's namespace nor a canonical service decides.
	PreferredNamespace string
}

// Change is one workload or service before and after an Apply: Old is nil for
// a new one, New for one that is gone. Only one pair is set.
type Change struct {
	OldWorkload, NewWorkload *Workload
	OldService, NewService   *Service
}

// Changes is what one Apply did. It is shared by all subscribers and not to
// be changed.
type Changes struct {
	// Snapshot is the state after the changes.
	Snapshot *Snapshot
	List     []Change
}

// RemovedUIDs lists the workloads that left the directory.
func (c Changes) RemovedUIDs() []string {
	var out []string
	for _, ch := range c.List {
		if ch.OldWorkload != nil && ch.NewWorkload == nil {
			out = append(out, ch.OldWorkload.UID)
		}
	}
	return out
}

// Rejection is a resource that could not be understood. What was known under
// its name before stays.
type Rejection struct {
	Name string // of the resource
	Err  error
}

// Directory is the writer's side: it applies deltas and publishes Snapshots.
// All methods may be called from any goroutine.
type Directory struct {
	opts    Options
	current atomic.Pointer[Snapshot]

	// mu serializes writers and guards what follows.
	mu     sync.Mutex
	epoch  uint64
	traits map[uint64][]*Traits // by hash
	nodes  map[string]*nodeName
	subs   []*subscription
	// changed is closed by the next Apply that changes something.
	changed chan struct{}
}

// nodeName is a node's name, kept once for all its workloads.
type nodeName struct {
	name string
	refs int
}

type subscription struct{ fn func(Changes) }

// NewDirectory returns an empty Directory.
func NewDirectory(opts Options) *Directory {
	opts.TrustDomain = orDefault(opts.TrustDomain, identity.DefaultTrustDomain)
	d := &Directory{
		opts:    opts,
		traits:  make(map[uint64][]*Traits),
		nodes:   make(map[string]*nodeName),
		changed: make(chan struct{}),
	}
	d.current.Store(&Snapshot{preferredNamespace: opts.PreferredNamespace})
	return d
}

// Snapshot returns the present state.
func (d *Directory) Snapshot() *Snapshot { return d.current.Load() }

// Apply sets and removes resources. The names in removed are those of
// resources: the UID of a workload or namespace/hostname of a service.
// Resources that cannot be understood are returned; the rest is applied.
func (d *Directory) Apply(set []*workloadpb.Address, removed []string) (Changes, []Rejection) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epoch++
	next := *d.current.Load()
	e := edit{d: d, Snapshot: &next}
	var rejected []Rejection
	for _, a := range set {
		if err := e.set(a); err != nil {
			rejected = append(rejected, Rejection{ResourceName(a), err})
		}
	}
	for _, name := range removed {
		e.remove(name)
	}
	if len(e.changes) == 0 {
		return Changes{Snapshot: d.current.Load()}, rejected
	}
	d.current.Store(&next)
	changes := Changes{&next, e.changes}
	for _, s := range d.subs {
		s.fn(changes)
	}
	close(d.changed)
	d.changed = make(chan struct{})
	return changes, rejected
}

// ResourceName returns the name of a resource on the wire: the UID of a
// workload, namespace/hostname of a service, empty without either.
func ResourceName(a *workloadpb.Address) string {
	switch t := a.GetType().(type) {
	case *workloadpb.Address_Workload:
		return t.Workload.GetUid()
	case *workloadpb.Address_Service:
		return t.Service.GetNamespace() + "/" + t.Service.GetHostname()
	}
	return ""
}

// Subscribe calls fn after every Apply that changed something, in order, on
// the goroutine of Apply, after the new Snapshot is visible. fn must be quick
// and must not call Apply, Subscribe or Wait. The result ends the
// subscription.
func (d *Directory) Subscribe(fn func(Changes)) (cancel func()) {
	s := &subscription{fn}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subs = append(slices.Clone(d.subs), s)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.subs = slices.DeleteFunc(slices.Clone(d.subs), func(o *subscription) bool { return o == s })
	}
}

// Wait returns the first value that find reports on the present or a later
// Snapshot, or the context's error.
func Wait[T any](ctx context.Context, d *Directory, find func(*Snapshot) (T, bool)) (T, error) {
	for {
		d.mu.Lock()
		s, changed := d.current.Load(), d.changed
		d.mu.Unlock()
		if v, ok := find(s); ok {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			var zero T
			return zero, context.Cause(ctx)
		}
	}
}

// edit is one Apply in progress: a Snapshot nobody sees yet.
type edit struct {
	d *Directory
	*Snapshot
	changes []Change
	// ownRanges: the map of ranges has been copied.
	ownRanges bool
}

func (e *edit) set(a *workloadpb.Address) error {
	switch t := a.GetType().(type) {
	case *workloadpb.Address_Workload:
		w, err := parseWorkload(t.Workload, e.d.opts.TrustDomain)
		if err != nil {
			return fmt.Errorf("workload %q: %w", t.Workload.GetUid(), err)
		}
		e.setWorkload(w)
	case *workloadpb.Address_Service:
		s, err := parseService(t.Service)
		if err != nil {
			return fmt.Errorf("service %s/%s: %w", t.Service.GetNamespace(), t.Service.GetHostname(), err)
		}
		e.setService(s)
	default:
		return errors.New("address is neither a workload nor a service")
	}
	return nil
}

func (e *edit) remove(name string) {
	if w := e.WorkloadByUID(name); w != nil {
		e.dropWorkload(w)
		e.changes = append(e.changes, Change{OldWorkload: w})
		return
	}
	ns, host, ok := strings.Cut(name, "/")
	if !ok {
		return
	}
	if s := e.ServiceByName(ns, host); s != nil {
		e.dropService(s)
		e.changes = append(e.changes, Change{OldService: s})
	}
}

func (e *edit) setWorkload(w *Workload) {
	old := e.WorkloadByUID(w.UID)
	e.d.intern(w)
	if old != nil {
		if old.same(w) {
			e.d.release(w)
			return
		}
		e.dropWorkload(old)
	}
	epoch := e.d.epoch
	e.uids = e.uids.Put(epoch, trie.String(w.UID), w, w.sameUID)
	e.infos = e.infos.Put(epoch, trie.Pair(w.Namespace, w.Name), w, w.sameUID)
	if !w.HostNetwork {
		for _, a := range w.addrs {
			e.addrs = e.addrs.Put(epoch, trie.Addr(w.Network, a), w, w.sameUID)
		}
	}
	if w.Hostname != "" {
		e.hostnames = e.hostnames.Put(epoch, trie.Pair(w.Namespace, w.Hostname), w, w.sameUID)
	}
	for i := range w.Services {
		m := &w.Services[i]
		e.editEndpoints(m.Service, func(s *endpointSet) *endpointSet { return s.put(epoch, endpoint{w, m}) })
	}
	e.changes = append(e.changes, Change{OldWorkload: old, NewWorkload: w})
}

func (e *edit) dropWorkload(w *Workload) {
	epoch := e.d.epoch
	e.uids = e.uids.Drop(epoch, trie.String(w.UID), w.sameUID)
	e.infos = e.infos.Drop(epoch, trie.Pair(w.Namespace, w.Name), w.sameUID)
	if !w.HostNetwork {
		for _, a := range w.addrs {
			e.addrs = e.addrs.Drop(epoch, trie.Addr(w.Network, a), w.sameUID)
		}
	}
	if w.Hostname != "" {
		e.hostnames = e.hostnames.Drop(epoch, trie.Pair(w.Namespace, w.Hostname), w.sameUID)
	}
	for _, m := range w.Services {
		e.editEndpoints(m.Service, func(s *endpointSet) *endpointSet { return s.drop(epoch, w.UID) })
	}
	e.d.release(w)
}

func (w *Workload) sameUID(o *Workload) bool { return w.UID == o.UID }

// same reports whether nothing changed; both are interned.
func (w *Workload) same(o *Workload) bool {
	return w.UID == o.UID && w.Name == o.Name && w.Node == o.Node && w.Traits == o.Traits &&
		w.Healthy == o.Healthy && w.Ending == o.Ending && slices.Equal(w.addrs, o.addrs)
}

// editEndpoints changes the endpoint set of a service, which exists while it
// has endpoints.
func (e *edit) editEndpoints(name NamespacedName, change func(*endpointSet) *endpointSet) {
	h := trie.Pair(name.Namespace, name.Hostname)
	same := func(s *endpointSet) bool { return s.service == name }
	old := e.endpointsOf(name)
	if old == nil {
		old = newEndpointSet(e.d.epoch, name)
		if svc := e.ServiceByName(name.Namespace, name.Hostname); svc != nil {
			old.allowUnhealthy = svc.AllowUnhealthy
		}
	}
	if s := change(old); s.n > 0 {
		e.endpoints = e.endpoints.Put(e.d.epoch, h, s, same)
	} else {
		e.endpoints = e.endpoints.Drop(e.d.epoch, h, same)
	}
}

func (e *edit) setService(s *Service) {
	old := e.ServiceByName(s.Namespace, s.Hostname)
	if old != nil {
		if old.same(s) {
			return
		}
		e.dropService(old)
	}
	epoch := e.d.epoch
	e.services = e.services.Put(epoch, trie.Pair(s.Namespace, s.Hostname), s, s.sameKey)
	e.hosts = e.hosts.Put(epoch, trie.String(s.Hostname), s, s.sameKey)
	for _, a := range s.VIPs {
		e.vips = e.vips.Put(epoch, trie.Addr(a.Network, a.Addr), s, s.sameKey)
	}
	for _, r := range s.CIDRs {
		e.editRange(r, func(list []*Service) []*Service { return append(list, s) })
	}
	if e.endpointsOf(s.Key()) != nil {
		e.editEndpoints(s.Key(), func(set *endpointSet) *endpointSet {
			return set.withPolicy(epoch, s.AllowUnhealthy)
		})
	}
	e.changes = append(e.changes, Change{OldService: old, NewService: s})
}

func (e *edit) dropService(s *Service) {
	epoch := e.d.epoch
	e.services = e.services.Drop(epoch, trie.Pair(s.Namespace, s.Hostname), s.sameKey)
	e.hosts = e.hosts.Drop(epoch, trie.String(s.Hostname), s.sameKey)
	for _, a := range s.VIPs {
		e.vips = e.vips.Drop(epoch, trie.Addr(a.Network, a.Addr), s.sameKey)
	}
	for _, r := range s.CIDRs {
		e.editRange(r, func(list []*Service) []*Service { return slices.DeleteFunc(list, s.sameKey) })
	}
}

func (s *Service) sameKey(o *Service) bool {
	return s.Hostname == o.Hostname && s.Namespace == o.Namespace
}

// same reports whether two services are interchangeable; its test sets every
// field.
func (s *Service) same(o *Service) bool {
	return s.Name == o.Name && s.Namespace == o.Namespace && s.Hostname == o.Hostname &&
		slices.Equal(s.VIPs, o.VIPs) && slices.Equal(s.CIDRs, o.CIDRs) && slices.Equal(s.Ports, o.Ports) &&
		slices.Equal(s.SANs, o.SANs) && s.Waypoint == o.Waypoint && slices.Equal(s.WeightedWaypoints, o.WeightedWaypoints) &&
		s.EndpointsBehind == o.EndpointsBehind && s.EndpointsTaken == o.EndpointsTaken && slices.Equal(s.Beside, o.Beside) &&
		s.HasLoadBalancing == o.HasLoadBalancing && s.Mode == o.Mode && slices.Equal(s.Scopes, o.Scopes) &&
		s.ClientAffinity == o.ClientAffinity && s.AllowUnhealthy == o.AllowUnhealthy && s.Families == o.Families && s.Canonical == o.Canonical &&
		s.NamespaceOnly == o.NamespaceOnly && s.IngressUseWaypoint == o.IngressUseWaypoint && s.Race == o.Race && s.ByName == o.ByName
}

// editRange changes the claims on one range of virtual addresses; change gets
// a copy it owns.
func (e *edit) editRange(r NetworkPrefix, change func([]*Service) []*Service) {
	if !e.ownRanges {
		e.ranges, e.ownRanges = maps.Clone(e.ranges), true
		if e.ranges == nil {
			e.ranges = make(map[string]*bart.Table[*rangeServices])
		}
	}
	table := e.ranges[r.Network]
	if table == nil {
		table = new(bart.Table[*rangeServices])
	}
	e.ranges[r.Network] = table.ModifyPersist(r.Prefix, func(old *rangeServices, ok bool) (*rangeServices, bool) {
		var list []*Service
		if ok {
			list = slices.Clone(old.services)
		}
		list = change(list)
		return &rangeServices{list}, len(list) == 0
	})
	if e.ranges[r.Network].Size() == 0 {
		delete(e.ranges, r.Network)
	}
}

// intern lets w share what it can with other workloads. Undone by release.
func (d *Directory) intern(w *Workload) {
	if n := d.nodes[w.Node]; n != nil {
		n.refs++
		w.Node = n.name
	} else {
		d.nodes[w.Node] = &nodeName{w.Node, 1}
	}
	w.setHash()
	for _, t := range d.traits[w.hash] {
		if t.same(w.Traits) {
			t.refs++
			w.Traits = t
			return
		}
	}
	w.refs = 1
	d.traits[w.hash] = append(d.traits[w.hash], w.Traits)
}

// release gives back what intern took. Readers may still hold w.
func (d *Directory) release(w *Workload) {
	if n := d.nodes[w.Node]; n.refs > 1 {
		n.refs--
	} else {
		delete(d.nodes, w.Node)
	}
	if w.refs--; w.refs > 0 {
		return
	}
	rest := slices.DeleteFunc(d.traits[w.hash], func(t *Traits) bool { return t == w.Traits })
	if len(rest) == 0 {
		delete(d.traits, w.hash)
	} else {
		d.traits[w.hash] = rest
	}
}

// prefixOf is the range of a single address.
func prefixOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
