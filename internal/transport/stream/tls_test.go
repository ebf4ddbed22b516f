package stream_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

const patience = 60 * time.Second

// confs returns a server's configuration and a client's that trusts it.
func confs(tb testing.TB) (server, client *tls.Config) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}, ClientCAs: pool},
		&tls.Config{RootCAs: pool, ServerName: "test", NextProtos: []string{"http/1.1"}}
}

type result struct {
	conn stream.Conn
	err  error
}

// shake begins a handshake over c.
func shake(tb testing.TB, c stream.Conn, conf *tls.Config, server bool) <-chan result {
	tb.Helper()
	res := make(chan result, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	streamtest.On(tb, c.Loop(), func() {
		stream.TLS(ctx, c, conf, server, func(c stream.Conn, err error) { res <- result{c, err} })
	})
	return res
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

// inside puts TLS over both ends.
func inside(tb testing.TB, e streamtest.Ends) streamtest.Ends {
	tb.Helper()
	server, client := confs(tb)
	a, b := shake(tb, e.A, client, false), shake(tb, e.B, server, true)
	x, y := get(tb, a, "the client's handshake"), get(tb, b, "the server's handshake")
	if x.err != nil || y.err != nil {
		tb.Fatal(x.err, y.err)
	}
	return streamtest.Ends{A: x.conn, B: y.conn}
}

func TestTLS(t *testing.T) {
	for name, under := range map[string]func(tb testing.TB) streamtest.Ends{
		"socket": func(tb testing.TB) streamtest.Ends { return plainPair(tb, streamtest.Loop(tb), streamtest.Loop(tb)) },
		"pieces": func(tb testing.TB) streamtest.Ends {
			a, b := streamtest.Pair(streamtest.Loop(tb), streamtest.Options{Cut: streamtest.Cuts(1, 4, 5, 17, 6, 1000, 20_000)})
			return streamtest.Ends{A: a, B: b}
		},
		"TLS": func(tb testing.TB) streamtest.Ends {
			return inside(tb, plainPair(tb, streamtest.Loop(tb), streamtest.Loop(tb)))
		},
	} {
		allocs := 20.0
		if name == "pieces" {
			allocs = -1
		}
		t.Run(name, func(t *testing.T) {
			streamtest.Suite(t, streamtest.Carrier{
				New:    func(tb testing.TB) streamtest.Ends { return inside(tb, under(tb)) },
				Bound:  16 << 20,
				Allocs: allocs,
				// A pair reports a reset at once to an end that is paused.
				AnyReset: name == "pieces",
			})
		})
	}
}

func TestTLSInfo(t *testing.T) {
	e := inside(t, plainPair(t, streamtest.Loop(t), streamtest.Loop(t)))
	a, b := e.A.Info(), e.B.Info()
	if !a.Dialed || b.Dialed || a.TLS.NegotiatedProtocol != "http/1.1" || b.TLS.ServerName != "test" {
		t.Errorf("%+v, %+v", a, b)
	}
}

// A ticket comes after the handshake. The loop takes it, and the next connection
// resumes the session.
func TestTLSTickets(t *testing.T) {
	server, client := confs(t)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		e := plainPair(t, streamtest.Loop(t), streamtest.Loop(t))
		a, b := shake(t, e.A, client, false), shake(t, e.B, server, true)
		x, y := get(t, a, "the client's handshake"), get(t, b, "the server's handshake")
		if x.err != nil || y.err != nil {
			t.Fatal(x.err, y.err)
		}
		if resumed := x.conn.Info().TLS.DidResume; resumed != (i == 1) {
			t.Errorf("connection %d: resumed %t", i, resumed)
		}
		s := &streamtest.Sink{Conn: x.conn}
		streamtest.On(t, x.conn.Loop(), func() { x.conn.Bind(s) })
		streamtest.On(t, y.conn.Loop(), func() { y.conn.Write([]byte("x")) })
		streamtest.Until(t, x.conn.Loop(), "a byte arrives", func() bool { return len(s.Data) == 1 })
	}
}

// The other end is crypto/tls on a socket of package net.
func foreign(t *testing.T, conf *tls.Config, server bool) (ours stream.Conn, theirs *tls.Conn) {
	t.Helper()
	serverConf, clientConf := confs(t)
	l, raw := streamtest.Loop(t), netPair(t)
	fd, err := take(raw[0])
	if err != nil {
		t.Fatal(err)
	}
	var under stream.Conn
	streamtest.On(t, l, func() { under, err = stream.Plain(l, fd, stream.Info{Dialed: !server}) })
	if err != nil {
		t.Fatal(err)
	}
	var res <-chan result
	if server {
		res = shake(t, under, serverConf, true)
		theirs = tls.Client(raw[1], clientConf)
	} else {
		res = shake(t, under, clientConf, false)
		theirs = tls.Server(raw[1], serverConf)
	}
	_ = theirs.SetDeadline(time.Now().Add(patience))
	if err := theirs.Handshake(); err != nil {
		t.Fatal(err)
	}
	r := get(t, res, "the handshake")
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.conn, theirs
}

func netPair(t *testing.T) (p [2]net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if p[0], err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if p[1], err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p[1].Close() })
	return p
}

func TestTLSEnds(t *testing.T) {
	noLeak(t)
	for _, test := range []struct {
		name  string
		end   func(c *tls.Conn)
		clean bool
		why   reason.Reason
	}{
		{"close_notify", func(c *tls.Conn) { _ = c.Close() }, true, reason.OK},
		{"close_notify alone", func(c *tls.Conn) { _ = c.CloseWrite() }, true, reason.OK},
		{"truncated", func(c *tls.Conn) { _ = c.NetConn().Close() }, false, reason.DownstreamReset},
		{"truncated in a record", func(c *tls.Conn) {
			_, _ = c.NetConn().Write([]byte{23, 3, 3, 1, 0, 9, 9, 9})
			_ = c.NetConn().Close()
		}, false, reason.DownstreamReset},
		{"garbage", func(c *tls.Conn) { _, _ = c.NetConn().Write(bytes.Repeat([]byte("GET "), 100)) }, false, reason.TLSFailure},
		{"reset", func(c *tls.Conn) {
			_ = c.NetConn().(*net.TCPConn).SetLinger(0)
			_ = c.NetConn().Close()
		}, false, reason.DownstreamReset},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, theirs := foreign(t, nil, true)
			s := &streamtest.Sink{Conn: c}
			streamtest.On(t, c.Loop(), func() { c.Bind(s) })
			_, _ = theirs.Write([]byte("last words"))
			streamtest.Until(t, c.Loop(), "bytes arrive", func() bool { return len(s.Data) == 10 })
			test.end(theirs)
			if test.clean {
				streamtest.Until(t, c.Loop(), "the end arrives", func() bool { return s.End || s.Closed })
				streamtest.On(t, c.Loop(), func() { c.Write([]byte("bye")); c.CloseWrite() })
			}
			streamtest.Until(t, c.Loop(), "the stream is closed", func() bool { return s.Closed })
			if s.Why != test.why || s.End != test.clean || !test.clean && s.Err == nil {
				t.Errorf("closed with %s, %v; end %t", s.Why, s.Err, s.End)
			}
			if test.name == "garbage" {
				if _, err := theirs.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("the peer of the garbage gets %v, not an alert", err)
				}
			}
		})
	}
}

// What is written before CloseWrite arrives at a foreign peer, and an orderly end.
func TestTLSToForeignPeer(t *testing.T) {
	c, theirs := foreign(t, nil, false)
	s := &streamtest.Sink{Conn: c}
	p := bytes.Repeat([]byte("0123456789"), 200_000)
	streamtest.On(t, c.Loop(), func() { c.Bind(s); c.Write(p); c.CloseWrite() })
	got, err := io.ReadAll(theirs)
	if err != nil || !bytes.Equal(got, p) {
		t.Errorf("%d bytes of %d, %v", len(got), len(p), err)
	}
	_, _ = theirs.Write([]byte("answer"))
	_ = theirs.Close()
	streamtest.Until(t, c.Loop(), "the stream is closed", func() bool { return s.Closed })
	if string(s.Data) != "answer" || s.Why != reason.OK {
		t.Errorf("%q, closed with %s, %v", s.Data, s.Why, s.Err)
	}
}

// A server that rejects the client says so after the client's handshake is over.
func TestTLSAlertAfterTheHandshake(t *testing.T) {
	server, client := confs(t)
	server.ClientAuth = tls.RequireAndVerifyClientCert
	e := plainPair(t, streamtest.Loop(t), streamtest.Loop(t))
	a, b := shake(t, e.A, client, false), shake(t, e.B, server, true)
	if r := get(t, b, "the server's handshake"); r.err == nil {
		t.Fatal("a client without a certificate is accepted")
	}
	r := get(t, a, "the client's handshake")
	if r.err != nil {
		t.Fatal(r.err)
	}
	s := &streamtest.Sink{Conn: r.conn}
	streamtest.On(t, r.conn.Loop(), func() { r.conn.Bind(s) })
	streamtest.Until(t, r.conn.Loop(), "the stream is closed", func() bool { return s.Closed })
	if s.Why != reason.TLSFailure || s.Err == nil {
		t.Errorf("closed with %s, %v", s.Why, s.Err)
	}
}

func TestTLSHandshakesThatFail(t *testing.T) {
	noLeak(t)
	server, _ := confs(t)
	_, stranger := confs(t)
	for _, test := range []struct {
		name string
		peer func(t *testing.T, c stream.Conn)
	}{
		{"another authority", func(t *testing.T, c stream.Conn) {
			if r := get(t, shake(t, c, stranger, false), "the client's handshake"); r.err == nil {
				t.Error("the client trusts a stranger")
			}
		}},
		{"no TLS", func(t *testing.T, c stream.Conn) {
			streamtest.On(t, c.Loop(), func() { c.Bind(&streamtest.Sink{Conn: c}); c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) })
		}},
		{"end of stream", func(t *testing.T, c stream.Conn) {
			streamtest.On(t, c.Loop(), func() { c.Bind(&streamtest.Sink{Conn: c}); c.CloseWrite() })
		}},
		{"reset", func(t *testing.T, c stream.Conn) {
			streamtest.On(t, c.Loop(), func() { c.Abort(reason.Internal) })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := plainPair(t, streamtest.Loop(t), streamtest.Loop(t))
			res := shake(t, e.B, server, true)
			test.peer(t, e.A)
			if r := get(t, res, "the handshake ends"); r.err == nil || r.conn != nil {
				t.Errorf("%v, %v", r.conn, r.err)
			}
		})
	}
}

// A silent peer: the context ends the wait.
func TestTLSHandshakeThatIsCancelled(t *testing.T) {
	server, _ := confs(t)
	e := plainPair(t, streamtest.Loop(t), streamtest.Loop(t))
	res := make(chan result, 1)
	why := errors.New("patience is over")
	ctx, cancel := context.WithCancelCause(context.Background())
	streamtest.On(t, e.B.Loop(), func() {
		stream.TLS(ctx, e.B, server, true, func(c stream.Conn, err error) { res <- result{c, err} })
	})
	cancel(why)
	if r := get(t, res, "the handshake ends"); !errors.Is(r.err, why) {
		t.Errorf("ended with %v", r.err)
	}
}
