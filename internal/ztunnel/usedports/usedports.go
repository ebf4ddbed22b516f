// Package usedports remembers which clients' addresses have no port left for a
// destination.
package usedports

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// usedFor is how long a client's address without a port is not tried
	// again. The kernel looks at all ports to find that none is left, which
	// takes milliseconds of the loop.
	usedFor = time.Second
	// maxUsed bounds the remembered addresses of one pod. Each stands for
	// thousands of connections, so there are few.
	maxUsed = 256
)

// Set remembers them for a moment. The zero value is empty. It is safe for concurrent
// use.
type Set struct {
	n     atomic.Int32 // of until: nothing else is looked at while it is 0
	mu    sync.Mutex   // guards until
	until map[key]time.Time
}

type key struct {
	src netip.Addr
	to  netip.AddrPort
}

// Add notes that no port is left.
func (u *Set) Add(src netip.Addr, to netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.until == nil || len(u.until) >= maxUsed {
		u.until = map[key]time.Time{}
	}
	u.until[key{src, to}] = time.Now().Add(usedFor)
	u.n.Store(int32(len(u.until)))
}

// Has reports whether no port was left a moment ago.
func (u *Set) Has(src netip.Addr, to netip.AddrPort) bool {
	if u.n.Load() == 0 {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	k := key{src, to}
	at, ok := u.until[k]
	if ok && time.Now().After(at) {
		delete(u.until, k)
		u.n.Store(int32(len(u.until)))
		ok = false
	}
	return ok
}
