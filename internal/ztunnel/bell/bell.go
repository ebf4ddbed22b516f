// Package bell wakes goroutines that wait for a change.
package bell

import "sync"

// Bell wakes whoever waits for a change. The zero value is ready.
type Bell struct {
	mu sync.Mutex
	ch chan struct{} // nil without anybody who waits
}

// Next returns a channel that is closed by the next Ring.
func (b *Bell) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// Ring wakes all who wait.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
