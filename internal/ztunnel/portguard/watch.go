package portguard

import (
	"sync"
	"time"
)

// every is how often the pods' ports are looked at.
const every = 10 * time.Second

// Watch looks at ports until it is closed.
type Watch struct {
	once sync.Once
	kick chan struct{}
	done chan struct{}
}

// NewWatch calls look again and again, on a goroutine of its own.
func NewWatch(look func()) *Watch {
	w := &Watch{kick: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-w.done:
				return
			case <-t.C:
			case <-w.kick:
			}
			look()
		}
	}()
	return w
}

// Soon has it look now: a port was found taken.
func (w *Watch) Soon() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// Close ends it.
func (w *Watch) Close() { w.once.Do(func() { close(w.done) }) }
