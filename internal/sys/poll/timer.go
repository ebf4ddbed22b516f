package poll

import (
	"container/heap"
	"time"
)

// Timer is a function due on the loop.
type Timer struct {
	loop  *Loop
	at    time.Time
	fn    func()
	index int // in the heap; -1 when not in it
}

// AfterFunc has fn run on the loop after d. The timer may be stopped.
func (l *Loop) AfterFunc(d time.Duration, fn func()) *Timer {
	t := &Timer{loop: l, fn: fn, index: -1}
	t.Reset(d)
	return t
}

// Stop makes sure that the function does not run any more, unless Reset.
func (t *Timer) Stop() {
	if t != nil && t.index >= 0 {
		heap.Remove(&t.loop.timers, t.index)
	}
}

// Active reports whether the function is going to run.
func (t *Timer) Active() bool { return t.index >= 0 }

// Reset has the function run after d from now, and not when it was due before.
func (t *Timer) Reset(d time.Duration) {
	l := t.loop
	t.at = time.Now().Add(max(d, 0))
	if t.index >= 0 {
		heap.Fix(&l.timers, t.index)
	} else {
		heap.Push(&l.timers, t)
	}
}

func (l *Loop) fireTimers() {
	for len(l.timers) > 0 && !l.timers[0].at.After(l.now) {
		t := l.timers[0]
		heap.Pop(&l.timers)
		t.fn()
	}
}

type timerHeap []*Timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timerHeap) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}
func (h *timerHeap) Pop() any {
	old := *h
	n := len(old) - 1
	t := old[n]
	old[n] = nil
	t.index = -1
	*h = old[:n]
	return t
}
