package exchange

import (
	"math/bits"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// mirror is a copy of a request. Its response is dropped, and no client waits for it. When
// its endpoint is slower than the client, or cannot be reached, the copy is given up.
type mirror struct {
	engine  *Engine
	target  pool.Target
	request message.Head
	length  int64
	up      codec.Request
	pending []byte // what has come before there was a connection
	asked   bool
	waiting bool
	full    bool
	over    bool
	late    poll.Deadline
}

// mirrorTime bounds the time of a copy, which has no client that could give up.
const mirrorTime = time.Minute

// mirror sends the copies that the rule asks for.
func (x *Exchange) mirror() {
	if x.switching {
		return
	}
	for i := range x.Rule.Rule.Filters.Mirrors {
		m := &x.Rule.Rule.Filters.Mirrors[i]
		if x.engine.mirrors >= x.engine.cfg.MaxMirrors || !drawn(m, x.Random()) || m.Backend.Invalid != "" {
			continue
		}
		c := &mirror{engine: x.engine, length: x.body.Length}
		if !x.owner.Mirror(x, &m.Backend, &c.target) {
			continue
		}
		c.request.CopyFrom(&x.request)
		c.request.Remove(keyExpect)
		x.engine.mirrors++
		c.late.Arm(x.engine.loop, mirrorTime, func() { c.stop(reason.RequestTimeout) })
		x.mirrors = append(x.mirrors, c)
		c.waiting = true
		switch up, err := x.engine.cfg.Pool.Get(&c.target, c, pool.Limits{}, false); {
		case err != nil:
			c.waiting = false
			c.stop(reason.OK)
		case up != nil:
			c.OnReady(up)
		}
		if len(x.replay) > 0 { // it has come while an authorizer was asked
			c.data(x.replay)
		}
		if x.asked {
			c.end()
		}
	}
}

var keyExpect = message.NewKey("expect")

// drawn reports whether a request belongs to the share that is mirrored.
func drawn(m *route.Mirror, random uint64) bool {
	if m.Denominator == 0 {
		return true
	}
	at, _ := bits.Mul64(random, uint64(m.Denominator))
	return at < uint64(m.Numerator)
}

// OnReady implements pool.Waiter.
func (m *mirror) OnReady(up codec.Request) {
	m.waiting = false
	if up.Send(&m.request, m.length, m) != nil {
		up.Abort(reason.Internal)
		m.stop(reason.OK)
		return
	}
	m.up = up
	if p := m.pending; len(p) > 0 {
		m.pending = nil
		m.data(p)
	}
	if m.asked && m.up != nil {
		m.up.Finish(nil)
	}
}

// OnFail implements pool.Waiter.
func (m *mirror) OnFail(*reason.Error) {
	m.waiting = false
	m.stop(reason.OK)
}

// data sends bytes of the body.
func (m *mirror) data(p []byte) {
	switch {
	case m.over:
	case m.up == nil:
		if len(m.pending)+len(p) > m.engine.cfg.MaxReplay {
			m.stop(reason.ResourceExhausted)
			return
		}
		m.pending = append(m.pending, p...)
	case m.full:
		m.stop(reason.ResourceExhausted)
	default:
		m.full = !m.up.Data(p)
	}
}

// end notes that the request is complete.
func (m *mirror) end() {
	m.asked = true
	if !m.over && m.up != nil {
		m.up.Finish(nil)
	}
}

// finish notes that the request that is copied is over. One that was not complete
// ends the copy.
func (m *mirror) finish() {
	if !m.asked {
		m.stop(reason.DownstreamReset)
	}
}

func (m *mirror) stop(why reason.Reason) {
	if m.over {
		return
	}
	m.over = true
	m.late.Stop()
	m.engine.mirrors--
	if m.waiting {
		m.waiting = false
		m.engine.cfg.Pool.Cancel(&m.target, m)
	}
	if up := m.up; up != nil {
		m.up = nil
		up.Abort(why)
	}
}

// OnHead implements codec.Receiver.
func (m *mirror) OnHead(*message.Head, http1.Body) {}

// OnData implements codec.Receiver.
func (m *mirror) OnData(p []byte) {
	if m.up != nil {
		m.up.Consumed(len(p))
	}
}

// OnTrailers implements codec.Receiver.
func (m *mirror) OnTrailers(*message.Head) {}

// OnEnd implements codec.Receiver.
func (m *mirror) OnEnd() {
	if m.asked {
		m.up = nil
	}
	m.stop(reason.OK)
}

// OnWritable implements codec.Receiver.
func (m *mirror) OnWritable() { m.full = false }

// OnAbort implements codec.Receiver.
func (m *mirror) OnAbort(codec.Cut) {
	m.up = nil
	m.stop(reason.OK)
}
