package codec

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// h2Conn is an HTTP/2 connection, in one role.
type h2Conn struct {
	conn  stream.Conn
	hub   *hub
	h2    *h2.Conn
	cfg   *ServerConfig // of a server
	owner ClientOwner   // of a client

	stalled []*h2Stream // have bytes that the carrier has no room for
	early   []*h2Stream // upgrades that wait for the peer's settings
	opening *h2Stream   // whose head is being sent
	timer   poll.Deadline
	fire    func()
	since   time.Time // when the last stream ended
	active  int       // streams that are open
	served  int       // streams that were opened

	why reason.Reason // of the end
	err error

	full     bool // the carrier has no room
	settled  bool // the peer's settings have come
	queued   bool
	draining bool // ends when the last stream has
	retired  bool // OnGone was called
	leaving  bool // CloseWrite was called
	gone     bool
}

// maxHeaders bounds a header list in bytes, as http1.MaxHead does a head.
const maxHeaders = http1.MaxHead

// NewHTTP2Server returns an HTTP/2 connection over conn, to which it binds itself.
func NewHTTP2Server(conn stream.Conn, cfg *ServerConfig) Server {
	c := &h2Conn{conn: conn, hub: hubOf(conn.Loop()), cfg: cfg, since: conn.Loop().Now()}
	c.start(h2.Config{Server: true, MaxStreams: cfg.MaxStreams, MaxHeaderList: maxHeaders, ExtendedConnect: true, Informational: true})
	if cfg.Timeouts.Idle > 0 {
		c.fire = c.expire
		c.timer.Arm(c.hub.loop, cfg.Timeouts.Idle, c.fire)
	}
	return c
}

// NewHTTP2Client returns an HTTP/2 connection over conn, to which it binds itself.
func NewHTTP2Client(conn stream.Conn, owner ClientOwner) Client {
	c := &h2Conn{conn: conn, hub: hubOf(conn.Loop()), owner: owner}
	c.start(h2.Config{MaxHeaderList: maxHeaders, Informational: true})
	return (*h2Client)(c)
}

func (c *h2Conn) start(cfg h2.Config) {
	cfg.NewStream, cfg.Transient = c.newStream, true
	c.h2 = h2.New(cfg, (*h2Handler)(c))
	c.conn.Bind(c)
	c.later()
}

// newStream returns the memory of a stream: in one piece with what is kept of it here.
func (c *h2Conn) newStream() *h2.Stream {
	s := c.opening
	if s == nil {
		s = c.hub.newStream(c)
	}
	s.own.User = s
	return &s.own
}

func (c *h2Conn) later() {
	if !c.queued && !c.gone {
		c.queued = true
		c.hub.loop.EndTurnOf(c)
	}
}

// TurnEnd implements poll.TurnEnder: what has gathered leaves together.
func (c *h2Conn) TurnEnd() {
	c.queued = false
	if c.gone {
		return
	}
	c.flush()
	if c.draining && !c.leaving && c.h2.Drained() && c.active == 0 && !c.full {
		c.leave()
	}
}

// flush writes what the state machine has, unless the carrier is full: then its
// bound on what a peer may leave unread holds.
func (c *h2Conn) flush() {
	for !c.full {
		out := c.h2.Output()
		if len(out) == 0 {
			return
		}
		ok := c.conn.Write(out)
		c.h2.Wrote(len(out))
		c.full = !ok
	}
}

// leave ends a connection that carries nothing any more.
func (c *h2Conn) leave() {
	c.retire()
	c.leaving = true
	c.conn.CloseWrite()
	c.timer.Arm(c.hub.loop, lingerTime, func() { c.end(reason.OK) })
}

func (c *h2Conn) expire() {
	if c.gone || c.draining {
		return
	}
	if c.active > 0 {
		c.timer.Rearm(c.cfg.Timeouts.Idle)
		return
	}
	if left, over := since(c.hub.loop, c.since, c.cfg.Timeouts.Idle); !over {
		c.timer.Rearm(left)
		return
	}
	c.Drain()
}

// OnData implements stream.Sink.
func (c *h2Conn) OnData(p []byte, end bool) {
	if c.leaving || c.gone {
		c.conn.Consumed(len(p))
		return
	}
	err := c.h2.Receive(c.hub.loop.Now(), p)
	if c.gone {
		return
	}
	c.conn.Consumed(len(p))
	c.later()
	switch {
	case err != nil:
		why := reason.MalformedRequest
		if c.owner != nil {
			why = reason.UpstreamProtocol
		}
		c.flush() // the GOAWAY that says so
		c.over(why, err)
		c.bye()
	case end:
		c.over(c.gonePeer(), nil)
		c.bye()
	}
}

// bye ends the carrier behind what was written.
func (c *h2Conn) bye() {
	c.conn.CloseWrite()
	c.timer.Arm(c.hub.loop, lingerTime, func() { c.conn.Abort(reason.OK) })
}

// gonePeer is the reason when the other end of the connection went.
func (c *h2Conn) gonePeer() reason.Reason {
	if c.cfg != nil {
		return reason.DownstreamReset
	}
	return reason.UpstreamReset
}

// OnWritable implements stream.Sink.
func (c *h2Conn) OnWritable() {
	c.full = false
	c.flush()
	for n := len(c.stalled); n > 0 && !c.full && len(c.stalled) > 0; n-- {
		s := c.stalled[0]
		c.stalled[0] = nil
		c.stalled = c.stalled[1:]
		s.stalled = false
		s.drain()
	}
	if len(c.stalled) == 0 {
		c.stalled = nil
	}
	c.later()
}

// OnClose implements stream.Sink.
func (c *h2Conn) OnClose(why reason.Reason, err error) {
	if why == reason.OK {
		why = c.gonePeer()
	}
	c.over(why, err)
	c.timer.Stop()
}

// over ends all streams: the carrier is gone, or about to be.
func (c *h2Conn) over(why reason.Reason, err error) {
	if c.gone {
		return
	}
	c.gone = true
	c.timer.Stop()
	c.retire()
	c.why, c.err = why, err
	c.h2.Close(h2.InternalError)
	for _, s := range c.early {
		s.reset(h2.InternalError)
	}
	c.early = nil
	if c.cfg != nil && c.cfg.Closed != nil {
		c.cfg.Closed(why)
	}
}

// end cuts the connection.
func (c *h2Conn) end(why reason.Reason) {
	if c.gone {
		return
	}
	c.over(why, nil)
	c.conn.Abort(why)
}

func (c *h2Conn) retire() {
	if !c.retired {
		c.retired = true
		if c.owner != nil {
			c.owner.OnGone((*h2Client)(c))
		}
	}
}

// Last implements Server: the protocol has a frame that says so.
func (c *h2Conn) Last() { c.Drain() }

// Drain implements Server.
func (c *h2Conn) Drain() {
	if c.gone || c.draining {
		return
	}
	c.draining = true
	c.h2.Shutdown()
	c.later()
}

// Close implements Server.
func (c *h2Conn) Close(why reason.Reason) {
	if !c.gone {
		c.h2.GoAway(h2.NoError, "")
		c.flush()
		c.end(why)
	}
}

// h2Client is an h2Conn as a Client.
type h2Client h2Conn

// Room implements Client.
func (c *h2Client) Room() int {
	if c.gone || c.retired || c.draining {
		return 0
	}
	return c.h2.Available()
}

// Active implements Client.
func (c *h2Client) Active() int { return c.active }

// Open implements Client.
func (c *h2Client) Open() Request {
	c.active++
	return c.hub.newStream((*h2Conn)(c))
}

// Close implements Client.
func (c *h2Client) Close() {
	(*h2Conn)(c).retire()
	(*h2Conn)(c).ending()
}

// Fail implements Client.
func (c *h2Client) Fail(why reason.Reason) { (*h2Conn)(c).Close(why) }

// h2Handler is what the state machine calls.
type h2Handler h2Conn

// OnHeaders implements h2.Handler.
func (c *h2Handler) OnHeaders(hs *h2.Stream, h *h2.Header, end bool) {
	s := hs.User.(*h2Stream)
	if s.s == nil {
		(*h2Conn)(c).request(s, h, end)
		return
	}
	if s.rcv == nil {
		return
	}
	if f := fromHTTP2(&c.hub.head, h); f != nil {
		s.fault(f)
		return
	}
	switch {
	case h.Trailer:
		s.rcv.OnTrailers(&c.hub.head)
		s.peerEnded()
	case h.Status < 200:
		s.rcv.OnHead(&c.hub.head, http1.Body{})
	default:
		s.response(&c.hub.head, end)
	}
}

// request takes a request.
func (c *h2Conn) request(s *h2Stream, h *h2.Header, end bool) {
	s.s, s.got = &s.own, true
	c.active++
	c.served++
	if f := fromHTTP2(&c.hub.head, h); f != nil {
		if c.cfg.Refused != nil {
			c.cfg.Refused(f.Status(), f)
		}
		_ = c.h2.Respond(s.s, &h2.Header{Status: f.Status()}, true)
		s.close(h2.NoError)
		return
	}
	s.rcv = c.cfg.Accept(s)
	s.switching = h.Method == "CONNECT" //nolint:usestdlibvars // net/http is not linked
	body := bodyOf(&c.hub.head, end)
	if s.switching {
		body = http1.Body{}
	}
	s.rcv.OnHead(&c.hub.head, body)
	if end && !s.switching {
		s.peerEnded()
	} else if end {
		s.ended = true
	}
}

// OnData implements h2.Handler.
func (c *h2Handler) OnData(hs *h2.Stream, p []byte, end bool) {
	s := hs.User.(*h2Stream)
	if s.rcv == nil {
		c.h2.Consumed(hs, len(p))
		return
	}
	if len(p) > 0 {
		s.rcv.OnData(p)
	}
	if end {
		s.peerEnded()
	}
}

// OnReset implements h2.Handler.
func (c *h2Handler) OnReset(hs *h2.Stream, code h2.ErrCode) {
	if s := hs.User.(*h2Stream); s.s != nil {
		s.reset(code)
	}
}

// OnWritable implements h2.Handler.
func (c *h2Handler) OnWritable(hs *h2.Stream) { hs.User.(*h2Stream).drain() }

// OnGoAway implements h2.Handler.
func (c *h2Handler) OnGoAway(uint32, h2.ErrCode, []byte) {
	if c.owner != nil {
		(*h2Conn)(c).retire()
		(*h2Conn)(c).ending()
	}
}

// OnSettings implements h2.Handler.
func (c *h2Handler) OnSettings() {
	c.settled = true
	early := c.early
	c.early = nil
	for _, s := range early {
		s.sendEarly()
	}
	if c.owner != nil && !c.retired {
		c.owner.OnRoom((*h2Client)(c))
	}
}

// OnPong implements h2.Handler.
func (c *h2Handler) OnPong([8]byte) {}

// ending has a client's connection end once nothing is under way.
func (c *h2Conn) ending() {
	if c.gone || c.draining {
		return
	}
	c.draining = true
	c.h2.Shutdown()
	c.later()
}
