package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/record"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// patience bounds waits that only a fault makes long.
const patience = 60 * time.Second

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func get[T any](tb testing.TB, ch <-chan T, what string) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		tb.Fatalf("not in %s: %s", patience, what)
		panic("unreachable")
	}
}

var certificate = sync.OnceValues(func() (tls.Certificate, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, err
})

// config is for both ends.
func config(tb testing.TB) *tls.Config {
	tb.Helper()
	c, err := certificate()
	check(tb, err)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{c}, InsecureSkipVerify: true,
		ClientAuth: tls.RequireAnyClientCert, ServerName: "x", NextProtos: []string{"h2"},
	}
}

// server has a handshake take conf as it is meant to: one configuration for each.
func server(conf *tls.Config) *tls.Config {
	return &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { return Tuned(conf, h.Conn), nil }}
}

// sockets returns the two ends of a TCP connection, non-blocking.
func sockets(tb testing.TB) (int, int) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(tb, err)
	defer func() { _ = ln.Close() }()
	a, err := net.Dial("tcp", ln.Addr().String())
	check(tb, err)
	b, err := ln.Accept()
	check(tb, err)
	return descriptor(tb, a), descriptor(tb, b)
}

// descriptor takes a connection from Go's poller.
func descriptor(tb testing.TB, c net.Conn) int {
	tb.Helper()
	f, err := c.(*net.TCPConn).File()
	check(tb, err)
	fd, err := poll.Dup(int(f.Fd()))
	check(tb, err)
	check(tb, unix.SetNonblock(fd, true))
	_ = f.Close()
	_ = c.Close()
	return fd
}

// netConn is the other way.
func netConn(tb testing.TB, fd int) net.Conn {
	tb.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	c, err := net.FileConn(f)
	check(tb, err)
	_ = f.Close()
	check(tb, c.SetDeadline(time.Now().Add(patience)))
	return c
}

type end struct {
	why reason.Reason
	err error
}

// role joins every stream with a program, at either end.
type role struct {
	tb      testing.TB
	t       Tunnel
	program func() int // of a server: its socket
	hooks   hooks
	ended   chan end
}

func (r *role) Headers(hs *h2.Stream, h *h2.Header, ends bool) {
	if h.Method == "" { // the answer
		s := hs.User.(*Stream)
		s.Accepted(ends, r.hooks)
		s.Run()
		return
	}
	s := r.t.NewStream(false, r.hooks)
	s.Requested(hs, ends)
	s.Accepted(false, r.hooks)
	if err := r.t.H2().Respond(hs, &h2.Header{Status: 200}, false); err != nil {
		r.tb.Error(err)
	}
	if err := s.Watch(r.program()); err != nil {
		r.tb.Error(err)
	}
	r.t.Touch()
	s.Run()
}
func (r *role) GoingAway(uint32, h2.ErrCode)       {}
func (r *role) Settings()                          {}
func (r *role) Ended(why reason.Reason, err error) { r.ended <- end{why, err} }

type hooks struct{}

func (hooks) Failed(s *Stream, _ reason.Reason, _ error, _ bool) {}
func (hooks) Ended(*Stream, relay.Result)                        {}

// pair is a tunnel with both ends, each on a loop of its own.
type pair struct {
	tb             testing.TB
	near, far      *poll.Group
	client, server *role
	echo           sync.WaitGroup
}

// links shakes hands at both ends.
func links(tb testing.TB, client, srv Security) (c, s Link) {
	tb.Helper()
	a, b := sockets(tb)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	type result struct {
		Link
		error
	}
	done := make(chan result, 1)
	go func() {
		k, err := Handshake(ctx, b, nil, srv)
		done <- result{k, err}
	}()
	c, err := Handshake(ctx, a, nil, client)
	check(tb, err)
	r := get(tb, done, "the server's handshake")
	check(tb, r.error)
	return c, r.Link
}

func newPair(tb testing.TB, c, s Link) *pair {
	tb.Helper()
	p := &pair{tb: tb}
	var err error
	p.near, err = poll.NewGroup(1)
	check(tb, err)
	p.far, err = poll.NewGroup(1)
	check(tb, err)
	p.client = &role{tb: tb, ended: make(chan end, 1)}
	p.server = &role{tb: tb, ended: make(chan end, 1), program: func() int {
		a, b := sockets(tb)
		conn := netConn(tb, b)
		p.echo.Go(func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		})
		return a
	}}
	p.start(p.far.Loop(0), p.server, s, true)
	p.start(p.near.Loop(0), p.client, c, false)
	tb.Cleanup(p.close)
	return p
}

func on(tb testing.TB, l *poll.Loop, f func()) {
	tb.Helper()
	done := make(chan struct{})
	l.Post(func() { f(); close(done) })
	get(tb, done, "the loop runs")
}

func (p *pair) start(l *poll.Loop, r *role, k Link, server bool) {
	on(p.tb, l, func() {
		cfg := Config{H2: h2.Config{Server: server, MaxStreams: 100, MaxFrame: 1 << 20}}
		if err := r.t.Start(l, k, cfg, r); err != nil {
			p.tb.Error(err)
		}
	})
}

// open returns a connection whose other end echoes.
func (p *pair) open() net.Conn {
	a, b := sockets(p.tb)
	on(p.tb, p.near.Loop(0), func() {
		t := &p.client.t
		s := t.NewStream(true, hooks{})
		if err := s.Watch(a); err != nil {
			p.tb.Error(err)
		}
		hs, err := t.H2().Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, false)
		if err != nil {
			p.tb.Error(err)
			return
		}
		s.Requested(hs, false)
		t.Touch()
	})
	return netConn(p.tb, b)
}

func (p *pair) close() {
	for i, r := range []*role{p.client, p.server} {
		g := []*poll.Group{p.near, p.far}[i]
		on(p.tb, g.Loop(0), func() { r.t.Fail(reason.Draining, nil) })
	}
	p.echo.Wait()
	p.near.Close()
	p.far.Close()
}

// echoes sends n bytes, and checks what comes back.
func echoes(tb testing.TB, c net.Conn, n int) {
	tb.Helper()
	want := make([]byte, n)
	_, _ = rand.Read(want)
	go func() {
		_, _ = c.Write(want)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		tb.Errorf("%d bytes of %d came back, %v", len(got), n, err)
	}
	_ = c.Close()
}

// Package record takes over whatever fits, and crypto/tls goes on with the rest. Either
// carries every size.
func TestTakeOver(t *testing.T) {
	for _, tc := range []struct {
		name           string
		change         func(client, srv *Security)
		client, server bool // record has it
	}{
		{"both", func(_, _ *Security) {}, true, true},
		{"client with crypto/tls", func(c, _ *Security) { c.LibraryRecords = true }, false, true},
		{"server with crypto/tls", func(_, s *Security) { s.LibraryRecords = true }, true, false},
		{"neither", func(c, s *Security) { c.LibraryRecords, s.LibraryRecords = true, true }, false, false},
		{"TLS 1.2", func(c, _ *Security) { c.Config.MaxVersion = tls.VersionTLS12 }, false, false},
		{"the secrets go elsewhere", func(c, _ *Security) { c.Config.KeyLogWriter = io.Discard }, false, true},
		{"a server that would send tickets", func(c, s *Security) {
			c.Config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			inner := s.Config.GetConfigForClient
			s.Config = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				conf, err := inner(h)
				conf.SessionTicketsDisabled = false // as a fault in Tuned would
				return conf, err
			}}
		}, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, s := Security{Config: config(t)}, Security{Config: server(config(t)), Server: true}
			tc.change(&c, &s)
			near, far := links(t, c, s)
			if (near.rec != nil) != tc.client || (far.rec != nil) != tc.server {
				t.Errorf("record has the client: %v, the server: %v", near.rec != nil, far.rec != nil)
			}
			if (near.rec == nil) == (near.conn == nil) || (far.rec == nil) == (far.conn == nil) {
				t.Error("a tunnel has both, or none")
			}
			p := newPair(t, near, far)
			for _, n := range []int{0, 1, 8<<10 - 1, 8 << 10, MaxRecord - h2.FrameHeaderLen, MaxRecord, 100_000, 3 << 20} {
				echoes(t, p.open(), n)
			}
		})
	}
}

// A server that, by a fault in Tuned or in crypto/tls, has sent a session ticket has used
// the first nonce. crypto/tls goes on: another record with that nonce must not be sent.
func TestTicketsAreNoticed(t *testing.T) {
	conf := config(t)
	c := Security{Config: conf}
	s := Security{Server: true, Config: &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		own := Tuned(conf, h.Conn)
		own.SessionTicketsDisabled = false
		return own, nil
	}}}
	a, b := sockets(t)
	done := make(chan error, 1)
	go func() {
		conn := tls.Client(netConn(t, a), &tls.Config{InsecureSkipVerify: true, Certificates: c.Config.Certificates,
			ServerName: "x", ClientSessionCache: tls.NewLRUClientSessionCache(1)})
		err := conn.Handshake()
		_ = conn.NetConn().Close()
		done <- err
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	k, err := Handshake(ctx, b, nil, s)
	check(t, err)
	check(t, get(t, done, "the client's handshake"))
	if k.rec != nil || k.conn == nil {
		t.Error("a connection was taken over on which crypto/tls has sent a ticket")
	}
	k.Close()
}

// Two terabytes are 2^27 full records, and so eight keys. Here a key is for 64 records.
// crypto/tls at either end goes on, and so does the tunnel.
func TestTunnelOfTwoTerabytes(t *testing.T) {
	const limit, keys = 64, 8
	for _, tc := range []struct {
		name           string
		client, server bool // record has it
	}{{"both", true, true}, {"client", true, false}, {"server", false, true}} {
		t.Run(tc.name, func(t *testing.T) {
			near, far := links(t,
				Security{Config: config(t), LibraryRecords: !tc.client},
				Security{Config: server(config(t)), Server: true, LibraryRecords: !tc.server})
			for _, k := range []Link{near, far} {
				if k.rec != nil {
					k.rec.UpdateAfter(limit)
				}
			}
			p := newPair(t, near, far)
			var all sync.WaitGroup
			for range 4 {
				c := p.open()
				all.Go(func() { echoes(t, c, keys*limit*MaxRecord) }) // four times as much in all: a request takes its time
			}
			all.Wait()
			for i, r := range []*role{p.client, p.server} {
				on(t, []*poll.Group{p.near, p.far}[i].Loop(0), func() {
					if r.t.closed {
						t.Errorf("end %d: the tunnel has ended: %v", i, r.t.err)
					}
					if r.t.rec == nil {
						return
					}
					if in, out := r.t.rec.Updates(); in < keys || out < keys {
						t.Errorf("end %d: keys changed %d and %d times, want %d", i, in, out, keys)
					}
				})
			}
		})
	}
}

// attacker is a client that holds the keys of its connection to a tunnel's server.
func attacker(t *testing.T) (net.Conn, *record.Conn, *role) {
	t.Helper()
	a, b := sockets(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan Link, 1)
	go func() {
		k, err := Handshake(ctx, a, nil, Security{Config: config(t)})
		if err != nil {
			t.Error(err)
		}
		done <- k
	}()
	k, err := Handshake(ctx, b, nil, Security{Config: server(config(t)), Server: true})
	check(t, err)
	client := get(t, done, "the client's handshake")
	g, err := poll.NewGroup(1)
	check(t, err)
	r := &role{tb: t, ended: make(chan end, 1)}
	on(t, g.Loop(0), func() {
		if err := r.t.Start(g.Loop(0), k, Config{H2: h2.Config{Server: true}}, r); err != nil {
			t.Error(err)
		}
	})
	conn := netConn(t, client.fd)
	t.Cleanup(func() {
		_ = conn.Close()
		on(t, g.Loop(0), func() { r.t.Fail(reason.Draining, nil) })
		g.Close()
	})
	return conn, client.rec, r
}

// What a peer with keys can send ends its tunnel, and the peer gets the alert for that.
func TestPeersThatBreakRecords(t *testing.T) {
	for _, tc := range []struct {
		name  string
		send  func(t *testing.T, c *record.Conn) []byte
		err   string
		alert string // nothing: the end
	}{
		{"forged", func(_ *testing.T, c *record.Conn) []byte {
			p := c.Append(nil, []byte(h2Preface))
			p[len(p)-1] ^= 1
			return p
		}, "bad record MAC", "bad record MAC"},
		{"too long", func(*testing.T, *record.Conn) []byte { return []byte{23, 3, 3, 255, 255} }, "longer than", "record overflow"},
		{"in the clear", func(*testing.T, *record.Conn) []byte { return []byte("GET / HTTP/1.1\r\n") }, "does not belong", "unexpected message"},
		{"key updates for ever", func(t *testing.T, c *record.Conn) (p []byte) {
			for range 100 {
				p = mustControl(t, c, p)
			}
			return p
		}, "carry nothing", "unexpected message"},
		{"a key update with every byte", func(t *testing.T, c *record.Conn) (p []byte) {
			c.UpdateAfter(1)
			preface := []byte(h2Preface + "\x00\x04\x00\xff\x00\x00\x00\x00\x00") // a frame to ignore
			for i := range 1000 {
				p = mustControl(t, c, p)
				b := byte(0)
				if i < len(preface) {
					b = preface[i]
				}
				p = c.Append(p, []byte{b})
			}
			return p
		}, "KeyUpdates", "unexpected message"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, c, r := attacker(t)
			if _, err := conn.Write(tc.send(t, c)); err != nil {
				t.Fatal(err)
			}
			e := get(t, r.ended, "the tunnel ends")
			if e.why != reason.TunnelClosed || e.err == nil || !strings.Contains(e.err.Error(), tc.err) {
				t.Errorf("it ended with %s, %v", e.why, e.err)
			}
			// The alert may be lost when the kernel resets the connection behind it.
			p, rerr := io.ReadAll(conn)
			_, _, err := c.Open(p)
			var op *net.OpError
			switch {
			case errors.As(err, &op) && strings.Contains(op.Error(), tc.alert):
			case err == nil && errors.Is(rerr, unix.ECONNRESET):
			default:
				t.Errorf("the peer got %v, %v", err, rerr)
			}
		})
	}
}

// h2Preface is what a client sends first, and its empty SETTINGS.
const h2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

func mustControl(t *testing.T, c *record.Conn, p []byte) []byte {
	t.Helper()
	p, err := c.Control(p)
	check(t, err)
	return p
}

// A connection that ends inside of a record was cut; one that ends between two, or with
// close_notify, has ended.
func TestEndsOfRecords(t *testing.T) {
	for _, tc := range []struct {
		name string
		send func(c *record.Conn) []byte
		err  error
	}{
		{"nothing", func(*record.Conn) []byte { return nil }, nil},
		{"close_notify", func(c *record.Conn) []byte { return c.Close(nil) }, nil},
		{"whole record", func(c *record.Conn) []byte { return c.Append(nil, []byte(h2Preface)) }, nil},
		{"half a header", func(c *record.Conn) []byte { return c.Append(nil, []byte(h2Preface))[:3] }, io.ErrUnexpectedEOF},
		{"half a record", func(c *record.Conn) []byte { return c.Append(nil, []byte(h2Preface))[:30] }, io.ErrUnexpectedEOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, c, r := attacker(t)
			_, _ = conn.Write(tc.send(c))
			check(t, conn.(*net.TCPConn).CloseWrite())
			if e := get(t, r.ended, "the tunnel ends"); e.why != reason.TunnelClosed || !errors.Is(e.err, tc.err) {
				t.Errorf("it ended with %s, %v", e.why, e.err)
			}
		})
	}
}

// A peer that begins a record and sends no more holds as much memory as it has sent.
func TestStartsOfRecords(t *testing.T) {
	h := &hub{}
	small := h.keep(nil, []byte("abc"))
	if cap(small) > 16 || string(small) != "abc" {
		t.Errorf("3 bytes take %d", cap(small))
	}
	big := h.keep(small, make([]byte, 9000))
	if cap(big) != record.MaxRecord || len(big) != 9000 {
		t.Errorf("9,000 bytes take %d", cap(big))
	}
	if p := h.keep(big, nil); p != nil || len(h.parts) != 1 {
		t.Errorf("the buffer is kept by the connection: %d free", len(h.parts))
	}
	if p := h.keep(nil, []byte("abc")); cap(p) != record.MaxRecord || len(h.parts) != 0 {
		t.Error("a free buffer is not used")
	}
	for range 2 * freeParts {
		h.drop(make([]byte, 0, record.MaxRecord))
	}
	if len(h.parts) != freeParts {
		t.Errorf("%d free buffers are kept", len(h.parts))
	}
}

// Room for ciphertext never loses what waits, and what was written is not kept for ever.
func TestReserve(t *testing.T) {
	tun := &Tunnel{hub: &hub{}, wire: &wire{}}
	want, k := []byte{}, byte(0)
	for i := range 20000 {
		n := i * 7919 % 300_000
		tun.reserve(n)
		if cap(tun.wire.out)-len(tun.wire.out) < n {
			t.Fatalf("no room for %d bytes", n)
		}
		for range min(n, 50) {
			k++
			tun.wire.out = append(tun.wire.out, k)
			want = append(want, k)
		}
		w := i * 104729 % 97 * len(want) / 97
		tun.sent += w
		want = want[w:]
		if !bytes.Equal(tun.wire.out[tun.sent:], want) {
			t.Fatalf("step %d: what waits has changed", i)
		}
	}
	if cap(tun.wire.out) > maxOut {
		t.Errorf("the buffer has %d bytes", cap(tun.wire.out))
	}
}

// A handshake gets its records and nothing behind them, however they arrive.
func TestBoundsOfAHandshake(t *testing.T) {
	stream := []byte("\x16\x03\x01\x00\x03abc\x14\x03\x03\x00\x01\x01\x17\x03\x03\x00\x00\x17\x03\x03\x00\x05hello")
	for size := 1; size <= len(stream); size++ {
		var b bounds
		var ends []int
		at := 0
		for at < len(stream) {
			n := min(size, b.next(), len(stream)-at)
			b.passed(stream[at : at+n])
			if at += n; !b.inside() {
				ends = append(ends, at)
			}
		}
		if len(ends) != 4 || ends[0] != 8 || ends[1] != 14 || ends[2] != 19 || ends[3] != len(stream) {
			t.Fatalf("reads of %d: records end at %v", size, ends)
		}
	}
}
