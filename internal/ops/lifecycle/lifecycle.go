// Package lifecycle is how a program of the mesh starts, tells that it is
// ready, and goes away: named readiness tasks, signals, and the time a drain
// may take.
package lifecycle

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Readiness is ready when every task that was announced is done. The zero
// value is ready. Safe for concurrent use.
type Readiness struct {
	mu      sync.Mutex
	pending []string // guarded by mu; in the order announced
}

// Task announces something that must happen before the program is ready. The
// returned function says that it did; calling it again does nothing. A task
// that can come undone announces itself anew.
func (r *Readiness) Task(name string) (done func()) {
	r.mu.Lock()
	r.pending = append(r.pending, name)
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if i := slices.Index(r.pending, name); i >= 0 {
			r.pending = slices.Delete(r.pending, i, i+1)
		}
	})
}

// Pending lists the tasks that are not done.
func (r *Readiness) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pending)
}

// ServeHTTP answers 200 "ready", or 500 with the list of what is pending.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if p := r.Pending(); len(p) > 0 {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(p, ", "))
		return
	}
	_, _ = fmt.Fprintln(w, "ready")
}

// SignalContext ends when the program is asked to: SIGTERM or SIGINT. A second
// signal ends the program at once.
func SignalContext(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		defer signal.Stop(c)
		select {
		case <-c:
			cancel()
		case <-ctx.Done():
			return
		}
		if _, again := <-c; again {
			os.Exit(1)
		}
	}()
	return ctx, cancel
}

// defaultDrain is for programs that were not told how long they have.
const defaultDrain = 5 * time.Second

// DrainDeadline is how long existing connections may go on after the program
// was asked to end. explicit (when positive) wins; otherwise it is grace, the
// time after which the program is killed, less a reserve to finish in: 5 s,
// or 1 s of a grace of 10 s or less; 5 s when grace is unknown.
func DrainDeadline(explicit, grace time.Duration) time.Duration {
	switch {
	case explicit > 0:
		return explicit
	case grace <= 0:
		return defaultDrain
	case grace > 10*time.Second:
		return grace - 5*time.Second
	case grace > time.Second:
		return grace - time.Second
	}
	return grace
}
