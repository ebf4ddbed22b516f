// Package pair carries the bytes of two streams to each other: of a client and of an
// endpoint.
package pair

import (
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Config is how a pair is carried.
type Config struct {
	// Idle is how long neither side may send anything.
	Idle time.Duration
	// Look, if set, gets what the client sends before the endpoint does. more is false when
	// it has seen enough; why is why the pair is cut, or OK.
	Look func(p []byte) (more bool, why reason.Reason, err error)
	// Ended is called once, at the end.
	Ended func(why reason.Reason, err error)
}

// Early is what one side has sent before there was a pair. Its credit is not given back
// yet.
type Early struct {
	Bytes []byte
	End   bool // and the end of its direction
}

// Pair is a client and an endpoint. It belongs to their loop, but for Bytes.
type Pair struct {
	down, up         stream.Conn // nil before Join
	cfg              Config
	received, sent   atomic.Uint64
	owedDown, owedUp int // credit for bytes that wait on the other side
	ended            int // sides that have ended in both directions
	idle             poll.Deadline
	moved            time.Time // of the last bytes
	over             bool
}

// Bytes implements telemetry.Flow. It may be called from any goroutine.
func (p *Pair) Bytes() (fromClient, toClient uint64) { return p.received.Load(), p.sent.Load() }

// Join begins.
func (p *Pair) Join(down, up stream.Conn, cfg Config, client, endpoint Early) {
	p.down, p.up, p.cfg = down, up, cfg
	p.moved = down.Loop().Now()
	p.idle.Arm(down.Loop(), cfg.Idle, p.idleTime)
	down.Bind((*downSide)(p))
	up.Bind((*upSide)(p))
	if len(client.Bytes) > 0 || client.End {
		(*downSide)(p).OnData(client.Bytes, client.End)
	}
	if !p.over && (len(endpoint.Bytes) > 0 || endpoint.End) {
		(*upSide)(p).OnData(endpoint.Bytes, endpoint.End)
	}
}

// idleTime ends a pair that has carried nothing. The deadline is not moved by each byte:
// it comes back for what is left.
func (p *Pair) idleTime() {
	if left := p.cfg.Idle - p.down.Loop().Now().Sub(p.moved); left > 0 {
		p.idle.Rearm(left)
		return
	}
	p.Cut(reason.StreamIdle, nil)
}

// Cut ends both sides now.
func (p *Pair) Cut(why reason.Reason, err error) {
	if !p.over {
		p.down.Abort(why)
		p.up.Abort(why)
		p.end(why, err)
	}
}

func (p *Pair) end(why reason.Reason, err error) {
	p.over = true
	p.idle.Stop()
	p.cfg.Ended(why, err)
}

// closed notes that one side has ended in both directions, or was cut.
func (p *Pair) closed(why reason.Reason, err error, other stream.Conn) {
	switch {
	case p.over:
	case why != reason.OK:
		other.Abort(why)
		p.end(why, err)
	default:
		if p.ended++; p.ended == 2 {
			p.end(reason.OK, nil)
		}
	}
}

// downSide is a pair as the Sink of the client's stream.
type downSide Pair

// OnData implements stream.Sink.
func (p *downSide) OnData(b []byte, end bool) {
	if p.over {
		return
	}
	if len(b) > 0 && p.cfg.Look != nil {
		more, why, err := p.cfg.Look(b)
		if why != reason.OK {
			(*Pair)(p).Cut(why, err)
			return
		}
		if !more {
			p.cfg.Look = nil
		}
	}
	if len(b) > 0 {
		p.moved = p.down.Loop().Now()
		p.received.Add(uint64(len(b)))
		if p.up.Write(b) && p.owedDown == 0 {
			p.down.Consumed(len(b))
		} else {
			p.owedDown += len(b)
		}
	}
	if end {
		p.up.CloseWrite()
	}
}

// OnWritable implements stream.Sink.
func (p *downSide) OnWritable() {
	if n := p.owedUp; n > 0 {
		p.owedUp = 0
		p.up.Consumed(n)
	}
}

// OnClose implements stream.Sink.
func (p *downSide) OnClose(why reason.Reason, err error) { (*Pair)(p).closed(why, err, p.up) }

// upSide is a pair as the Sink of the endpoint's stream.
type upSide Pair

// OnData implements stream.Sink.
func (p *upSide) OnData(b []byte, end bool) {
	if p.over {
		return
	}
	if len(b) > 0 {
		p.moved = p.down.Loop().Now()
		p.sent.Add(uint64(len(b)))
		if p.down.Write(b) && p.owedUp == 0 {
			p.up.Consumed(len(b))
		} else {
			p.owedUp += len(b)
		}
	}
	if end {
		p.down.CloseWrite()
	}
}

// OnWritable implements stream.Sink.
func (p *upSide) OnWritable() {
	if n := p.owedDown; n > 0 {
		p.owedDown = 0
		p.down.Consumed(n)
	}
}

// OnClose implements stream.Sink.
func (p *upSide) OnClose(why reason.Reason, err error) { (*Pair)(p).closed(why, err, p.down) }
