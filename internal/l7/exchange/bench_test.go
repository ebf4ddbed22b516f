package exchange_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// asker is a client connection that sends a request whenever it has a response.
type asker struct {
	conn stream.Conn
	left *int // requests to send
	done func()
	got  int
}

var (
	responseLength int
	browserBytes   = []byte(browser)
)

func (a *asker) OnData(p []byte, _ bool) {
	a.conn.Consumed(len(p))
	a.got += len(p)
	for a.got >= responseLength {
		a.got -= responseLength
		a.ask()
	}
}

func (a *asker) ask() {
	if *a.left--; *a.left >= 0 {
		a.conn.Write(browserBytes)
	} else if a.done != nil {
		a.done()
		a.done = nil
	}
}

func (a *asker) OnWritable()                  {}
func (a *asker) OnClose(reason.Reason, error) {}

// answerer is a backend that answers each head with the same bytes.
type answerer struct {
	conn  stream.Conn
	reply []byte
	tail  []byte
}

func (a *answerer) OnData(p []byte, _ bool) {
	a.conn.Consumed(len(p))
	a.tail = append(a.tail, p...)
	for {
		i := bytes.Index(a.tail, headEnd)
		if i < 0 {
			return
		}
		a.tail = a.tail[:copy(a.tail, a.tail[i+len(headEnd):])]
		a.conn.Write(a.reply)
	}
}

func (a *answerer) OnWritable()                  {}
func (a *answerer) OnClose(reason.Reason, error) { a.conn.CloseWrite() }

var headEnd = []byte("\r\n\r\n")

// used is the processor time of the calling thread.
func used(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(1, &u); err != nil { // RUSAGE_THREAD
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReverseProxy measures the processor time of the proxy's loop alone,
// system calls included: client and backend have loops of their own.
func BenchmarkReverseProxy(b *testing.B) {
	for _, conns := range []int{1, 64, 512} {
		b.Run(fmt.Sprint(conns), func(b *testing.B) { reverseProxy(b, conns, false) })
		// The same bytes without HTTP: what the sockets alone cost.
		b.Run(fmt.Sprint("relay-", conns), func(b *testing.B) { reverseProxy(b, conns, true) })
	}
}

// pipe passes bytes on.
type pipe struct{ from, to stream.Conn }

func (p *pipe) OnData(b []byte, _ bool) {
	p.to.Write(b)
	p.from.Consumed(len(b))
}
func (p *pipe) OnWritable() {}
func (p *pipe) OnClose(reason.Reason, error) {
	p.to.Abort(reason.OK)
}

func reverseProxy(b *testing.B, conns int, relay bool) {
	reply := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024))
	responseLength = len(reply)
	w := newWorld(b, []route.Rule{{Origin: "all", Backends: []route.Backend{{Name: "b", Weight: 1}}}}, func(_ *world, _ *configs, p *pool.Config) { p.MaxConnections = 4096 })
	w.quiet = true
	others, err := poll.NewGroup(2)
	if err != nil {
		b.Fatal(err)
	}
	defer others.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	w.backend("b", ln.Addr().String())
	if relay {
		w.carry = func(c stream.Conn) {
			to := pool.Target{App: netip.MustParseAddrPort(ln.Addr().String())}
			dial(w.loop, &to, func(up stream.Conn, err *reason.Error) {
				if err != nil {
					b.Error(err)
					return
				}
				c.Bind(&pipe{c, up})
				up.Bind(&pipe{up, c})
			})
		}
	}
	far := others.Loop(1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fd, err := take(c)
			if err != nil {
				return
			}
			far.Post(func() {
				if s, err := stream.Plain(far, fd, stream.Info{}); err == nil {
					s.Bind(&answerer{conn: s, reply: reply})
				}
			})
		}
	}()
	near := others.Loop(0)
	var clients []*asker
	left := 0
	for range conns {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			b.Fatal(err)
		}
		fd, err := take(c)
		if err != nil {
			b.Fatal(err)
		}
		near.Post(func() {
			s, err := stream.Plain(near, fd, stream.Info{Dialed: true})
			if err != nil {
				b.Error(err)
				return
			}
			a := &asker{conn: s, left: &left}
			clients = append(clients, a)
			s.Bind(a)
		})
	}
	run := func(n int) {
		done := make(chan struct{})
		near.Post(func() {
			left = n
			waiting := len(clients)
			for _, a := range clients {
				a.done = func() {
					if waiting--; waiting == 0 {
						close(done)
					}
				}
				a.ask()
			}
		})
		<-done
	}
	run(10 * conns)
	var before, after time.Duration
	var start, end runtime.MemStats
	w.on(func() { runtime.LockOSThread(); before = used(b) })
	runtime.ReadMemStats(&start)
	b.ResetTimer()
	run(max(b.N, conns))
	b.StopTimer()
	runtime.ReadMemStats(&end)
	w.on(func() { after = used(b); runtime.UnlockOSThread() })
	n := float64(max(b.N, conns))
	b.ReportMetric(n/(after-before).Seconds(), "req/s/core")
	b.ReportMetric(float64(end.Mallocs-start.Mallocs)/n, "mallocs/req")
	near.Post(func() {
		for _, a := range clients {
			a.conn.Abort(reason.OK)
		}
	})
}
