package codec

import (
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

const (
	// scratchKeep is the largest scratch buffer that a loop keeps, in bytes.
	scratchKeep = 128 << 10
	// outFlush is how much of HTTP/2 gathers before it is written in the middle of
	// a turn.
	outFlush = 64 << 10
	// direct is the size from which bytes are written from where they are: below,
	// one copy is cheaper than one more write.
	direct = 4 << 10
)

// hub is what the connections of a loop share.
type hub struct {
	loop    *poll.Loop
	scratch []byte       // for heads, until they are written
	head    message.Head // of HTTP/2, while it is delivered
	heads   heads        // for those of HTTP/2, until they are encoded
	streams []*h2Stream  // of HTTP/2, all zero
	spent   []*h2Stream  // that ended and were released in this turn
}

// maxStreams bounds the streams of HTTP/2 that a loop keeps for use again.
const maxStreams = 1024

func (h *hub) newStream(c *h2Conn) *h2Stream {
	n := len(h.streams)
	if n == 0 {
		return &h2Stream{c: c}
	}
	s := h.streams[n-1]
	h.streams[n-1] = nil
	h.streams = h.streams[:n-1]
	s.c = c
	return s
}

func (h *hub) spend(s *h2Stream) {
	if len(h.spent) == 0 {
		h.loop.EndTurnOf(h)
	}
	h.spent = append(h.spent, s)
}

// TurnEnd implements poll.TurnEnder. No method of a stream is under way now.
func (h *hub) TurnEnd() {
	for i, s := range h.spent {
		h.spent[i] = nil
		if s.referred() || len(h.streams) >= maxStreams {
			continue // it is the collector's
		}
		if *s = (h2Stream{}); poison {
			continue
		}
		h.streams = append(h.streams, s)
	}
	h.spent = h.spent[:0]
}

type hubKey struct{}

func hubOf(l *poll.Loop) *hub {
	return l.Value(hubKey{}, func() any { return &hub{loop: l, scratch: make([]byte, 0, 4<<10)} }).(*hub)
}

// output is where a connection of HTTP/1 writes. Its carrier gathers what is written
// in a turn.
type output struct {
	conn stream.Conn
	hub  *hub
	full bool // the carrier has no room until OnWritable
}

// room returns an empty buffer. It is sent before anything else asks for one.
func (o *output) room() []byte { return o.hub.scratch[:0] }

// send writes what was appended to room.
func (o *output) send(b []byte) {
	if cap(b) > cap(o.hub.scratch) && cap(b) <= scratchKeep {
		o.hub.scratch = b[:0]
	}
	if len(b) > 0 {
		o.write(b)
	}
}

func (o *output) write(p []byte) {
	if !o.conn.Write(p) {
		o.full = true
	}
}
