package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// roundTrip echoes a few bytes on c.
func roundTrip(t *testing.T, c net.Conn, s string) {
	t.Helper()
	_, err := c.Write([]byte(s))
	check(t, err)
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != s {
		t.Fatalf("sent %q, got %q, %v", s, b, err)
	}
}

// held opens n connections and leaves them open.
func held(t *testing.T, w *world, n int) []*net.TCPConn {
	t.Helper()
	conns := make([]*net.TCPConn, n)
	var wg sync.WaitGroup
	for i := range conns {
		conns[i] = w.connect()
		wg.Add(1)
		go func() { defer wg.Done(); roundTrip(t, conns[i], "hello") }()
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return conns
}

func TestOneDialForAll(t *testing.T) {
	w := newWorld(t, echo)
	held(t, w, 100)
	if d := w.dials.Load(); d != 1 {
		t.Errorf("%d dials for 100 connections at once", d)
	}
}

func TestStreamLimitMakesFurtherTunnels(t *testing.T) {
	w := newWorld(t, echo, loops(3), func(_ *world, p *PoolConfig, _ *ServerConfig) { p.MaxStreams = 10 })
	conns := held(t, w, 35)
	if d := w.dials.Load(); d != 4 {
		t.Errorf("%d tunnels for 35 connections, 10 each", d)
	}
	for _, c := range conns {
		roundTrip(t, c, "again")
	}
	// Room that came back is used.
	for _, c := range conns[:20] {
		_ = c.Close()
	}
	for range 20 {
		get(t, w.closed, "flows close")
	}
	held(t, w, 20)
	if d := w.dials.Load(); d > 5 {
		t.Errorf("%d tunnels although 20 connections ended", d)
	}
}

// The peer permits fewer streams than we would open.
func TestPeersLimit(t *testing.T) {
	w := newWorld(t, echo, func(_ *world, _ *PoolConfig, s *ServerConfig) { s.MaxStreams = 5 })
	held(t, w, 40)
	if len(w.failures) > 0 {
		t.Errorf("failed: %v", (<-w.failures).err)
	}
}

func TestIdleRelease(t *testing.T) {
	w := newWorld(t, echo, func(_ *world, p *PoolConfig, _ *ServerConfig) { p.IdleRelease = 10 * time.Millisecond })
	for i := range 2 {
		c := w.connect()
		roundTrip(t, c, "hello")
		if n := w.tunnels.Load(); n != 1 {
			t.Errorf("%d tunnels", n)
		}
		time.Sleep(30 * time.Millisecond) // longer than an idle tunnel would live
		roundTrip(t, c, "still here")
		_ = c.Close()
		eventually(t, "idle tunnel is released", func() bool { return w.tunnels.Load() == 0 })
		if d := w.dials.Load(); d != int64(i+1) {
			t.Errorf("%d dials", d)
		}
	}
}

// A server that drains keeps its streams; new ones go to a new tunnel.
func TestGoAway(t *testing.T) {
	w := newWorld(t, echo)
	old := held(t, w, 3)
	other := NewServer(w.server.cfg)
	first := w.server
	done := make(chan struct{})
	w.far.Loop(0).Post(func() { w.server = other; close(done) })
	<-done
	first.Drain()
	eventually(t, "new connections use a new tunnel", func() bool {
		c := w.connect()
		defer func() { _ = c.Close() }()
		roundTrip(t, c, "new")
		return w.dials.Load() == 2
	})
	for _, c := range old {
		roundTrip(t, c, "old")
		_ = c.Close()
	}
	eventually(t, "drained tunnel ends", func() bool { return w.tunnels.Load() == 1 })
	if len(w.failures) > 0 {
		t.Errorf("failed: %v", (<-w.failures).err)
	}
	first.Close(reason.Draining)
}

// No connection is lost while the server drains again and again.
func TestDrainUnderLoad(t *testing.T) {
	w := newWorld(t, echo)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := w.connect()
				roundTrip(t, c, "hello")
				_ = c.Close()
			}
		}()
	}
	var olds []*Server
	for range 20 {
		done := make(chan struct{})
		w.far.Loop(0).Post(func() {
			olds = append(olds, w.server)
			w.server = NewServer(w.server.cfg)
			close(done)
		})
		<-done
		olds[len(olds)-1].Drain()
		time.Sleep(5 * time.Millisecond) // some traffic in each generation
	}
	close(stop)
	wg.Wait()
	if len(w.failures) > 0 {
		t.Errorf("failed: %v", (<-w.failures).err)
	}
	for _, s := range olds {
		s.Close(reason.Draining)
	}
}

func TestCloseWorkload(t *testing.T) {
	w := newWorld(t, echo)
	old := held(t, w, 2)
	w.pool.CloseWorkload("uid-other")
	w.pool.CloseWorkload("uid-1")
	c := held(t, w, 1)[0]
	if d := w.dials.Load(); d != 2 {
		t.Errorf("%d dials: a new connection met the old tunnel", d)
	}
	for _, c := range old {
		roundTrip(t, c, "still mine")
		_ = c.Close()
	}
	eventually(t, "old tunnel ends", func() bool { return w.tunnels.Load() == 1 })
	roundTrip(t, c, "new")
}

func TestPoolDrain(t *testing.T) {
	w := newWorld(t, echo)
	old := held(t, w, 1)[0]
	w.pool.Drain()
	c := w.connectDoomed()
	if f := get(t, w.failures, "open fails"); f.err.Reason != reason.Draining {
		t.Errorf("failed with %v", f.err)
	}
	_ = c.Close()
	roundTrip(t, old, "old")
	_ = old.Close()
	eventually(t, "tunnel ends", func() bool { return w.tunnels.Load() == 0 })
}

func TestPoolClose(t *testing.T) {
	w := newWorld(t, echo)
	c := held(t, w, 1)[0]
	w.pool.Close(reason.WorkloadRemoved)
	if r := get(t, w.closed, "flow closes"); r.Reason != reason.WorkloadRemoved {
		t.Errorf("%+v", r)
	}
	if r := get(t, w.closedServer, "flow closes"); r.Reason != reason.TunnelClosed {
		t.Errorf("%+v", r)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("program was not told")
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t, echo)
	w.handle(func(r *Request) {
		if r.Method != "CONNECT" || r.Header.Authority != "10.0.0.1:80" || r.Header.Baggage != "k8s.namespace.name=a" ||
			r.Header.Forwarded != "for=x" || r.PeerIdentity != alice || r.Peer == nil {
			t.Errorf("request %+v", r)
		}
		r.Refuse(401, ResponseHeader{})
	})
	c := w.connectDoomed()
	if f := get(t, w.failures, "open fails"); f.err.Reason != reason.TunnelRefused || f.status != 401 {
		t.Errorf("failed with %v, %d", f.err, f.status)
	}
	_ = c.Close()
}

func TestDialFails(t *testing.T) {
	w := newWorld(t, echo, func(w *world, p *PoolConfig, _ *ServerConfig) {
		p.Dial = func(context.Context, Key) (int, *tls.Config, error) {
			return -1, nil, reason.Errorf(reason.CertificateUnavailable, "none")
		}
	})
	c := w.connectDoomed()
	if f := get(t, w.failures, "open fails"); f.err.Reason != reason.CertificateUnavailable {
		t.Errorf("failed with %v", f.err)
	}
	_ = c.Close()
}

func TestWaitingIsBounded(t *testing.T) {
	block := make(chan struct{})
	w := newWorld(t, echo, func(w *world, p *PoolConfig, _ *ServerConfig) {
		p.MaxWaiting = 3
		p.Dial = func(context.Context, Key) (int, *tls.Config, error) {
			<-block
			return -1, nil, errors.New("no")
		}
	})
	var conns []io.Closer
	for range 5 {
		conns = append(conns, w.connectDoomed())
	}
	for range 2 {
		if f := get(t, w.failures, "open fails"); f.err.Reason != reason.ResourceExhausted {
			t.Errorf("failed with %v", f.err)
		}
	}
	close(block)
	for range 3 {
		if f := get(t, w.failures, "open fails"); f.err.Reason != reason.ConnectFailure {
			t.Errorf("failed with %v", f.err)
		}
	}
	for _, c := range conns {
		_ = c.Close()
	}
}

// A peer that is silent is found out, also when its kernel still answers.
func TestKeepAlive(t *testing.T) {
	w := newWorld(t, echo, func(_ *world, p *PoolConfig, _ *ServerConfig) { p.KeepAlive = 50 * time.Millisecond })
	c := held(t, w, 1)[0]
	time.Sleep(300 * time.Millisecond) // several intervals: it answers and stays
	roundTrip(t, c, "alive")
	hang := make(chan struct{})
	w.far.Loop(0).Post(func() { <-hang })
	if r := get(t, w.closed, "flow closes"); r.Reason != reason.TunnelClosed {
		t.Errorf("%+v", r)
	}
	close(hang)
}

// A peer that died while its tunnel was idle costs a connection the time of a
// probe, and not the connection.
func TestDeadIdleTunnel(t *testing.T) {
	w := newWorld(t, echo, func(w *world, p *PoolConfig, s *ServerConfig) {
		w.far.Close()
		w.far = group(t, 2)
		s.Loops = w.far
		p.KeepAlive = -1
		p.ProbeTimeout = 50 * time.Millisecond
	})
	// The second tunnel is not on the loop that accepts: the next peer answers.
	for range 2 {
		w.pool.CloseWorkload("uid-1")
		c := w.connect()
		roundTrip(t, c, "hello")
		_ = c.Close()
		get(t, w.closed, "flow closes")
		get(t, w.closedServer, "flow closes")
	}
	time.Sleep(100 * time.Millisecond) // silent for longer than a probe takes
	dead := w.lastServer.Load().Loop()
	hang := make(chan struct{})
	defer close(hang)
	dead.Post(func() { <-hang })
	c := w.connect()
	roundTrip(t, c, "still works")
	_ = c.Close()
}

// A client that does not shake hands is not waited for.
func TestHandshakeTimeout(t *testing.T) {
	w := newWorld(t, echo, func(_ *world, _ *PoolConfig, s *ServerConfig) { s.HandshakeTimeout = 30 * time.Millisecond })
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(w.tunnelAddr))
	check(t, err)
	defer func() { _ = c.Close() }()
	get(t, w.handshakeErrs, "handshake is given up")
}

// The tunnel dies while a CONNECT waits for its answer: another one is made.
func TestRetryWhenTunnelDies(t *testing.T) {
	w := newWorld(t, echo)
	answer := w.onRequest
	first := true
	w.handle(func(r *Request) {
		if first {
			first = false
			r.Loop.Post(func() { r.s.Tunnel().Fail(reason.Internal, nil) })
			return
		}
		answer(r)
	})
	c := w.connect()
	roundTrip(t, c, "hello")
	_ = c.Close()
	if d := w.dials.Load(); d != 2 {
		t.Errorf("%d dials", d)
	}
}

func TestForeignBytes(t *testing.T) {
	w := newWorld(t, echo)
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(w.tunnelAddr))
	check(t, err)
	_, err = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	check(t, err)
	get(t, w.handshakeErrs, "it is refused")
	_ = c.Close()
}
