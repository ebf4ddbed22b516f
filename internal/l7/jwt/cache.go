package jwt

import (
	"crypto/sha256"
	"time"
)

// Sum names a token in a Cache.
type Sum [sha256.Size]byte

// SumOf returns the name of a token.
func SumOf(token []byte) Sum { return sha256.Sum256(token) }

// Bounds of a Cache, in bytes of tokens: of one party and of all.
const (
	maxCachedEach = 1 << 20
	maxCached     = 8 << 20
	// minCached is what an entry counts at least.
	minCached = 256
)

// Cache remembers what was made of tokens that were accepted, for parties: a token that
// is accepted for one is not for another. It belongs to one goroutine. A party that
// has reached its bound displaces its own tokens, the oldest first.
type Cache[P comparable, V any] struct {
	parties map[P]*party[V]
	size    int
}

type party[V any] struct {
	entries map[Sum]entry[V]
	order   []Sum // of arrival
	size    int
}

type entry[V any] struct {
	claims *Claims
	value  V
	size   int
}

// NewCache returns an empty cache.
func NewCache[P comparable, V any]() *Cache[P, V] { return &Cache[P, V]{parties: map[P]*party[V]{}} }

// Get returns what was put for a token that is valid at a moment.
func (c *Cache[P, V]) Get(p P, s *Sum, now time.Time) (v V, ok bool) {
	of := c.parties[p]
	if of == nil {
		return v, false
	}
	e, ok := of.entries[*s]
	if !ok || !e.claims.Valid(now) {
		return v, false
	}
	return e.value, true
}

// Put remembers what was made of a token of length bytes. What does not fit is not
// remembered.
func (c *Cache[P, V]) Put(p P, s *Sum, length int, claims *Claims, v V) {
	of := c.parties[p]
	if of == nil {
		of = &party[V]{entries: map[Sum]entry[V]{}}
	}
	if _, there := of.entries[*s]; there {
		return
	}
	size := max(length, minCached)
	for len(of.order) > 0 && (of.size+size > maxCachedEach || c.size+size > maxCached) {
		oldest := of.order[0]
		c.size -= of.entries[oldest].size
		of.size -= of.entries[oldest].size
		delete(of.entries, oldest)
		of.order = of.order[1:]
	}
	if c.size+size > maxCached {
		return
	}
	c.parties[p] = of
	of.entries[*s] = entry[V]{claims, v, size}
	of.order = append(of.order, *s)
	of.size += size
	c.size += size
}

// Keep forgets the tokens of all other parties.
func (c *Cache[P, V]) Keep(keep func(P) bool) {
	for p, of := range c.parties {
		if !keep(p) {
			c.size -= of.size
			delete(c.parties, p)
		}
	}
}

// Size returns the bytes that the cache counts.
func (c *Cache[P, V]) Size() int { return c.size }
