// Package inflight counts what leads from a node to each workload: connections, and
// pools that have tunnels.
package inflight

import (
	"sync"

	"github.com/ambit-mesh/ambit/internal/transport/hbone"
)

// Loads counts connections in flight by the UID of a workload. The zero value is empty.
type Loads struct {
	mu sync.Mutex
	n  map[string]int
}

// Add counts connections that begin, or end.
func (l *Loads) Add(uid string, delta int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == nil {
		l.n = map[string]int{}
	}
	if l.n[uid] += delta; l.n[uid] <= 0 {
		delete(l.n, uid)
	}
}

// Of returns how many there are to a workload.
func (l *Loads) Of(uid string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n[uid]
}

// Tunnels has the pools with tunnels to a workload, by its UID. The zero value is empty.
type Tunnels struct {
	mu    sync.Mutex
	pools map[string]map[*hbone.Pool]int
}

// Add counts tunnels of a pool that begin, or end.
func (t *Tunnels) Add(p *hbone.Pool, uid string, delta int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pools == nil {
		t.pools = map[string]map[*hbone.Pool]int{}
	}
	set := t.pools[uid]
	if set == nil {
		set = map[*hbone.Pool]int{}
		t.pools[uid] = set
	}
	if set[p] += delta; set[p] <= 0 {
		delete(set, p)
	}
	if len(set) == 0 {
		delete(t.pools, uid)
	}
}

// Len returns the number of workloads with tunnels.
func (t *Tunnels) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.pools)
}

// To returns the pools with tunnels to a workload.
func (t *Tunnels) To(uid string) []*hbone.Pool {
	t.mu.Lock()
	defer t.mu.Unlock()
	pools := make([]*hbone.Pool, 0, len(t.pools[uid]))
	for p := range t.pools[uid] {
		pools = append(pools, p)
	}
	return pools
}
