package codec

import (
	"errors"

	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// h1Client is an HTTP/1 connection that sends requests, one at a time.
type h1Client struct {
	out   output
	h1    *http1.Conn
	owner ClientOwner
	rcv   Receiver      // of the response under way
	timer poll.Deadline // of its end

	handed  int  // bytes that Receive handed to the handler
	served  int  // requests that were sent
	open    bool // an exchange is under way
	sent    bool // its request is complete
	got     bool // something of its response arrived
	raw     bool
	ended   bool // its response is complete
	queued  bool
	ending  bool // CloseWrite was called, nothing is under way
	retired bool // OnGone was called
	gone    bool
}

// NewHTTP1Client returns an HTTP/1 connection over conn, to which it binds itself.
func NewHTTP1Client(conn stream.Conn, owner ClientOwner) Client {
	c := &h1Client{owner: owner, out: output{conn: conn, hub: hubOf(conn.Loop())}}
	c.h1 = http1.NewClient((*h1ClientHandler)(c))
	conn.Bind(c)
	return c
}

// Room implements Client.
func (c *h1Client) Room() int {
	if c.open || c.gone || c.retired {
		return 0
	}
	return 1
}

// Active implements Client.
func (c *h1Client) Active() int {
	if c.open {
		return 1
	}
	return 0
}

// Open implements Client.
func (c *h1Client) Open() Request {
	c.open, c.sent, c.got, c.raw, c.ended = true, false, false, false, false
	return c
}

func (c *h1Client) later() {
	if !c.queued && !c.gone {
		c.queued = true
		c.out.hub.loop.EndTurnOf(c)
	}
}

// TurnEnd implements poll.TurnEnder: it gives a connection back that is not used
// any more. Nobody is in the middle of it then.
func (c *h1Client) TurnEnd() {
	c.queued = false
	c.release()
}

// release ends an exchange of which both messages are complete.
func (c *h1Client) release() {
	if !c.open || !c.sent || c.rcv != nil || c.raw || c.gone {
		return
	}
	c.open = false
	if c.h1.Closing() || !c.h1.Idle() {
		c.finish()
		return
	}
	c.owner.OnRoom(c)
}

// finish ends a connection on which nothing is under way.
func (c *h1Client) finish() {
	c.retire()
	if !c.gone && !c.ending {
		c.ending = true
		c.out.conn.CloseWrite()
		c.timer.Arm(c.out.hub.loop, lingerTime, func() { c.end(reason.OK) })
	}
}

func (c *h1Client) retire() {
	if !c.retired {
		c.retired = true
		c.owner.OnGone(c)
	}
}

// OnData implements stream.Sink.
func (c *h1Client) OnData(p []byte, end bool) {
	if c.ending {
		c.out.conn.Consumed(len(p))
		return
	}
	if len(p) > 0 {
		c.got, c.handed = c.got || c.open, 0
		n, fault := c.h1.Receive(p)
		if c.gone {
			return
		}
		if used := n - c.handed; used > 0 {
			c.out.conn.Consumed(used)
		}
		if fault != nil {
			c.cut(Cut{Reason: reason.UpstreamProtocol, Err: fault})
			c.end(reason.UpstreamProtocol)
			return
		}
	}
	if end {
		c.inputEnded()
	}
	if !c.gone {
		c.release()
	}
}

func (c *h1Client) inputEnded() {
	fault := c.h1.End()
	switch {
	case c.gone:
	case c.rcv != nil && !c.raw:
		if fault == nil { // a response had not begun
			fault = http1.ErrTruncated
		}
		c.cut(Cut{Reason: reason.UpstreamReset, Err: fault, Lost: !c.got, Stale: c.served > 1 && !c.got})
		c.end(reason.UpstreamReset)
	case !c.open:
		c.finish()
	}
}

func (c *h1Client) cut(cut Cut) {
	rcv := c.rcv
	c.rcv = nil
	if rcv != nil {
		rcv.OnAbort(cut)
	}
}

// end ends the connection now.
func (c *h1Client) end(why reason.Reason) {
	if c.gone {
		return
	}
	c.out.conn.Abort(why)
	c.over()
}

func (c *h1Client) over() {
	c.gone, c.open = true, false
	c.timer.Stop()
	c.retire()
}

// OnWritable implements stream.Sink.
func (c *h1Client) OnWritable() {
	c.out.full = false
	if c.rcv != nil {
		c.rcv.OnWritable()
	}
}

// OnClose implements stream.Sink.
func (c *h1Client) OnClose(why reason.Reason, err error) {
	if c.gone {
		return
	}
	c.gone = true
	if why == reason.OK {
		why = reason.UpstreamReset
	}
	c.cut(Cut{Reason: why, Err: err, Lost: !c.got, Stale: c.served > 1 && !c.got})
	c.over()
}

// Close implements Client.
func (c *h1Client) Close() {
	c.h1.Drain()
	c.retire()
	if !c.open && !c.gone {
		c.finish()
	}
}

// Fail implements Client.
func (c *h1Client) Fail(why reason.Reason) {
	c.cut(Cut{Reason: why})
	c.end(why)
}

// Send implements Request.
func (c *h1Client) Send(h *message.Head, length int64, r Receiver) error {
	if c.gone {
		return errGone
	}
	b, err := c.h1.Request(c.out.room(), h, length)
	if err != nil {
		c.sent = true
		c.later() // gives the connection back
		return err
	}
	c.out.send(b)
	c.rcv = r
	c.served++
	return nil
}

var errGone = errors.New("connection has ended")

// Data implements Stream.
func (c *h1Client) Data(p []byte) bool {
	if c.gone {
		return true
	}
	if len(p) < direct {
		b, err := c.h1.Data(c.out.room(), p)
		if err != nil {
			c.broken()
			return true
		}
		c.out.send(b)
		return !c.out.full
	}
	b, after, err := c.h1.Frame(c.out.room(), len(p))
	if err != nil {
		c.broken()
		return true
	}
	c.out.send(b)
	c.out.write(p)
	c.out.send(append(c.out.room(), after...))
	return !c.out.full
}

// broken ends a request that is longer than its head has said.
func (c *h1Client) broken() {
	c.cut(Cut{Reason: reason.MalformedRequest, Err: errLength})
	c.end(reason.MalformedRequest)
}

// Finish implements Stream.
func (c *h1Client) Finish(trailers *message.Head) {
	if c.gone || c.sent {
		return
	}
	c.sent = true
	if c.raw {
		if c.ended {
			c.rcv = nil
		}
		c.out.conn.CloseWrite()
		return
	}
	b, err := c.h1.Finish(c.out.room(), trailers)
	if err != nil {
		b, err = c.h1.Finish(c.out.room(), nil)
	}
	if err != nil {
		c.broken()
		return
	}
	c.out.send(b)
}

// Abort implements Stream.
func (c *h1Client) Abort(why reason.Reason) {
	c.rcv = nil
	c.end(why)
}

// Consumed implements Stream.
func (c *h1Client) Consumed(n int) {
	if !c.gone {
		c.out.conn.Consumed(n)
	}
}

// Release implements Stream: all exchanges of a connection are one object.
func (c *h1Client) Release() {}

// h1ClientHandler is what the state machine calls.
type h1ClientHandler h1Client

// OnHead implements http1.Handler.
func (c *h1ClientHandler) OnHead(h *message.Head, body http1.Body) {
	if body.Length == http1.Raw {
		c.raw = true
		(*h1Client)(c).retire()
	}
	if body.Length == http1.UntilClose {
		body.Length = Chunked
	}
	if c.rcv != nil {
		c.rcv.OnHead(h, body)
	}
}

// OnData implements http1.Handler.
func (c *h1ClientHandler) OnData(p []byte) {
	c.handed += len(p)
	if c.rcv == nil {
		if !c.gone {
			c.out.conn.Consumed(len(p))
		}
		return
	}
	c.rcv.OnData(p)
}

// OnTrailers implements http1.Handler.
func (c *h1ClientHandler) OnTrailers(h *message.Head) {
	if c.rcv != nil {
		c.rcv.OnTrailers(h)
	}
}

// OnEnd implements http1.Handler.
func (c *h1ClientHandler) OnEnd() {
	c.ended = true
	rcv := c.rcv
	if !c.raw || c.sent {
		c.rcv = nil
	}
	if rcv != nil {
		rcv.OnEnd()
	}
}
