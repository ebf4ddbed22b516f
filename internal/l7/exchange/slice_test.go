package exchange_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/route"
)

func setNonblock(t testing.TB, fd int) {
	t.Helper()
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
}

// server is a backend of package net/http.
func server(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// client returns a client of package net/http that keeps connections.
func client(t testing.TB) *http.Client {
	t.Helper()
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func body(t testing.TB, r *http.Response) string {
	t.Helper()
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestWeightedRoute is the first slice: requests of a client that keeps its
// connection go to two backends by their weights.
func TestWeightedRoute(t *testing.T) {
	w := newWorld(t, []route.Rule{{
		Origin:   "split",
		Matches:  []route.Match{{Path: route.Path{Kind: route.Segments, Value: "/"}}},
		Backends: []route.Backend{{Name: "one", Weight: 3}, {Name: "two", Weight: 1}},
	}})
	for _, name := range []string{"one", "two"} {
		w.backend(name, server(t, func(rw http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			rw.Header().Set("X-Backend", name)
			_, _ = fmt.Fprintf(rw, "%s %s %s %s", name, r.Method, r.URL, b)
		}))
	}
	c := client(t)
	got := map[string]int{}
	const n = 400
	for i := range n {
		r, err := c.Post(fmt.Sprintf("http://%s/%d", w.addr, i), "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		name := r.Header.Get("X-Backend")
		if b, want := body(t, r), fmt.Sprintf("%s POST /%d hello", name, i); b != want || r.StatusCode != 200 {
			t.Fatalf("%d %q, want %q", r.StatusCode, b, want)
		}
		got[name]++
	}
	if got["one"] < 255 || got["one"] > 345 { // 300 is the mean, 8.7 the standard deviation
		t.Errorf("shares: %v", got)
	}
	if r := w.record(n - 1); r.Status != 200 || r.Tries != 1 || r.Received != 5 {
		t.Errorf("%+v", r)
	}
	w.on(func() {
		if n := w.pool.Idle(); n != 2 {
			t.Errorf("%d connections to two backends are kept", n)
		}
	})
}
