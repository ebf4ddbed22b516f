package ratelimit

import (
	"sync"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

const (
	// MaxTenants bounds the namespaces that a Counter counts.
	MaxTenants = 1024
	// MaxEach bounds the parties of each.
	MaxEach = 1024
	// sweepEvery is how often a namespace without room looks for parties that can be
	// forgotten.
	sweepEvery = int64(1e9)
)

// Counter counts the connections to one workload under one rate. It may be used by several
// goroutines. What it keeps is bounded: beyond that, the parties of a namespace share one
// bucket, so that more is refused, and never less.
type Counter struct {
	rate *Rate
	room Room

	mu      sync.Mutex
	all     Bucket // by destination, and for the namespaces beyond MaxTenants
	tenants map[identity.Identity]*tenant
	closed  bool // it keeps no more parties
}

// Room bounds what several counters keep together.
type Room interface {
	Take() bool
	Give(n int)
}

// tenant has the parties of a namespace.
type tenant struct {
	shared Bucket // of the namespace, or of those of its parties that have none of their own
	own    map[key]Bucket
	swept  int64
}

// NewCounter returns a Counter.
func NewCounter(r *Rate, room Room) *Counter { return &Counter{rate: r, room: room} }

// Rate returns the rate.
func (c *Counter) Rate() *Rate { return c.rate }

// Taken is the bucket that a connection was counted in.
type Taken struct {
	tenant *tenant
	key    key
	own    bool
}

// Take counts a connection, unless there is no room for it.
func (c *Counter) Take(s *Source, now int64) (t Taken, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, b := c.find(s, now, true)
	b, ok = b.Take(c.rate, now)
	c.put(t, b)
	return t, ok
}

// Give takes a connection back that was counted, and not let in.
func (c *Counter) Give(t Taken) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, kept := c.at(t)
	if kept {
		c.put(t, b.Give(c.rate))
	}
}

// Look returns the bucket of a source, and changes nothing.
func (c *Counter) Look(s *Source, now int64) Bucket {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, b := c.find(s, now, false)
	return b
}

// Close gives the room back.
func (c *Counter) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, t := range c.tenants {
		n += len(t.own)
	}
	c.room.Give(n)
	c.tenants, c.closed = nil, true
}

// at returns the bucket where a connection was counted. It reports false when it has been
// forgotten, as one that was full.
func (c *Counter) at(t Taken) (Bucket, bool) {
	switch {
	case t.tenant == nil:
		return c.all, true
	case !t.own:
		return t.tenant.shared, true
	}
	b, kept := t.tenant.own[t.key]
	return b, kept
}

func (c *Counter) put(t Taken, b Bucket) {
	switch {
	case t.tenant == nil:
		c.all = b
	case !t.own:
		t.tenant.shared = b
	default:
		t.tenant.own[t.key] = b
	}
}

// find finds the bucket of a source; with make it is made, if there is room. A party that
// gets one of its own begins with what it and its neighbours have used of the shared one, so
// that it gains nothing by that.
func (c *Counter) find(s *Source, now int64, mk bool) (Taken, Bucket) {
	if c.rate.By == Destination {
		return Taken{}, c.all
	}
	home := s.tenant()
	t := c.tenants[home]
	if t == nil {
		if !mk || c.closed || len(c.tenants) >= MaxTenants && !c.forget(now) {
			return Taken{}, c.all
		}
		if c.tenants == nil {
			c.tenants = map[identity.Identity]*tenant{}
		}
		t = &tenant{shared: c.all}
		c.tenants[home] = t
	}
	k, alone := s.key(c.rate.By)
	if alone {
		return Taken{tenant: t}, t.shared
	}
	if b, ok := t.own[k]; ok {
		return Taken{t, k, true}, b
	}
	if !mk || !c.admit(t, now) {
		return Taken{tenant: t}, t.shared
	}
	if t.own == nil {
		t.own = map[key]Bucket{}
	}
	t.own[k] = t.shared
	return Taken{t, k, true}, t.shared
}

// admit takes room for one more party of a namespace.
func (c *Counter) admit(t *tenant, now int64) bool {
	if c.closed {
		return false
	}
	if len(t.own) < MaxEach && c.room.Take() {
		return true
	}
	if now-t.swept < sweepEvery && t.swept != 0 {
		return false
	}
	t.swept = max(now, 1)
	before := len(t.own)
	for k, b := range t.own {
		if b.Full(c.rate, now) {
			delete(t.own, k)
		}
	}
	c.room.Give(before - len(t.own))
	return len(t.own) < MaxEach && c.room.Take()
}

// forget forgets a namespace that has nothing to remember, and reports whether there was
// one.
func (c *Counter) forget(now int64) bool {
	for home, t := range c.tenants {
		if len(t.own) == 0 && t.shared.Full(c.rate, now) {
			delete(c.tenants, home)
			return true
		}
	}
	return false
}
