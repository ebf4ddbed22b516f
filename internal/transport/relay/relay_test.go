package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const patience = 20 * time.Second

// proxy relays between a program that listens and whoever connects.
type proxy struct {
	t       *testing.T
	loop    *poll.Loop
	entry   string
	prefix  []byte
	hold    func() *Hold // of each connection; nil for none
	results chan Result
	flows   chan *Flow
}

func newProxy(t *testing.T, app func(*net.TCPConn)) *proxy {
	t.Helper()
	g, err := poll.NewGroup(1)
	check(t, err)
	p := &proxy{t: t, loop: g.Loop(0), results: make(chan Result, 100), flows: make(chan *Flow, 100)}
	apps, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := apps.Accept()
			if err != nil {
				return
			}
			app(c.(*net.TCPConn))
			_ = c.Close()
		}
	}()
	to := apps.Addr().(*net.TCPAddr).AddrPort()
	fd, err := sockopt.Listen(netip.MustParseAddrPort("127.0.0.1:0"), sockopt.ListenOptions{})
	check(t, err)
	addr, err := sockopt.LocalAddr(fd)
	check(t, err)
	p.entry = addr.String()
	ln, err := poll.Listen(g, fd, func(l *poll.Loop, down int, _ netip.AddrPort) {
		up, err := sockopt.Stream(to.Addr())
		check(t, err)
		Connect(l, up, to, patience, func(err error) {
			if err != nil {
				t.Error(err)
				return
			}
			pair := Pair{Down: down, Up: up, Prefix: p.prefix, OnClose: func(_ *Flow, r Result) { p.results <- r }}
			if p.hold != nil {
				pair.Hold = p.hold()
			}
			p.flows <- Start(l, pair)
		})
	})
	check(t, err)
	t.Cleanup(func() {
		ln.Close()
		<-ln.Done()
		_ = apps.Close()
		<-served
		g.Close()
	})
	return p
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *proxy) connect() *net.TCPConn {
	p.t.Helper()
	c, err := net.Dial("tcp", p.entry)
	check(p.t, err)
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func get[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("not in %s: %s", patience, what)
		panic("unreachable")
	}
}

func echo(c *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	_ = c.CloseWrite()
}

func TestEcho(t *testing.T) {
	p := newProxy(t, echo)
	for _, size := range []int{0, 1, 4000, readChunk, 5 << 20} {
		c := p.connect()
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i * i >> 8)
		}
		go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %d came back, %v", size, len(got), err)
		}
		_ = c.Close()
		if r := get(t, p.results, "flow ends"); r.Reason != reason.OK || r.Sent != uint64(size) || r.Received != uint64(size) {
			t.Errorf("%d bytes: %+v", size, r)
		}
	}
}

func TestPrefix(t *testing.T) {
	p := newProxy(t, echo)
	p.prefix = []byte("PROXY ")
	c := p.connect()
	_, _ = c.Write([]byte("hello"))
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "PROXY hello" {
		t.Errorf("%q, %v", got, err)
	}
	_ = c.Close()
	if r := get(t, p.results, "flow ends"); r.Sent != 5 {
		t.Errorf("%+v", r)
	}
}

// A program that reads slowly stops the one that writes, and loses nothing.
func TestSlowReader(t *testing.T) {
	const size = 16 << 20
	start := make(chan struct{})
	got := make(chan int64, 1)
	p := newProxy(t, func(c *net.TCPConn) {
		<-start
		n, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
		got <- n
	})
	c := p.connect()
	_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := c.Write(make([]byte, size*4))
	if err == nil {
		t.Error("64 MiB fitted nowhere")
	}
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	close(start)
	m, err := c.Write(make([]byte, size))
	check(t, err)
	_ = c.CloseWrite()
	if total := get(t, got, "everything arrives"); total != int64(n+m) {
		t.Errorf("%d bytes arrived of %d", total, n+m)
	}
	_ = c.Close()
}

func TestResets(t *testing.T) {
	t.Run("upstream", func(t *testing.T) {
		p := newProxy(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("last words"))
			_, _ = c.Read(make([]byte, 1)) // the client has them
			_ = c.SetLinger(0)
		})
		c := p.connect()
		got := make([]byte, 10)
		_, err := io.ReadFull(c, got)
		check(t, err)
		_, _ = c.Write([]byte("x"))
		if _, err := io.ReadAll(c); string(got) != "last words" || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q, %v", got, err)
		}
		_ = c.Close()
		if r := get(t, p.results, "flow ends"); r.Reason != reason.UpstreamReset {
			t.Errorf("%+v", r)
		}
	})
	t.Run("read later", func(t *testing.T) {
		const size = 300 << 10 // what two sockets can hold
		p := newProxy(t, func(c *net.TCPConn) {
			_, _ = c.Write(make([]byte, size))
			_, _ = c.Read(make([]byte, 1))
			waitSent(c) // the proxy's kernel has it all: our reset loses nothing
			_ = c.SetLinger(0)
		})
		c := p.connect()
		check(t, c.SetReadBuffer(32<<10))
		f := get(t, p.flows, "flow is up")
		_, _ = c.Write([]byte("x"))
		for { // until nothing moves any more
			_, before := f.Bytes()
			time.Sleep(50 * time.Millisecond)
			if _, after := f.Bytes(); after == before {
				break
			}
		}
		if n, err := io.Copy(io.Discard, struct{ io.Reader }{c}); n != size || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%d bytes, %v", n, err)
		}
		_ = c.Close()
		get(t, p.results, "flow ends")
	})
	t.Run("downstream", func(t *testing.T) {
		ended := make(chan error, 1)
		p := newProxy(t, func(c *net.TCPConn) {
			_, err := io.ReadAll(c)
			ended <- err
		})
		c := p.connect()
		get(t, p.flows, "flow is up")
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := get(t, ended, "program sees it"); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if r := get(t, p.results, "flow ends"); r.Reason != reason.DownstreamReset {
			t.Errorf("%+v", r)
		}
	})
	t.Run("abort", func(t *testing.T) {
		ended := make(chan error, 1)
		p := newProxy(t, func(c *net.TCPConn) {
			_, err := io.ReadAll(c)
			ended <- err
		})
		c := p.connect()
		f := get(t, p.flows, "flow is up")
		f.Abort(reason.PolicyChanged)
		f.Abort(reason.Draining)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if err := get(t, ended, "program sees it"); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if r := get(t, p.results, "flow ends"); r.Reason != reason.PolicyChanged {
			t.Errorf("%+v", r)
		}
		_ = c.Close()
	})
}

// waitSent waits, for a bounded time, until the other end's kernel has what was
// written.
func waitSent(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	left := 1
	for deadline := time.Now().Add(patience); left > 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		_ = raw.Control(func(fd uintptr) { left = poll.Unsent(int(fd)) })
	}
}

// Half-closed and silent: the loop sleeps.
func TestHalfClosedDoesNotSpin(t *testing.T) {
	release := make(chan struct{})
	p := newProxy(t, func(c *net.TCPConn) { <-release; echo(c) })
	c := p.connect()
	get(t, p.flows, "flow is up")
	_, _ = c.Write([]byte("hello"))
	_ = c.CloseWrite()
	quiet := false
	for range 1000 {
		before := p.loop.Turns()
		time.Sleep(10 * time.Millisecond)
		if quiet = p.loop.Turns()-before < 3; quiet {
			break
		}
	}
	if !quiet {
		t.Error("the loop spins")
	}
	close(release)
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	_ = c.Close()
}

// One side was reset while the other one reads nothing: the flow waits, and the loop
// sleeps meanwhile.
func TestBrokenDoesNotSpin(t *testing.T) {
	cut := make(chan struct{})
	p := newProxy(t, func(c *net.TCPConn) {
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = c.Write(make([]byte, 64<<20)) // until nothing takes more
		_ = c.SetLinger(0)
		_ = c.Close()
		close(cut)
	})
	c := p.connect()
	defer c.Close() //nolint:errcheck // the test is over
	get(t, cut, "the program resets the connection")
	_, _ = c.Write([]byte("for a program that is gone"))
	time.Sleep(20 * time.Millisecond)
	before := p.loop.Turns()
	time.Sleep(100 * time.Millisecond)
	if n := p.loop.Turns() - before; n > 20 {
		t.Errorf("%d turns in 100 ms", n)
	}
	_, _ = io.Copy(io.Discard, c)
	if r := get(t, p.results, "the flow ends"); r.Reason != reason.UpstreamReset {
		t.Errorf("ended with %s, %v", r.Reason, r.Err)
	}
}

func TestConnect(t *testing.T) {
	g, err := poll.NewGroup(1)
	check(t, err)
	defer g.Close()
	l := g.Loop(0)
	try := func(to string, timeout time.Duration) error {
		addr := netip.MustParseAddrPort(to)
		fd, err := sockopt.Stream(addr.Addr())
		check(t, err)
		defer sockopt.Close(fd)
		done := make(chan error, 1)
		l.Post(func() { Connect(l, fd, addr, timeout, func(err error) { done <- err }) })
		return get(t, done, "connect is over")
	}
	full, err := sockopt.Listen(netip.MustParseAddrPort("127.0.0.1:0"), sockopt.ListenOptions{Backlog: 1})
	check(t, err)
	defer sockopt.Close(full)
	addr, err := sockopt.LocalAddr(full)
	check(t, err)
	if err := try(addr.String(), patience); err != nil {
		t.Error(err)
	}
	var re *reason.Error
	for err = nil; err == nil; { // until the backlog is full, when nobody answers
		err = try(addr.String(), 20*time.Millisecond)
	}
	if !errors.As(err, &re) || re.Reason != reason.ConnectTimeout {
		t.Errorf("full backlog: %v", err)
	}
	if err := try("127.0.0.1:1", patience); !errors.As(err, &re) || re.Reason != reason.ConnectFailure {
		t.Errorf("nobody listens: %v", err)
	}
	if err := try("[::ffff:0:0]:1", patience); err == nil {
		t.Error("connected to nowhere")
	}
}
