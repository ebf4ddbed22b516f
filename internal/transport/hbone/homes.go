package hbone

import (
	"hash/maphash"
	"sync"
)

// aheadOf is how many keys more than the loop with the fewest a loop may have, and get one
// more because the connection is there.
const aheadOf = 3

// homes remembers the loop where each key of a pool lives. A connection that was accepted on
// that loop need not be handed over, which costs a wake-up of another thread.
type homes struct {
	seed maphash.Seed

	mu   sync.RWMutex // guards what follows
	of   map[Key]int
	many []int // keys of each loop
}

func newHomes(loops int) *homes {
	return &homes{seed: maphash.MakeSeed(), of: map[Key]int{}, many: make([]int, loops)}
}

// find returns the home of a key. A new one gets near, the loop of its first connection,
// where that has about as few keys as others; near is negative when it is not known. A key inside of a
// tunnel is one connection's own, and not remembered.
func (h *homes) find(k Key, near int) int {
	h.mu.RLock()
	at, ok := h.of[k]
	h.mu.RUnlock()
	if ok {
		return at
	}
	if k.Via != nil {
		return int(maphash.Comparable(h.seed, k) % uint64(len(h.many))) //nolint:gosec // a number of a loop
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if at, ok := h.of[k]; ok {
		return at
	}
	least := 0
	for i, n := range h.many {
		if n < h.many[least] {
			least = i
		}
	}
	if near < 0 || h.many[near] > h.many[least]+aheadOf {
		near = least
	}
	h.add(k, near)
	return near
}

func (h *homes) add(k Key, at int) {
	h.of[k] = at
	h.many[at]++
}

// keep remembers a key that its home has forgotten, while a connection was on the way there.
func (h *homes) keep(k Key, at int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.of[k]; !ok && k.Via == nil {
		h.add(k, at)
	}
}

// drop forgets a key of a loop.
func (h *homes) drop(k Key, at int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if have, ok := h.of[k]; ok && have == at {
		delete(h.of, k)
		h.many[at]--
	}
}
