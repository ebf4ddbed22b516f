// Package limitservice asks rate limit services about connections, by the connections of
// the proxy itself: Envoy's protocol (envoy.service.ratelimit.v3), by gRPC. What is under
// way is bounded for each party, and each question has a time.
package limitservice

import (
	"context"
	"fmt"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/unary"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	method = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
	// maxEach bounds the questions under way for clients of one namespace, on one loop.
	maxEach = 256
	// maxAnswer bounds an answer in bytes.
	maxAnswer = 64 << 10
)

// Proxy is the proxy whose connections are used.
type Proxy interface {
	// NewPool returns the pool of a loop.
	NewPool(*poll.Loop) *pool.Pool
	// Known reports whether a service is in the directory. Demand requests it.
	Known(namespace, hostname string) bool
	Demand(ctx context.Context, namespace, hostname string) (asked bool, err error)
	// Reach chooses an endpoint of a service.
	Reach(namespace, hostname string, port uint16) (pool.Target, *reason.Error)
}

// Asker asks on the loops of a proxy.
type Asker struct {
	proxy Proxy
	loops []*perLoop
}

// perLoop is used on its loop alone.
type perLoop struct {
	pool  *pool.Pool
	under map[string]int // questions under way, by party
}

// New returns an Asker by the connections of a proxy.
func New(p Proxy, loops *poll.Group) *Asker {
	a := &Asker{proxy: p}
	for i := range loops.Len() {
		a.loops = append(a.loops, &perLoop{p.NewPool(loops.Loop(i)), map[string]int{}})
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
	q := &query{a: a, loop: l, at: at, to: s, party: party, body: question, done: done}
	q.late.Arm(l, s.Timeout, func() { q.end(nil, fmt.Errorf("no answer within %v", s.Timeout)) })
	q.start()
}

// query is one question.
type query struct {
	a        *Asker
	loop     *poll.Loop
	at       *perLoop
	to       *ratelimit.Service
	party    string
	body     []byte
	done     func([]byte, error)
	late     poll.Deadline
	call     *unary.Call
	over     bool
	demanded bool
}

// start finds an endpoint, and calls it.
func (q *query) start() {
	if q.over {
		return
	}
	if s := q.to; !q.demanded && !q.a.proxy.Known(s.Namespace, s.Hostname) {
		q.demanded = true
		q.loop.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
			defer cancel()
			_, _ = q.a.proxy.Demand(ctx, s.Namespace, s.Hostname) // what is still not known fails below
			q.loop.Post(q.start)
		})
		return
	}
	t, err := q.a.proxy.Reach(q.to.Namespace, q.to.Hostname, q.to.Port)
	if err != nil {
		q.end(nil, err)
		return
	}
	t.HTTP2 = true
	q.call = unary.New(unary.Config{Pool: q.at.pool, Target: t, Head: q.head, Body: q.body, MaxAnswer: maxAnswer, Done: q.answered})
	q.call.Start()
}

func (q *query) head(h *message.Head) {
	unary.Post(h, q.to.Hostname, q.to.Port, method, "ambit-ztunnel")
	unary.GRPC(h, q.to.Timeout)
}

func (q *query) answered(a unary.Answer, err error) {
	if err == nil && (a.Status != 200 || a.GRPC != 0) {
		err = fmt.Errorf("status %d, of gRPC %d", a.Status, a.GRPC)
	}
	q.end(a.Body, err)
}

// end is called with the answer, or why there is none; the first call counts.
func (q *query) end(answer []byte, err error) {
	if q.over {
		return
	}
	q.over = true
	q.late.Stop()
	if q.at.under[q.party]--; q.at.under[q.party] <= 0 {
		delete(q.at.under, q.party)
	}
	if q.call != nil {
		q.call.Stop()
	}
	if err != nil {
		answer = nil
	}
	q.done(answer, err)
}
