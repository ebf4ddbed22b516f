package gateway

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/early"
	"github.com/ambit-mesh/ambit/internal/gateway/pair"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// ahead is a connection to an endpoint that is made while the first bytes of a client are
// awaited. It is the endpoint's Sink until it is used.
type ahead struct {
	session *session
	end     endpoint
	up      stream.Conn // nil while it is dialled
	cancel  func()      // of the dial under way
	said    []byte      // by the server
	ended   bool        // and the end of its direction
	joint   *joint      // that waits for the dial
	cfg     *route.Config
	over    bool // it was used, or is not needed
}

// hesitated connects the endpoint of a client that has sent nothing yet, if it could be
// called without HTTP.
func (c *session) hesitated() {
	s := c.shard
	c.quiet.Arm(s.loop, s.g.opts.silence-early.Hesitation, c.silent)
	cfg := s.g.opts.Config()
	if cfg == nil || c.dest.Service != nil && cfg.Port(c.dest.Key).ConnectionsFor(c.peer.Namespace) != nil {
		return // routes choose the endpoint, by what comes first
	}
	if _, err := c.begin(nil, time.Time{}); err != nil || c.access.Rejudge() != nil {
		return
	}
	e, err := s.pick(c, cfg, nil, "", nil, netip.Addr{})
	if err != nil || !s.room.Enter(c.peer) {
		return
	}
	a := &ahead{session: c, end: e}
	c.ahead = a
	s.taken(e.workload, e.upstream)
	t := c.target(&e)
	a.cancel = s.dial(s.loop, &t, a.dialled)
}

// silent decides about a client that has sent nothing for a time. Both ends wait if both
// are connected; else the failure, or the refusal, is the client's to see.
func (c *session) silent() {
	if c.ahead == nil {
		c.carryTCP(false)
		return
	}
	c.quiet.Arm(c.shard.loop, headTime, c.giveBack)
}

// giveBack ends the connection to an endpoint that has been silent as long as the client.
// What the client sends decides, whenever it comes.
func (c *session) giveBack() {
	c.ahead.leave()
	c.ahead = nil
	c.quiet.Arm(c.shard.loop, tcpIdle, func() { c.close(reason.StreamIdle) })
}

// soon carries the connection without HTTP unless more bytes come that decide.
func (c *session) soon() {
	c.quiet.Arm(c.shard.loop, early.Patience(c.first, c.shard.g.opts.silence), func() { c.carryTCP(false) })
}

func (a *ahead) dialled(up stream.Conn, err *reason.Error) {
	c, s := a.session, a.session.shard
	a.cancel = nil
	switch {
	case a.joint != nil:
		a.joint.dialled(a.cfg, up, err)
	case err != nil:
		s.outcome(&a.end, err.Reason)
		c.ahead = nil
		a.leave()
		c.soon() // it is tried again, and elsewhere
	default:
		s.outcome(&a.end, reason.OK)
		a.up = up
		up.Bind(a)
	}
}

// use makes it the connection of r.
func (a *ahead) use(r *joint, cfg *route.Config) {
	a.over = true
	a.session.shard.room.Leave(a.session.peer)
	r.end, r.server = a.end, pair.Early{Bytes: a.said, End: a.ended}
	r.record.Tries++
	if a.up == nil {
		a.joint, a.cfg, r.cancel = r, cfg, a.cancel
		return
	}
	r.join(a.up)
}

// leave ends it, if it was not used.
func (a *ahead) leave() {
	if a.over {
		return
	}
	a.over = true
	s, peer := a.session.shard, a.session.peer
	s.given(a.end.workload, a.end.upstream)
	if a.cancel != nil {
		a.cancel()
	}
	if a.up == nil {
		s.room.Leave(peer)
		return
	}
	early.Leave(a.up, len(a.said), func() { s.room.Leave(peer) })
}

// OnData implements stream.Sink.
func (a *ahead) OnData(p []byte, end bool) {
	c := a.session
	a.said, a.ended = append(a.said, p...), a.ended || end // bounded by the endpoint's credit
	switch early.Server(a.said, a.ended) {
	case early.Join:
		c.carryTCP(false)
	case early.GiveBack:
		c.ahead = nil
		a.leave()
		c.quiet.Arm(c.shard.loop, headTime, func() { c.close(reason.HeadTimeout) })
	case early.Wait:
		c.soon()
	}
}

// OnWritable implements stream.Sink.
func (a *ahead) OnWritable() {}

// OnClose implements stream.Sink.
func (a *ahead) OnClose(why reason.Reason, _ error) {
	c := a.session
	a.up, c.ahead = nil, nil
	a.leave()
	c.close(why)
}
