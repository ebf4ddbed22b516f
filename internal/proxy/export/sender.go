package export

import (
	"cmp"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// sender sends to one collector: one request at a time.
type sender struct {
	e       *Exporter
	to      *observe.Collector
	queue   *otlp.Queue
	timeout time.Duration
	soon    poll.Deadline // of the next batch
	again   poll.Deadline // of the next try
	late    poll.Deadline // of the try under way
	sendFn  func()
	tryFn   func()
	lateFn  func()

	batch []byte // messages under way
	body  []byte
	n     int // messages in it
	tries int
	busy  bool
	call  *call // nil between tries
	down  bool  // the last batch failed
	over  bool
}

func newSender(e *Exporter, c *observe.Collector) *sender {
	s := &sender{e: e, to: c, queue: otlp.NewQueue(maxQueue, e.cfg.Counters.Full), timeout: cmp.Or(c.Timeout, defaultTimeout)}
	s.sendFn, s.tryFn, s.lateFn = s.send, s.try, func() { s.failed(true, "no answer within "+s.timeout.String()) }
	return s
}

func (s *sender) idle() bool { return !s.busy && s.queue.Size() == 0 }

func (s *sender) add(party string, m []byte) {
	if s.over || !s.queue.Add(party, m) || s.busy {
		return
	}
	switch {
	case s.queue.Size() >= maxBatch:
		s.soon.Stop()
		s.send()
	case !s.soon.Armed():
		s.soon.Arm(s.e.cfg.Loop, maxDelay, s.sendFn)
	}
}

func (s *sender) flush() {
	if !s.busy && s.queue.Size() > 0 {
		s.soon.Stop()
		s.send()
	}
}

// send begins a batch.
func (s *sender) send() {
	if s.busy || s.over {
		return
	}
	if s.batch, s.n = s.queue.Take(s.batch[:0], maxBatch); s.n == 0 {
		return
	}
	s.body = s.e.cfg.Prefix().Request(s.body[:0], s.batch, s.to.Path == "")
	s.busy, s.tries = true, 0
	s.try()
}

// try sends the batch to an endpoint.
func (s *sender) try() {
	if s.over {
		return
	}
	c := &call{s: s}
	s.call = c
	s.tries++
	s.late.Arm(s.e.cfg.Loop, s.timeout, s.lateFn)
	c.start()
}

// ended is the end of a batch.
func (s *sender) ended() {
	s.again.Stop()
	s.late.Stop()
	if s.call = nil; cap(s.body) > 2*maxBatch {
		s.body, s.batch = nil, nil
	}
	s.busy = false
	if s.queue.Size() >= maxBatch {
		s.send()
	} else if s.queue.Size() > 0 {
		s.soon.Arm(s.e.cfg.Loop, maxDelay, s.sendFn)
	}
}

func (s *sender) accepted() {
	s.e.cfg.Counters.Sent(s.n)
	if s.down {
		s.down = false
		s.e.cfg.Log.Info("a collector accepts spans again", "provider", s.to.Provider)
	}
	s.ended()
}

// failed ends a try.
func (s *sender) failed(again bool, why string) {
	if c := s.call; c != nil {
		s.call = nil
		c.stop()
	}
	s.late.Stop()
	if again && s.tries < maxTries && !s.over {
		s.again.Arm(s.e.cfg.Loop, minPause<<(s.tries-1), s.tryFn)
		return
	}
	s.e.cfg.Counters.Failed(s.n)
	if !s.down && !s.over {
		s.down = true
		s.e.cfg.Log.Warn("spans were dropped: the collector did not accept them", "provider", s.to.Provider,
			"service", s.to.Service.Namespace+"/"+s.to.Service.Hostname, "port", s.to.Port, "error", why)
	}
	s.ended()
}

func (s *sender) close() {
	if s.over {
		return
	}
	s.over = true
	s.soon.Stop()
	if s.busy {
		s.failed(false, "")
	}
	if _, n := s.queue.Take(nil, maxQueue+maxBatch); n > 0 {
		s.e.cfg.Counters.Failed(n)
	}
	s.soon.Stop()
}

// call is one try of a batch.
type call struct {
	s       *sender
	target  pool.Target
	up      codec.Request
	head    message.Head
	waiting bool // for a connection
	status  int
	grpc    int // -1 before it came
	asked   bool
	waited  bool // for what Reach did not have
}

// start finds an endpoint, and a connection to it.
func (c *call) start() {
	s := c.s
	c.grpc = -1
	var resume func()
	if !c.waited {
		c.waited = true
		resume = func() {
			if s.call == c {
				c.start()
			}
		}
	}
	t, wait, err := s.e.cfg.Reach(s.to, resume)
	switch {
	case wait:
		return
	case err != nil:
		s.failed(true, err.Error())
		return
	}
	c.target = t
	c.target.HTTP2 = s.to.Path == "" || t.HTTP2
	c.waiting = true
	switch up, err := s.e.cfg.Pool.Get(&c.target, c, pool.Limits{}, false); {
	case err != nil:
		c.waiting = false
		s.failed(true, err.Error())
	case up != nil:
		c.OnReady(up)
	}
}

// stop gives the try up.
func (c *call) stop() {
	if c.waiting {
		c.waiting = false
		c.s.e.cfg.Pool.Cancel(&c.target, c)
	}
	if up := c.up; up != nil {
		c.up = nil
		up.Abort(reason.RequestTimeout)
	}
}

// OnReady implements pool.Waiter.
func (c *call) OnReady(up codec.Request) {
	c.waiting = false
	head(&c.head, c.s.to, &c.s.e.cfg, c.s.timeout)
	if err := up.Send(&c.head, int64(len(c.s.body)), c); err != nil {
		up.Abort(reason.Internal)
		c.s.failed(false, err.Error())
		return
	}
	c.up = up
	up.Data(c.s.body) // it takes all, and holds what does not fit yet
	if c.up != nil {
		c.asked = true
		up.Finish(nil)
	}
}

// OnFail implements pool.Waiter.
func (c *call) OnFail(err *reason.Error) {
	c.waiting = false
	c.s.failed(true, err.Error())
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
	if c.up != nil {
		c.up.Consumed(len(p))
	}
}

// OnTrailers implements codec.Receiver.
func (c *call) OnTrailers(h *message.Head) { c.grpcStatus(h) }

// OnEnd implements codec.Receiver.
func (c *call) OnEnd() {
	if c.asked {
		c.up = nil // the connection is the pool's
	}
	if c.s.call != c {
		return
	}
	if ok, again := outcome(c.status, c.grpc, c.s.to.Path == ""); !ok {
		c.s.failed(again, "status "+strconv.Itoa(c.status)+", of gRPC "+strconv.Itoa(c.grpc))
		return
	}
	c.stop()
	c.s.accepted()
}

// OnWritable implements codec.Receiver.
func (c *call) OnWritable() {}

// OnAbort implements codec.Receiver.
func (c *call) OnAbort(cut codec.Cut) {
	c.up = nil
	if c.s.call == c {
		c.s.failed(true, cut.Reason.Info().What)
	}
}

// outcome reports whether a collector has accepted a request, and else whether it may be
// sent again (OTLP specification, failures).
func outcome(status, grpc int, isGRPC bool) (ok, again bool) {
	if !isGRPC {
		return status >= 200 && status < 300, status == 429 || status == 502 || status == 503 || status == 504
	}
	if status != 200 {
		return false, status == 429 || status >= 502 && status <= 504
	}
	switch grpc {
	case 0:
		return true, false
	case 1, 4, 8, 10, 11, 14, 15: // of those that OTLP calls retryable
		return false, true
	}
	return false, false
}
