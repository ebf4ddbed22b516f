package h2_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/h2/h2test"
)

// listen is a listener on loopback for the length of the test.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// h2c permits HTTP/2 without TLS and nothing else.
func h2c() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// echo is a server's Handler: what comes in on a stream goes out on it.
type echo struct {
	h2test.Responder
}

type echoState struct {
	queue []byte
	end   bool
}

func (e *echo) OnHeaders(s *h2.Stream, h *h2.Header, end bool) {
	if h.Trailer {
		e.OnData(s, nil, true)
		return
	}
	st := &echoState{end: end}
	s.User = st
	_ = e.Conn.Respond(s, &h2.Header{Status: 200, Fields: []h2.Field{{Name: "x-path", Value: h.Path}}}, end)
}

func (e *echo) OnData(s *h2.Stream, p []byte, end bool) {
	st := s.User.(*echoState)
	st.queue = append(st.queue, p...)
	st.end = st.end || end
	e.OnWritable(s)
}

func (e *echo) OnWritable(s *h2.Stream) {
	st := s.User.(*echoState)
	for len(st.queue) > 0 {
		n := min(e.Conn.SendQuota(s), len(st.queue))
		if n == 0 {
			return
		}
		e.Conn.AppendData(s, st.queue[:n], st.end && n == len(st.queue))
		e.Conn.Consumed(s, n)
		st.queue = st.queue[n:]
	}
	if st.end && !s.SendClosed() {
		e.Conn.AppendData(s, nil, true)
	}
}

// noise is reproducible content of n bytes.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// TestAgainstNetHTTPClient: net/http's Transport talks to our server, many
// streams at once, bodies both ways larger than every window.
func TestAgainstNetHTTPClient(t *testing.T) {
	l := listen(t)
	var server sync.WaitGroup
	server.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			d := h2test.Start(nc, h2.Config{Server: true}, func(c *h2.Conn) h2.Handler {
				return &echo{h2test.Responder{Conn: c}}
			})
			server.Go(func() { <-d.Done() })
		}
	})
	tr := &http.Transport{Protocols: h2c()}
	defer server.Wait()
	defer func() { _ = l.Close() }()
	defer tr.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			body := noise(uint64(i), 200_000*(i%7)+i)
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, fmt.Sprintf("http://%s/%d", l.Addr(), i), bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Errorf("stream %d: %v", i, err)
				return
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || sha256.Sum256(got) != sha256.Sum256(body) || resp.Header.Get("x-path") != fmt.Sprintf("/%d", i) {
				t.Errorf("stream %d: %d of %d bytes, %v, %v", i, len(got), len(body), resp.Header, err)
			}
		})
	}
	wg.Wait()
}

// caller is a client's Handler: it sends a body on each stream and collects
// the answer.
type caller struct {
	h2test.Responder
	done sync.WaitGroup
}

type call struct {
	body  []byte // still to be sent
	got   []byte
	where string
	reset bool
}

func (c *caller) OnHeaders(s *h2.Stream, h *h2.Header, end bool) {
	if !h.Trailer {
		s.User.(*call).where = h.Get("x-path")
	}
	if end {
		c.done.Done()
	}
}

func (c *caller) OnData(s *h2.Stream, p []byte, end bool) {
	s.User.(*call).got = append(s.User.(*call).got, p...)
	c.Conn.Consumed(s, len(p))
	if end {
		c.done.Done()
	}
}

func (c *caller) OnWritable(s *h2.Stream) {
	k := s.User.(*call)
	for len(k.body) > 0 {
		n := min(c.Conn.SendQuota(s), len(k.body))
		if n == 0 {
			return
		}
		c.Conn.AppendData(s, k.body[:n], n == len(k.body))
		k.body = k.body[n:]
	}
}

func (c *caller) OnReset(s *h2.Stream, _ h2.ErrCode) {
	s.User.(*call).reset = true
	c.done.Done()
}

// TestAgainstNetHTTPServer: our client talks to net/http's Server. The server
// answers with trailers, and CONNECT as a tunnel.
func TestAgainstNetHTTPServer(t *testing.T) {
	handler := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-path", r.URL.Path+r.Host)
		if r.Method != http.MethodConnect { // a tunnel has none
			w.Header().Set("Trailer", "x-sum")
		}
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 8<<10)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			if f, ok := w.(http.Flusher); ok && r.Method == http.MethodConnect {
				f.Flush()
			}
			if err != nil {
				break
			}
		}
		if r.Method != http.MethodConnect {
			w.Header().Set("x-sum", "done")
		}
	}
	l := listen(t)
	server := &http.Server{Handler: http.HandlerFunc(handler), Protocols: h2c()}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer func() { _ = server.Close() }()
	cnc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var cl *caller
	d := h2test.Start(cnc, h2.Config{}, func(c *h2.Conn) h2.Handler {
		cl = &caller{Responder: h2test.Responder{Conn: c}}
		return cl
	})
	defer d.Close()
	const n = 20
	var calls [n]*call
	for i := range n {
		body := noise(uint64(i), 300_000*(i%5)+1)
		calls[i] = &call{body: body}
		h := &h2.Header{Method: "POST", Scheme: "http", Authority: "a", Path: fmt.Sprintf("/%d", i)}
		if i%2 == 1 {
			h = &h2.Header{Method: "CONNECT", Authority: fmt.Sprintf("b:%d", i)}
		}
		cl.done.Add(1)
		d.Do(func(c *h2.Conn) {
			s, err := c.Open(h, false)
			if err != nil {
				t.Errorf("open: %v", err)
				cl.done.Done()
				return
			}
			s.User = calls[i]
			cl.OnWritable(s)
		})
	}
	cl.done.Wait()
	d.Do(func(*h2.Conn) {
		for i, k := range calls {
			want := noise(uint64(i), 300_000*(i%5)+1)
			where := fmt.Sprintf("/%da", i)
			if i%2 == 1 {
				where = fmt.Sprintf("b:%d", i)
			}
			if !bytes.Equal(k.got, want) || k.where != where || k.reset {
				t.Errorf("stream %d: %d of %d bytes from %q, reset %v", i, len(k.got), len(want), k.where, k.reset)
			}
		}
	})
}
