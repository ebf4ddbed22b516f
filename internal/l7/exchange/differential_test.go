package exchange_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// memory has clients and backends on pairs of streams in memory, which are cut as a
// test chooses.
type memory struct {
	*world
	backends *listener
	cut      func() func(int) int // of each new pair
	raw      func(stream.Conn)    // if set, gets connections in place of backends
	ends     []*netConn           // of backends; used on the loop
}

func newMemory(t testing.TB, rules []route.Rule, cut func() func(int) int, options ...option) *memory {
	m := &memory{backends: newListener(), cut: cut}
	options = append([]option{func(_ *world, _ *configs, p *pool.Config) { p.Dial = m.dial }}, options...)
	t.Cleanup(func() { // after the loop has ended
		for _, c := range m.ends {
			c.lost()
		}
	})
	m.world = newWorld(t, rules, options...)
	m.backend("b", "127.0.0.1:1")
	return m
}

func (m *memory) dial(l *poll.Loop, _ *pool.Target, done func(stream.Conn, *reason.Error)) func() {
	cancelled := false
	l.Post(func() {
		if cancelled {
			return
		}
		a, b := streamtest.Pair(l, streamtest.Options{Cut: m.cut()})
		if m.raw != nil {
			m.raw(b)
		} else {
			c := newNetConn(b)
			m.ends = append(m.ends, c)
			m.backends.ch <- c
		}
		done(a, nil)
	})
	return func() { cancelled = true }
}

// connect returns a connection to the proxy.
func (m *memory) connect() *netConn {
	return onLoop(m.loop, func() *netConn {
		a, b := streamtest.Pair(m.loop, streamtest.Options{Cut: m.cut()})
		m.serve(b)
		return newNetConn(a)
	})
}

// client returns a client of package net/http.
func (m *memory) client(protocols *http.Protocols) *http.Client {
	tr := &http.Transport{
		DisableCompression: true, MaxIdleConnsPerHost: 100, Protocols: protocols,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return m.connect(), nil },
	}
	m.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// serveHTTP runs a server of package net/http as the backend.
func (m *memory) serveHTTP(h http.Handler, protocols *http.Protocols) {
	s := &http.Server{Handler: h, Protocols: protocols}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(m.backends) })
	m.t.Cleanup(func() {
		_ = m.backends.Close()
		_ = s.Close()
		wg.Wait()
	})
}

func cleartext2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

func toB() []route.Rule {
	return []route.Rule{{Origin: "all", Backends: []route.Backend{{Name: "b", Weight: 1}}}}
}

// random is a random exchange: what the client sends and what the backend answers.
type random struct {
	method, path  string
	header        http.Header
	body          []byte
	chunked       bool
	trailer       bool
	status        int
	answer        http.Header
	reply         []byte
	replyChunked  bool
	replyTrailers bool
	informs       int
}

func draw(r *rand.Rand) *random {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	size := func() int {
		switch r.IntN(5) {
		case 0:
			return 0
		case 1:
			return 1
		case 2:
			return r.IntN(300_000)
		}
		return r.IntN(3000)
	}
	x := &random{
		method: pick("GET", "GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "STRANGE"),
		path:   pick("/", "/a", "/a/b?c=d&e", "/%41?%20", "/x*y"), header: http.Header{}, answer: http.Header{},
		status: []int{200, 200, 200, 201, 204, 304, 404, 500, 503, 206}[r.IntN(10)], informs: r.IntN(3) / 2,
	}
	if !slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, x.method) {
		x.body = fill(r, size())
		x.chunked = r.IntN(2) == 0 && len(x.body) > 0
		x.trailer = x.chunked && r.IntN(2) == 0
	}
	for range r.IntN(5) {
		x.header.Add(pick("X-A", "x-b", "Accept", "X-Forwarded-For"), pick("1", "two words", "a, b", strings.Repeat("v", 200), "ü"))
		x.answer.Add(pick("X-C", "Set-Cookie", "Vary", "x-d"), pick("1", "two words", "a=b; c", strings.Repeat("w", 200)))
	}
	x.reply = fill(r, size())
	x.replyChunked = r.IntN(2) == 0
	x.replyTrailers = x.replyChunked && r.IntN(2) == 0
	if x.status == 204 || x.status == 304 {
		x.reply, x.replyChunked, x.replyTrailers = nil, false, false
	}
	return x
}

func fill(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// answerRandom is the backend of random exchanges, found by their number.
func answerRandom(all []*random, seen []string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.Header.Get("X-Number"))
		x := all[n]
		b, err := io.ReadAll(r.Body)
		h := r.Header.Clone()
		for _, name := range []string{"X-Number", "Connection", "User-Agent", "X-Request-Id", "X-Forwarded-Proto"} {
			h.Del(name)
		}
		seen[n] = fmt.Sprintf("%s %s %s %v err=%v length=%d %q trailer=%v", r.Method, r.RequestURI, r.Host, sorted(h), err, len(b), sum(b), sorted(r.Trailer))
		for range x.informs {
			rw.Header().Set("Link", "</x>")
			rw.WriteHeader(103)
			rw.Header().Del("Link")
		}
		for k, v := range x.answer {
			rw.Header()[k] = v
		}
		if !x.replyChunked && x.status != 204 && x.status != 304 {
			rw.Header().Set("Content-Length", strconv.Itoa(len(x.reply)))
		}
		rw.WriteHeader(x.status)
		if x.replyChunked {
			_ = http.NewResponseController(rw).Flush()
		}
		for p := x.reply; len(p) > 0; {
			k := min(len(p), 50_000)
			_, _ = rw.Write(p[:k])
			p = p[k:]
		}
		if x.replyTrailers {
			rw.Header().Set(http.TrailerPrefix+"X-End", "yes")
		}
	}
}

func sum(b []byte) string {
	if len(b) < 40 {
		return string(b)
	}
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return strconv.FormatUint(h, 16)
}

func sorted(h http.Header) string {
	var lines []string
	for k, v := range h {
		lines = append(lines, strings.ToLower(k)+"="+strings.Join(v, "|"))
	}
	slices.Sort(lines)
	return strings.Join(lines, ";")
}

// ask makes a random exchange and says what the client saw.
func ask(c *http.Client, base string, n int, x *random) (string, error) {
	var body io.Reader
	if x.body != nil {
		body = bytes.NewReader(x.body)
		if x.chunked {
			body = io.MultiReader(body) // its length is not known
		}
	}
	req, err := http.NewRequest(x.method, base+x.path, body)
	if err != nil {
		return "", err
	}
	req.Host = "shop.example.com"
	for k, v := range x.header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	req.Header.Set("X-Number", strconv.Itoa(n))
	if x.trailer {
		req.Trailer = http.Header{"X-Last": {"one"}}
	}
	r, err := c.Do(req)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if x.status == 304 {
		r.ContentLength = 0 // the client of HTTP/2 says -1
	}
	h := r.Header.Clone()
	for _, name := range []string{"Date", "Connection", "Transfer-Encoding"} {
		h.Del(name)
	}
	return fmt.Sprintf("%d %v err=%v length=%d/%d %q trailer=%v", r.StatusCode, sorted(h), err, len(b), r.ContentLength, sum(b), sorted(r.Trailer)), nil
}

// TestLikeNetHTTP: what both sides see through the proxy is what they see without it,
// however the bytes are cut, by both versions of HTTP on both sides.
func TestLikeNetHTTP(t *testing.T) {
	cuts := map[string]func() func(int) int{
		"whole": func() func(int) int { return nil },
		"bytes": func() func(int) int { return streamtest.Cuts(1, 2, 1, 3, 5000, 1) },
		"random": func() func(int) int {
			r := rand.New(rand.NewPCG(7, 8))
			return func(n int) int { return 1 + r.IntN(min(n, 1+r.IntN(2000))) }
		},
	}
	for _, versions := range []struct {
		name     string
		down, up bool
	}{{"1-1", false, false}, {"2-2", true, true}, {"1-2", false, true}, {"2-1", true, false}} {
		for name, cut := range cuts {
			t.Run(versions.name+" "+name, func(t *testing.T) { likeNetHTTP(t, cut, versions.down, versions.up) })
		}
	}
}

func likeNetHTTP(t *testing.T, cut func() func(int) int, down, up bool) {
	const n = 100
	r := rand.New(rand.NewPCG(1, 2))
	all := make([]*random, n)
	for i := range all {
		all[i] = draw(r)
	}
	direct, proxied := make([]string, n), make([]string, n)
	plain := httptest.NewServer(answerRandom(all, direct))
	defer plain.Close()
	m := newMemory(t, toB(), cut, func(w *world, e *configs, _ *pool.Config) {
		w.h2, w.h2up, e.Normalise = down, up, message.None
	})
	protocols := func(h2 bool) *http.Protocols {
		if h2 {
			return cleartext2()
		}
		return nil
	}
	m.serveHTTP(answerRandom(all, proxied), protocols(up))
	a, b := client(t), m.client(protocols(down))
	for i, x := range all {
		want, err := ask(a, plain.URL, i, x)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ask(b, "http://proxy", i, x)
		if err != nil {
			t.Fatalf("%d %s %s: %v", i, x.method, x.path, err)
		}
		if got != want {
			t.Errorf("%d %s %s: the client sees\n%s\nwithout the proxy\n%s", i, x.method, x.path, got, want)
		}
		if proxied[i] != direct[i] {
			t.Errorf("%d: the backend sees\n%s\nwithout the proxy\n%s", i, proxied[i], direct[i])
		}
	}
}
