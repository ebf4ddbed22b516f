package exchange

import (
	"errors"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// requestSide is an Exchange as the receiver of its request.
type requestSide Exchange

// OnHead implements codec.Receiver.
func (r *requestSide) OnHead(h *message.Head, body http1.Body) {
	x := (*Exchange)(r)
	x.request.CopyFrom(h)
	x.Request, x.body, x.GRPCStatus = &x.request, body, -1
	x.Path, x.Heads.Request = x.request.Path, x.request.Size()
	x.keep = true
	x.head = string(h.Method) == "HEAD"
	x.switching = len(h.Protocol) > 0 || string(h.Method) == "CONNECT"
	x.GRPC = IsGRPC(h)
	if d := x.engine.cfg.StreamIdle; d > 0 {
		x.lastMoved = x.Start
		x.idle.Arm(x.engine.loop, d, x.onIdle)
	}
	x.begin()
}

// IsGRPC reports whether a request is a call of gRPC.
func IsGRPC(h *message.Head) bool { return grpc(h.Get(message.ContentType)) }

// grpc reports whether a content type is gRPC's.
func grpc(v []byte) bool {
	const name = "application/grpc"
	return len(v) >= len(name) && message.EqualFold(v[:len(name)], name) && (len(v) == len(name) || v[len(name)] == '+' || v[len(name)] == ';')
}

var (
	errHeld   = errors.New("the bodies that wait for connections have reached their bound")
	errActive = errors.New("the requests under way have reached their bound")
)

// begin takes a request through route and filters to its backend.
func (x *Exchange) begin() {
	h := &x.request
	h.RemoveHopByHop()
	filter.Arrive(h, x.owner.Client(), x.TLS, x.Random(), x.Random())
	if x.engine.active > x.engine.cfg.MaxActive {
		x.fail(reason.ResourceExhausted, errActive)
		return
	}
	if f := h.NormalisePath(x.engine.cfg.Normalise); f != nil {
		x.Reason, x.Err = reason.MalformedRequest, f
		x.reply(f.Status(), reason.MalformedRequest)
		return
	}
	x.judged.keep(h)
	unrouted := x.owner.Route(x)
	if unrouted != nil && unrouted.Reason != reason.NoRoute {
		x.fail(unrouted.Reason, unrouted)
		return
	}
	x.judged.done = true
	if d := x.patience(); d > 0 {
		x.requestEnd.Arm(x.engine.loop, d, x.onRequestTime)
	}
	x.pass(filter.Request(&x.Call), unrouted)
}

// pass does what the filters have decided of a request. unrouted is why it has no route.
func (x *Exchange) pass(v filter.Verdict, unrouted *reason.Error) {
	switch v {
	case filter.Answer:
		x.answer()
		return
	case filter.Refuse:
		x.fail(x.Refusal.Reason, x.Refusal)
		return
	case filter.Ask:
		x.ask(unrouted)
		return
	case filter.Continue:
	}
	if unrouted != nil {
		x.fail(unrouted.Reason, unrouted)
		return
	}
	if x.Rule == nil {
		x.try()
		return
	}
	b, failure := x.Rule.Pick(x.Random())
	if x.Rule.Rule.Session != nil {
		if x.owner.Held(x); x.Session.Backend != nil {
			b, failure = x.Session.Backend, route.OK
		}
	}
	if failure != route.OK {
		x.Err = reason.Errorf(reason.NoBackend, "%s", failure)
		x.fail(reason.NoBackend, x.Err)
		return
	}
	x.Backend = b
	if len(x.Rule.Rule.Filters.Mirrors) > 0 {
		x.mirror()
	}
	filter.Backend(&x.Call)
	x.try()
}

// patience returns the time that the request has: that of the route, or less if the
// client of a gRPC call waits less long. 0 is for ever.
func (x *Exchange) patience() (d time.Duration) {
	if x.Rule != nil {
		d = x.Rule.Rule.Timeouts.Request
	}
	if !x.GRPC {
		return d
	}
	if own, ok := grpcTimeout(x.request.Get(message.GRPCTimeout)); ok && (d == 0 || own < d) {
		d = max(own, 1)
	}
	return d
}

// grpcTimeout reads a grpc-timeout: up to eight digits and a unit.
func grpcTimeout(v []byte) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	var unit time.Duration
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	n := time.Duration(0)
	for _, c := range v[:len(v)-1] {
		if c < '0' || '9' < c {
			return 0, false
		}
		n = n*10 + time.Duration(c-'0')
	}
	return min(n, 1<<62/unit) * unit, true
}

// try sends the request to an endpoint.
func (x *Exchange) try() {
	wait, err := x.owner.Pick(x)
	if err != nil && x.nfailed > 0 {
		x.nfailed = 0 // those that failed are better than none
		wait, err = x.owner.Pick(x)
	}
	if wait {
		x.paused = true
		return
	}
	if err != nil {
		if x.Tries > 0 && x.Reason != reason.OK {
			x.fail(x.Reason, x.Err) // why the last try failed says more
			return
		}
		x.fail(err.Reason, err)
		return
	}
	x.Tries++
	if x.Rule != nil && x.Rule.Rule.Timeouts.Try > 0 {
		x.tryEnd.Arm(x.engine.loop, x.Rule.Rule.Timeouts.Try, x.onTryTime)
	}
	x.waiting = true
	up, err := x.engine.cfg.Pool.Get(&x.Target, x, x.Limits, x.free > 0)
	switch {
	case err != nil:
		x.waiting = false
		x.fail(err.Reason, err)
	case up != nil:
		x.OnReady(up)
	}
}

// Traceparent implements pool.Traced, as the owner has it.
func (x *Exchange) Traceparent() string {
	if t, is := x.Own.(pool.Traced); is {
		return t.Traceparent()
	}
	return ""
}

// OnReady implements pool.Waiter.
func (x *Exchange) OnReady(up codec.Request) {
	x.waiting = false
	length := x.body.Length
	if x.switching {
		length = 0
	}
	if err := up.Send(&x.request, length, (*responseSide)(x)); err != nil {
		up.Abort(reason.Internal)
		x.fail(reason.MalformedRequest, err)
		return
	}
	x.up = up
	if x.switching {
		return // what follows waits for the answer
	}
	x.sendReplay()
}

// sendReplay sends what has come of the body so far.
func (x *Exchange) sendReplay() {
	ok, n := true, len(x.replay)
	if n > 0 {
		ok = x.up.Data(x.replay)
	}
	x.trim(0)
	if ok {
		x.taken()
	} else if x.gathered.of != nil {
		more := n - len(x.replay) // it waits below
		x.engine.held += more - x.gathered.held
		x.gathered.held = more
	}
	if x.up == nil {
		return // it has ended meanwhile
	}
	if ok {
		x.payDown()
	}
	if x.asked {
		x.finishRequest()
	}
}

func (x *Exchange) finishRequest() {
	if x.trailers {
		x.up.Finish(&x.trailer)
		return
	}
	x.up.Finish(nil)
}

// payDown gives the client credit for what waited.
func (x *Exchange) payDown() {
	if n := x.owedDown; n > 0 {
		x.owedDown = 0
		x.down.Consumed(n)
	}
}

// payUp gives the endpoint credit for what waited.
func (x *Exchange) payUp() {
	if n := x.owedUp; n > 0 && x.up != nil {
		x.owedUp = 0
		x.up.Consumed(n)
	}
}

// trim keeps the body for another try while it, with n bytes more, is small enough,
// and another try is possible.
func (x *Exchange) trim(n int) {
	if x.keep && (len(x.replay)+n > x.engine.cfg.MaxReplay || x.responded || x.raw || !x.mayRetry()) {
		x.keep = false
	}
	if !x.keep {
		x.letGo()
	}
}

// OnData implements codec.Receiver.
func (r *requestSide) OnData(p []byte) {
	x := (*Exchange)(r)
	x.Received += int64(len(p))
	if x.GRPC {
		x.Messages.Request += x.asking.count(p)
		x.progress()
	}
	x.moved()
	for _, m := range x.mirrors {
		m.data(p)
	}
	if x.up == nil || x.switching && !x.raw {
		// It waits, and the client's credit bounds it.
		x.owedDown += len(p)
		if !x.hold(p) {
			x.fail(reason.ResourceExhausted, errHeld)
			return
		}
		if x.check != nil {
			x.check.grew(len(p))
		}
		return
	}
	if x.trim(len(p)); x.keep && !x.hold(p) {
		x.keep = false
		x.letGo()
	}
	ok := x.up.Data(p)
	switch {
	case x.done:
	case ok && x.owedDown == 0:
		x.down.Consumed(len(p))
	default:
		x.owedDown += len(p)
	}
}

// OnTrailers implements codec.Receiver.
func (r *requestSide) OnTrailers(h *message.Head) {
	r.trailer.CopyFrom(h)
	r.trailers = true
}

// OnEnd implements codec.Receiver.
func (r *requestSide) OnEnd() {
	x := (*Exchange)(r)
	x.asked = true
	x.moved()
	for _, m := range x.mirrors {
		m.end()
	}
	switch {
	case x.check != nil:
		x.check.grew(0)
	case x.raw:
		if x.up != nil {
			x.up.Finish(nil)
		}
		if x.rawDone {
			x.up = nil
			x.finish()
		}
	case x.up != nil && !x.switching:
		x.finishRequest()
	}
}

// OnWritable implements codec.Receiver: the client has room.
func (r *requestSide) OnWritable() {
	(*Exchange)(r).payUp()
}

// OnAbort implements codec.Receiver: the client is gone, or sent what cannot be
// read.
func (r *requestSide) OnAbort(c codec.Cut) {
	x := (*Exchange)(r)
	if x.done {
		return
	}
	x.Reason, x.Err = c.Reason, c.Err
	if f, ok := c.Err.(*message.Fault); ok && c.Reason == reason.MalformedRequest && !x.responded { //nolint:errorlint // never wrapped
		x.Status = f.Status()
	}
	x.cancel(c.Reason)
	x.finish()
}
