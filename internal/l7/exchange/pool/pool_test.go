package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

func TestMain(m *testing.M) { leak.Main(m) }

// world is a pool whose endpoints answer when a test lets them.
type world struct {
	t     testing.TB
	loop  *poll.Loop
	pool  *Pool
	dials int
	trace []string // of each dial
	fail  *reason.Error
	held  []func() // dials that wait, if hold is set
	hold  bool
	open  []codec.Response // requests that wait for a response, in order
	peers int              // connections at the endpoints

	limits Limits
}

func newWorld(t testing.TB, cfg Config) *world {
	w := &world{t: t, loop: streamtest.Loop(t)}
	cfg.Dial = w.dial
	w.on(func() { w.pool = New(w.loop, cfg) })
	t.Cleanup(func() {
		w.on(w.pool.Drain)
		w.on(func() {
			for _, r := range w.open {
				r.Abort(reason.OK)
			}
			w.open = nil
		})
		w.until("targets are forgotten", func() bool { return len(w.pool.targets) == 0 })
		w.on(func() {
			if w.pool.waiting != 0 || w.pool.idle != 0 {
				t.Errorf("%d wait, %d are idle", w.pool.waiting, w.pool.idle)
			}
		})
	})
	return w
}

func (w *world) on(f func()) { streamtest.On(w.t, w.loop, f) }

func (w *world) until(what string, ok func() bool) { streamtest.Until(w.t, w.loop, what, ok) }

func (w *world) dial(l *poll.Loop, to *Target, done func(stream.Conn, *reason.Error)) func() {
	w.dials++
	w.trace = append(w.trace, to.Client.Trace)
	h2 := to.HTTP2
	f := func() {
		if w.fail != nil {
			done(nil, w.fail)
			return
		}
		a, b := streamtest.Pair(l, streamtest.Options{})
		cfg := &codec.ServerConfig{
			Accept: func(r codec.Response) codec.Receiver { return &request{w, r} },
			Closed: func(reason.Reason) { w.peers-- },
		}
		w.peers++
		if h2 {
			codec.NewHTTP2Server(b, cfg)
		} else {
			codec.NewHTTP1Server(b, cfg)
		}
		done(a, nil)
	}
	if w.hold {
		w.held = append(w.held, f)
	} else {
		l.Post(f)
	}
	return func() {}
}

// request is one at the endpoint.
type request struct {
	w *world
	r codec.Response
}

func (r *request) OnHead(*message.Head, http1.Body) { r.w.open = append(r.w.open, r.r) }
func (r *request) OnData([]byte)                    {}
func (r *request) OnTrailers(*message.Head)         {}
func (r *request) OnEnd()                           {}
func (r *request) OnWritable()                      {}
func (r *request) OnAbort(codec.Cut)                {}

// answer lets the endpoint answer its oldest request.
func (w *world) answer() {
	r := w.open[0]
	w.open = w.open[1:]
	r.Respond(&message.Head{Status: 204}, 0)
	r.Finish(nil)
}

// asker is a request at the pool's side.
type asker struct {
	w       *world
	up      codec.Request
	ready   bool
	err     *reason.Error
	done    bool
	cut     *codec.Cut
	waiting bool
}

func (a *asker) OnReady(up codec.Request) {
	a.ready, a.up = true, up
	h := &message.Head{Method: []byte("GET"), Authority: []byte("h"), Path: []byte("/")}
	if err := up.Send(h, 0, a); err != nil {
		a.w.t.Error(err)
	}
	up.Finish(nil)
}

func (a *asker) OnFail(err *reason.Error)         { a.err = err }
func (a *asker) OnHead(*message.Head, http1.Body) {}
func (a *asker) OnData([]byte)                    {}
func (a *asker) OnTrailers(*message.Head)         {}
func (a *asker) OnEnd()                           { a.done = true }
func (a *asker) OnWritable()                      {}
func (a *asker) OnAbort(c codec.Cut)              { a.cut = &c }

var (
	one = Target{UID: "one", App: netip.MustParseAddrPort("10.0.0.1:80")}
	two = Target{UID: "one", App: netip.MustParseAddrPort("10.0.0.1:80"), HTTP2: true}
)

// ask makes requests.
func (w *world) ask(t Target, n int) []*asker {
	all := make([]*asker, n)
	w.on(func() {
		for i := range all {
			a := &asker{w: w}
			all[i] = a
			up, err := w.pool.Get(&t, a, w.limits, false)
			switch {
			case err != nil:
				a.err = err
			case up != nil:
				a.OnReady(up)
			default:
				a.waiting = true
			}
		}
	})
	return all
}

func (w *world) answered(all []*asker) {
	w.t.Helper()
	w.until("answers", func() bool {
		if len(w.open) > 0 {
			w.answer()
		}
		for _, a := range all {
			if !a.done {
				return false
			}
		}
		return true
	})
}

// traced is a request in a trace.
type traced struct {
	asker
	trace string
}

// Traceparent implements Traced.
func (t *traced) Traceparent() string { return t.trace }

// TestTraced: a connection that is made for a request begins in its trace, and is shared
// with requests of others nevertheless.
func TestTraced(t *testing.T) {
	w := newWorld(t, Config{})
	var all []*traced
	for _, trace := range []string{"a", "", "b"} {
		r := &traced{asker{w: w}, trace}
		all = append(all, r)
		w.on(func() {
			if up, err := w.pool.Get(&one, r, w.limits, false); up != nil || err != nil {
				t.Errorf("%v, error %v", up, err)
			}
		})
	}
	w.answered([]*asker{&all[0].asker, &all[1].asker, &all[2].asker})
	w.answered(w.ask(one, 3))
	w.on(func() {
		if !slices.Equal(w.trace, []string{"a", "", "b"}) {
			t.Errorf("%q", w.trace)
		}
	})
}

// TestReuse: a connection that has its response carries the next request.
func TestReuse(t *testing.T) {
	w := newWorld(t, Config{})
	for range 5 {
		w.answered(w.ask(one, 3))
	}
	w.on(func() {
		if w.dials != 3 || w.pool.Idle() != 3 {
			t.Errorf("%d dials, %d idle", w.dials, w.pool.Idle())
		}
	})
	other := one
	other.UID = "another workload at the same address"
	w.answered(w.ask(other, 1))
	w.on(func() {
		if w.dials != 4 {
			t.Errorf("a workload got the connection of another one")
		}
	})
}

// TestShare: requests of HTTP/2 share a connection as far as the peer permits.
func TestShare(t *testing.T) {
	w := newWorld(t, Config{})
	w.answered(w.ask(two, 150))
	w.on(func() {
		if w.dials != 2 {
			t.Errorf("%d connections for 150 requests, 100 fit one", w.dials)
		}
	})
	w.answered(w.ask(two, 50))
	w.on(func() {
		if w.dials != 2 {
			t.Errorf("%d connections", w.dials)
		}
	})
}

// TestBounds: connections and waiting requests are bounded, and the first that waits is
// the first that is served.
func TestBounds(t *testing.T) {
	w := newWorld(t, Config{MaxConnections: 2, MaxPending: 3, MaxIdle: 1})
	first := w.ask(one, 2)
	w.until("two requests", func() bool { return len(w.open) == 2 })
	more := w.ask(one, 4)
	w.on(func() {
		if w.dials != 2 {
			t.Errorf("%d connections", w.dials)
		}
		for i, a := range more {
			if (a.err != nil) != (i == 3) {
				t.Errorf("request %d: %v", i, a.err)
			}
		}
		if e := more[3].err; e.Reason != reason.ResourceExhausted {
			t.Error(e)
		}
		w.answer()
	})
	w.until("the next", func() bool { return more[0].ready })
	w.on(func() {
		if more[1].ready || more[2].ready {
			t.Error("out of turn")
		}
	})
	w.answered(append(first, more[:3]...))
	w.until("surplus connections end", func() bool { return w.peers == 1 && w.pool.Idle() == 1 })
}

// TestLimits: bounds of one target hold below those of the pool.
func TestLimits(t *testing.T) {
	w := newWorld(t, Config{})
	w.limits = Limits{Connections: 1, Pending: 2}
	first := w.ask(one, 1)
	w.until("a request", func() bool { return len(w.open) == 1 })
	more := w.ask(one, 3)
	w.on(func() {
		if w.dials != 1 || more[0].err != nil || more[1].err != nil || more[2].err == nil || more[2].err.Reason != reason.ResourceExhausted {
			t.Errorf("%d dials, %v %v %v", w.dials, more[0].err, more[1].err, more[2].err)
		}
	})
	w.answered(append(first, more[:2]...))
}

func TestDialFails(t *testing.T) {
	for _, target := range []Target{one, two} {
		w := newWorld(t, Config{})
		w.on(func() { w.fail = reason.Errorf(reason.ConnectFailure, "no") })
		all := w.ask(target, 3)
		w.until("all fail", func() bool { return all[0].err != nil && all[1].err != nil && all[2].err != nil })
		w.on(func() { w.fail = nil })
		w.answered(w.ask(target, 1))
	}
}

// TestCancel: a request that waits no more is not served, and the connection made for
// it serves the next.
func TestCancel(t *testing.T) {
	w := newWorld(t, Config{})
	w.on(func() { w.hold = true })
	a := w.ask(one, 1)[0]
	w.on(func() {
		target := one
		w.pool.Cancel(&target, a)
		w.pool.Cancel(&target, a)
		w.hold = false
		w.held[0]()
	})
	b := w.ask(one, 1)
	w.answered(b)
	w.on(func() {
		if a.ready || w.dials != 1 {
			t.Errorf("served %t, %d dials", a.ready, w.dials)
		}
	})
}

// TestIdleTimeout: what nobody uses is closed.
func TestIdleTimeout(t *testing.T) {
	w := newWorld(t, Config{IdleTimeout: 20 * time.Millisecond})
	w.answered(w.ask(one, 2))
	w.answered(w.ask(two, 2))
	w.until("all are closed", func() bool { return w.peers == 0 && w.pool.Idle() == 0 && len(w.pool.targets) == 0 })
	w.answered(w.ask(one, 1))
}

// TestRemove: connections to a workload that was removed end behind their requests.
func TestRemove(t *testing.T) {
	for _, target := range []Target{one, two} {
		t.Run(fmt.Sprint(target.HTTP2), func(t *testing.T) {
			w := newWorld(t, Config{})
			w.answered(w.ask(target, 1))
			busy := w.ask(target, 1)
			w.until("a request", func() bool { return len(w.open) == 1 })
			w.on(func() {
				w.pool.Remove("other")
				w.pool.Remove("one")
				if busy[0].cut != nil {
					t.Error("a request was cut")
				}
			})
			w.answered(busy)
			w.until("the connection is closed", func() bool { return w.peers == 0 })
			w.answered(w.ask(target, 1))
			w.on(func() {
				if w.dials != 2 {
					t.Errorf("%d dials", w.dials)
				}
			})
		})
	}
}

// TestFresh: who asks for a fresh connection does not get a used one.
func TestFresh(t *testing.T) {
	w := newWorld(t, Config{})
	w.answered(w.ask(one, 1))
	a := &asker{w: w}
	w.on(func() {
		target := one
		if up, err := w.pool.Get(&target, a, Limits{}, true); up != nil || err != nil {
			t.Errorf("%v %v", up, err)
		}
	})
	w.answered([]*asker{a})
	w.on(func() {
		if w.dials != 2 {
			t.Errorf("%d dials", w.dials)
		}
	})
}

// TestClosedWhileIdle: a connection that the endpoint closes is used no more.
func TestClosedWhileIdle(t *testing.T) {
	for _, target := range []Target{one, two} {
		w := newWorld(t, Config{})
		a := w.ask(target, 1)
		w.answered(a)
		w.on(func() {
			for _, e := range w.pool.targets {
				for _, c := range e.conns {
					c.client.Fail(reason.UpstreamReset) // as if it had happened
				}
			}
		})
		w.until("it is gone", func() bool { return w.pool.Idle() == 0 && w.peers == 0 })
		w.answered(w.ask(target, 1))
	}
}
