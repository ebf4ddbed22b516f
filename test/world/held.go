package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
)

// Held is a connection that a pod keeps to an echo server, and uses all the time.
type Held struct {
	w      *World
	echoes atomic.Int64
	ended  chan struct{}
	err    error // set before ended
}

// Write gets the lines of the client: one for each message that came back.
func (h *Held) Write(b []byte) (int, error) {
	h.echoes.Add(int64(strings.Count(string(b), `"event":"echo"`)))
	return len(b), nil
}

// Hold opens a connection, and returns once it carries messages.
func (w *World) Hold(from Place, to netip.AddrPort) *Held {
	w.Helper()
	var h *Held
	w.Eventually(fmt.Sprintf("%s holds a connection to %s", from, to), func() error {
		h = &Held{w: w, ended: make(chan struct{})}
		go func(h *Held, ctx context.Context) {
			defer close(h.ended)
			h.err = w.mesh.Exec(ctx, w.Text("$"+from.Namespace), from.Pod, h, "ECHO", "hold", "-each", "-addr", to.String())
		}(h, w.Context())
		return h.Carries()
	})
	return h
}

// Carries waits until more messages have come back. It returns an error when the connection
// ends.
func (h *Held) Carries() error {
	h.w.Helper()
	before := h.echoes.Load()
	var end error
	h.w.Eventually("a connection carries messages, or ends", func() error {
		select {
		case <-h.ended:
			end = fmt.Errorf("the connection has ended, error %w", h.err)
			return nil
		default:
		}
		if h.echoes.Load() < before+2 {
			return errors.New("neither")
		}
		return nil
	})
	return end
}
