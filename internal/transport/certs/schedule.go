package certs

import (
	"container/heap"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

const (
	// firstRetry and maxRetry bound the waits between failed fetches: short
	// enough that an outage ends soon after the CA's, long enough that a
	// recovering CA is not run over.
	firstRetry = time.Second
	maxRetry   = 150 * time.Second
	// retrySpread takes waits apart that began together, ±20 %.
	retrySpread = 0.2
	// renewSpread does so for renewals: ±5 % of the remaining life.
	renewSpread = 0.05
)

// renewAt is when a certificate that arrived at now is renewed: in the middle
// of what remains of its life, spread by r from [0, 1).
func renewAt(now, notAfter time.Time, r float64) time.Time {
	part := 0.5 + renewSpread*(2*r-1)
	wait := time.Duration(float64(notAfter.Sub(now)) * part)
	return now.Add(max(wait, firstRetry))
}

// retryAt is when the next attempt follows after so many failures in a row:
// doubling waits, spread by r from [0, 1), but no later than the present
// certificate's end (zero time: there is none).
func retryAt(now, notAfter time.Time, failures int, r float64) time.Time {
	wait := maxRetry
	if shift := max(failures-1, 0); shift < 8 { // 2^8 s is beyond maxRetry
		wait = min(firstRetry<<shift, maxRetry)
	}
	wait = time.Duration(float64(wait) * (1 + retrySpread*(2*r-1)))
	if left := notAfter.Sub(now); left > 0 && left < wait {
		wait = max(left, firstRetry)
	}
	return now.Add(wait)
}

// renewPriority rises when little life is left, so that a crowd of new
// workloads cannot starve a renewal into an outage.
func renewPriority(now, notBefore, notAfter time.Time) Priority {
	if notAfter.Sub(now) < notAfter.Sub(notBefore)/4 {
		return Warmup
	}
	return Background
}

// queue orders identities by priority, and by arrival within one.
type queue struct {
	items waiting
	index map[identity.Identity]*item
	seq   uint64
}

type item struct {
	id   identity.Identity
	prio Priority
	seq  uint64
	pos  int
}

func newQueue() *queue { return &queue{index: make(map[identity.Identity]*item)} }

// push adds id, or raises its priority when it is there already; it keeps its
// turn among equals.
func (q *queue) push(id identity.Identity, p Priority) {
	if it := q.index[id]; it != nil {
		if p > it.prio {
			it.prio = p
			heap.Fix(&q.items, it.pos)
		}
		return
	}
	q.seq++
	it := &item{id: id, prio: p, seq: q.seq}
	q.index[id] = it
	heap.Push(&q.items, it)
}

// pop takes the first one if its priority is at least floor.
func (q *queue) pop(floor Priority) (identity.Identity, bool) {
	if len(q.items) == 0 || q.items[0].prio < floor {
		return identity.Identity{}, false
	}
	it := heap.Pop(&q.items).(*item)
	delete(q.index, it.id)
	return it.id, true
}

// remove takes id out if it is there.
func (q *queue) remove(id identity.Identity) {
	if it := q.index[id]; it != nil {
		heap.Remove(&q.items, it.pos)
		delete(q.index, id)
	}
}

func (q *queue) len() int { return len(q.items) }

type waiting []*item

func (w waiting) Len() int { return len(w) }

func (w waiting) Less(i, j int) bool {
	if w[i].prio != w[j].prio {
		return w[i].prio > w[j].prio
	}
	return w[i].seq < w[j].seq
}

func (w waiting) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].pos, w[j].pos = i, j
}

func (w *waiting) Push(x any) {
	it := x.(*item)
	it.pos = len(*w)
	*w = append(*w, it)
}

func (w *waiting) Pop() any {
	old := *w
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*w = old[:len(old)-1]
	return it
}
