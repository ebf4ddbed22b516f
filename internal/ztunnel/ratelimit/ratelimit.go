// Package ratelimit counts the new connections to the pods of a node under the RateLimits
// that are for them, and refuses those that are too many.
package ratelimit

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const (
	// MaxParties bounds the parties that a node proxy counts. Each namespace with limits has
	// an equal part of them.
	MaxParties = 65536
	// MaxOwned bounds those in the limits of one namespace, and minOwned is what each may
	// have however many there are.
	MaxOwned = 8192
	minOwned = 64
)

// Node has the limits of a node. Its methods may be called from any goroutine, and on nil.
type Node struct {
	// Asker asks rate limit services; it is set before the first limit comes.
	Asker Asker

	log   *slog.Logger
	clock func() int64 // in nanoseconds, and never back
	now   atomic.Pointer[map[string][]*entry]

	mu     sync.Mutex // guards what follows
	limits map[string]*entry
	rooms  map[string]*room
}

// entry is a limit, by its namespace in the order of names.
type entry struct {
	limit *ratelimit.Limit
	*counts
}

// counts is what a limit has counted. It outlives changes that leave the rates.
type counts struct {
	room             *room
	allowed, refused atomic.Uint64
	reported         atomic.Uint64 // too many, of a dry run
	unanswered       atomic.Uint64 // services gave no usable answer
	mu               sync.RWMutex  // guards pods
	pods             map[string][]*ratelimit.Counter
}

// room is what the limits of a namespace keep.
type room struct{ taken, share atomic.Int64 }

// Take implements ratelimit.Room.
func (r *room) Take() bool {
	if r.taken.Add(1) > r.share.Load() {
		r.taken.Add(-1)
		return false
	}
	return true
}

// Give implements ratelimit.Room.
func (r *room) Give(n int) { r.taken.Add(-int64(n)) }

// New returns a Node without limits.
func New(log *slog.Logger) *Node {
	start := time.Now()
	n := &Node{log: log, clock: func() int64 { return int64(time.Since(start)) }, limits: map[string]*entry{}, rooms: map[string]*room{}}
	n.now.Store(&map[string][]*entry{})
	return n
}

// Apply takes limits in. One that is rejected leaves what was there before.
func (n *Node) Apply(d xds.Delta) (out []xds.Rejection) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, res := range d.Updated {
		l, err := ratelimit.Decode(res.Body)
		if err != nil {
			n.log.Error("rate limit rejected: what was in effect stays", "resource", res.Name, "error", err)
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
			continue
		}
		e := &entry{limit: l}
		if old := n.limits[res.Name]; old != nil && old.limit.Namespace == l.Namespace && slices.Equal(old.limit.Rates, l.Rates) && old.limit.Service.Equal(l.Service) {
			e.counts = old.counts
		} else {
			n.drop(res.Name)
			e.counts = &counts{room: n.room(l.Namespace), pods: map[string][]*ratelimit.Counter{}}
		}
		n.limits[res.Name] = e
	}
	for _, name := range d.Removed {
		n.drop(name)
		delete(n.limits, name)
	}
	n.publish()
	return out
}

// drop gives back what a limit has kept; the caller holds mu.
func (n *Node) drop(name string) {
	e := n.limits[name]
	if e == nil {
		return
	}
	e.mu.RLock()
	uids := slices.Collect(maps.Keys(e.pods))
	e.mu.RUnlock()
	for _, uid := range uids {
		e.forget(uid)
	}
}

// isFor reports whether a limit is for connections to a port of a workload: to any port of
// one that it names, and to those behind its services, however they were called.
func isFor(l *ratelimit.Limit, w *workload.Workload, port uint16) bool {
	if w.Namespace != l.Namespace {
		return false
	}
	if _, named := slices.BinarySearch(l.Workloads, w.UID); named {
		return true
	}
	for i := range w.Services {
		m := &w.Services[i]
		if m.Service.Namespace != l.Namespace || !slices.Contains(l.Hosts, m.Service.Hostname) {
			continue
		}
		if behind(m, port) {
			return true
		}
	}
	return false
}

// behind reports whether a port of a workload is behind one of a service.
func behind(m *workload.Membership, port uint16) bool {
	return slices.ContainsFunc(m.Ports, func(p workload.Port) bool { return p.Target == port || p.Target == 0 && p.Service == port })
}

// room returns the room of a namespace; the caller holds mu.
func (n *Node) room(namespace string) *room {
	if n.rooms[namespace] == nil {
		n.rooms[namespace] = &room{}
	}
	return n.rooms[namespace]
}

// publish makes the state of now; the caller holds mu.
func (n *Node) publish() {
	now := map[string][]*entry{}
	for _, e := range n.limits {
		now[e.limit.Namespace] = append(now[e.limit.Namespace], e)
	}
	for namespace, list := range now {
		slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(a.limit.Name, b.limit.Name) })
		n.rooms[namespace].share.Store(int64(max(minOwned, min(MaxOwned, MaxParties/len(now)))))
	}
	for namespace := range n.rooms {
		if now[namespace] == nil {
			delete(n.rooms, namespace)
		}
	}
	n.now.Store(&now)
}

// counters returns those of a pod, one for each rate.
func (e *entry) counters(uid string) []*ratelimit.Counter {
	if len(e.limit.Rates) == 0 {
		return nil
	}
	e.mu.RLock()
	list := e.pods[uid]
	e.mu.RUnlock()
	if list != nil {
		return list
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if list = e.pods[uid]; list == nil {
		for i := range e.limit.Rates {
			list = append(list, ratelimit.NewCounter(&e.limit.Rates[i], e.room))
		}
		e.pods[uid] = list
	}
	return list
}

func (c *counts) forget(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.pods[uid] {
		one.Close()
	}
	delete(c.pods, uid)
}

// Forget forgets what was counted of a pod that is gone.
func (n *Node) Forget(uid string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.limits {
		e.forget(uid)
	}
}

// held is a connection that was counted.
type held struct {
	counter *ratelimit.Counter
	taken   ratelimit.Taken
}

// Take counts a connection to a port of a pod under every limit that is for it, or returns
// why it is refused; then it is counted under none.
func (n *Node) Take(w *workload.Workload, port uint16, src ratelimit.Source) *reason.Error {
	if n == nil {
		return nil
	}
	list := (*n.now.Load())[w.Namespace]
	if len(list) == 0 {
		return nil
	}
	now := n.clock()
	var room [8]held
	all := room[:0]
	var passed [8]*entry
	allowed := passed[:0]
	for _, e := range list {
		if !isFor(e.limit, w, port) {
			continue
		}
		before := len(all)
		var over *ratelimit.Rate
		for _, c := range e.counters(w.UID) {
			t, ok := c.Take(&src, now)
			if !ok {
				over = c.Rate()
				break
			}
			all = append(all, held{c, t})
		}
		switch {
		case over == nil:
			allowed = append(allowed, e)
		case e.limit.DryRun:
			giveBack(all[before:])
			all = all[:before]
			e.reported.Add(1)
		default:
			giveBack(all)
			e.refused.Add(1)
			return e.error(over)
		}
	}
	for _, e := range allowed {
		e.allowed.Add(1)
	}
	return nil
}

func giveBack(list []held) {
	for i := range list {
		list[i].counter.Give(list[i].taken)
	}
}

func (e *entry) error(over *ratelimit.Rate) *reason.Error {
	return reason.Errorf(reason.RateLimited, "%s: %s", e.limit, over)
}

// Finding is what a limit says of a connection.
type Finding struct {
	Limit *ratelimit.Limit
	Rate  *ratelimit.Rate // nil for a service, which is not asked
	Left  int             // connections that there is room for now
	Wait  time.Duration   // until there is room for one
}

// Error returns why the connection would be refused, nil when it would not.
func (f *Finding) Error() *reason.Error {
	if f.Rate == nil || f.Left > 0 || f.Limit.DryRun {
		return nil
	}
	return (&entry{limit: f.Limit}).error(f.Rate)
}

// Explain returns what the limits say of a connection, which is not counted.
func (n *Node) Explain(w *workload.Workload, port uint16, src ratelimit.Source) (out []Finding) {
	if n == nil {
		return nil
	}
	now := n.clock()
	for _, e := range (*n.now.Load())[w.Namespace] {
		if !isFor(e.limit, w, port) {
			continue
		}
		e.mu.RLock()
		list := e.pods[w.UID]
		e.mu.RUnlock()
		for i := range e.limit.Rates {
			r := &e.limit.Rates[i]
			var b ratelimit.Bucket
			if i < len(list) {
				b = list[i].Look(&src, now)
			}
			out = append(out, Finding{e.limit, r, b.Left(r, now), b.Wait(r, now)})
		}
		if e.limit.Service != nil {
			out = append(out, Finding{Limit: e.limit})
		}
	}
	return out
}
