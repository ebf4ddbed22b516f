package tunnel

import (
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// innerWrite is how many bytes of a tunnel on a stream are given to the stream at once:
// it takes all of them, whatever its bound.
const innerWrite = 64 << 10

// inner is the Sink of the stream that carries a tunnel.
type inner struct{ t *Tunnel }

// startInside is start for a tunnel on a stream.
func (t *Tunnel) startInside() {
	w := t.wire
	rest, end, err := w.block.Release()
	w.block, w.in, w.end = nil, rest, end
	t.under.Consumed(len(rest))
	t.under.Bind(&inner{t})
	// crypto/tls may hold bytes too. Not now: the tunnel's owner is not ready.
	t.hub.loop.Post(func() {
		if t.closed {
			return
		}
		t.decrypt()
		w.in = nil
		if err != nil {
			t.Fail(reason.TunnelClosed, err)
		}
	})
}

// OnData implements stream.Sink.
func (i *inner) OnData(p []byte, end bool) {
	t := i.t
	n := len(p)
	if len(t.wire.in) > 0 { // since the handshake
		p = append(t.wire.in, p...)
	}
	t.wire.in, t.wire.end = p, end
	t.heard = t.hub.loop.Now()
	t.decrypt()
	t.wire.in = nil
	if !t.closed {
		t.under.Consumed(n)
	}
}

// OnWritable implements stream.Sink.
func (i *inner) OnWritable() {
	i.t.blocked = false
	i.t.Touch()
}

// OnClose implements stream.Sink.
func (i *inner) OnClose(_ reason.Reason, err error) { i.t.Fail(reason.TunnelClosed, err) }

// writeInside gives the stream below what it takes; false means it takes no more now.
func (t *Tunnel) writeInside() bool {
	for t.waiting() > 0 {
		p := t.wire.out[t.sent:]
		p = p[:min(len(p), innerWrite)]
		t.sent += len(p)
		if !t.under.Write(p) {
			t.blocked = true
			return false
		}
	}
	return true
}
