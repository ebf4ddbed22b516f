package tunnel

import (
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/record"
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
	// freeParts bounds the buffers for starts of records that a loop keeps.
	freeParts = 16
	// smallPart is up to which length the start of a record gets memory of its own when
	// the loop has no buffer: a peer that sends a few bytes costs a few bytes.
	smallPart = 512
)

// hub is what all tunnels of a loop share: buffers, and the list of tunnels
// that have something to send at the end of the turn.
type hub struct {
	loop      *poll.Loop
	cipher    []byte          // ciphertext as read, behind the start of a record; made when it is needed
	plain     []byte          // plaintext of crypto/tls; made for its first tunnel
	inner     []byte          // the same of tunnels inside of tunnels; made for the first one
	plainHead [MaxRecord]byte // a DATA frame's header and first bytes
	free      [][]byte
	parts     [][]byte // for starts of records
	pieces    [][]byte // of the slots at hand
	dirty     []*Tunnel
	scheduled bool
}

type hubKey struct{}

func hubOf(l *poll.Loop) *hub {
	return l.Value(hubKey{}, func() any { return &hub{loop: l} }).(*hub)
}

// Trim implements poll.Trimmer. Between two turns all buffers are free: what waits for a
// peer, and starts of records, are their tunnels'.
func (h *hub) Trim() {
	h.cipher, h.plain, h.inner, h.free, h.parts, h.pieces = nil, nil, nil, nil, nil, nil
}

// ciphertext returns the buffer for what a tunnel reads.
func (h *hub) ciphertext() []byte {
	if h.cipher == nil {
		h.cipher = make([]byte, record.MaxRecord+poll.BufferSize)
	}
	return h.cipher
}

// plaintext returns the buffer for what a tunnel delivers. While one tunnel delivers,
// one inside of it may do so too.
func (h *hub) plaintext(inside bool) []byte {
	if !inside {
		if h.plain == nil {
			h.plain = make([]byte, poll.BufferSize+MaxRecord)
		}
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

// keep keeps p, the start of a record, in place of what part is. It may be empty.
func (h *hub) keep(part, p []byte) []byte {
	if len(p) > 0 && cap(part) < len(p) {
		h.drop(part)
		switch n := len(h.parts); {
		case n > 0:
			part, h.parts[n-1] = h.parts[n-1], nil
			h.parts = h.parts[:n-1]
		case len(p) <= smallPart:
			part = make([]byte, 0, len(p))
		default:
			part = make([]byte, 0, record.MaxRecord)
		}
	}
	if len(p) == 0 {
		h.drop(part)
		return nil
	}
	return append(part[:0], p...)
}

// drop takes the buffer of a start of a record back.
func (h *hub) drop(part []byte) {
	if cap(part) >= record.MaxRecord && len(h.parts) < freeParts {
		h.parts = append(h.parts, part[:0])
	}
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
