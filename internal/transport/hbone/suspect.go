package hbone

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

// This file finds peers that are gone without a FIN or RST: a pod whose
// network was taken away, a node that lost its power.

// suspicion is what one tunnel of a client knows about its peer's silence.
type suspicion struct {
	timer *poll.Timer // runs tick; armed while a stream waits, or a PING
	armed bool
	asked time.Time // when the PING without a sign of life was sent; zero without one
	gone  bool      // the control plane removed the workload
}

// check is called for every new stream. A tunnel that was silent for a while is
// asked at once; one that was heard just now when the answer is late.
func (c *client) check() {
	u := &c.suspicion
	if u.armed {
		return
	}
	if cfg := &c.shard.pool.cfg; c.shard.loop.Now().Sub(c.t.Heard()) < cfg.ProbeTimeout {
		c.arm(cfg.ProbeAfter)
		return
	}
	c.ask()
}

// ask sends a PING and waits for any sign of life.
func (c *client) ask() {
	c.suspicion.asked = c.shard.loop.Now()
	c.t.H2().Ping([8]byte{})
	c.t.Touch()
	c.arm(c.shard.pool.cfg.ProbeTimeout)
}

func (c *client) arm(after time.Duration) {
	u := &c.suspicion
	u.armed = true
	if u.timer == nil {
		u.timer = c.shard.loop.AfterFunc(after, c.tick)
		return
	}
	u.timer.Reset(after)
}

// tick decides when the time to answer is over.
func (c *client) tick() {
	u := &c.suspicion
	u.armed = false
	if c.t.Closed() {
		return
	}
	asked := u.asked
	u.asked = time.Time{}
	now, after := c.shard.loop.Now(), c.shard.pool.cfg.ProbeAfter
	switch {
	case !asked.IsZero() && !c.t.Heard().After(asked):
		c.silent()
	case c.opening == 0 && (!u.gone || c.streams == 0):
	case now.Sub(c.t.Heard()) < after:
		c.arm(after)
	default:
		c.ask()
	}
}

// silent ends what does not need the peer: streams that wait for an answer go
// elsewhere, and no new ones come. Connections that run are left to
// keep-alive, which is more patient, unless the workload is known to be gone.
func (c *client) silent() {
	if c.suspicion.gone || c.streams == c.opening {
		c.t.Fail(reason.TunnelClosed, tunnel.ErrSilent)
		return
	}
	c.shutdownSoon()
	c.failOpening(reason.TunnelClosed, tunnel.ErrSilent, true)
}

// failOpening ends the streams that wait for an answer. With retry the pool may
// open them on another tunnel.
func (c *client) failOpening(r reason.Reason, err error, retry bool) {
	var waiting []*tunnel.Stream
	c.t.H2().Each(func(hs *h2.Stream) bool {
		if s, _ := hs.User.(*tunnel.Stream); s != nil && s.Opening() {
			waiting = append(waiting, s)
		}
		return true
	})
	for _, s := range waiting {
		if s.Opening() {
			c.t.H2().Reset(s.H2(), h2.Cancel)
			s.Fail(r, err, retry)
		}
	}
	c.t.Touch()
}

// workloadGone ends the tunnel of a workload that was removed: streams that
// wait for an answer fail at once, so that their owners try another endpoint.
// Connections that run may go on while the peer lives. It is asked now, and
// whenever it is silent from here on: its network is likely to go next.
func (c *client) workloadGone(why *reason.Error) {
	if c.t.Closed() {
		return
	}
	c.suspicion.gone = true
	c.failOpening(why.Reason, why, false)
	c.shutdown()
	if !c.t.Closed() && c.streams > 0 {
		c.ask()
	}
}
