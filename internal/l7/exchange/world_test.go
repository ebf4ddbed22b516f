package exchange_test

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

func TestMain(m *testing.M) { leak.Main(m) }

// world is a proxy on one loop: a listener whose requests take a route table to
// backends that have addresses.
type world struct {
	t      testing.TB
	group  *poll.Group
	loop   *poll.Loop
	engine *exchange.Engine
	pool   *pool.Pool
	table  *route.Table
	cfg    codec.ServerConfig
	h2     bool              // of clients
	h2up   bool              // of backends
	quiet  bool              // nobody reads records
	carry  func(stream.Conn) // if set, gets connections in place of codecs
	addr   string

	mu       sync.Mutex // guards what follows
	backends map[string][]string
	servers  map[codec.Server]bool
	next     int
	records  []record
}

// record is what Done has seen.
type record struct {
	Method, Path string
	Status       int
	Reason       reason.Reason
	Err          error
	Tries        int
	GRPCStatus   int
	Received     int64
	Sent         int64
}

type (
	configs = exchange.Config
	option  func(*world, *configs, *pool.Config)
)

func newWorld(t testing.TB, rules []route.Rule, options ...option) *world {
	t.Helper()
	w := &world{t: t, backends: map[string][]string{}, servers: map[codec.Server]bool{}}
	var problems []route.Problem
	if w.table, problems = route.Compile(rules, route.BySpecificity); len(problems) > 0 {
		t.Fatal(problems)
	}
	var err error
	if w.group, err = poll.NewGroup(1); err != nil {
		t.Fatal(err)
	}
	w.loop = w.group.Loop(0)
	ec, pc := exchange.Config{}, pool.Config{Dial: dial}
	for _, o := range options {
		o(w, &ec, &pc)
	}
	w.on(func() {
		w.pool = pool.New(w.loop, pc)
		ec.Pool = w.pool
		w.engine = exchange.NewEngine(w.loop, ec)
	})
	w.cfg.Accept = func(down codec.Response) codec.Receiver { return w.engine.Accept(w, down) }
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = ln.Addr().String()
	raw, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	fd, err := poll.Dup(int(raw.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Close()
	setNonblock(t, fd)
	listener, err := poll.Listen(w.group, fd, w.accept)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		listener.Close()
		<-listener.Done()
		w.on(func() {
			w.mu.Lock()
			var all []codec.Server
			for s := range w.servers {
				all = append(all, s)
			}
			w.mu.Unlock()
			for _, s := range all {
				s.Close(reason.Draining)
			}
			w.pool.Drain()
			if n := w.engine.Active(); n != 0 {
				t.Errorf("%d exchanges are left", n)
			}
		})
		w.group.Close()
	})
	return w
}

// on runs f on the loop and waits for it.
func (w *world) on(f func()) {
	done := make(chan struct{})
	w.loop.Post(func() { defer close(done); f() })
	select {
	case <-done:
	case <-time.After(time.Minute):
		w.t.Fatal("the loop hangs")
	}
}

func (w *world) accept(l *poll.Loop, fd int, remote netip.AddrPort) {
	c, err := stream.Plain(l, fd, stream.Info{Remote: remote})
	if err != nil {
		poll.CloseFD(fd)
		return
	}
	if w.carry != nil {
		w.carry(c)
		return
	}
	w.serve(c)
}

// serve serves a connection.
func (w *world) serve(c stream.Conn) {
	cfg := w.cfg
	var s codec.Server
	cfg.Closed = func(reason.Reason) {
		w.mu.Lock()
		delete(w.servers, s)
		w.mu.Unlock()
	}
	if w.h2 {
		s = codec.NewHTTP2Server(c, &cfg)
	} else {
		s = codec.NewHTTP1Server(c, &cfg)
	}
	w.mu.Lock()
	w.servers[s] = true
	w.mu.Unlock()
}

// dial connects on a goroutine.
func dial(l *poll.Loop, to *pool.Target, done func(stream.Conn, *reason.Error)) func() {
	cancelled := false
	app := to.App
	l.Go(func() {
		c, err := net.DialTimeout("tcp", app.String(), 10*time.Second)
		fd := -1
		if err == nil {
			fd, err = take(c)
		}
		if !l.Post(func() {
			if cancelled {
				poll.CloseFD(fd)
				return
			}
			if err != nil {
				done(nil, reason.Errorf(reason.ConnectFailure, "%w", err))
				return
			}
			s, err := stream.Plain(l, fd, stream.Info{Remote: app, Dialed: true})
			if err != nil {
				poll.CloseFD(fd)
				done(nil, reason.Errorf(reason.Internal, "%w", err))
				return
			}
			done(s, nil)
		}) {
			poll.CloseFD(fd)
		}
	})
	return func() { cancelled = true }
}

// take returns the descriptor of a connection of package net, which is closed.
func take(c net.Conn) (int, error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if cerr := raw.Control(func(n uintptr) { fd, err = poll.Dup(int(n)) }); cerr != nil {
		return -1, cerr
	}
	_ = c.Close()
	return fd, err
}

// backend names addresses.
func (w *world) backend(name string, addrs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.backends[name] = addrs
}

// Route implements exchange.Owner.
func (w *world) Route(x *exchange.Exchange) *reason.Error {
	if x.Rule = w.table.Lookup(x.Request); x.Rule == nil {
		return reason.Errorf(reason.NoRoute, "nothing fits %s", x.Request.Path)
	}
	x.Port = 80
	return nil
}

// Pick implements exchange.Owner: backends in turn, without those that failed.
func (w *world) Pick(x *exchange.Exchange) (bool, *reason.Error) {
	if !w.choose(x.Backend, &x.Target, x.Failed) {
		return false, reason.Errorf(reason.NoHealthyUpstream, "%s", x.Backend.Name)
	}
	return false, nil
}

func (w *world) choose(b *route.Backend, to *pool.Target, failed func(string) bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	addrs := w.backends[b.Name]
	for range 2 * len(addrs) {
		a := addrs[w.next%len(addrs)]
		w.next++
		if failed == nil || !failed(a) {
			*to = pool.Target{App: netip.MustParseAddrPort(a), UID: a, HTTP2: w.h2up}
			return true
		}
	}
	return false
}

// Mirror implements exchange.Owner.
func (w *world) Mirror(_ *exchange.Exchange, b *route.Backend, to *pool.Target) bool {
	return w.choose(b, to, nil)
}

// Done implements exchange.Owner.
// nobody is a client of which nothing is said.
var nobody filter.Client

func (w *world) Client() *filter.Client { return &nobody }

func (w *world) Outcome(*exchange.Exchange, reason.Reason) {}

func (w *world) Held(*exchange.Exchange)                {}
func (w *world) Hold(*exchange.Exchange, *message.Head) {}
func (w *world) Progress(*exchange.Exchange)            {}

func (w *world) Done(x *exchange.Exchange) {
	if w.quiet {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, record{
		string(x.Request.Method), strings.Clone(string(x.Request.Path)), x.Status, x.Reason, x.Err, x.Tries, x.GRPCStatus, x.Received, x.Sent,
	})
}

// record waits for the end of the n-th request, and returns it.
func (w *world) record(n int) record {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		if len(w.records) > n {
			defer w.mu.Unlock()
			return w.records[n]
		}
		w.mu.Unlock()
	}
	w.t.Fatalf("request %d does not end", n)
	return record{}
}
