package exchange_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// script runs f with each connection to the backend.
func (m *memory) script(f func(c *netConn, r *bufio.Reader)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := m.backends.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f(c.(*netConn), bufio.NewReader(c)) })
		}
	})
	m.t.Cleanup(func() {
		_ = m.backends.Close()
		wg.Wait()
	})
}

// idle waits until nothing is under way.
func (m *memory) idle() {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		n := 0
		m.on(func() { n = m.engine.Active() })
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%d exchanges do not end", n)
		}
	}
}

// TestBackendVanishes: whatever a backend does before or in its response, the client
// gets an answer or sees that it was cut.
func TestBackendVanishes(t *testing.T) {
	answer := func(s string, reset bool) func(*netConn, *bufio.Reader) {
		return func(c *netConn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, s)
			if reset {
				c.Reset()
			} else {
				_ = c.Close()
			}
		}
	}
	const cut = -1 // the head arrives, the body does not
	for name, test := range map[string]struct {
		f      func(*netConn, *bufio.Reader)
		status int
		why    reason.Reason
	}{
		"end before the request":  {func(c *netConn, _ *bufio.Reader) { _ = c.Close() }, 503, reason.UpstreamReset},
		"reset at once":           {func(c *netConn, _ *bufio.Reader) { c.Reset() }, 503, reason.UpstreamReset},
		"end without a response":  {answer("", false), 503, reason.UpstreamReset},
		"reset without one":       {answer("", true), 503, reason.UpstreamReset},
		"half a head":             {answer("HTTP/1.1 200 OK\r\nConte", false), 503, reason.UpstreamReset},
		"half a head, reset":      {answer("HTTP/1.1 200 OK\r\nConte", true), 503, reason.UpstreamReset},
		"no HTTP":                 {answer("SSH-2.0-OpenSSH\r\n\r\n", false), 502, reason.UpstreamProtocol},
		"two lengths":             {answer("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", false), 502, reason.UpstreamProtocol},
		"unasked switch":          {answer("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", false), 502, reason.UpstreamProtocol},
		"short body":              {answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", false), cut, reason.UpstreamReset},
		"short body, reset":       {answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", true), cut, reason.UpstreamReset},
		"half a chunk":            {answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", false), cut, reason.UpstreamReset},
		"no last chunk":           {answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", false), cut, reason.UpstreamReset},
		"broken chunk":            {answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc", false), cut, reason.UpstreamProtocol},
		"body until reset":        {answer("HTTP/1.1 200 OK\r\n\r\nabc", true), cut, reason.UpstreamReset},
		"body until the end":      {answer("HTTP/1.1 200 OK\r\n\r\nabc", false), 200, reason.OK},
		"informs, then the end":   {answer("HTTP/1.1 103 Early Hints\r\n\r\n", false), 503, reason.UpstreamReset},
		"a second response":       {answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n", false), 200, reason.OK},
		"more than it has stated": {answer("HTTP/1.1 204 No Content\r\n\r\nabc", false), 204, reason.OK},
	} {
		for version, protocols := range map[string]*http.Protocols{"1": nil, "2": cleartext2()} {
			t.Run(name+" "+version, func(t *testing.T) {
				m := newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) { w.h2 = version == "2" })
				m.script(test.f)
				r, err := m.client(protocols).Post("http://h/", "text/plain", strings.NewReader("hello"))
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(r.Body)
				_ = r.Body.Close()
				if test.status == cut && (r.StatusCode != 200 || err == nil) || test.status != cut && (r.StatusCode != test.status || err != nil) {
					t.Errorf("%d %v", r.StatusCode, err)
				}
				if got := m.record(0); got.Reason != test.why {
					t.Errorf("%+v", got)
				}
				m.idle()
			})
		}
	}
}

// TestClientVanishes: whenever a client goes, the backend hears of it and nothing is
// left.
func TestClientVanishes(t *testing.T) {
	const (
		inHead = iota
		dialling
		waiting
		inBody
		inResponse
		inUpgrade
	)
	for name, state := range map[string]int{
		"in the head": inHead, "while dialling": dialling, "waiting": waiting, "in the body": inBody, "in the response": inResponse, "after an upgrade": inUpgrade,
	} {
		for _, reset := range []bool{true, false} {
			if !reset && (state == waiting || state == dialling || state == inResponse || state == inUpgrade) {
				continue // a half-closed client still gets its response
			}
			t.Run(fmt.Sprint(name, " reset=", reset), func(t *testing.T) {
				blocked := make(chan struct{})
				m := newMemory(t, toB(), whole, func(_ *world, _ *configs, p *pool.Config) {
					if state == dialling {
						p.Dial = func(*poll.Loop, *pool.Target, func(stream.Conn, *reason.Error)) func() {
							close(blocked)
							return func() {}
						}
					}
				})
				begun, ended := make(chan struct{}, 9), make(chan error, 9)
				m.script(func(c *netConn, r *bufio.Reader) {
					req, err := http.ReadRequest(r)
					if err != nil {
						ended <- err
						return
					}
					switch state {
					case inResponse:
						_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
					case inUpgrade:
						_, _ = io.WriteString(c, "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc")
					}
					begun <- struct{}{}
					_, err = io.Copy(io.Discard, req.Body)
					if err == nil {
						_, err = r.ReadByte()
					}
					ended <- err
					_ = c.Close()
				})
				c := m.connect()
				switch state {
				case inHead:
					_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHo")
				case inBody:
					_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
				case inUpgrade:
					_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
				default:
					_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
				}
				switch state {
				case inHead:
				case dialling:
					<-blocked
				case inResponse, inUpgrade:
					if _, err := io.ReadFull(c, make([]byte, 40)); err != nil {
						t.Fatal(err)
					}
				default:
					<-begun
				}
				if reset {
					c.Reset()
				} else {
					_ = c.Close()
				}
				if state != inHead && state != dialling {
					if err := <-ended; err == nil {
						t.Error("the backend got a byte")
					}
				}
				if state != inHead {
					if got := m.record(0); got.Reason != reason.DownstreamReset {
						t.Errorf("%+v", got)
					}
				}
				m.idle()
				m.on(func() {
					if n := m.pool.Idle(); n != 0 {
						t.Errorf("%d connections with half an exchange are kept", n)
					}
				})
			})
		}
	}
}

// TestHalfClosedClient: a client that sends no more still gets its response, and then
// the end.
func TestHalfClosedClient(t *testing.T) {
	m := newMemory(t, toB(), whole)
	release := make(chan struct{})
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		<-release
		_, _ = io.WriteString(rw, "done")
	}), nil)
	c := m.connect()
	_, _ = io.WriteString(c, "GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
	_ = c.CloseWrite()
	close(release)
	r := bufio.NewReader(c)
	for range 2 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil || body(t, resp) != "done" {
			t.Fatalf("%+v %v", resp, err)
		}
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

// TestSlowReader: a client that does not read stops the backend; what is held
// between is bounded. The same for a backend that does not read.
func TestSlowReader(t *testing.T) {
	// net/http's client of HTTP/2 itself takes 4 MiB for a reader that waits.
	const size, bound = 64 << 20, 6 << 20
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", h2), func(t *testing.T) {
			m := newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) { w.h2, w.h2up = h2, h2 })
			var sent atomic.Int64
			var protocols *http.Protocols
			if h2 {
				protocols = cleartext2()
			}
			hold := make(chan struct{})
			m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/up" {
					<-hold
					n, err := io.Copy(io.Discard, r.Body)
					_, _ = fmt.Fprint(rw, n, " ", err)
					return
				}
				b := make([]byte, 32<<10)
				for range size / len(b) {
					n, err := rw.Write(b)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			}), protocols)
			c := m.client(protocols)
			r := do(t, c, "GET", "http://h/down")
			if n := still(&sent); n > bound {
				t.Errorf("%d bytes were taken from the backend for a client that does not read", n)
			}
			if n, err := io.Copy(io.Discard, r.Body); n != size || err != nil {
				t.Errorf("%d %v", n, err)
			}
			_ = r.Body.Close()

			sent.Store(0)
			done := make(chan string)
			go func() {
				r, err := c.Post("http://h/up", "text/plain", &counted{n: &sent, left: size})
				if err != nil {
					done <- err.Error()
					return
				}
				done <- body(t, r)
			}()
			if n := still(&sent); n > bound {
				t.Errorf("%d bytes were taken from the client for a backend that does not read", n)
			}
			close(hold)
			if b := <-done; b != fmt.Sprint(size, " <nil>") {
				t.Error(b)
			}
		})
	}
}

// counted is a body of left bytes.
type counted struct {
	n    *atomic.Int64
	left int
}

func (c *counted) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	k := min(len(p), c.left)
	c.left -= k
	c.n.Add(int64(k))
	return k, nil
}

// still waits until a number that has begun to grow does so no more.
func still(n *atomic.Int64) int64 {
	last, same := int64(0), 0
	for same < 50 {
		time.Sleep(2 * time.Millisecond)
		if now := n.Load(); now == last && now > 0 {
			same++
		} else {
			last, same = now, 0
		}
	}
	return last
}

// TestThousand: a thousand exchanges at once, of which each gets its own bytes.
func TestThousand(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", h2), func(t *testing.T) {
			cut := func() func(int) int { return streamtest.Cuts(100, 1, 3000) }
			m := newMemory(t, toB(), cut, func(w *world, _ *configs, _ *pool.Config) { w.h2, w.h2up = h2, h2 })
			var protocols *http.Protocols
			if h2 {
				protocols = cleartext2()
			}
			var here sync.WaitGroup
			here.Add(1000)
			m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				here.Done()
				here.Wait() // all of them are under way
				_, _ = io.Copy(rw, r.Body)
			}), protocols)
			var wg sync.WaitGroup
			clients := make([]*http.Client, 20)
			for i := range clients {
				clients[i] = m.client(protocols)
			}
			for i := range 1000 {
				wg.Go(func() {
					want := bytes.Repeat(fmt.Append(nil, i, ","), 500)
					r, err := clients[i%len(clients)].Post("http://h/", "text/plain", bytes.NewReader(want))
					if err != nil {
						t.Error(err)
						return
					}
					if got := body(t, r); got != string(want) {
						t.Errorf("%d: %d bytes of %d, or others", i, len(got), len(want))
					}
				})
			}
			wg.Wait()
			m.idle()
		})
	}
}

// TestDrain: the response under way is complete and says that the connection ends;
// HTTP/2 clients hear it by GOAWAY.
func TestDrain(t *testing.T) {
	m := newMemory(t, toB(), whole)
	begun, release := make(chan struct{}), make(chan struct{})
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		close(begun)
		<-release
		_, _ = io.WriteString(rw, "last")
	}), nil)
	busy, quiet := m.connect(), m.connect()
	_, _ = io.WriteString(busy, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-begun
	m.drain()
	if _, err := quiet.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection: %v", err)
	}
	_ = quiet.Close()
	close(release)
	r := bufio.NewReader(busy)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || body(t, resp) != "last" || !resp.Close {
		t.Errorf("%+v %v", resp, err)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	_ = busy.Close()
}

// TestDrainLate: a response that has begun before the drain ends its connection too.
func TestDrainLate(t *testing.T) {
	m := newMemory(t, toB(), whole)
	release := make(chan struct{})
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "first ")
		_ = http.NewResponseController(rw).Flush()
		<-release
		_, _ = io.WriteString(rw, "last")
	}), nil)
	c := m.connect()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.drain()
	close(release)
	if b := body(t, resp); b != "first last" {
		t.Error(b)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	_ = c.Close()
}

func TestDrainHTTP2(t *testing.T) {
	m := newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) { w.h2, w.h2up = true, true })
	var n atomic.Int64
	begun, release := make(chan struct{}), make(chan struct{})
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			close(begun)
			<-release
		}
		_, _ = io.WriteString(rw, "ok")
	}), cleartext2())
	c := m.client(cleartext2())
	first := make(chan string)
	go func() { first <- body(t, do(t, c, "GET", "http://h/")) }()
	<-begun
	drained := m.drain()
	if b := body(t, do(t, c, "GET", "http://h/")); b != "ok" { // on this connection still, or on another one
		t.Error(b)
	}
	close(release)
	if b := <-first; b != "ok" {
		t.Error(b)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		left := m.servers[drained[0]]
		m.mu.Unlock()
		if !left {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the connection does not end")
		}
	}
}

// drain drains every connection that there is, and returns them.
func (m *memory) drain() (all []codec.Server) {
	m.mu.Lock()
	for s := range m.servers {
		all = append(all, s)
	}
	m.mu.Unlock()
	m.on(func() {
		for _, s := range all {
			s.Drain()
		}
	})
	return all
}

// TestRefused: what cannot be read is answered with its status, and the connection
// ends.
func TestRefused(t *testing.T) {
	m := newMemory(t, toB(), whole)
	m.serveHTTP(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was sent on") }), nil)
	for head, want := range map[string]int{
		"GET / HTTP/1.1\r\n\r\n":                                                                                   400,
		"GET / HTTP/2.5\r\nHost: h\r\n\r\n":                                                                        505,
		"GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n":                                                               400,
		"GET /a//b HTTP/1.1\r\nHost: h\r\n\r\n":                                                                    400,
		"GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", 70_000) + "\r\n\r\n":                              431,
		"GET /" + strings.Repeat("x", 9000) + " HTTP/1.1\r\nHost: h\r\n\r\n":                                       414,
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n": 400,
		"GET / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n":                                                           417,
	} {
		c := m.connect()
		_, _ = io.WriteString(c, head)
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%.30q: %+v %v, want %d", head, resp, err, want)
			continue
		}
		_ = body(t, resp)
		if want != 400 || !strings.HasPrefix(head, "GET /a") {
			if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("%.30q: the connection goes on: %v", head, err)
			}
		}
		_ = c.Close()
	}
}

// TestHeadTimeout: a head that does not come to its end does not hold a connection, nor does
// a client that sends nothing.
func TestHeadTimeout(t *testing.T) {
	m := newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) {
		w.cfg.Timeouts.Head, w.cfg.Timeouts.Idle = 20*time.Millisecond, time.Hour
	})
	c := m.connect()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 408 {
		t.Errorf("%+v %v", resp, err)
	}
	_ = c.Close()
	m = newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) { w.cfg.Timeouts.Idle = 20 * time.Millisecond })
	c = m.connect()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection: %v", err)
	}
	_ = c.Close()
}
