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
	w.block, w.in = nil, rest
	t.under.Consumed(len(rest))
	t.under.Bind(&inner{t})
	// Not now: the tunnel's owner is not ready.
	t.hub.loop.Post(func() {
		if t.closed {
			return
		}
		if p := w.in; len(p) > 0 || end {
			w.in = nil
			t.openInside(p, end)
		}
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
		t.wire.in = nil
	}
	t.heard = t.hub.loop.Now()
	t.openInside(p, end)
	if !t.closed {
		t.under.Consumed(n)
	}
}

// openInside opens what has arrived on the stream, whose bytes are not the tunnel's to
// change.
func (t *Tunnel) openInside(p []byte, end bool) {
	if t.rec == nil {
		t.opened(p, end)
		return
	}
	for first := true; !t.closed && (first || len(p) > 0); first = false {
		buf := t.hub.plaintext(true)
		k := copy(buf, t.part)
		n := copy(buf[k:], p)
		p = p[n:]
		t.opened(buf[:k+n], end && len(p) == 0)
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
