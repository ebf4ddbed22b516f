// Package limitservice asks rate limit services about connections, by the connections of
// the proxy itself: Envoy's protocol (envoy.service.ratelimit.v3), by gRPC. What is under
// way is bounded for each party, and each question has a time.
package limitservice

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/ztunnel/observed"
)

const (
	method = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
	// maxEach bounds the questions under way for clients of one namespace, on one loop.
	maxEach = 256
	// maxAnswer bounds an answer in bytes.
	maxAnswer = 64 << 10
)

// Asker asks on the loops of a proxy.
type Asker struct {
	node  *observed.Node
	loops []*perLoop
}

// perLoop is used on its loop alone.
type perLoop struct {
	pool  *pool.Pool
	under map[string]int // questions under way, by party
}

// New returns an Asker by the connections of a proxy.
func New(n *observed.Node, loops *poll.Group) *Asker {
	a := &Asker{node: n}
	for i := range loops.Len() {
		a.loops = append(a.loops, &perLoop{n.NewPool(loops.Loop(i)), map[string]int{}})
	}
	return a
}

// Ask implements ratelimit.Asker.
func (a *Asker) Ask(l *poll.Loop, s *ratelimit.Service, party string, question []byte, done func([]byte, error)) {
	at := a.loops[l.Index()]
	if at.under[party] >= maxEach {
		done(nil, fmt.Errorf("%d questions about connections from namespace %q are under way already", maxEach, party))
		return
	}
	at.under[party]++
	c := &call{a: a, loop: l, at: at, to: s, party: party, body: question, done: done, grpc: -1}
	c.late.Arm(l, s.Timeout, func() { c.end(nil, fmt.Errorf("no answer within %v", s.Timeout)) })
	c.start()
}

// call is one question.
type call struct {
	a       *Asker
	loop    *poll.Loop
	at      *perLoop
	to      *ratelimit.Service
	party   string
	body    []byte
	done    func([]byte, error)
	late    poll.Deadline
	over    bool
	target  pool.Target
	up      codec.Request
	head    message.Head
	waiting bool // for a connection
	asked   bool
	demand  bool
	status  int
	grpc    int // -1 before it came
	answer  []byte
}

// start finds an endpoint, and a connection to it.
func (c *call) start() {
	if c.over {
		return
	}
	if s := c.to; !c.demand && !c.a.node.Known(s.Namespace, s.Hostname) {
		c.demand = true
		c.loop.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
			defer cancel()
			_, _ = c.a.node.Demand(ctx, s.Namespace, s.Hostname) // what is still not known fails below
			c.loop.Post(c.start)
		})
		return
	}
	t, err := c.a.node.Reach(c.to.Namespace, c.to.Hostname, c.to.Port)
	if err != nil {
		c.end(nil, err)
		return
	}
	c.target = t
	c.target.HTTP2 = true
	c.waiting = true
	switch up, err := c.at.pool.Get(&c.target, c, pool.Limits{}, false); {
	case err != nil:
		c.waiting = false
		c.end(nil, err)
	case up != nil:
		c.OnReady(up)
	}
}

// end is called with the answer, or why there is none; the first call counts.
func (c *call) end(answer []byte, err error) {
	if c.over {
		return
	}
	c.over = true
	c.late.Stop()
	if c.at.under[c.party]--; c.at.under[c.party] <= 0 {
		delete(c.at.under, c.party)
	}
	if c.waiting {
		c.waiting = false
		c.at.pool.Cancel(&c.target, c)
	}
	if up := c.up; up != nil {
		c.up = nil
		up.Abort(reason.RequestTimeout)
	}
	c.done(answer, err)
}

var (
	keyContentType = message.NewKey("content-type")
	keyTE          = message.NewKey("te")
	keyUserAgent   = message.NewKey("user-agent")
	keyTimeout     = message.NewKey("grpc-timeout")
	keyGRPCStatus  = message.NewKey("grpc-status")
)

// OnReady implements pool.Waiter.
func (c *call) OnReady(up codec.Request) {
	c.waiting = false
	h := &c.head
	h.Reset()
	h.Method, h.Scheme = []byte("POST"), []byte("http")
	h.SetAuthority([]byte(c.to.Hostname + ":" + strconv.Itoa(int(c.to.Port))))
	h.SetPath([]byte(method))
	h.Add(keyUserAgent, []byte("ambit-ztunnel"))
	h.Add(keyContentType, []byte("application/grpc"))
	h.Add(keyTE, []byte("trailers"))
	h.Add(keyTimeout, append(strconv.AppendInt(nil, c.to.Timeout.Milliseconds(), 10), 'm'))
	if err := up.Send(h, int64(len(c.body)), c); err != nil {
		up.Abort(reason.Internal)
		c.end(nil, err)
		return
	}
	c.up = up
	up.Data(c.body) // it takes all, and holds what does not fit yet
	if c.up != nil {
		c.asked = true
		up.Finish(nil)
	}
}

// OnFail implements pool.Waiter.
func (c *call) OnFail(err *reason.Error) {
	c.waiting = false
	c.end(nil, err)
}

// OnHead implements codec.Receiver.
func (c *call) OnHead(h *message.Head, _ http1.Body) {
	if h.Status >= 200 {
		c.status = h.Status
		c.grpcStatus(h)
	}
}

func (c *call) grpcStatus(h *message.Head) {
	if i := h.Find(keyGRPCStatus, 0); i >= 0 {
		if n, err := strconv.Atoi(string(h.Fields[i].Value)); err == nil {
			c.grpc = n
		}
	}
}

// OnData implements codec.Receiver.
func (c *call) OnData(p []byte) {
	if c.up == nil {
		return
	}
	if len(c.answer)+len(p) > maxAnswer {
		c.end(nil, fmt.Errorf("the answer has more than %d bytes", maxAnswer))
		return
	}
	c.answer = append(c.answer, p...)
	c.up.Consumed(len(p))
}

// OnTrailers implements codec.Receiver.
func (c *call) OnTrailers(h *message.Head) { c.grpcStatus(h) }

// OnEnd implements codec.Receiver.
func (c *call) OnEnd() {
	if c.asked {
		c.up = nil // the connection is the pool's
	}
	if c.status != 200 || c.grpc != 0 {
		c.end(nil, fmt.Errorf("status %d, of gRPC %d", c.status, c.grpc))
		return
	}
	c.end(c.answer, nil)
}

// OnWritable implements codec.Receiver.
func (c *call) OnWritable() {}

// OnAbort implements codec.Receiver.
func (c *call) OnAbort(cut codec.Cut) {
	c.up = nil
	c.end(nil, errors.New(cut.Reason.Info().What))
}
