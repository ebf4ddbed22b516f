package hbone

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// stuck reads nothing until it is told to.
func stuck(release <-chan struct{}) func(net.Conn) {
	return func(c net.Conn) {
		<-release
		echo(c)
	}
}

// A tunnel's write that blocked would stop the loop, and with both ways full,
// both loops for ever.
func TestBulkBothWaysDoesNotDeadlock(t *testing.T) {
	w := newWorld(t, echo)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := w.connect()
			defer func() { _ = c.Close() }()
			const size = 8 << 20
			go func() {
				_, _ = io.CopyN(struct{ io.Writer }{c}, zeros{}, size)
				_ = c.CloseWrite()
			}()
			if n, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil || n != size {
				t.Errorf("%d bytes of %d: %v", n, size, err)
			}
		}()
	}
	wg.Wait()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// 64 stuck readers take no other stream with them, in either direction.
func TestStuckReadersHarmNobodyElse(t *testing.T) {
	release := make(chan struct{})
	var n atomic.Int64
	w := newWorld(t, func(c net.Conn) {
		if n.Add(1) <= 64 {
			stuck(release)(c)
			return
		}
		echo(c)
	}, func(_ *world, p *PoolConfig, s *ServerConfig) {
		// Windows that 64 stuck readers would use up several times.
		p.Windows = Windows{Conn: 1 << 20}
		s.Windows = Windows{Conn: 1 << 20}
	})
	var stuckOnes []*net.TCPConn
	for i := range 64 {
		c := w.connect()
		get(t, w.flows, "stuck stream is up")
		eventually(t, "its program is reached", func() bool { return n.Load() == int64(i+1) })
		_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := io.CopyN(struct{ io.Writer }{c}, zeros{}, 64<<20) // until nothing moves any more
		if err == nil {
			t.Fatal("64 MiB fitted between two programs")
		}
		stuckOnes = append(stuckOnes, c)
	}
	c := w.connect()
	want := bytes.Repeat([]byte("flows "), 4<<20)
	go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("beside stuck readers: %d of %d bytes, %v", len(got), len(want), err)
	}
	if d := w.dials.Load(); d != 1 {
		t.Errorf("%d tunnels: the streams were not on one", d)
	}
	for _, c := range append(stuckOnes, c) {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	close(release)
}

// Half-closed sockets, whose other half nobody writes, must not keep the loop
// busy.
func TestHalfClosedDoesNotSpin(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, stuck(release))
	var conns []*net.TCPConn
	for range 10 {
		c := w.connect()
		get(t, w.flows, "flow is up")
		_, err := c.Write([]byte("request"))
		check(t, err)
		_ = c.CloseWrite()
		conns = append(conns, c)
	}
	loop := func() uint64 { return w.near.Loop(0).Turns() + w.far.Loop(0).Turns() }
	settled := loop()
	eventually(t, "loops come to rest", func() bool {
		last := settled
		time.Sleep(20 * time.Millisecond) // a loop that spins takes thousands of turns in this time
		settled = loop()
		return settled-last < 10
	})
	close(release)
	for _, c := range conns {
		if got, err := io.ReadAll(c); err != nil || string(got) != "request" {
			t.Errorf("after half-close: %q, %v", got, err)
		}
		_ = c.Close()
	}
}

// A reset at one end is a reset at the other, and what came before it arrives.
func TestResetIsCarried(t *testing.T) {
	const size = 300 << 10 // more than a stream's first window
	t.Run("upstream", func(t *testing.T) {
		w := newWorld(t, func(c net.Conn) {
			_, _ = io.CopyN(struct{ io.Writer }{c}, zeros{}, size)
			waitSent(t, c)
			_ = c.(*net.TCPConn).SetLinger(0)
		})
		c := w.connect()
		get(t, w.flows, "flow is up")
		n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		if !errors.Is(err, syscall.ECONNRESET) || n != size {
			t.Errorf("%d of %d bytes, then %v", n, size, err)
		}
		_ = c.Close()
		for _, ch := range []<-chan relay.Result{w.closed, w.closedServer} {
			if r := get(t, ch, "flow closes"); r.Reason != reason.UpstreamReset || r.Received != size {
				t.Errorf("result %+v", r)
			}
		}
	})
	t.Run("downstream", func(t *testing.T) {
		type end struct {
			n   int64
			err error
		}
		got := make(chan end, 1)
		w := newWorld(t, func(c net.Conn) {
			n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
			got <- end{n, err}
		})
		c := w.connect()
		_, err := io.CopyN(struct{ io.Writer }{c}, zeros{}, size)
		check(t, err)
		waitSent(t, c)
		_ = c.SetLinger(0)
		_ = c.Close()
		if e := get(t, got, "program sees the end"); !errors.Is(e.err, syscall.ECONNRESET) || e.n != size {
			t.Errorf("%d of %d bytes, then %v", e.n, size, e.err)
		}
		for _, ch := range []<-chan relay.Result{w.closed, w.closedServer} {
			if r := get(t, ch, "flow closes"); r.Reason != reason.DownstreamReset || r.Sent != size {
				t.Errorf("result %+v", r)
			}
		}
	})
}

// waitSent waits until the other end's kernel has everything: a reset would
// throw the rest away before it left.
func waitSent(t *testing.T, c net.Conn) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	check(t, err)
	eventually(t, "everything is acknowledged", func() bool {
		left := 0
		_ = raw.Control(func(fd uintptr) { left = poll.Unsent(int(fd)) })
		return left == 0
	})
}

// What came before a reset is delivered also to a program that reads it later:
// a reset throws away what its socket has not sent yet.
func TestResetDoesNotOvertake(t *testing.T) {
	const size = 1 << 20
	w := newWorld(t, func(c net.Conn) {
		_, _ = io.CopyN(struct{ io.Writer }{c}, zeros{}, size)
		waitSent(t, c)
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	c := w.connect()
	check(t, c.SetReadBuffer(32<<10))
	get(t, w.flows, "flow is up")
	time.Sleep(100 * time.Millisecond) // until nothing more can move
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if !errors.Is(err, syscall.ECONNRESET) || n != size {
		t.Errorf("%d of %d bytes, then %v", n, size, err)
	}
	_ = c.Close()
}

// The loop finds at once that writing to a program fails, and that it had
// answered before.
func TestAnswerBehindFailedWriteArrives(t *testing.T) {
	answer := bytes.Repeat([]byte("no "), 10_000)
	for range 10 {
		hung, answered := make(chan struct{}), make(chan struct{})
		w := newWorld(t, func(c net.Conn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			<-hung
			_, _ = c.Write(answer)
			waitSent(t, c)
			_ = c.Close() // with bytes unread: a reset
			close(answered)
		})
		c := w.connect()
		_, err := c.Write(make([]byte, 100))
		check(t, err)
		get(t, w.flows, "flow is up")
		eventually(t, "program has something to leave unread", func() bool { return w.requests.Load() > 0 && w.sentToApp(100) })
		release := make(chan struct{})
		w.far.Loop(0).Post(func() { <-release })
		_, err = c.Write(make([]byte, 1000)) // the far loop meets this first
		check(t, err)
		waitSent(t, c)
		time.Sleep(5 * time.Millisecond) // through the near loop
		close(hung)
		<-answered
		close(release)
		if got, _ := io.ReadAll(c); !bytes.Equal(got, answer) {
			t.Fatalf("%d of %d bytes of the answer", len(got), len(answer))
		}
		_ = c.Close()
	}
}

// An answer that was sent before a program closed with unread bytes (which is a
// reset) is not lost.
func TestAnswerBeforeResetArrives(t *testing.T) {
	answer := bytes.Repeat([]byte("no "), 10_000)
	w := newWorld(t, func(c net.Conn) {
		_, _ = c.Write(answer)
		waitSent(t, c)
		var b [1]byte
		_, _ = c.Read(b[:]) // and close with the rest unread
	})
	for range 20 {
		c := w.connect()
		go func() { _, _ = io.CopyN(struct{ io.Writer }{c}, zeros{}, 1<<20) }()
		got, _ := io.ReadAll(c)
		if !bytes.Equal(got, answer) {
			t.Fatalf("%d of %d bytes of the answer", len(got), len(answer))
		}
		_ = c.Close()
	}
}

// Streams that end in the middle of a turn, are stalled, or receive while they
// are aborted: nothing is delivered to a wrong or dead one, and credit comes
// back, so that the tunnel still works afterwards.
func TestAbortStorm(t *testing.T) {
	w := newWorld(t, echo, loops(2), func(_ *world, p *PoolConfig, s *ServerConfig) {
		p.Windows, s.Windows = Windows{Conn: 1 << 20}, Windows{Conn: 1 << 20}
		p.MaxStreams = 20
	})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case f := <-w.flows:
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) // somewhere in the middle
				f.Abort(reason.PolicyChanged)
				f.Abort(reason.PolicyChanged)
				f.Bytes()
			case <-stop:
				return
			}
		}
	}()
	var work sync.WaitGroup
	for range 16 {
		work.Add(1)
		go func() {
			defer work.Done()
			for range 12 {
				c, err := net.DialTCP("tcp", nil, w.entry.(*net.TCPAddr))
				if errors.Is(err, syscall.ECONNRESET) {
					continue // aborted before the dialling program saw it made
				}
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(patience))
				go func() {
					_, _ = io.CopyN(struct{ io.Writer }{c}, zeros{}, 8<<20)
					_ = c.CloseWrite()
				}()
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
				_ = c.Close()
			}
		}()
	}
	work.Wait()
	close(stop)
	wg.Wait()
	c := w.connect()
	want := bytes.Repeat([]byte("after "), 1<<20)
	go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the storm: %d of %d bytes, %v", len(got), len(want), err)
	}
	_ = c.Close()
}

func TestAbort(t *testing.T) {
	w := newWorld(t, echo)
	c := w.connect()
	f := get(t, w.flows, "flow is up")
	f.Abort(reason.PolicyChanged)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("program reads %v", err)
	}
	if r := get(t, w.closed, "flow closes"); r.Reason != reason.PolicyChanged {
		t.Errorf("client: %+v", r)
	}
	if r := get(t, w.closedServer, "flow closes"); r.Reason != reason.DownstreamReset {
		t.Errorf("server: %+v", r)
	}
	f.Abort(reason.PolicyChanged)
	_ = c.Close()
}

// The program sits behind the server; the client goes while it connects.
func TestClientGoneWhilePending(t *testing.T) {
	goneWith := make(chan reason.Reason, 1)
	w := newWorld(t, echo)
	pending := make(chan *Request, 1)
	w.handle(func(r *Request) {
		r.OnGone = func(why reason.Reason) { goneWith <- why }
		pending <- r
	})
	c := w.connect()
	r := get(t, pending, "request")
	_ = c.SetLinger(0)
	_ = c.Close()
	if why := get(t, goneWith, "request is gone"); why != reason.DownstreamReset {
		t.Errorf("gone with %v", why)
	}
	if f := get(t, w.failures, "open fails"); f.err.Reason != reason.DownstreamReset {
		t.Errorf("open failed with %v", f.err)
	}
	done := make(chan relay.Result, 1)
	r.Loop.Post(func() {
		r.Refuse(503, ResponseHeader{})
		fd, err := poll.Dup(0)
		check(t, err)
		r.Accept(fd, nil, ResponseHeader{}, func(_ *relay.Flow, res relay.Result) { done <- res })
	})
	if res := get(t, done, "late accept closes"); res.Reason != reason.DownstreamReset {
		t.Errorf("late accept: %+v", res)
	}
}

func TestPrefixComesFirst(t *testing.T) {
	w := newWorld(t, echo)
	w.handle(func(r *Request) {
		fd := dialApp(t, w, r)
		if fd >= 0 {
			r.Accept(fd, []byte("PROXY "), ResponseHeader{}, nil)
		}
	})
	c := w.connect()
	go func() { _, _ = c.Write([]byte("hello")); _ = c.CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || string(got) != "PROXY hello" {
		t.Errorf("program got %q, %v", got, err)
	}
	_ = c.Close()
}

// dialApp connects to the program, blocking the loop, which a test may.
func dialApp(t *testing.T, w *world, r *Request) int {
	c, err := net.Dial("tcp", w.appListener.Addr().String())
	if err != nil {
		t.Error(err)
		return -1
	}
	defer func() { _ = c.Close() }()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Error(err)
		return -1
	}
	defer func() { _ = f.Close() }()
	fd, err := poll.Dup(int(f.Fd()))
	if err != nil {
		t.Error(err)
		return -1
	}
	check(t, syscall.SetNonblock(fd, true))
	return fd
}

func TestServerFirst(t *testing.T) {
	w := newWorld(t, func(c net.Conn) { _, _ = c.Write([]byte("220 ready\r\n")) })
	c := w.connect()
	if got, err := io.ReadAll(c); err != nil || string(got) != "220 ready\r\n" {
		t.Errorf("%q, %v", got, err)
	}
	_ = c.Close()
}

// A peer that can do no better than TLS 1.2 is carried when both sides permit
// it.
func TestTLSVersions(t *testing.T) {
	w := newWorld(t, echo, func(w *world, _ *PoolConfig, s *ServerConfig) {
		client, server := w.clientConf, s.TLS
		w.clientConf = func() *tls.Config {
			c := client().Clone()
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}
		s.TLS = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := server(h)
			if err == nil {
				c = c.Clone()
				c.MinVersion = tls.VersionTLS12
			}
			return c, err
		}
	})
	c := w.connect()
	go func() { _, _ = c.Write([]byte("old")); _ = c.CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || string(got) != "old" {
		t.Errorf("%q, %v", got, err)
	}
	_ = c.Close()
}

func TestWrongPeer(t *testing.T) {
	w := newWorld(t, echo, func(w *world, _ *PoolConfig, _ *ServerConfig) {
		conf := w.clientConf
		w.clientConf = func() *tls.Config {
			c := conf().Clone()
			verify := c.VerifyConnection
			c.VerifyConnection = func(cs tls.ConnectionState) error {
				if err := verify(cs); err != nil {
					return err
				}
				return reason.Errorf(reason.PeerIdentityMismatch, "peer is %s", identity.Identity{})
			}
			return c
		}
	})
	c := w.connectDoomed()
	if f := get(t, w.failures, "open fails"); f.err.Reason != reason.PeerIdentityMismatch {
		t.Errorf("failed with %v", f.err)
	}
	get(t, w.handshakeErrs, "server reports it")
	_ = c.Close()
}
