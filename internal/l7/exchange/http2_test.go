package exchange_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// backend2 has a backend of HTTP/2, which calls f with each request.
func (m *memory) backend2(f func(n int, s codec.Server, r codec.Response, p *peer)) {
	n := 0
	m.serveStream(func(c stream.Conn) {
		var s codec.Server
		s = codec.NewHTTP2Server(c, &codec.ServerConfig{Accept: func(r codec.Response) codec.Receiver {
			p := &peer{s: r}
			n++
			k := n
			p.onHead = func() { m.loop.Post(func() { f(k, s, r, p) }) }
			return p
		}})
	})
}

func answer(r codec.Response, body string) {
	r.Respond(&message.Head{Status: 200}, int64(len(body)))
	r.Data([]byte(body))
	r.Finish(nil)
}

// TestHTTP2BackendVanishes: as TestBackendVanishes, for streams and connections of
// HTTP/2.
func TestHTTP2BackendVanishes(t *testing.T) {
	begin := func(r codec.Response) {
		r.Respond(&message.Head{Status: 200}, 10)
		r.Data([]byte("abc"))
	}
	const cut = -1
	for name, test := range map[string]struct {
		f      func(n int, s codec.Server, r codec.Response, p *peer)
		method string
		status int
		why    reason.Reason
		tries  int
	}{
		"stream reset":              {func(_ int, _ codec.Server, r codec.Response, _ *peer) { r.Abort(reason.Internal) }, "GET", 503, reason.UpstreamReset, 1},
		"stream reset in the body":  {func(_ int, _ codec.Server, r codec.Response, _ *peer) { begin(r); r.Abort(reason.Internal) }, "GET", cut, reason.UpstreamReset, 1},
		"connection gone":           {func(_ int, s codec.Server, _ codec.Response, _ *peer) { s.Close(reason.Internal) }, "POST", 503, reason.UpstreamReset, 1},
		"connection gone in a body": {func(_ int, s codec.Server, r codec.Response, _ *peer) { begin(r); s.Close(reason.Internal) }, "GET", cut, reason.UpstreamReset, 1},
		"a used connection is gone": {func(n int, s codec.Server, r codec.Response, _ *peer) {
			if n == 2 {
				s.Close(reason.Internal)
				return
			}
			answer(r, "ok")
		}, "GET", 200, reason.OK, 1},
		"a used connection is gone, POST": {func(n int, s codec.Server, r codec.Response, _ *peer) {
			if n == 2 {
				s.Close(reason.Internal)
				return
			}
			answer(r, "ok")
		}, "POST", 503, reason.UpstreamReset, 1},
		"drained": {func(_ int, s codec.Server, r codec.Response, _ *peer) { s.Drain(); answer(r, "ok") }, "POST", 200, reason.OK, 1},
		"malformed response": {func(_ int, _ codec.Server, r codec.Response, _ *peer) {
			r.Respond(&message.Head{Status: 200}, 2)
			r.Data([]byte("abc"))
			r.Finish(nil)
		}, "GET", cut, reason.UpstreamProtocol, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) { w.h2up = true })
			m.backend2(test.f)
			c := m.client(nil)
			rounds := 1
			if strings.HasPrefix(name, "a used") {
				rounds = 2
			}
			var r *http.Response
			for i := range rounds {
				req, err := http.NewRequest(test.method, "http://h/", nil)
				if err != nil {
					t.Fatal(err)
				}
				if r, err = c.Do(req); err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(r.Body)
				_ = r.Body.Close()
				if i < rounds-1 {
					continue
				}
				if test.status == cut && (r.StatusCode != 200 || err == nil) || test.status != cut && (r.StatusCode != test.status || err != nil) {
					t.Errorf("%d %v", r.StatusCode, err)
				}
			}
			if got := m.record(rounds - 1); got.Reason != test.why || got.Tries != test.tries {
				t.Errorf("%+v", got)
			}
			m.idle()
		})
	}
}

// TestHTTP2ClientVanishes: whenever a client's stream or connection goes, the backend
// hears of it and nothing is left.
func TestHTTP2ClientVanishes(t *testing.T) {
	for _, up := range []bool{false, true} {
		for _, whole2 := range []string{"stream", "connection", "end"} {
			for _, state := range []string{"waiting", "body", "response", "upgrade"} {
				t.Run(fmt.Sprintf("%s %s up=%t", whole2, state, up), func(t *testing.T) { vanish2(t, up, whole2, state) })
			}
		}
	}
}

func vanish2(t *testing.T, up bool, what, state string) {
	m := newMemory(t, toB(), whole, func(w *world, _ *configs, _ *pool.Config) { w.h2, w.h2up = true, up })
	gone := make(chan error, 1)
	here := make(chan struct{}, 1)
	cfg := &codec.ServerConfig{Accept: func(r codec.Response) codec.Receiver {
		p := &peer{s: r}
		p.onHead = func() {
			switch state {
			case "response":
				r.Respond(&message.Head{Status: 200}, 100)
				r.Data([]byte("abc"))
			case "upgrade":
				r.Respond(&message.Head{Status: 101, Protocol: p.head.Protocol}, codec.Raw)
			default:
				here <- struct{}{}
			}
		}
		p.onEnd = func() {
			if p.cut != nil {
				gone <- p.cut.Err
			} else if state == "body" {
				gone <- nil
			}
		}
		return p
	}}
	m.serveStream(func(c stream.Conn) {
		if up {
			codec.NewHTTP2Server(c, cfg)
		} else {
			codec.NewHTTP1Server(c, cfg)
		}
	})
	var conn stream.Conn
	var req codec.Request
	client := &peer{}
	client.onHead = func() { here <- struct{}{} }
	m.on(func() {
		a, b := streamtest.Pair(m.loop, streamtest.Options{})
		m.serve(b)
		conn = a
		c := codec.NewHTTP2Client(a, &room{})
		req = c.Open()
		client.s = req
		h := &message.Head{Method: []byte("POST"), Authority: []byte("h"), Path: []byte("/")}
		length := int64(0)
		switch state {
		case "body":
			length = 100
		case "upgrade":
			h.Method, h.Protocol = []byte("GET"), []byte("echo")
		}
		if err := req.Send(h, length, client); err != nil {
			t.Error(err)
		}
		if state == "body" {
			req.Data([]byte("abc"))
		}
	})
	<-here
	m.on(func() {
		switch what {
		case "stream":
			req.Abort(reason.DownstreamReset)
		case "connection":
			conn.Abort(reason.DownstreamReset)
		default:
			conn.CloseWrite()
		}
	})
	if err := <-gone; err == nil && state == "body" {
		t.Error("the backend takes the request for complete")
	}
	if got := m.record(0); got.Reason != reason.DownstreamReset {
		t.Errorf("%+v", got)
	}
	m.idle()
	m.on(func() {
		if n := m.pool.Idle(); n != 0 && !up {
			t.Errorf("%d connections with half an exchange are kept", n)
		}
	})
}
