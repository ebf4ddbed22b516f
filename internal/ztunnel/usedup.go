package ztunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// usedUpFor is how long a client's address without a port is not tried
	// again. The kernel looks at all ports to find that none is left, which
	// takes milliseconds of the loop.
	usedUpFor = time.Second
	// maxUsedUp bounds the remembered addresses of one pod. Each stands for
	// thousands of connections, so there are few.
	maxUsedUp = 256
)

// usedUp remembers which clients' addresses have no port left for a
// destination. The zero value is empty. It is safe for concurrent use.
type usedUp struct {
	n     atomic.Int32 // of until: nothing else is looked at while it is 0
	mu    sync.Mutex   // guards until
	until map[usedUpKey]time.Time
}

type usedUpKey struct {
	src netip.Addr
	to  netip.AddrPort
}

// add notes that no port is left.
func (u *usedUp) add(src netip.Addr, to netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.until == nil || len(u.until) >= maxUsedUp {
		u.until = map[usedUpKey]time.Time{}
	}
	u.until[usedUpKey{src, to}] = time.Now().Add(usedUpFor)
	u.n.Store(int32(len(u.until)))
}

// has reports whether no port was left a moment ago.
func (u *usedUp) has(src netip.Addr, to netip.AddrPort) bool {
	if u.n.Load() == 0 {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	k := usedUpKey{src, to}
	at, ok := u.until[k]
	if ok && time.Now().After(at) {
		delete(u.until, k)
		u.n.Store(int32(len(u.until)))
		ok = false
	}
	return ok
}
