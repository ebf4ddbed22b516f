package hbone

import (
	"errors"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

// client is a tunnel that a pool made, on the loop where it lives.
type client struct {
	t       tunnel.Tunnel
	shard   *shard // of that loop
	ref     *ref
	key     Key
	streams int
	opening int  // streams of these that wait for their answer
	ending  bool // takes no new streams
	leaving bool // ends as soon as it has no streams
	idle    *poll.Timer

	suspicion suspicion
	info      *bytestream.Info // of streams that are handed out; made for the first one
}

func (c *client) start(k tunnel.Link) {
	cfg := &c.shard.pool.cfg
	c.shard.local = append(c.shard.local, c)
	err := c.t.Start(c.shard.loop, k, tunnel.Config{
		H2: cfg.Windows.engine(false, uint32(cfg.maxStreams(&c.key))), KeepAlive: cfg.KeepAlive, Silence: cfg.Silence, Linger: cfg.Linger, Queues: cfg.Queues,
	}, c)
	if err != nil {
		k.Close()
		c.Ended(reason.ResourceExhausted, err)
		return
	}
	c.rest()
	if c.shard.killed {
		c.t.Fail(c.shard.refuse.Reason, nil)
	}
}

// shutdown takes no new streams; the tunnel ends with its last one.
func (c *client) shutdown() {
	c.ending = true
	c.t.Drain()
}

// rest begins the time after which an idle tunnel is released.
func (c *client) rest() {
	if c.streams > 0 || c.t.Closed() {
		return
	}
	after := c.shard.pool.cfg.IdleRelease
	if c.key.Via != nil {
		after = min(after, innerRelease)
	}
	if c.leaving {
		after = min(after, leaveAfter)
	}
	if c.idle == nil {
		c.idle = c.shard.loop.AfterFunc(after, c.release)
		return
	}
	c.idle.Reset(after)
}

// leave has the tunnel end as soon as it carries nothing.
func (c *client) leave() {
	c.leaving = true
	c.rest()
}

// release asks home first: it may be assigning a stream right now.
func (c *client) release() {
	if c.streams > 0 || c.t.Closed() {
		return
	}
	r := c.ref
	r.atHome(c.shard, func() {
		if r.active == 0 && !r.gone {
			r.gone = true
			r.where.loop.Post(c.shutdown)
		}
	})
}

// open sends a CONNECT.
func (c *client) open(o *attempt) {
	o.tries++
	if c.t.Closed() || c.ending {
		c.refused(o, reason.Errorf(reason.TunnelClosed, "tunnel to %s is going away", c.key.Dst))
		return
	}
	req := &clientStream{client: c, open: o, within: o.left(c.shard.pool.cfg.AnswerTimeout)}
	s := c.t.NewStream(true, req)
	if o.OnStream != nil {
		// There is no socket.
	} else if err := s.Watch(o.App); err != nil {
		c.ref.release(c.shard)
		o.OnFail(reason.Errorf(reason.ResourceExhausted, "%w", err), 0)
		return
	}
	hs, err := c.t.H2().Open(o.Header.request(), false)
	if err != nil {
		s.Detach()
		if errors.Is(err, h2.ErrTooManyStreams) || errors.Is(err, h2.ErrGoingAway) || errors.Is(err, h2.ErrClosed) {
			c.learn()
			c.refused(o, reason.Errorf(reason.TunnelClosed, "tunnel to %s: %w", c.key.Dst, err))
			return
		}
		c.ref.release(c.shard)
		o.OnFail(reason.Errorf(reason.BadRequest, "%w", err), 0)
		return
	}
	s.Requested(hs, false)
	c.streams++
	c.opening++
	c.idle.Stop()
	c.check()
	req.limit.Arm(c.shard.loop, req.within, func() {
		req.late = true
		s.Abandon(reason.ConnectTimeout)
	})
	c.t.Touch()
}

// refused has o tried elsewhere, unless that was often enough.
func (c *client) refused(o *attempt, err *reason.Error) {
	if o.tries < maxAttempts {
		c.ref.retry(c.shard, o)
		return
	}
	c.ref.release(c.shard)
	o.OnFail(err, 0)
}

// learn tells home how many streams this tunnel takes.
func (c *client) learn() {
	n := 0
	if !c.t.H2().GoingAway() && !c.ending {
		n = max(1, min(c.shard.pool.cfg.maxStreams(&c.key), c.t.H2().Available()+c.t.H2().Streams()))
	}
	c.ref.setLimit(c.shard, n)
}

// done is called when a stream does not count any more.
func (c *client) done() {
	c.streams--
	c.rest()
}

// Headers implements tunnel.Role: the answer to a CONNECT.
func (c *client) Headers(hs *h2.Stream, h *h2.Header, end bool) {
	s, _ := hs.User.(*tunnel.Stream)
	if s == nil || !s.Opening() || h.Trailer {
		return
	}
	req := s.Hooks().(*clientStream)
	if h.Status < 200 || h.Status > 299 {
		req.status = h.Status
		if !hs.Closed() {
			c.t.H2().Reset(hs, h2.Cancel)
		}
		s.Fail(reason.TunnelRefused, nil, false)
		return
	}
	o := req.open
	req.limit.Stop()
	c.opening--
	resp := ResponseHeader{Status: h.Status, Baggage: h.Get(fieldBaggage)}
	if c.key.Via != nil {
		state := c.t.TLS()
		resp.Peer, _ = mtls.PeerIdentity(&state) // it was verified in the handshake
	}
	if o.OnStream != nil {
		o.OnStream(s.Take(*c.streamInfo(), end, c), resp)
		return
	}
	s.Accepted(end, &clientFlow{client: c, onClose: o.OnClose})
	o.OnUp(&s.Flow, resp)
	s.Run()
}

// streamInfo returns what is constant about the streams of this tunnel.
func (c *client) streamInfo() *bytestream.Info {
	if c.info == nil {
		state := c.t.TLS()
		c.info = &bytestream.Info{Remote: c.key.Dst, Dialed: true, TLS: &state}
		c.info.Peer, _ = mtls.PeerIdentity(&state) // it was verified in the handshake
		c.info.Local = c.t.Local()
	}
	return c.info
}

// StreamEnded implements tunnel.Owner.
func (c *client) StreamEnded() {
	c.done()
	c.ref.release(c.shard)
}

// GoingAway implements tunnel.Role.
func (c *client) GoingAway(uint32, h2.ErrCode) { c.shutdownSoon() }

func (c *client) shutdownSoon() {
	if c.ending {
		return
	}
	c.ending = true
	c.ref.setLimit(c.shard, 0)
	c.shard.loop.Post(c.shutdown) // not inside the engine
}

// Settings implements tunnel.Role.
func (c *client) Settings() { c.learn() }

// Ended implements tunnel.Role.
func (c *client) Ended(reason.Reason, error) {
	c.ending = true
	c.idle.Stop()
	c.suspicion.timer.Stop()
	c.shard.local = slices.DeleteFunc(c.shard.local, func(o *client) bool { return o == c })
	c.ref.closed(c.shard)
}

// clientStream are the hooks of a stream that waits for its answer.
type clientStream struct {
	client *client
	open   *attempt
	limit  poll.Deadline // of the wait for the answer
	within time.Duration
	status int
	late   bool
}

// Failed implements tunnel.Hooks.
func (q *clientStream) Failed(_ *tunnel.Stream, r reason.Reason, err error, retry bool) {
	c, o := q.client, q.open
	q.limit.Stop()
	c.opening--
	c.done()
	re := reason.Errorf(r, "%s at %s", o.Header.Authority, c.key.Dst)
	switch {
	case q.late:
		re = reason.Errorf(r, "no answer from %s in %s", c.key.Dst, q.within.Round(time.Millisecond))
	case q.status != 0:
		re = reason.Errorf(r, "%s answered %d for %s", c.key.Dst, q.status, o.Header.Authority)
	case err != nil:
		re = reason.Errorf(r, "%s at %s: %w", o.Header.Authority, c.key.Dst, err)
	}
	// A silent peer is likely to be silent to a new tunnel as well.
	if retry && !c.shard.killed && (!errors.Is(err, tunnel.ErrSilent) || !o.spare()) {
		c.refused(o, re)
		return
	}
	c.ref.release(c.shard)
	o.OnFail(re, q.status)
}

// Ended implements tunnel.Hooks: the answer sets others.
func (q *clientStream) Ended(*tunnel.Stream, relay.Result) {}

// clientFlow are the hooks of a stream that runs.
type clientFlow struct {
	client  *client
	onClose func(*relay.Flow, relay.Result)
}

// Failed implements tunnel.Hooks.
func (f *clientFlow) Failed(*tunnel.Stream, reason.Reason, error, bool) {}

// Ended implements tunnel.Hooks.
func (f *clientFlow) Ended(s *tunnel.Stream, r relay.Result) {
	f.client.done()
	f.client.ref.release(f.client.shard)
	if f.onClose != nil {
		f.client.shard.loop.Post(func() { f.onClose(&s.Flow, r) })
	}
}
