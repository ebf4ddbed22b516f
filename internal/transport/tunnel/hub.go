package tunnel

import (
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
)

const (
	// outBound is how many bytes of ciphertext a tunnel may have waiting before
	// it stops reading from its applications, and sending control frames.
	outBound = 512 << 10
	// outFlush is how many are written at once without waiting for the end of
	// the turn: there is nothing to gain from gathering more.
	outFlush = 256 << 10
	// outCap is what one buffer for ciphertext can hold without growing: a full
	// read of an application on top of a flush.
	outCap = outFlush + poll.BufferSize + 32<<10
	// freeOut bounds the ciphertext buffers a loop keeps.
	freeOut = 4
)

// hub is what all tunnels of a loop share: buffers, and the list of tunnels
// that have something to send at the end of the turn.
type hub struct {
	loop      *poll.Loop
	cipher    []byte          // ciphertext as read
	plain     []byte          // plaintext as delivered
	inner     []byte          // the same of tunnels inside of tunnels; made for the first one
	plainHead [MaxRecord]byte // a DATA frame's header and first bytes
	free      [][]byte
	dirty     []*Tunnel
	scheduled bool
}

type hubKey struct{}

func hubOf(l *poll.Loop) *hub {
	return l.Value(hubKey{}, func() any {
		h := &hub{loop: l, cipher: make([]byte, poll.BufferSize), plain: make([]byte, poll.BufferSize+MaxRecord)}
		return h
	}).(*hub)
}

// plaintext returns the buffer for what a tunnel delivers. While one tunnel delivers,
// one inside of it may do so too.
func (h *hub) plaintext(inside bool) []byte {
	if !inside {
		return h.plain
	}
	if h.inner == nil {
		h.inner = make([]byte, bytestream.Window+2*MaxRecord)
	}
	return h.inner
}

func (h *hub) takeOut() []byte {
	if n := len(h.free); n > 0 {
		b := h.free[n-1]
		h.free[n-1] = nil
		h.free = h.free[:n-1]
		return b
	}
	return make([]byte, 0, outCap)
}

func (h *hub) putOut(b []byte) {
	if cap(b) == 0 || cap(b) > 2*outCap || len(h.free) >= freeOut {
		return
	}
	h.free = append(h.free, b[:0])
}

// add has t flushed at the end of this turn.
func (h *hub) add(t *Tunnel) {
	h.dirty = append(h.dirty, t)
	if !h.scheduled {
		h.scheduled = true
		h.loop.FlushTurnOf(h)
	}
}

// TurnEnd implements poll.TurnEnder.
func (h *hub) TurnEnd() {
	for i := 0; i < len(h.dirty); i++ { // a flush may add others
		t := h.dirty[i]
		h.dirty[i] = nil
		t.dirty = false
		t.flush()
	}
	h.dirty = h.dirty[:0]
	h.scheduled = false
}
