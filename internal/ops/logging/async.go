package logging

import (
	"io"
	"sync"
	"time"
)

const (
	// gather is how long the first record waits for others: records of many
	// connections leave in one write.
	gather = 5 * time.Millisecond
	// maxGathered is how many bytes wait for a slow reader. More are dropped
	// and counted: a log that nobody reads must not stop the traffic.
	maxGathered = 4 << 20
	// keptGathered is how large the memory for records may be that is kept without need. A
	// larger one is kept while records fill at least its keptShare-th part.
	keptGathered = 64 << 10
	keptShare    = 8
)

// Async is a writer that never blocks: it takes records at once and writes
// them from a goroutine of its own. It is for programs that log from where
// nothing may wait, such as an event loop.
type Async struct {
	w      io.Writer
	onLost func(n uint64)

	mu      sync.Mutex
	pending []byte // guarded by mu
	lost    uint64 // guarded by mu
	closed  bool   // guarded by mu

	ready chan struct{} // has an element when pending is not empty
	done  chan struct{}
}

// NewAsync writes to w. onLost, which may be nil, is told how many records
// were dropped since it was told last, once there is room again; it may log.
func NewAsync(w io.Writer, onLost func(n uint64)) *Async {
	a := &Async{w: w, onLost: onLost, ready: make(chan struct{}, 1), done: make(chan struct{})}
	go a.run()
	return a
}

// Write takes a record, or drops it. It does not fail.
func (a *Async) Write(p []byte) (int, error) {
	a.mu.Lock()
	if a.closed || len(a.pending)+len(p) > maxGathered {
		a.lost++
		a.mu.Unlock()
		return len(p), nil
	}
	first := len(a.pending) == 0
	a.pending = append(a.pending, p...)
	a.mu.Unlock()
	if first {
		a.wake()
	}
	return len(p), nil
}

func (a *Async) wake() {
	select {
	case a.ready <- struct{}{}:
	default:
	}
}

// Close writes what is pending; later records are dropped. It waits until the
// reader has taken everything, but no longer than limit.
func (a *Async) Close(limit time.Duration) {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.wake()
	select {
	case <-a.done:
	case <-time.After(limit):
	}
}

func (a *Async) run() {
	defer close(a.done)
	var spare []byte
	for range a.ready {
		a.mu.Lock()
		closed := a.closed
		a.mu.Unlock()
		if !closed {
			time.Sleep(gather)
		}
		a.mu.Lock()
		out, lost := a.pending, a.lost
		a.pending, a.lost, closed = spare[:0], 0, a.closed
		a.mu.Unlock()
		if len(out) > 0 {
			_, _ = a.w.Write(out) // there is nobody to tell
		}
		spare = kept(out)
		if closed {
			return
		}
		if lost > 0 && a.onLost != nil {
			a.onLost(lost)
		}
	}
}

// kept returns the memory of records that were written, for later ones, or nil when it is
// much larger than they were.
func kept(written []byte) []byte {
	if cap(written) > keptGathered && len(written) < cap(written)/keptShare {
		return nil
	}
	return written[:0]
}
