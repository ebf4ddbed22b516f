package node

import (
	"context"
	"sync"
	"time"
)

// Pauses before a pod is tried again; each is twice the one before.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// queue is work by key: a key is worked on by one goroutine at a time, waits at
// most once, and comes back later when it has to. Its size is bounded by the
// number of keys.
type queue struct {
	mu      sync.Mutex
	wake    *sync.Cond
	ready   []string
	items   map[string]*item
	running map[string]bool
	closed  bool
}

type item struct {
	queued   bool // in ready, or to be put there when the running work is done
	failures int
	timer    *time.Timer
	timerID  int
}

func newQueue() *queue {
	q := &queue{items: map[string]*item{}, running: map[string]bool{}}
	q.wake = sync.NewCond(&q.mu)
	return q
}

// add makes a key due now.
func (q *queue) add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.due(key)
}

// due needs q.mu.
func (q *queue) due(key string) {
	it := q.items[key]
	if it == nil {
		it = &item{}
		q.items[key] = it
	}
	it.stopTimer()
	if it.queued || q.closed {
		return
	}
	it.queued = true
	if !q.running[key] {
		q.ready = append(q.ready, key)
		q.wake.Signal()
	}
}

// run works on keys with a number of goroutines until the context ends. do says
// after which time a key is due again without a reason (zero: never), or fails
// and is called again after a pause that grows.
func (q *queue) run(ctx context.Context, workers int, do func(ctx context.Context, key string) (time.Duration, error)) {
	defer context.AfterFunc(ctx, q.close)()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				key, ok := q.take()
				if !ok {
					return
				}
				again, err := do(ctx, key)
				q.done(key, again, err)
			}
		})
	}
	wg.Wait()
}

func (q *queue) take() (string, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ready) == 0 && !q.closed {
		q.wake.Wait()
	}
	if q.closed {
		return "", false
	}
	key := q.ready[0]
	q.ready = q.ready[1:]
	q.items[key].queued = false
	q.running[key] = true
	return key, true
}

func (q *queue) done(key string, again time.Duration, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.running, key)
	it := q.items[key]
	if err == nil {
		it.failures = 0
	} else {
		again = min(firstRetry<<min(it.failures, 16), lastRetry)
		it.failures++
	}
	switch {
	case q.closed:
	case it.queued:
		q.ready = append(q.ready, key)
		q.wake.Signal()
	case again > 0:
		it.timerID++
		id := it.timerID
		it.timer = time.AfterFunc(again, func() { q.fire(key, id) })
	default:
		delete(q.items, key)
	}
}

func (q *queue) fire(key string, id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	// A timer that was stopped too late must not fire for its successor.
	if it := q.items[key]; it != nil && it.timer != nil && it.timerID == id {
		q.due(key)
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, it := range q.items {
		it.stopTimer()
	}
	q.wake.Broadcast()
}

func (it *item) stopTimer() {
	if it.timer != nil {
		it.timer.Stop()
		it.timer = nil
	}
}
