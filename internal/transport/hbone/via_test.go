package hbone

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// nested is two worlds: the programs of outer are a gateway to the tunnels of
// inner, and entry leads through both.
type nested struct {
	outer, inner *world
	entry        netip.AddrPort
	peers        chan ResponseHeader
	conf         atomic.Pointer[tls.Config] // of the inner tunnels' client
}

// newNested has app behind two tunnels; gateway, if set, is what the outer
// tunnel ends at instead of passing bytes on.
func newNested(t *testing.T, app, gateway func(net.Conn)) *nested {
	t.Helper()
	n := &nested{inner: newWorld(t, app), peers: make(chan ResponseHeader, 1000)}
	if gateway == nil {
		gateway = func(c net.Conn) { passOn(c, n.inner.tunnelAddr) }
	}
	n.outer = newWorld(t, gateway, func(w *world, p *PoolConfig, _ *ServerConfig) {
		w.near.Close()
		w.near = group(t, 2)
		p.Loops = w.near
		// Of what is inside the tunnel: twice as long.
		p.DialTimeout = time.Second
		dial := p.Dial
		p.Dial = func(ctx context.Context, k Key) (int, *tls.Config, error) {
			if k.Via != nil {
				return -1, n.conf.Load(), nil
			}
			return dial(ctx, k)
		}
	})
	n.conf.Store(n.inner.clientConf())
	n.entry = n.outer.listen(n.outer.near, func(_ *poll.Loop, fd int, _, _ netip.AddrPort) {
		_ = sockopt.NoDelay(fd)
		k := n.outer.key()
		k.Via = &Via{Key: n.outer.key(), Header: Header{Authority: "svc.example:80"}}
		n.outer.pool.Open(&Open{
			Key: k, App: fd, Header: Header{Authority: "svc.example:80", Crosses: true},
			OnUp: func(f *relay.Flow, h ResponseHeader) { n.peers <- h },
			OnFail: func(err *reason.Error, status int) {
				poll.ResetFD(fd)
				n.outer.failures <- failure{err, max(status, k.Via.Status())}
			},
			OnClose: func(_ *relay.Flow, r relay.Result) { n.outer.closed <- r },
		})
	})
	return n
}

// passOn is a gateway: it knows nothing of what it carries.
func passOn(c net.Conn, to netip.AddrPort) {
	up, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		return
	}
	defer up.Close() //nolint:errcheck // carried
	var wg sync.WaitGroup
	for _, d := range [][2]*net.TCPConn{{up, c.(*net.TCPConn)}, {c.(*net.TCPConn), up}} {
		wg.Go(func() {
			if _, err := io.Copy(d[0], d[1]); err != nil {
				_ = d[0].SetLinger(0)
				_ = up.Close()
				_ = c.Close()
			}
			_ = d[0].CloseWrite()
		})
	}
	wg.Wait()
}

func (n *nested) connect(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(n.entry))
	check(t, err)
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// settled waits until no stream is left in the outer tunnels.
func (n *nested) settled(t *testing.T) {
	t.Helper()
	eventually(t, "the outer tunnels carry nothing", func() bool {
		streams := 0
		for _, s := range n.outer.pool.shards {
			done := make(chan int)
			s.loop.Post(func() {
				sum := 0
				for _, c := range s.local {
					if sum += c.streams; c.key.Via != nil {
						sum++ // as long as it lives
					}
				}
				done <- sum
			})
			streams += <-done
		}
		return streams == 0
	})
}

func TestNestedBulkBothWays(t *testing.T) {
	n := newNested(t, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
	}, nil)
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	want := sha256.Sum256(data)
	var wg sync.WaitGroup
	for range 12 {
		c := n.connect(t)
		wg.Go(func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		})
		wg.Go(func() {
			defer c.Close() //nolint:errcheck // at its end
			h := sha256.New()
			if m, err := io.Copy(h, c); err != nil || m != int64(len(data)) || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("%d bytes: %v", m, err)
			}
		})
	}
	wg.Wait()
	for range 12 {
		if r := get(t, n.outer.closed, "a flow ends"); r.Reason != reason.OK || r.Sent != uint64(len(data)) || r.Received != r.Sent {
			t.Errorf("%+v", r)
		}
		if h := get(t, n.peers, "a flow is up"); h.Peer != bob || h.Baggage == "" {
			t.Errorf("the end of the tunnel is %+v", h)
		}
	}
	if d := n.outer.dials.Load(); d != 1 {
		t.Errorf("%d tunnels to the gateway for connections that can share one", d)
	}
	n.settled(t)
}

// A program that does not read stops the one that writes, after a bounded
// number of bytes, and nobody else.
func TestNestedBackPressure(t *testing.T) {
	release := make(chan struct{})
	got := make(chan int64, 2)
	n := newNested(t, func(c net.Conn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil || first[0] == 'q' {
			_, _ = c.Write(first)
			return
		}
		<-release
		m, _ := io.Copy(io.Discard, c)
		got <- m + 1
	}, nil)
	c := n.connect(t)
	defer c.Close() //nolint:errcheck // the test is over
	total, piece := 0, make([]byte, 256<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
		m, err := c.Write(piece)
		total += m
		if err != nil {
			break
		}
		if total > 256<<20 {
			t.Fatal("nothing stops the writer")
		}
	}
	q := n.connect(t)
	if _, err := q.Write([]byte("q")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(q, make([]byte, 1)); err != nil {
		t.Errorf("beside it: %v", err)
	}
	_ = q.Close()
	t.Logf("%d KiB were on the way", total>>10)
	close(release)
	_ = c.CloseWrite()
	if m := get(t, got, "the program reads"); m != int64(total) {
		t.Errorf("%d bytes arrived of %d", m, total)
	}
}

func TestNestedResets(t *testing.T) {
	seen, there := make(chan error, 1), make(chan struct{}, 1)
	n := newNested(t, func(c net.Conn) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if b[0] == 's' {
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		there <- struct{}{}
		_, err := c.Read(b)
		seen <- err
	}, nil)
	c := n.connect(t)
	_, _ = c.Write([]byte("s"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server's reset arrives as %v", err)
	}
	_ = c.Close()
	if r := get(t, n.outer.closed, "the flow ends"); r.Reason != reason.UpstreamReset {
		t.Errorf("%+v", r)
	}
	c = n.connect(t)
	_, _ = c.Write([]byte("c"))
	get(t, there, "the byte is there")
	_ = c.SetLinger(0)
	_ = c.Close()
	if err := get(t, seen, "the server sees it"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client's reset arrives as %v", err)
	}
	if r := get(t, n.outer.closed, "the flow ends"); r.Reason != reason.DownstreamReset {
		t.Errorf("%+v", r)
	}
	n.settled(t)
}

// The gateway goes away below running connections.
func TestNestedGatewayDies(t *testing.T) {
	n := newNested(t, echo, nil)
	c := n.connect(t)
	if !pingPong(c, make([]byte, 64)) {
		t.Fatal("no echo")
	}
	n.outer.server.Close(reason.Draining)
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the program sees %v instead of a reset", err)
	}
	_ = c.Close()
	if r := get(t, n.outer.closed, "the flow ends"); r.Reason != reason.TunnelClosed {
		t.Errorf("%+v", r)
	}
}

func TestNestedFailures(t *testing.T) {
	for _, tc := range []struct {
		name    string
		gateway func(net.Conn)
		set     func(n *nested)
		reason  reason.Reason
		status  int
	}{
		{"the gateway refuses", nil, func(n *nested) {
			n.outer.handle(func(r *Request) { r.Refuse(503, ResponseHeader{}) })
		}, reason.TunnelRefused, 503},
		{"the end refuses", nil, func(n *nested) {
			n.inner.handle(func(r *Request) { r.Refuse(401, ResponseHeader{}) })
		}, reason.TunnelRefused, 401},
		{"the end is somebody else", nil, func(n *nested) {
			n.conf.Store(n.outer.clientConf()) // roots of another authority
		}, reason.TLSFailure, 0},
		{"the gateway hangs up", func(net.Conn) {}, nil, reason.TLSFailure, 0},
		{"the gateway is silent", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, nil, reason.TunnelHandshake, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNested(t, echo, tc.gateway)
			if tc.set != nil {
				tc.set(n)
			}
			c := n.connect(t)
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("it is answered")
			}
			_ = c.Close()
			if f := get(t, n.outer.failures, "it fails"); f.err.Reason != tc.reason || f.status != tc.status {
				t.Errorf("%s, status %d: %v", f.err.Reason, f.status, f.err)
			}
			n.settled(t)
		})
	}
}

// A program that gives up while its tunnels are being made leaves nothing.
func TestNestedAbandoned(t *testing.T) {
	n := newNested(t, echo, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	for range 20 {
		c := n.connect(t)
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	for range 20 {
		get(t, n.outer.failures, "it fails")
	}
	n.settled(t)
}
