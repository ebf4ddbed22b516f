package http1

import "github.com/ambit-mesh/ambit/internal/l7/message"

// input is what the next bytes from the peer are.
type input uint8

const (
	inHead      input = iota // a head
	inIdle                   // nothing is expected: a client without a request
	inExact                  // left bytes of body
	inClose                  // body until the peer closes
	inChunkSize              // digits of a chunk's size
	inChunkExt               // extensions of a chunk
	inChunkLF                // LF after a chunk's size
	inChunkData              // left bytes of a chunk
	inChunkCR                // CR after a chunk
	inChunkEnd               // LF after a chunk
	inTrailers               // trailers
	inWait                   // the message is complete, the other direction is not
	inRaw                    // no HTTP
	inDead                   // nothing more is read: fault, or the last message
)

// Conn is one connection, in one role.
type Conn struct {
	h      Handler
	server bool
	in     input
	out    output
	fault  *message.Fault

	held []byte // a head or trailers that are not complete
	find finder // how far held was searched
	head message.Head

	left       int64 // of the body or chunk
	digits     int   // of the chunk's size so far
	extension  int   // bytes of this chunk's extensions
	extensions int   // bytes of this body's extensions
	informs    int

	asked    request // the current request: how its response is framed
	inDone   bool    // the message from the peer is complete
	outDone  bool    // the message to the peer is complete
	close    bool    // no message follows this one
	outLeft  int64
	draining bool
}

// request is what the framing of a response depends on.
type request struct {
	head, connect, upgrade bool
	old                    bool // HTTP/1.0
	expects                bool // the client waits for 100 Continue
}

// NewServer returns a connection that reads requests, NewClient one that reads
// responses.
func NewServer(h Handler) *Conn { return &Conn{h: h, server: true} }

// NewClient returns a connection that reads responses.
func NewClient(h Handler) *Conn { return &Conn{h: h, in: inIdle} }

// Receive takes bytes from the peer and returns how many it used. It leaves
// bytes over when a request is complete and its response is not: the caller
// keeps them and passes them again once the response is complete. After a
// fault the connection is of no use, but for Refuse.
func (c *Conn) Receive(p []byte) (int, *message.Fault) {
	n := 0
	for n < len(p) && c.fault == nil {
		before, state := n, c.in
		n += c.step(p[n:])
		if n == before && c.in == state {
			break
		}
	}
	if cap(c.head.Fields) > keepFields {
		c.head = message.Head{}
	}
	return n, c.fault
}

// step uses some of p, which is not empty.
func (c *Conn) step(p []byte) int {
	switch c.in {
	case inHead:
		return c.section(p, MaxHead)
	case inTrailers:
		return c.section(p, MaxTrailers)
	case inExact, inChunkData:
		return c.bounded(p)
	case inClose, inRaw:
		c.h.OnData(p)
		return len(p)
	case inChunkSize, inChunkExt, inChunkLF, inChunkCR, inChunkEnd:
		return c.chunk(p)
	case inIdle:
		return c.fail(ErrUnasked)
	case inWait:
		if !c.server {
			return c.fail(ErrUnasked)
		}
		return 0
	case inDead:
	}
	return len(p)
}

// End notes that the peer sends no more bytes. It returns ErrTruncated if a
// message is incomplete.
func (c *Conn) End() *message.Fault {
	switch {
	case c.fault != nil:
		return c.fault
	case c.in == inClose || c.in == inRaw:
		c.in, c.inDone, c.close = inDead, true, true
		c.h.OnEnd()
	case c.in == inHead && (!c.server || len(c.held) > 0), c.in > inIdle && c.in < inWait:
		c.fail(ErrTruncated)
	default:
		c.close = true
		if c.in == inHead || c.in == inIdle {
			c.in = inDead
		}
	}
	return c.fault
}

func (c *Conn) fail(f *message.Fault) int {
	c.fault, c.in, c.close = f, inDead, true
	return 0
}

// Fail refuses what the peer is sending, for a reason of the owner: see Refuse.
func (c *Conn) Fail(f *message.Fault) {
	if c.fault == nil {
		c.fail(f)
	}
}

// section collects a head or trailers until the empty line.
func (c *Conn) section(p []byte, limit int) int {
	if len(c.held) == 0 { // all of it at once: no copy
		end, f := c.find.end(p, limit)
		switch {
		case f != nil:
			return c.fail(f)
		case end > 0:
			c.find = finder{}
			c.parse(p[:end])
			return end
		}
		c.held = append(c.held, p...)
		return len(p)
	}
	before := len(c.held)
	take := min(len(p), limit+1-before)
	c.held = append(c.held, p[:take]...)
	end, f := c.find.end(c.held, limit)
	switch {
	case f != nil:
		return c.fail(f)
	case end == 0:
		return take
	}
	c.find = finder{}
	whole := c.held[:end]
	if c.held = c.held[:0]; cap(c.held) > keepHeld {
		c.held = nil
	}
	c.parse(whole)
	return end - before
}

// keepHeld is the largest buffer, in bytes, that a connection keeps for its next
// head, keepFields the longest list: an idle connection must stay small.
const (
	keepHeld   = 2 << 10
	keepFields = 32
)

func (c *Conn) parse(b []byte) {
	h := &c.head
	h.Reset()
	var f *message.Fault
	switch {
	case c.in == inTrailers:
		f = c.trailers(b)
	case c.server:
		f = c.request(b)
	default:
		f = c.response(b)
	}
	if f != nil {
		c.fail(f)
	}
}

// bounded delivers bytes of a body or chunk whose size is known.
func (c *Conn) bounded(p []byte) int {
	n := int(min(c.left, int64(len(p))))
	c.left -= int64(n)
	last := c.left == 0
	if last && c.in == inChunkData {
		c.in, last = inChunkCR, false
	}
	c.h.OnData(p[:n])
	if last {
		c.ended()
	}
	return n
}

// ended notes that the peer's message is complete.
func (c *Conn) ended() {
	c.in, c.inDone = inWait, true
	c.next() // first, so that a client may send its next request from OnEnd
	c.h.OnEnd()
}

// next begins the next message when both directions are complete. Handlers may
// have completed the other direction, or begun another message, meanwhile.
func (c *Conn) next() {
	if !c.inDone || !c.outDone || c.in != inWait {
		return
	}
	c.inDone, c.outDone, c.out, c.informs = false, false, outNone, 0
	c.asked = request{}
	switch {
	case c.close:
		c.in = inDead
	case c.server:
		c.in = inHead
	default:
		c.in = inIdle
	}
}

// Closing reports whether no message follows the current one: the owner closes
// the connection once its output is sent.
func (c *Conn) Closing() bool { return c.close }

// Idle reports whether a client may send a request now.
func (c *Conn) Idle() bool { return c.in == inIdle }

// Waiting reports whether a server waits for the first byte of a request.
func (c *Conn) Waiting() bool { return c.in == inHead && len(c.held) == 0 }

// Partial reports whether the first bytes of a head have come, and not its last.
func (c *Conn) Partial() bool { return c.in == inHead && len(c.held) > 0 }

// Raw reports whether the connection has become a raw stream of bytes.
func (c *Conn) Raw() bool { return c.in == inRaw || c.out == outRaw }

// Drain makes the current or next message the last one.
func (c *Conn) Drain() { c.draining = true }
