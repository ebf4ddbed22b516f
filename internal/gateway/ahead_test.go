package gateway

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/gateway/early"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// never is longer than any test: what happens has not waited for it.
const never = time.Hour

// listener is a program of which the test has each connection.
func listener(t testing.TB) (addr string, conns <-chan net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	ch := make(chan net.Conn, 16)
	go func() {
		defer close(ch)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			ch <- c
		}
	}()
	return ln.Addr().String(), ch
}

// undeclared is a world with a service whose port declares nothing, and a program of it.
func undeclared(t *testing.T, silence time.Duration) (*world, <-chan net.Conn) {
	w := newWorld(t, 1)
	w.g.opts.silence = silence
	w.service("any", "10.1.0.8", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_UNKNOWN })
	addr, conns := listener(t)
	w.endpoint("any", "10.0.8.1", "any", addr)
	return w, conns
}

func (w *world) open(authority string) net.Conn {
	w.t.Helper()
	c, err := w.connect(authority)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// next returns the next connection that a program gets.
func next(t testing.TB, conns <-chan net.Conn) net.Conn {
	t.Helper()
	select {
	case c := <-conns:
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		t.Cleanup(func() { _ = c.Close() })
		return c
	case <-time.After(time.Minute):
		t.Fatal("the program gets no connection")
		return nil
	}
}

func write(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("%q, error %v; want %q", b[:n], err, want)
	}
}

// readEnd reads until the peer ends, and returns what came.
func readEnd(c net.Conn) string {
	b, _ := io.ReadAll(c)
	return string(b)
}

// aheadIs waits until a loop has n connections to endpoints whose clients have sent nothing.
func (w *world) aheadIs(n int) {
	w.t.Helper()
	l := w.group.Loop(0)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		got := 0
		w.on(l, func() {
			for c := range w.g.shard(l).sessions {
				if c.ahead != nil && c.ahead.up != nil {
					got++
				}
			}
		})
		if got == n {
			return
		}
	}
	w.t.Fatalf("%d connections are not made ahead", n)
}

// TestServerFirst: a server that speaks first is heard, though its port declares nothing,
// without any wait for the client.
func TestServerFirst(t *testing.T) {
	w, conns := undeclared(t, never)
	c := w.open("10.1.0.8:80")
	s := next(t, conns)
	write(t, s, "220 mail ESMTP\r\n")
	read(t, c, "220 mail ESMTP\r\n")
	write(t, c, "EHLO a\r\n")
	read(t, s, "EHLO a\r\n")
	write(t, c, "GET / HTTP/1.1\r\n") // the first bytes have decided
	read(t, s, "GET / HTTP/1.1\r\n")
	_ = s.Close()
	_ = c.Close()
	if r := w.seen(1, func() []Record { return w.conns })[0]; r.Endpoint == nil || r.Tries != 1 || r.Sent != 16 {
		t.Errorf("%+v", r)
	}
}

// TestClientFirst: a client that takes its time is still one of HTTP, with its routes, and
// the connection that was made ahead is given back.
func TestClientFirst(t *testing.T) {
	w, conns := undeclared(t, never)
	w.service("v1", "10.1.0.2", func(*workloadpb.Service) {})
	w.endpoint("v1", "10.0.2.1", "v1", program(t, "v1"))
	w.routes("any", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "v1", Weight: 1}}})
	c := w.open("10.1.0.8:80")
	s := next(t, conns)
	w.aheadIs(1)
	if status, b := get(t, c, "/a"); status != 200 || b != "v1 GET /a " {
		t.Errorf("%d %q", status, b)
	}
	if got := readEnd(s); got != "" {
		t.Errorf("the endpoint that was connected ahead gets %q", got)
	}
	w.seen(1, func() []Record { return w.requests })
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.conns) != 0 {
		t.Errorf("a connection without HTTP is reported: %+v", w.conns)
	}
}

// TestServerOfHTTP2First: servers of HTTP/2 send settings before the client has sent anything.
// They are no servers that speak first.
func TestServerOfHTTP2First(t *testing.T) {
	w, conns := undeclared(t, never)
	w.service("v1", "10.1.0.2", func(*workloadpb.Service) {})
	w.endpoint("v1", "10.0.2.1", "v1", program(t, "v1"))
	w.routes("any", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "v1", Weight: 1}}})
	c := w.open("10.1.0.8:80")
	s := next(t, conns)
	write(t, s, "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	if got := readEnd(s); got != "" {
		t.Errorf("the endpoint gets %q", got)
	}
	if status, b := get(t, c, "/a"); status != 200 || b != "v1 GET /a " {
		t.Errorf("%d %q", status, b)
	}
}

// TestHTTPAfterServer: HTTP that comes after the server has spoken, or after the silence of
// both, reaches no program, in whatever pieces it comes: nothing has judged it.
func TestHTTPAfterServer(t *testing.T) {
	for name, parts := range map[string][]string{
		"HTTP/1": {"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, "in pieces": {"GE", "T / HT", "TP/1.1\r\n"}, "HTTP/2": {"PRI * HTTP/2.0\r\n\r\nSM\r\n", "\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w, conns := undeclared(t, never)
			c := w.open("10.1.0.8:80")
			s := next(t, conns)
			write(t, s, "hello\n")
			read(t, c, "hello\n")
			last := len(parts) - 1
			for _, p := range parts[:last] {
				write(t, c, p)
				read(t, s, p)
			}
			write(t, c, parts[last])
			if got := readEnd(s); got != "" {
				t.Errorf("the program gets %q", got)
			}
			if r := w.seen(1, func() []Record { return w.conns })[0]; r.Reason != reason.MalformedRequest || r.Err == nil {
				t.Errorf("%v %v", r.Reason, r.Err)
			}
		})
	}
	t.Run("slow request line", func(t *testing.T) {
		w, conns := undeclared(t, silence)
		c := w.open("10.1.0.8:80")
		write(t, c, "GET /ad")
		s := next(t, conns)
		read(t, s, "GET /ad")
		write(t, c, "min HTTP/1.1\r\n")
		if got := readEnd(s); got != "" {
			t.Errorf("the program gets %q", got)
		}
	})
}

// TestAheadOfPolicies: a service with policies for HTTP has no endpoint connected for a
// silent client, which is refused.
func TestAheadOfPolicies(t *testing.T) {
	w, conns := undeclared(t, silence)
	w.enforce(denied("any", "/x"))
	c := w.open("10.1.0.8:80")
	if got := readEnd(c); got != "" {
		t.Errorf("the client gets %q", got)
	}
	if r := w.seen(1, func() []Record { return w.conns })[0]; r.Reason != reason.PolicyDenied {
		t.Errorf("%v", r.Reason)
	}
	select {
	case <-conns:
		t.Error("the program got a connection")
	default:
	}
	if len(w.dialled) != 0 {
		t.Errorf("dialled %v", w.dialled)
	}
}

// TestAheadIsBounded: silent clients cost endpoints no more connections than the bound, and
// what they leave is there for others.
func TestAheadIsBounded(t *testing.T) {
	w, conns := undeclared(t, never)
	w.on(w.group.Loop(0), func() { w.g.shard(w.group.Loop(0)).room = early.Room{Total: 8, Each: 2} })
	clients := []net.Conn{w.open("10.1.0.8:80"), w.open("10.1.0.8:80"), w.open("10.1.0.8:80")}
	first, second := next(t, conns), next(t, conns)
	w.aheadIs(2)
	for _, c := range clients {
		_ = c.Close()
	}
	if a, b := readEnd(first), readEnd(second); a+b != "" {
		t.Errorf("%q %q", a, b)
	}
	third := next(t, conns) // of the end that the third has sent
	_, _, _ = first.Close(), second.Close(), third.Close()
	w.seen(3, func() []Record { return w.conns })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		free := false
		w.on(w.group.Loop(0), func() {
			room := &w.g.shard(w.group.Loop(0)).room
			one, other := room.Enter(clientID), room.Enter(clientID)
			for _, in := range []bool{one, other} {
				if in {
					room.Leave(clientID)
				}
			}
			free = one && other
		})
		if free {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("places are not given back")
		}
	}
	_ = w.open("10.1.0.8:80")
	next(t, conns)
}

// TestAheadEnds: the end of a silent server, and of a silent client, are the other's.
func TestAheadEnds(t *testing.T) {
	w, conns := undeclared(t, never)
	c := w.open("10.1.0.8:80")
	_ = next(t, conns).Close()
	if got := readEnd(c); got != "" {
		t.Errorf("%q", got)
	}
	_ = c.Close()
	c = w.open("10.1.0.8:80")
	s := next(t, conns)
	_ = c.(*net.TCPConn).CloseWrite()
	if got := readEnd(s); got != "" {
		t.Errorf("%q", got)
	}
	write(t, s, "bye")
	_ = s.Close()
	if got := readEnd(c); got != "bye" {
		t.Errorf("%q", got)
	}
	for _, r := range w.seen(2, func() []Record { return w.conns }) {
		if r.Reason != reason.OK || r.Endpoint == nil {
			t.Errorf("%v %v", r.Reason, r.Err)
		}
	}
}

// TestAheadFails: an endpoint that cannot be reached is reported as without HTTP.
func TestAheadFails(t *testing.T) {
	w := newWorld(t, 1)
	w.service("any", "10.1.0.8", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_UNKNOWN })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.endpoint("any", "10.0.8.1", "any", ln.Addr().String())
	_ = ln.Close()
	if got := readEnd(w.open("10.1.0.8:80")); got != "" {
		t.Errorf("%q", got)
	}
	if r := w.seen(1, func() []Record { return w.conns })[0]; r.Reason != reason.ConnectFailure {
		t.Errorf("%v %v", r.Reason, r.Err)
	}
}

// TestAheadDrains: a client that has sent nothing does not keep a gateway that goes away.
func TestAheadDrains(t *testing.T) {
	w, conns := undeclared(t, never)
	c := w.open("10.1.0.8:80")
	s := next(t, conns)
	w.g.Drain()
	w.g.EndIdle()
	if a, b := readEnd(c), readEnd(s); a+b != "" {
		t.Errorf("%q %q", a, b)
	}
}

// TestHeadInPieces: the first bytes of a port that declares HTTP may come slowly.
func TestHeadInPieces(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "v1", Weight: 1}}})
	c := w.open("10.1.0.1:80")
	write(t, c, "GE")
	_ = c.SetReadDeadline(time.Now().Add(3 * silence))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a slow client gets %d bytes, error %v", n, err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	write(t, c, "T /a HTTP/1.1\r\nHost: a\r\n\r\n")
	read(t, c, "HTTP/1.1 200 OK\r\n")
}
