package exchange_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

func whole() func(int) int { return nil }

// do sends a request without a body.
func do(t testing.TB, c *http.Client, method, url string, fields ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == "Host" {
			req.Host = fields[i+1]
		}
		req.Header.Add(fields[i], fields[i+1])
	}
	r, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFilters(t *testing.T) {
	rule := func(path string, f route.Filters) route.Rule {
		return route.Rule{
			Origin: path, Matches: []route.Match{{Path: route.Path{Kind: route.Segments, Value: path}}}, Filters: f,
			Backends: []route.Backend{{Name: "b", Weight: 1, Filters: route.Filters{
				Request: &route.HeaderEdit{Set: []route.Field{{Name: "X-Backend", Value: "b"}}},
			}}},
		}
	}
	m := newMemory(t, []route.Rule{
		rule("/edit", route.Filters{
			Request: &route.HeaderEdit{
				Set: []route.Field{{Name: "x-set", Value: "new"}}, Add: []route.Field{{Name: "X-Add", Value: "more"}}, Remove: []string{"x-gone"},
			},
			Response: &route.HeaderEdit{Add: []route.Field{{Name: "X-Seen", Value: "yes"}}, Remove: []string{"Server"}},
		}),
		rule("/moved", route.Filters{Redirect: &route.Redirect{Host: "other.example", Path: &route.PathEdit{Prefix: true, Value: "/to"}, Status: 301}}),
		rule("/secure", route.Filters{Redirect: &route.Redirect{Scheme: "https"}}),
		rule("/old", route.Filters{Rewrite: &route.Rewrite{Host: "inner.example", Path: &route.PathEdit{Prefix: true, Value: "/new"}}}),
		rule("/full", route.Filters{Rewrite: &route.Rewrite{Path: &route.PathEdit{Value: "/one"}}}),
		rule("/cors", route.Filters{CORS: &route.CORS{
			Origins: []string{"https://app.example", "https://*.bar.com"}, Methods: []string{"GET", "PUT"}, Headers: []string{"*"},
			Expose: []string{"X-E"}, Credentials: true, MaxAge: time.Minute,
		}}),
	}, whole)
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Server", "secret")
		_, _ = fmt.Fprintf(rw, "%s %s %s set=%q add=%q gone=%q backend=%q", r.Method, r.Host, r.URL, r.Header["X-Set"], r.Header["X-Add"], r.Header["X-Gone"], r.Header["X-Backend"])
	}), nil)
	c := m.client(nil)

	r := do(t, c, "GET", "http://h/edit", "X-Set", "old", "X-Set", "older", "X-Add", "one", "X-Gone", "1")
	if b := body(t, r); b != `GET h /edit set=["new"] add=["one,more"] gone=[] backend=["b"]` || r.Header.Get("X-Seen") != "yes" || r.Header.Get("Server") != "" {
		t.Errorf("%s %v", b, r.Header)
	}
	for path, want := range map[string]string{
		"/moved/x?q=1": "301 http://other.example/to/x?q=1", "/moved": "301 http://other.example/to", "/secure/a?b": "302 https://h:443/secure/a?b",
	} {
		r := do(t, c, "GET", "http://h"+path)
		if got := fmt.Sprintf("%d %s", r.StatusCode, r.Header.Get("Location")); got != strings.Replace(want, ":443", "", 1) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
		_ = body(t, r)
	}
	for path, want := range map[string]string{
		"/old/x?q": "inner.example /new/x?q", "/old": "inner.example /new", "/full/x?q": "h /one?q",
	} {
		if b := body(t, do(t, c, "GET", "http://h"+path)); !strings.HasPrefix(b, "GET "+want+" ") {
			t.Errorf("%s: %s", path, b)
		}
	}

	r = do(t, c, "OPTIONS", "http://h/cors", "Origin", "https://x.y.bar.com", "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "x-1, x-2")
	if b := body(t, r); r.StatusCode != 204 || b != "" || r.Header.Get("Access-Control-Allow-Origin") != "https://x.y.bar.com" ||
		r.Header.Get("Access-Control-Allow-Methods") != "GET, PUT" || r.Header.Get("Access-Control-Allow-Headers") != "x-1, x-2" ||
		r.Header.Get("Access-Control-Allow-Credentials") != "true" || r.Header.Get("Access-Control-Max-Age") != "60" {
		t.Errorf("%d %q %v", r.StatusCode, b, r.Header)
	}
	r = do(t, c, "OPTIONS", "http://h/cors", "Origin", "https://bar.com", "Access-Control-Request-Method", "PUT")
	if _ = body(t, r); r.StatusCode != 204 || r.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	r = do(t, c, "GET", "http://h/cors", "Origin", "https://app.example")
	if b := body(t, r); !strings.HasPrefix(b, "GET") || r.Header.Get("Access-Control-Allow-Origin") != "https://app.example" || r.Header.Get("Access-Control-Expose-Headers") != "X-E" {
		t.Errorf("%q %v", b, r.Header)
	}
	if r := do(t, c, "GET", "http://h/nothing"); r.StatusCode != 404 || body(t, r) != "" {
		t.Errorf("%d", r.StatusCode)
	}
}

// TestMirror: a second backend gets a copy of request and body, and the client waits
// for the first one only.
func TestMirror(t *testing.T) {
	rules := []route.Rule{{
		Origin: "m", Backends: []route.Backend{{Name: "main", Weight: 1}},
		Filters: route.Filters{
			Request: &route.HeaderEdit{Set: []route.Field{{Name: "X-Edited", Value: "1"}}},
			Mirrors: []route.Mirror{{Backend: route.Backend{Name: "copy"}}, {Backend: route.Backend{Name: "copy"}, Numerator: 0, Denominator: 100}},
		},
	}}
	w := newWorld(t, rules)
	copies := make(chan string, 10)
	w.backend("main", server(t, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(rw, "main")
	}))
	hold := make(chan struct{})
	w.backend("copy", server(t, func(rw http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		copies <- fmt.Sprintf("%s %s %d %v %s", r.Method, r.URL, len(b), err, r.Header.Get("X-Edited"))
		<-hold
	}))
	c := client(t)
	for _, size := range []int{0, 5, 40_000} {
		r, err := c.Post("http://"+w.addr+"/x", "text/plain", strings.NewReader(strings.Repeat("b", size)))
		if err != nil {
			t.Fatal(err)
		}
		if b := body(t, r); b != "main" {
			t.Error(b)
		}
		if got, want := <-copies, fmt.Sprintf("POST /x %d <nil> 1", size); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	close(hold)
	if len(copies) != 0 {
		t.Error("a share of 0 was mirrored")
	}
}

func TestRetry(t *testing.T) {
	rules := []route.Rule{{
		Origin: "r", Backends: []route.Backend{{Name: "b", Weight: 1}},
		Retry: &route.Retry{Codes: []int{500, 503}, Attempts: 3, Backoff: time.Millisecond},
	}}
	m := newMemory(t, rules, whole)
	var calls atomic.Int64
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		n := calls.Add(1)
		var failures int64
		status := 500
		_, _ = fmt.Sscanf(r.URL.Path, "/%d/%d", &failures, &status)
		if n <= failures {
			rw.WriteHeader(status)
			return
		}
		_, _ = fmt.Fprintf(rw, "try %d %d", n, len(b))
	}), nil)
	c := m.client(nil)
	for i, test := range []struct {
		path   string
		size   int
		status int
		tries  int
	}{
		{"/0/500", 10, 200, 1}, {"/2/500", 10, 200, 3}, {"/3/503", 0, 200, 4}, {"/4/500", 10, 500, 4}, {"/1/502", 10, 502, 1},
		{"/1/500", 1 << 20, 500, 1}, // too large to be kept
	} {
		calls.Store(0)
		r, err := c.Post("http://h"+test.path, "text/plain", strings.NewReader(strings.Repeat("x", test.size)))
		if err != nil {
			t.Fatal(err)
		}
		b := body(t, r)
		if r.StatusCode != test.status || test.status == 200 && b != fmt.Sprintf("try %d %d", test.tries, test.size) {
			t.Errorf("%s: %d %q", test.path, r.StatusCode, b)
		}
		if got := m.record(i); got.Tries != test.tries || int(calls.Load()) != test.tries {
			t.Errorf("%s: %+v, %d calls", test.path, got, calls.Load())
		}
	}
}

// TestRetryElsewhere: an endpoint that cannot be reached is replaced by another one.
func TestRetryElsewhere(t *testing.T) {
	w := newWorld(t, toB())
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	w.backend("b", dead.Addr().String(), server(t, func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "alive") }))
	c := client(t)
	for range 4 {
		r, err := c.Get("http://" + w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if b := body(t, r); b != "alive" {
			t.Errorf("%d %q", r.StatusCode, b)
		}
	}
	w.backend("b", dead.Addr().String())
	r, err := c.Get("http://" + w.addr)
	if err != nil {
		t.Fatal(err)
	}
	if b := body(t, r); r.StatusCode != 503 || b != "could not connect to the destination" {
		t.Errorf("%d %q", r.StatusCode, b)
	}
	if got := w.record(4); got.Reason != reason.ConnectFailure {
		t.Errorf("%+v", got)
	}
}

func TestTimeouts(t *testing.T) {
	const answered = time.Second // within which the backend answers, on a machine under load too
	backends := []route.Backend{{Name: "b", Weight: 1}}
	path := func(p string) []route.Match {
		return []route.Match{{Path: route.Path{Kind: route.Segments, Value: p}}}
	}
	m := newMemory(t, []route.Rule{
		{Origin: "request", Matches: path("/request"), Backends: backends, Timeouts: route.Timeouts{Request: 100 * time.Millisecond}},
		{Origin: "begun", Matches: path("/begun"), Backends: backends, Timeouts: route.Timeouts{Request: answered}},
		{Origin: "try", Matches: path("/try"), Backends: backends, Timeouts: route.Timeouts{Try: 100 * time.Millisecond}},
		{
			Origin: "tries", Matches: path("/tries"), Backends: backends, Timeouts: route.Timeouts{Try: answered},
			Retry: &route.Retry{Attempts: 2, Backoff: time.Millisecond},
		},
	}, whole)
	release := make(chan struct{})
	defer close(release)
	var calls atomic.Int64
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/tries" && calls.Add(1) == 3:
			return
		case strings.HasSuffix(r.URL.Path, "/late"):
			_, _ = io.WriteString(rw, "begun")
			_ = http.NewResponseController(rw).Flush()
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}), nil)
	c := m.client(nil)
	for i, test := range []struct {
		path   string
		status int
		why    reason.Reason
		tries  int
	}{
		{"/request", 504, reason.RequestTimeout, 1}, {"/try", 504, reason.TryTimeout, 1}, {"/tries", 200, reason.OK, 3},
	} {
		r := do(t, c, "GET", "http://h"+test.path)
		_ = body(t, r)
		if got := m.record(i); r.StatusCode != test.status || got.Reason != test.why || got.Tries != test.tries || got.Status != test.status {
			t.Errorf("%s: %d %+v", test.path, r.StatusCode, got)
		}
	}
	r := do(t, c, "GET", "http://h/begun/late")
	if b, err := io.ReadAll(r.Body); string(b) != "begun" || err == nil {
		t.Errorf("%q %v: a response that was cut looks complete", b, err)
	}
	_ = r.Body.Close()
	if got := m.record(3); got.Reason != reason.RequestTimeout || got.Status != 200 {
		t.Errorf("%+v", got)
	}
}

// TestStaleConnection: a connection that the backend closed just before the request
// is replaced, for methods that may be repeated.
func TestStaleConnection(t *testing.T) {
	for method, want := range map[string]int{"GET": 200, "POST": 503} {
		t.Run(method, func(t *testing.T) {
			m := newMemory(t, toB(), whole)
			conns := 0
			go func() {
				for {
					c, err := m.backends.Accept()
					if err != nil {
						return
					}
					conns++
					r := bufio.NewReader(c)
					for i := 0; ; i++ {
						if conns == 1 && i == 1 {
							_, _ = r.ReadByte()
							c.(*netConn).Reset()
							break
						}
						if _, err := http.ReadRequest(r); err != nil {
							break
						}
						_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				}
			}()
			t.Cleanup(func() { _ = m.backends.Close() })
			c := m.client(nil)
			_ = body(t, do(t, c, "GET", "http://h/"))
			r := do(t, c, method, "http://h/")
			if _ = body(t, r); r.StatusCode != want {
				t.Errorf("%d, want %d", r.StatusCode, want)
			}
		})
	}
}

// TestLostConnection: a new connection that ends before any byte of a response costs no
// request that may be repeated. Once a byte has come, or as often as a route permits, it
// does.
func TestLostConnection(t *testing.T) {
	for _, test := range []struct {
		name, method, answer string
		lost, want, tries    int
	}{
		{"twice", "GET", "", 2, 200, 3},
		{"too often", "GET", "", 3, 503, 3},
		{"not repeatable", "POST", "", 1, 503, 1},
		{"in the head", "GET", "HTTP/1.1 200 OK\r\nConte", 1, 503, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMemory(t, toB(), whole)
			go func() {
				for n := 0; ; n++ {
					c, err := m.backends.Accept()
					if err != nil {
						return
					}
					if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
						continue
					}
					if n < test.lost {
						_, _ = io.WriteString(c, test.answer)
						_ = c.Close()
						continue
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				}
			}()
			t.Cleanup(func() { _ = m.backends.Close() })
			r := do(t, m.client(nil), test.method, "http://h/")
			if _ = body(t, r); r.StatusCode != test.want {
				t.Errorf("%d, want %d", r.StatusCode, test.want)
			}
			if got := m.record(0); got.Tries != test.tries {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestUpgrade: after a switch of protocols bytes pass as they are, each direction ends
// by itself.
func TestUpgrade(t *testing.T) {
	for _, up := range []bool{false} {
		m := newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) { w.h2up = up })
		m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "echo" {
				rw.WriteHeader(400)
				return
			}
			if r.URL.Path == "/no" {
				_, _ = io.WriteString(rw, "not now")
				return
			}
			c, buf, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello ")
			_, _ = io.Copy(c, buf)
			_, _ = io.WriteString(c, " bye")
		}), nil)
		const ask = "GET %s HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly "
		c := m.connect()
		_, _ = fmt.Fprintf(c, ask, "/")
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "echo" {
			t.Fatalf("%+v %v", resp, err)
		}
		_, _ = io.WriteString(c, "later")
		_ = c.CloseWrite()
		if b, err := io.ReadAll(r); err != nil || string(b) != "hello early later bye" {
			t.Errorf("%q %v", b, err)
		}
		if got := m.record(0); got.Reason != reason.OK || got.Status != 101 || got.Received != 11 || got.Sent != 21 {
			t.Errorf("%+v", got)
		}
		c = m.connect()
		_, _ = fmt.Fprintf(c, strings.TrimSuffix(ask, "early ")+"GET /no HTTP/1.1\r\nHost: h\r\n\r\n", "/no")
		r = bufio.NewReader(c)
		resp, err = http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 200 || body(t, resp) != "not now" {
			t.Fatalf("%+v %v", resp, err)
		}
		if resp, err = http.ReadResponse(r, nil); err != nil || resp.StatusCode != 400 {
			t.Fatalf("the next request: %+v %v", resp, err)
		}
		_ = c.Close()
	}
}

// TestEarlyResponse: an answer that comes before the request is complete reaches the
// client, which may go on.
func TestEarlyResponse(t *testing.T) {
	m := newMemory(t, toB(), whole)
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(413) }), nil)
	c := m.connect()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\nbegin")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 413 {
		t.Fatalf("%+v %v", resp, err)
	}
	_, _ = io.WriteString(c, strings.Repeat("x", 300000-5)+"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if resp, err = http.ReadResponse(r, nil); err != nil || resp.StatusCode != 413 {
		t.Fatalf("the next request: %+v %v", resp, err)
	}
	_ = c.Close()
}

// TestContinue: the client's wait for 100 Continue ends when the backend says so.
func TestContinue(t *testing.T) {
	m := newMemory(t, toB(), whole)
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			rw.WriteHeader(401)
			return
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(rw, "%s %s", r.Header.Get("Expect"), b)
	}), nil)
	c := m.connect()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = r.ReadString('\n')
	_, _ = io.WriteString(c, "body")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || body(t, resp) != "100-continue body" {
		t.Fatalf("%+v %v", resp, err)
	}
	_, _ = io.WriteString(c, "POST /no HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if resp, err = http.ReadResponse(r, nil); err != nil || resp.StatusCode != 401 || !resp.Close {
		t.Fatalf("%+v %v", resp, err)
	}
	if _, err := r.ReadByte(); err != io.EOF { //nolint:errorlint // io's own
		t.Errorf("the connection goes on: %v", err)
	}
}

// TestStreamIdle: a request of which neither side sends anything ends, by an answer or
// a cut.
func TestStreamIdle(t *testing.T) {
	m := newMemory(t, toB(), whole, func(_ *world, e *configs, _ *pool.Config) { e.StreamIdle = 500 * time.Millisecond })
	release := make(chan struct{})
	defer close(release)
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			_, _ = io.WriteString(rw, "x")
			_ = http.NewResponseController(rw).Flush()
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}), nil)
	c := m.client(nil)
	if r := do(t, c, "GET", "http://h/"); r.StatusCode != 504 || body(t, r) != "neither side sent anything for too long" {
		t.Errorf("%d", r.StatusCode)
	}
	r := do(t, c, "GET", "http://h/begun")
	if b, err := io.ReadAll(r.Body); string(b) != "x" || err == nil {
		t.Errorf("%q %v", b, err)
	}
	_ = r.Body.Close()
	for i := range 2 {
		if got := m.record(i); got.Reason != reason.StreamIdle {
			t.Errorf("%+v", got)
		}
	}
}

// TestActiveBound: beyond its bound a loop answers at once.
func TestActiveBound(t *testing.T) {
	m := newMemory(t, toB(), whole, func(_ *world, e *configs, _ *pool.Config) { e.MaxActive = 1 })
	begun, release := make(chan struct{}), make(chan struct{})
	m.serveHTTP(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(begun)
		<-release
	}), nil)
	c := m.client(nil)
	first := make(chan int)
	go func() {
		r := do(t, c, "GET", "http://h/")
		_ = body(t, r)
		first <- r.StatusCode
	}()
	<-begun
	r := do(t, c, "GET", "http://h/")
	if _ = body(t, r); r.StatusCode != 503 || r.Header.Get("X-Envoy-Overloaded") != "true" {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	close(release)
	if status := <-first; status != 200 {
		t.Errorf("%d", status)
	}
}

// TestHeldBound: bodies that wait for connections hold no more than the loop may.
func TestHeldBound(t *testing.T) {
	m := newMemory(t, toB(), whole, func(_ *world, e *configs, p *pool.Config) {
		e.MaxHeld = 1000
		p.Dial = func(*poll.Loop, *pool.Target, func(stream.Conn, *reason.Error)) func() { return func() {} }
	})
	c := m.client(nil)
	r, err := c.Post("http://h/", "text/plain", strings.NewReader(strings.Repeat("x", 1001)))
	if err != nil {
		t.Fatal(err)
	}
	if _ = body(t, r); r.StatusCode != 503 {
		t.Errorf("%d", r.StatusCode)
	}
	if got := m.record(0); got.Reason != reason.ResourceExhausted {
		t.Errorf("%+v", got)
	}
}
