package hbone

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// TestOpenTimeout: a connection with a time of its own fails after it, while the tunnel is
// made and while its answer is waited for. The times of the pool are far longer.
func TestOpenTimeout(t *testing.T) {
	w := newWorld(t, echo, func(w *world, p *PoolConfig, _ *ServerConfig) {
		w.timeout.Store(int64(200 * time.Millisecond))
		p.KeepAlive = -1
		p.DialTimeout, p.AnswerTimeout, p.DialPatience, p.ProbeAfter = time.Hour, time.Hour, time.Hour, time.Hour
	})
	release := w.mute()
	first := w.connectDoomed()
	if f := get(t, w.failures, "the tunnel is not made in time"); f.err.Reason != reason.ConnectTimeout {
		t.Errorf("failed with %v", f.err)
	}
	_ = first.Close()
	release()
	w.timeout.Store(int64(time.Hour))
	c := w.connect()
	defer func() { _ = c.Close() }()
	roundTrip(t, c, "a tunnel")
	w.timeout.Store(int64(200 * time.Millisecond))
	release = w.mute()
	defer release()
	second := w.connectDoomed()
	if f := get(t, w.failures, "the answer does not come in time"); f.err.Reason != reason.ConnectTimeout {
		t.Errorf("failed with %v", f.err)
	}
	_ = second.Close()
}
