package export

import (
	"cmp"
	"errors"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/unary"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
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
	headFn  func(*message.Head)
	doneFn  func(unary.Answer, error)

	batch []byte // messages under way
	body  []byte
	n     int // messages in it
	tries int
	busy  bool
	call  *unary.Call // nil between calls
	down  bool        // the last batch failed
	over  bool
	// attempt is another for each try, and after its end.
	attempt uint64
}

func newSender(e *Exporter, c *observe.Collector) *sender {
	s := &sender{e: e, to: c, queue: otlp.NewQueue(maxQueue, e.cfg.Counters.Full), timeout: cmp.Or(c.Timeout, defaultTimeout)}
	s.sendFn, s.tryFn, s.lateFn = s.send, s.try, func() { s.failed(true, "no answer within "+s.timeout.String()) }
	s.headFn, s.doneFn = s.head, s.done
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
	s.tries++
	s.attempt++
	s.late.Arm(s.e.cfg.Loop, s.timeout, s.lateFn)
	s.reach(s.attempt, false)
}

// ended is the end of a batch.
func (s *sender) ended() {
	s.again.Stop()
	s.late.Stop()
	s.attempt++
	if cap(s.body) > 2*maxBatch {
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
		c.Stop()
	}
	s.attempt++
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

// reach finds an endpoint, and sends the batch to it. attempt is the try that it is for;
// again reports that the try has waited for what Reach did not have.
func (s *sender) reach(attempt uint64, again bool) {
	var resume func()
	if !again {
		resume = func() {
			if s.attempt == attempt {
				s.reach(attempt, true)
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
	t.HTTP2 = s.to.Path == "" || t.HTTP2
	s.call = unary.New(unary.Config{Pool: s.e.cfg.Pool, Target: t, Head: s.headFn, Body: s.body, Done: s.doneFn})
	s.call.Start()
}

func (s *sender) head(h *message.Head) { head(h, s.to, &s.e.cfg, s.timeout) }

// done is the end of a call.
func (s *sender) done(a unary.Answer, err error) {
	s.call = nil
	if err != nil {
		s.failed(!errors.Is(err, unary.ErrRequest), err.Error())
		return
	}
	if ok, again := outcome(a.Status, a.GRPC, s.to.Path == ""); !ok {
		s.failed(again, "status "+strconv.Itoa(a.Status)+", of gRPC "+strconv.Itoa(a.GRPC))
		return
	}
	s.accepted()
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
