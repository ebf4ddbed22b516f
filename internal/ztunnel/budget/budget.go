// Package budget divides a fixed total of one resource of a node (descriptors,
// waiting connections, bytes in queues) among the pods of the node, so that one
// pod cannot use up the node.
//
// Half of the total is guaranteed: it is divided into equal parts, one for each
// pod that has a share, and at least minParts. The other half is lent. A pod that
// uses less than its part gets more without any condition. A pod that uses more
// borrows, as long as what it has borrowed then is at most four times what is left
// to lend to the others:
//
//	borrowed by the pod + n ≤ 4 · (lendable − borrowed by all pods − n)
//
// So one greedy pod gets 4/5 of what is lent, and the next one 4/5 of the rest. As
// their connections end and begin, two come to 4/9 each, k to 4/(4k+1) each:
// the pod that has borrowed most is the first that is refused. (Switches divide their packet memory
// so, between ports: dynamic thresholds, Choudhury and Hahne 1998.)
//
// What holds at any time, and is tested as properties:
//
//   - The sum of what all shares use is at most the total.
//   - A share that uses less than its part is granted it, as long as
//     Σ max(used, part) over all shares is at most the total. That is always so
//     while the number of shares stays below the number of parts. When the
//     number of parts doubles, what was guaranteed before counts as borrowed, and
//     nothing is lent until enough of it was returned.
//   - What is taken and given back leaves nothing behind.
//
// A grant costs one uncontended lock of the share and one atomic operation, two for
// a pod that borrows. No share waits for another.
package budget

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

// generosity is how many times what is left to the others a pod may borrow. A
// node often has one busy pod: with 1 it would get a quarter of the total.
const generosity = 4

// minParts is how many parts there are at least: a node has rarely fewer pods,
// and parts do not shrink while its first pods come.
const minParts = 16

// Pool is the total of one resource. It is safe for concurrent use.
type Pool struct {
	total    int64
	used     atomic.Int64 // by all shares
	borrowed atomic.Int64 // Σ max(0, used − part) of all shares
	lendable atomic.Int64 // total − parts·part
	refused  atomic.Uint64

	mu      sync.Mutex // guards what follows; locked before a share's
	members map[*Share]struct{}
	parts   int
}

// New makes a pool of total units.
func New(total int64) *Pool {
	p := &Pool{total: max(total, 0), members: map[*Share]struct{}{}, parts: minParts}
	p.lendable.Store(p.total - int64(p.parts)*p.part())
	return p
}

// part is what each share is guaranteed; the caller holds mu.
func (p *Pool) part() int64 { return p.total / 2 / int64(p.parts) }

// Total is how many units there are.
func (p *Pool) Total() int64 { return p.total }

// Used is how many units are taken.
func (p *Pool) Used() int64 { return p.used.Load() }

// Refused counts the calls of Take that were refused, of all shares.
func (p *Pool) Refused() uint64 { return p.refused.Load() }

// Join makes a share that has taken nothing.
func (p *Pool) Join() *Share {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &Share{pool: p}
	p.members[s] = struct{}{}
	p.divide()
	s.guarantee(p.part())
	return s
}

// divide fits the number of parts to the number of shares; the caller holds mu.
// It is a power of two, and sinks late, so that parts rarely change.
func (p *Pool) divide() {
	n := len(p.members)
	parts := max(minParts, 1<<bits.Len(uint(max(n-1, 0))))
	if parts == p.parts || parts < p.parts && n > p.parts/4 {
		return
	}
	p.parts = parts
	for s := range p.members {
		s.guarantee(p.part())
	}
	p.lendable.Store(p.total - int64(p.parts)*p.part())
}

// Share is what one pod takes of a pool. The nil Share has no bound. It is safe
// for concurrent use.
type Share struct {
	pool *Pool

	mu   sync.Mutex // guards what follows
	used int64
	part int64
}

// Take takes n units, all or none. It reports whether it did.
func (s *Share) Take(n int64) bool {
	if s == nil || n <= 0 {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.take(n) {
		s.pool.refused.Add(1)
		return false
	}
	return true
}

func (s *Share) take(n int64) bool {
	p := s.pool
	has := max(0, s.used-s.part)
	more := max(0, s.used+n-s.part) - has
	if more > 0 && !p.borrow(more, has) {
		return false
	}
	if !p.count(n) {
		p.borrowed.Add(-more)
		return false
	}
	s.used += n
	return true
}

// count adds n to what is used, unless that is more than there is.
func (p *Pool) count(n int64) bool {
	for {
		used := p.used.Load()
		if used+n > p.total {
			return false
		}
		if p.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// borrow lends n units to a share that has borrowed some already.
func (p *Pool) borrow(n, has int64) bool {
	for {
		lent := p.borrowed.Load()
		if left := p.lendable.Load() - lent - n; left < 0 || has+n > generosity*left {
			return false
		}
		if p.borrowed.CompareAndSwap(lent, lent+n) {
			return true
		}
	}
}

// Give returns n units that were taken.
func (s *Share) Give(n int64) {
	if s == nil || n <= 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n = min(n, s.used) // more would be a fault of the caller, and must not make room for others
	has := max(0, s.used-s.part)
	s.used -= n
	s.pool.borrowed.Add(max(0, s.used-s.part) - has)
	s.pool.used.Add(-n)
}

// Room is how many units Take would grant now.
func (s *Share) Room() int64 {
	if s == nil {
		return math.MaxInt64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	own := max(0, s.part-s.used)
	has := max(0, s.used-s.part)
	left := s.pool.lendable.Load() - s.pool.borrowed.Load()
	return min(own+max(0, (generosity*left-has)/(generosity+1)), max(0, s.pool.total-s.pool.used.Load()))
}

// Used is how many units the share has taken.
func (s *Share) Used() int64 {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Leave ends the guarantee of the share. What it still uses counts as borrowed
// until it is given back.
func (s *Share) Leave() {
	if s == nil {
		return
	}
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.members, s)
	s.guarantee(0)
	p.divide()
}

// guarantee changes the part; the caller holds the pool's mu.
func (s *Share) guarantee(part int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := max(0, s.used-s.part)
	s.part = part
	s.pool.borrowed.Add(max(0, s.used-s.part) - before)
}
