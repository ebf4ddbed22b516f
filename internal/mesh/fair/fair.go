// Package fair shares a few places among many parties: each party is served in
// the order in which it asked, and the parties take turns.
package fair

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// ErrFull is returned to a party for which too many wait already.
var ErrFull = errors.New("too many wait for their turn")

// Limits bound a Queue; zero is unbounded.
type Limits struct {
	// Places is how many may be taken at a time, by all and by one party.
	Places, PlacesEach int
	// Waiting is how many may wait, of all and of one party.
	Waiting, WaitingEach int
}

// Queue hands out places. All methods may be called from any goroutine.
type Queue struct {
	limits Limits

	mu      sync.Mutex
	taken   int
	waiting int
	held    map[string]int // places by party
	queues  map[string][]*waiter
	// order lists the parties that wait; the first is next.
	order []string
}

// waiter is one that waits, or has a place.
type waiter struct {
	party   string
	granted chan struct{}
}

// New returns a Queue.
func New(l Limits) *Queue {
	return &Queue{limits: l, held: map[string]int{}, queues: map[string][]*waiter{}}
}

// Take waits for a place until the context ends; release gives it back, and may
// be called more than once.
func (q *Queue) Take(ctx context.Context, party string) (release func(), err error) {
	w, err := q.ask(party)
	if err != nil {
		return nil, err
	}
	select {
	case <-w.granted:
	case <-ctx.Done():
		q.leave(w)
		return nil, ctx.Err()
	}
	return sync.OnceFunc(func() { q.release(w) }), nil
}

func exceeds(n, limit int) bool { return limit > 0 && n > limit }

// ask enters the queue, and grants what can be granted.
func (q *Queue) ask(party string) (*waiter, error) {
	w := &waiter{party, make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.full(party) {
		return nil, ErrFull
	}
	if len(q.queues[party]) == 0 {
		q.order = append(q.order, party)
	}
	q.queues[party] = append(q.queues[party], w)
	q.waiting++
	q.grant()
	return w, nil
}

// full reports whether one more of a party would have to wait, and may not.
func (q *Queue) full(party string) bool {
	waiting := len(q.queues[party])
	if waiting == 0 && !exceeds(q.taken+1, q.limits.Places) && !exceeds(q.held[party]+1, q.limits.PlacesEach) {
		return false
	}
	return exceeds(q.waiting+1, q.limits.Waiting) || exceeds(waiting+1, q.limits.WaitingEach)
}

// leave takes back what ask began.
func (q *Queue) leave(w *waiter) {
	q.mu.Lock()
	waited := q.withdraw(w)
	q.mu.Unlock()
	if !waited { // it was granted meanwhile
		q.release(w)
	}
}

// withdraw takes one out of the queue; it reports whether it was there.
func (q *Queue) withdraw(w *waiter) bool {
	list := q.queues[w.party]
	i := slices.Index(list, w)
	if i < 0 {
		return false
	}
	q.waiting--
	if list = append(list[:i:i], list[i+1:]...); len(list) == 0 {
		q.order = slices.DeleteFunc(q.order, func(p string) bool { return p == w.party })
	}
	q.set(w.party, list)
	return true
}

func (q *Queue) release(w *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken--
	if q.held[w.party]--; q.held[w.party] == 0 {
		delete(q.held, w.party)
	}
	q.grant()
}

// grant gives free places to the parties that wait, one after the other.
func (q *Queue) grant() {
	for !exceeds(q.taken+1, q.limits.Places) {
		next := slices.IndexFunc(q.order, func(p string) bool { return !exceeds(q.held[p]+1, q.limits.PlacesEach) })
		if next < 0 {
			return
		}
		party := q.order[next]
		list := q.queues[party]
		q.order = slices.Delete(q.order, next, next+1)
		if len(list) > 1 {
			q.order = append(q.order, party)
		}
		q.set(party, list[1:])
		q.waiting--
		q.taken++
		q.held[party]++
		close(list[0].granted)
	}
}

func (q *Queue) set(party string, list []*waiter) {
	if len(list) == 0 {
		delete(q.queues, party)
		return
	}
	q.queues[party] = list
}
