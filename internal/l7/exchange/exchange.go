// Package exchange is one request and its response on their way through a proxy:
// from a server connection over the filters and the route to a connection of the
// pool, and back. Bytes stream both ways; the slower side sets the pace.
//
//	request:  OnHead ─► Owner.Route ─► filters (─► authorizer) ─► backend ─► Owner.Pick ─► pool ─► Send ─► body
//	response: OnHead ─► again? ─► filters ─► Respond ─► body ─► Owner.Done
//
// An Exchange belongs to a loop and is used again after its end.
package exchange

import (
	"cmp"
	"math/rand/v2"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/sticky"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Owner decides about the requests of one downstream connection. Its methods run
// on the loop.
type Owner interface {
	// Client returns what the owner has seen itself of the client.
	Client() *filter.Client
	// Route finds the rule for x.Request and sets x.Rule. nil leaves it to Pick. An
	// error is the answer.
	Route(x *Exchange) *reason.Error
	// Held finds the session that x.Request is in, of a rule that has sessions, and sets
	// x.Session. Hold has the client learn it from the head of the response.
	Held(x *Exchange)
	Hold(x *Exchange, response *message.Head)
	// Pick chooses where the next try goes: x.Target and x.Endpoint. x.Backend is
	// the backend of the rule, nil without a rule; x.Excluded reports endpoints
	// that have failed this request. An owner that has to wait first reports so, and calls
	// what x.Resume returns: then it is asked again.
	Pick(x *Exchange) (wait bool, err *reason.Error)
	// Outcome is called when the endpoint of a try has answered, with OK, or has failed
	// to before it did.
	Outcome(x *Exchange, why reason.Reason)
	// Mirror chooses where a copy of the request goes, and reports whether there is
	// such a place.
	Mirror(x *Exchange, b *route.Backend, to *pool.Target) bool
	// Progress is called now and then for a call of gRPC that goes on, once it has a
	// response: its messages are new since the last time, which x.Messages forgets
	// afterwards.
	Progress(x *Exchange)
	// Done is called at the end. x is valid during the call.
	Done(x *Exchange)
}

// Config is what the exchanges of a loop share. Zero fields take the defaults named.
type Config struct {
	Pool *pool.Pool
	// Normalise is how paths are made the one form that rules see.
	Normalise message.Normalisation
	// MaxReplay bounds what is kept of a request's body so that it can be sent again
	// (64 KiB). MaxMirrors bounds the copies under way on this loop (256), MaxActive
	// the requests (16,384), MaxHeld the bytes of bodies that wait for a connection or
	// may be sent again (64 MiB).
	MaxReplay, MaxMirrors, MaxActive, MaxHeld int
	// MaxChecks bounds the requests that wait for external authorizers (4,096). Those for
	// one destination have a quarter of it, and of MaxHeld.
	MaxChecks int
	// StreamIdle is how long neither side may send anything. 0 is for ever.
	StreamIdle time.Duration
	// Random is the source of choices. math/rand/v2 by default.
	Random func() uint64
}

// Engine makes the exchanges of one loop.
type Engine struct {
	loop    *poll.Loop
	cfg     Config
	free    []*Exchange
	over    []*Exchange // that ended in this turn
	active  int
	live    []*Exchange // each at its own place
	mirrors int
	held    int // bytes in the replays of all exchanges
	checks  int
	checked map[string]*checked // those of checks, by destination
}

// NewEngine returns an engine for a loop, on its goroutine.
func NewEngine(l *poll.Loop, cfg Config) *Engine {
	cfg.MaxReplay = cmp.Or(cfg.MaxReplay, 64<<10)
	cfg.MaxMirrors = cmp.Or(cfg.MaxMirrors, 256)
	cfg.MaxActive = cmp.Or(cfg.MaxActive, 16384)
	cfg.MaxHeld = cmp.Or(cfg.MaxHeld, 64<<20)
	cfg.MaxChecks = cmp.Or(cfg.MaxChecks, 4096)
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	return &Engine{loop: l, cfg: cfg, checked: map[string]*checked{}}
}

// Active returns how many exchanges are under way.
func (e *Engine) Active() int { return e.active }

// maxFree bounds the exchanges that a loop keeps for use again.
const maxFree = 1024

// TurnEnd implements poll.TurnEnder. No method of an exchange is under way now.
func (e *Engine) TurnEnd() {
	for i, x := range e.over {
		e.over[i] = nil
		x.down.Release()
		x.reset()
		if len(e.free) < maxFree {
			e.free = append(e.free, x)
		}
	}
	e.over = e.over[:0]
}

// Accept returns who receives the next request of a server connection. It is what a
// codec.ServerConfig asks for.
func (e *Engine) Accept(owner Owner, down codec.Response) codec.Receiver {
	var x *Exchange
	if n := len(e.free); n > 0 {
		x, e.free = e.free[n-1], e.free[:n-1]
	} else {
		x = &Exchange{engine: e}
		x.onRequestTime, x.onTryTime, x.onPause, x.onIdle, x.hasFailed = x.requestTime, x.tryTime, x.try, x.idleTime, x.Failed
	}
	e.active++
	x.place = len(e.live)
	e.live = append(e.live, x)
	x.owner, x.down, x.Start = owner, down, e.loop.Now()
	x.reported = x.Start
	return (*requestSide)(x)
}

// Exchange is one request and its response. Its exported fields are the owner's to
// read; it writes those that Owner names.
type Exchange struct {
	filter.Call // Request, Rule, Backend, Port, TLS

	// Config is what Owner.Route has decided by; it may be nil.
	Config *route.Config

	// Of the current try, by Owner.Pick.
	Target   pool.Target
	Limits   pool.Limits
	Endpoint *workload.Workload
	Service  *workload.Service
	Upstream *route.Upstream // of Backend; nil without one

	// Session of the request, by Owner.Held; without a backend when it is in none.
	Session sticky.Held

	Start          time.Time
	FirstByte      time.Duration // from Start to the head of the response; 0 without one
	Reason         reason.Reason
	Err            error
	Status         int   // that the client got; 0 when it went before
	GRPCStatus     int   // of the response's head or trailers; -1 without one
	Received, Sent int64 // bytes of bodies, from and to the client
	Heads          Heads
	Messages       Messages // of gRPC, that Progress has not reported
	Path           []byte   // and query, as the client sent them
	Tries          int
	GRPC           bool
	Answered       bool // the response is an endpoint's
	Direct         bool // the response is a filter's
	Learned        int  // how often the owner has waited for what it did not have
	// Metadata is that of the answers of external authorizers.
	Metadata *extauthz.Metadata
	// Own is the owner's, as long as the request goes on.
	Own any

	engine   *Engine
	owner    Owner
	place    int // in the engine's live
	judged   judged
	check    *check // the request waits for an external authorizer
	gathered gathered
	changes  []change // by those that have allowed it
	down     codec.Response
	up       codec.Request
	request  message.Head
	replay   []byte // the request's body so far
	trailer  message.Head
	body     http1.Body

	failed        [maxFailed]string // UIDs of endpoints that failed this request
	nfailed       int
	free          int // tries that do not count: the peer did nothing
	owedDown      int // credit of the client for bytes that wait in replay, or for the endpoint
	owedUp        int // credit of the endpoint for bytes that wait for the client
	mirrors       []*mirror
	requestEnd    poll.Deadline
	tryEnd        poll.Deadline // of a try, and of the pause before one
	idle          poll.Deadline
	generation    uint64 // counts the uses of this Exchange
	lastMoved     time.Time
	reported      time.Time // when Progress was called, or the beginning
	asking        frames    // where the request's messages end
	answering     frames
	onTryTime     func()
	onPause       func()
	onIdle        func()
	onRequestTime func()
	hasFailed     func(string) bool

	asked     bool // the request is complete
	trailers  bool // with trailers, in trailer
	keep      bool // replay is the whole body so far, and may be sent again
	waiting   bool // for a connection of the pool
	paused    bool // for Owner.Pick
	switching bool // CONNECT or an upgrade
	raw       bool // both directions are raw bytes
	rawDone   bool // the endpoint sends no more raw bytes
	responded bool // the head of the response was sent
	head      bool // HEAD: the response has no body
	done      bool
}

// Heads are the sizes of heads in bytes, as HTTP/1 would send them.
type Heads struct{ Request, Response int64 }

// Messages counts those of gRPC.
type Messages struct{ Request, Response uint64 }

// maxFailed bounds the endpoints that are avoided.
const maxFailed = 8

// Failed reports whether an endpoint has failed this request already.
func (x *Exchange) Failed(uid string) bool {
	for _, f := range x.failed[:x.nfailed] {
		if f == uid {
			return true
		}
	}
	return false
}

// Switching reports whether the request may switch the protocol.
func (x *Exchange) Switching() bool { return x.switching }

// Excluded returns Failed, and nil as long as no endpoint has failed.
func (x *Exchange) Excluded() func(uid string) bool {
	if x.nfailed == 0 {
		return nil
	}
	return x.hasFailed
}

// Resume returns what continues an exchange whose owner waits. It does nothing once
// the exchange has ended.
func (x *Exchange) Resume() func() {
	g := x.generation
	return func() {
		if x.generation == g && x.paused && !x.done {
			x.paused = false
			if x.check != nil {
				x.check.try()
				return
			}
			x.try()
		}
	}
}

// hold keeps bytes of the body, if the loop may hold so many.
func (x *Exchange) hold(p []byte) bool {
	if x.engine.held+len(p) > x.engine.cfg.MaxHeld {
		return false
	}
	x.engine.held += len(p)
	x.replay = append(x.replay, p...)
	return true
}

// letGo keeps no bytes of the body any more.
func (x *Exchange) letGo() {
	x.engine.held -= len(x.replay)
	x.replay = x.replay[:0]
}

// Loop returns the loop of the exchange.
func (x *Exchange) Loop() *poll.Loop { return x.engine.loop }

// Random returns a random number.
func (x *Exchange) Random() uint64 { return x.engine.cfg.Random() }

// replayKeep is the largest buffer for a body that an exchange keeps, in bytes, and
// headKeep the same for the text of a head.
const (
	replayKeep = 8 << 10
	headKeep   = 4 << 10
)

func (x *Exchange) reset() {
	x.letGo()
	r := x.replay[:0]
	if cap(r) > replayKeep {
		r = nil
	}
	request, reply, trailer, judged := x.request, x.Reply, x.trailer, x.judged
	judged.forget()
	request.Shrink(headKeep)
	reply.Shrink(headKeep)
	trailer.Shrink(headKeep)
	*x = Exchange{
		engine: x.engine, generation: x.generation + 1, replay: r, request: request, trailer: trailer, judged: judged, Call: filter.Call{Reply: reply}, GRPCStatus: -1,
		hasFailed: x.hasFailed, onRequestTime: x.onRequestTime, onTryTime: x.onTryTime, onPause: x.onPause, onIdle: x.onIdle,
	}
}

// finish ends the exchange: the client has its response, or is gone.
func (x *Exchange) finish() {
	if x.done {
		return
	}
	x.done = true
	x.requestEnd.Stop()
	x.tryEnd.Stop()
	x.idle.Stop()
	x.payDown() // the connection goes on to other requests
	x.cancel(reason.OK)
	x.taken()
	for _, m := range x.mirrors {
		m.finish()
	}
	x.owner.Done(x)
	e := x.engine
	e.active--
	last := len(e.live) - 1
	e.live[x.place] = e.live[last]
	e.live[x.place].place = x.place
	e.live[last] = nil
	e.live = e.live[:last]
	if len(e.over) == 0 {
		e.loop.EndTurnOf(e)
	}
	e.over = append(e.over, x)
}

// cancel gives up the try that is under way.
func (x *Exchange) cancel(why reason.Reason) {
	if x.waiting {
		x.waiting = false
		x.engine.cfg.Pool.Cancel(&x.Target, x)
	}
	if c := x.check; c != nil {
		c.stop(why)
	}
	if up := x.up; up != nil {
		x.up = nil
		up.Abort(why)
		up.Release()
	}
}

// moved notes that something was sent or received.
func (x *Exchange) moved() {
	if x.engine.cfg.StreamIdle > 0 {
		x.lastMoved = x.engine.loop.Now()
	}
}

func (x *Exchange) idleTime() {
	d := x.engine.cfg.StreamIdle
	if left := d - x.engine.loop.Now().Sub(x.lastMoved); left > 0 {
		x.idle.Rearm(left)
		return
	}
	x.fail(reason.StreamIdle, nil)
}

func (x *Exchange) requestTime() { x.fail(reason.RequestTimeout, nil) }

// fail ends the exchange for a reason of the proxy's own: by an answer, if none has
// begun, else by a cut.
func (x *Exchange) fail(why reason.Reason, err error) {
	if x.done {
		return
	}
	x.Reason, x.Err = why, err
	x.cancel(why)
	if x.responded {
		x.down.Abort(why)
		x.finish()
		return
	}
	x.reply(why.HTTP().Status, why)
}
