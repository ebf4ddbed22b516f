package exchange

import (
	"errors"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Asker is an Owner whose policies may have external authorizers asked. Its methods run on
// the loop.
type Asker interface {
	Owner
	// Question returns what the owner has seen of the client and of the tokens of x, and
	// the destination: what waits is bounded for each.
	Question(x *Exchange) (q extauthz.Question, destination string)
	// Authorizer chooses where x.Authorizer is asked, and returns who gets what became of
	// the endpoint. An owner that has to wait first reports so, and calls what x.Resume
	// returns: then it is asked again, with one more in learned.
	Authorizer(x *Exchange, to *pool.Target, learned int) (outcome func(reason.Reason), wait bool, err *reason.Error)
	// Continue begins the decision about x again, by the policies in force: h is the request
	// as the owner got it first, and x.Changed makes it the one that was allowed. route has
	// the rule found again. An error is one of Route.
	Continue(x *Exchange, h *message.Head, route bool) *reason.Error
	// Asked is called with what came of each question.
	Asked(x *Exchange, o extauthz.Outcome)
}

// check is one question about a request to an external authorizer. The request waits.
type check struct {
	x        *Exchange
	asker    Asker
	provider *extauthz.Provider
	unrouted *reason.Error
	question extauthz.Question
	of       *checked

	target   pool.Target
	outcome  func(reason.Reason)
	up       codec.Request
	head     message.Head
	body     []byte
	late     poll.Deadline
	tries    int
	gathers  bool // the body has not come yet
	waiting  bool // for a connection of the pool
	learned  int
	answered bool // a head has come
	over     bool

	answer, trailers message.Head
	trailed          bool
	reply            []byte
}

// checked counts the checks for a destination, and the bytes of bodies that were gathered
// for them and that the endpoint has not taken yet.
type checked struct {
	name          string
	checks, bytes int
}

// gathered is what an exchange has of a body by the credit of a check, until the endpoint
// has taken it.
type gathered struct {
	of    *checked
	bytes int // of the destination's
	held  int // of the engine's, beside the replay
}

// forget forgets a destination of which nothing waits.
func (e *Engine) forget(of *checked) {
	if of.checks == 0 && of.bytes == 0 {
		delete(e.checked, of.name)
	}
}

// taken gives back what counts of a body that was gathered.
func (x *Exchange) taken() {
	g := x.gathered
	if g.of == nil {
		return
	}
	x.gathered = gathered{}
	g.of.bytes -= g.bytes
	x.engine.held -= g.held
	x.engine.forget(g.of)
}

// change is what an authorizer has changed of a request.
type change struct {
	by      *extauthz.Provider
	verdict extauthz.Verdict
}

const (
	// gatherTime bounds how long the part of a body may take that an authorizer gets.
	gatherTime = time.Minute
	// maxCheckTries is how often a question is sent, as long as no answer has begun.
	maxCheckTries = 3
	// share is the part of a bound that one destination has.
	share = 4
)

var (
	errAsker        = errors.New("nothing here asks external authorizers")
	errChecks       = errors.New("the requests that wait for external authorizers have reached their bound")
	errChecksOf     = errors.New("the requests for this destination that wait for external authorizers have reached their bound")
	errCheckedBytes = errors.New("the bodies for this destination that wait for external authorizers have reached their bound")
	errGather       = errors.New("the body that an external authorizer gets has not come in time")
	errSwitched     = errors.New("it answered by switching the protocol")
)

// ask has the request wait for what x.Authorizer says of it.
func (x *Exchange) ask(unrouted *reason.Error) {
	asker, ok := x.owner.(Asker)
	if !ok {
		x.fail(reason.Internal, errAsker)
		return
	}
	e := x.engine
	c := &check{x: x, asker: asker, provider: x.Authorizer, unrouted: unrouted}
	var destination string
	c.question, destination = asker.Question(x)
	if c.of = e.checked[destination]; c.of == nil {
		c.of = &checked{name: destination}
	}
	switch {
	case e.checks >= e.cfg.MaxChecks:
		x.fail(reason.ResourceExhausted, errChecks)
		return
	case c.of.checks >= e.cfg.MaxChecks/share:
		x.fail(reason.ResourceExhausted, errChecksOf)
		return
	}
	e.checks++
	c.of.checks++
	e.checked[destination] = c.of
	x.check = c
	c.gather()
}

// gather waits for the body that the authorizer gets.
func (c *check) gather() {
	x, want := c.x, c.part()
	switch {
	case want.Max == 0 || c.complete():
		c.begin()
		return
	case x.body.Length > int64(want.Max) && !want.Partial:
		c.tooLarge()
		return
	}
	c.gathers = true
	c.late.Arm(x.engine.loop, gatherTime, func() { x.fail(reason.RequestTimeout, errGather) })
	if i := x.request.Index(message.Expect, 0); i >= 0 {
		x.request.Remove(keyExpect) // the client sends the body now
		x.down.Inform(&message.Head{Status: 100})
	}
	x.payDown()
}

// part returns what the authorizer gets of the body. What follows a head that may switch
// the protocol is none.
func (c *check) part() extauthz.Body {
	if c.x.switching {
		return extauthz.Body{}
	}
	return c.provider.Body
}

// complete reports whether so much of the body has come as the authorizer gets.
func (c *check) complete() bool {
	n, want := len(c.x.replay), c.part()
	return c.x.asked || c.x.body.Length == 0 || n > want.Max || want.Partial && n == want.Max
}

// grew takes notice of n bytes of the body, or of its end.
func (c *check) grew(n int) {
	if !c.gathers {
		return
	}
	c.of.bytes += n
	c.x.gathered.of = c.of
	c.x.gathered.bytes += n
	switch {
	case c.of.bytes > c.x.engine.cfg.MaxHeld/share:
		c.x.fail(reason.ResourceExhausted, errCheckedBytes)
	case c.complete():
		c.gathers = false
		c.late.Stop()
		c.begin()
	default:
		c.x.payDown()
	}
}

// begin sends the question.
func (c *check) begin() {
	x, want := c.x, c.part()
	if want.Max > 0 && len(x.replay) > want.Max && !want.Partial {
		c.tooLarge()
		return
	}
	q := &c.question
	q.Request, q.TLS, q.Time, q.Length = &x.request, x.TLS, x.Start, max(x.body.Length, -1)
	if want.Max > 0 {
		q.Body = x.replay[:min(len(x.replay), want.Max)]
		q.Partial = len(x.replay) > want.Max || !x.asked && x.body.Length != int64(len(x.replay))
	}
	var err error
	if c.body, err = c.provider.Write(q, &c.head); err != nil {
		c.settle(extauthz.Verdict{Err: err})
		return
	}
	c.late.Arm(x.engine.loop, c.provider.Timeout, func() { c.failed(errors.New("no answer came within " + c.provider.Timeout.String())) })
	c.try()
}

// try sends the question to an endpoint.
func (c *check) try() {
	outcome, wait, err := c.asker.Authorizer(c.x, &c.target, c.learned)
	switch {
	case wait:
		c.learned, c.x.paused = c.learned+1, true
		return
	case err != nil:
		c.failed(err)
		return
	}
	c.tries++
	c.outcome, c.waiting = outcome, true
	up, err := c.x.engine.cfg.Pool.Get(&c.target, c, pool.Limits{}, c.tries == maxCheckTries)
	switch {
	case err != nil:
		c.waiting = false
		c.failed(err)
	case up != nil:
		c.OnReady(up)
	}
}

// OnReady implements pool.Waiter.
func (c *check) OnReady(up codec.Request) {
	c.waiting = false
	if err := up.Send(&c.head, int64(len(c.body)), c); err != nil {
		up.Abort(reason.Internal)
		c.settle(extauthz.Verdict{Err: err})
		return
	}
	c.up = up
	if len(c.body) > 0 {
		up.Data(c.body)
	}
	if c.up != nil {
		up.Finish(nil)
	}
}

// OnFail implements pool.Waiter.
func (c *check) OnFail(err *reason.Error) {
	c.waiting = false
	c.outcome(err.Reason)
	if c.tries < maxCheckTries && connectFailure(err.Reason) {
		c.try()
		return
	}
	c.failed(err)
}

// OnHead implements codec.Receiver.
func (c *check) OnHead(h *message.Head, body http1.Body) {
	if h.Status < 200 && h.Status != 101 {
		return
	}
	c.answered = true
	c.outcome(reason.OK)
	if h.Status == 101 || body.Length == codec.Raw {
		c.settle(extauthz.Verdict{Err: errSwitched})
		return
	}
	h.RemoveHopByHop()
	c.answer.CopyFrom(h)
}

// OnData implements codec.Receiver.
func (c *check) OnData(p []byte) {
	if len(c.reply)+len(p) > c.provider.Limit() {
		c.read(true)
		return
	}
	c.reply = append(c.reply, p...)
	c.up.Consumed(len(p))
}

// OnTrailers implements codec.Receiver.
func (c *check) OnTrailers(h *message.Head) {
	c.trailers.CopyFrom(h)
	c.trailed = true
}

// OnEnd implements codec.Receiver.
func (c *check) OnEnd() {
	c.up = nil
	c.read(false)
}

// OnWritable implements codec.Receiver: the question is sent as a whole.
func (c *check) OnWritable() {}

// OnAbort implements codec.Receiver.
func (c *check) OnAbort(cut codec.Cut) {
	c.up = nil
	if !c.answered && c.tries < maxCheckTries && (cut.Unprocessed || cut.Stale || cut.Lost) {
		c.try()
		return
	}
	c.outcome(cut.Reason)
	c.failed(&reason.Error{Reason: cut.Reason, Err: cut.Err})
}

// read takes the answer. cut: it is larger than an answer may be.
func (c *check) read(cut bool) {
	a := extauthz.Answer{Head: &c.answer, Body: c.reply, Cut: cut}
	if c.trailed {
		a.Trailers = &c.trailers
	}
	c.settle(c.provider.Read(&a))
}

// failed settles the check with an authorizer that could not be asked. A bound of this
// proxy is no failure of the authorizer, and opens nothing.
func (c *check) failed(err error) {
	if c.over {
		return
	}
	if e, ok := err.(*reason.Error); ok && e.Reason == reason.ResourceExhausted { //nolint:errorlint // never wrapped
		c.x.fail(e.Reason, err)
		return
	}
	c.settle(extauthz.Verdict{Outcome: extauthz.Failed, Err: err})
}

// stop ends the check.
func (c *check) stop(why reason.Reason) {
	if c.over {
		return
	}
	c.over = true
	c.late.Stop()
	e := c.x.engine
	e.checks--
	c.of.checks--
	e.forget(c.of)
	if c.waiting {
		c.waiting = false
		e.cfg.Pool.Cancel(&c.target, c)
	}
	if up := c.up; up != nil {
		c.up = nil
		up.Abort(why)
	}
	c.x.check, c.x.paused = nil, false
}

// settle ends the check, and does with the request what the verdict is. No other function
// lets a request go on that waited.
func (c *check) settle(v extauthz.Verdict) {
	if c.over {
		return
	}
	c.stop(reason.OK)
	x, p := c.x, c.provider
	if v.Outcome == extauthz.Failed && p.FailOpen {
		v = extauthz.Verdict{Outcome: extauthz.Opened}
	}
	if v.Outcome == extauthz.Allowed || v.Outcome == extauthz.Opened {
		p.Strip(&x.request)
		if err := v.Apply(&x.request); err != nil {
			v = extauthz.Verdict{Err: err}
		}
	}
	x.Metadata = x.Metadata.With(v.Metadata)
	c.asker.Asked(x, v.Outcome)
	switch v.Outcome {
	case extauthz.Allowed, extauthz.Opened:
		c.goOn(v)
	case extauthz.Denied:
		x.denied(p, &v)
	case extauthz.Failed, extauthz.Invalid:
		x.Reason, x.Err = reason.AuthorizerFailed, &reason.Error{Reason: reason.AuthorizerFailed, Detail: p.Name, Err: v.Err}
		x.reply(p.StatusOnError, reason.AuthorizerFailed)
	}
}

// goOn takes the request further through the filters.
func (c *check) goOn(v extauthz.Verdict) {
	x, p := c.x, c.provider
	x.changes = append(x.changes, change{p, v})
	x.Allowed, x.OnResponse = append(x.Allowed, p.Name), append(x.OnResponse, v.Response...)
	again := &message.Head{}
	again.CopyFrom(&x.judged.head)
	err := x.owner.(Asker).Continue(x, again, p.RecomputeRoute)
	switch {
	case err != nil && err.Reason != reason.NoRoute:
		x.fail(err.Reason, err)
		return
	case err == nil && !p.RecomputeRoute:
		err = c.unrouted
	}
	x.pass(filter.Resume(&x.Call), err)
}

// Changed makes the changes of a request that external authorizers have made so far.
func (x *Exchange) Changed(h *message.Head) {
	for i := range x.changes {
		x.changes[i].by.Strip(h)
		_ = x.changes[i].verdict.Apply(h) // it was applied before
	}
}

func (c *check) tooLarge() {
	x := c.x
	c.asker.Asked(x, extauthz.Invalid)
	c.stop(reason.OK)
	x.Reason, x.Err = reason.BodyTooLarge, &reason.Error{Reason: reason.BodyTooLarge, Detail: c.provider.Name}
	x.reply(reason.BodyTooLarge.HTTP().Status, reason.BodyTooLarge)
}

// maxGRPCMessage bounds the text of a denial in a status of gRPC, in bytes.
const maxGRPCMessage = 1024

// denied answers with what an authorizer has denied with.
func (x *Exchange) denied(p *extauthz.Provider, v *extauthz.Verdict) {
	x.Reason, x.Err = reason.AuthorizerDenied, &reason.Error{Reason: reason.AuthorizerDenied, Detail: p.Name}
	h := &x.Reply
	h.Reset()
	extauthz.Edits(h, v.Reply)
	if x.GRPC || x.Rule != nil && x.Rule.Rule.GRPC {
		x.GRPCStatus = grpcStatusOf(v.Status)
		h.Status = 200
		h.Set(keyContentType, typeGRPC)
		h.Set(keyGRPCStatus, strconv.AppendInt(nil, int64(x.GRPCStatus), 10))
		if len(v.Body) > 0 {
			h.Set(keyGRPCMessage, percentEncoded(v.Body[:min(len(v.Body), maxGRPCMessage)]))
		}
		x.respond("")
		return
	}
	h.Status = v.Status
	x.respond(string(v.Body))
}

// percentEncoded returns bytes as a message of gRPC has them (PROTOCOL-HTTP2.md).
func percentEncoded(b []byte) []byte {
	const digits = "0123456789ABCDEF"
	var out []byte
	for _, c := range b {
		if c < ' ' || c > '~' || c == '%' {
			out = append(out, '%', digits[c>>4], digits[c&15])
			continue
		}
		out = append(out, c)
	}
	return out
}

// Waiting returns how many requests wait for external authorizers.
func (e *Engine) Waiting() int { return e.checks }

// Held returns the bytes of bodies that count against the bound of the engine.
func (e *Engine) Held() int { return e.held }
