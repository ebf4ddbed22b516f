package http1

import (
	"errors"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

func TestRequests(t *testing.T) {
	const host = "Host: h\r\n"
	for _, c := range []struct{ in, want string }{
		{"GET /a?b HTTP/1.1\r\nhOst:\t h:80 \r\nX-A:  b c \r\nx-a:\r\n\r\n",
			"request GET h:80 /a?b length 0 expect false protocol \"\" X-A=\"b c\" x-a=\"\"\nend"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n" + host + "\r\n",
			"request POST h / length 3 expect false protocol \"\" Content-Length=\"3\"\ndata \"abc\"\nend\nrequest GET h /2 length 0 expect false protocol \"\"\nend"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-T: v\r\n\r\n",
			"request POST h / length -1 expect false protocol \"\" Transfer-Encoding=\"Chunked\"\ndata \"abc0123456789\"\ntrailers X-T=\"v\"\nend"},
		{"POST / HTTP/1.1\r\n" + host + "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\nx",
			"request POST h / length 1 expect true protocol \"\" Expect=\"100-Continue\" Content-Length=\"1\"\ndata \"x\"\nend"},
		{"GET / HTTP/1.0\r\n\r\nGET /never HTTP/1.0\r\n\r\n", "request GET  / length 0 expect false protocol \"\"\nend"},
		{"GET / HTTP/1.1\r\n" + host + "Connection: close\r\n\r\nGET /never HTTP/1.1\r\n" + host + "\r\n",
			"request GET h / length 0 expect false protocol \"\" Connection=\"close\"\nend"},
		{"GET http://H/x HTTP/1.1\r\n" + host + "\r\n", "request GET h /x length 0 expect false protocol \"\"\nend"},
		{"GET / HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
			"request GET h / length 0 expect false protocol \"\" Connection=\"upgrade\" Upgrade=\"h2c\"\nend"},
	} {
		for _, size := range []int{0, 1, 2, 7} {
			got, f := serve(c.in, size)
			if f != nil {
				t.Errorf("%q in pieces of %d: %v", c.in, size, f)
			}
			check(t, c.in, got, c.want)
		}
	}
}

func TestResponses(t *testing.T) {
	for _, c := range []struct {
		method, protocol, in, want string
		eof                        bool
	}{
		{"GET", "", "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", "response 103 length 0 Link=\"x\"\nresponse 200 length 2 Content-Length=\"2\"\ndata \"ab\"\nend", false},
		{"HEAD", "", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "response 200 length 0 Content-Length=\"2\"\nend", false},
		{"GET", "", "HTTP/1.1 304\r\nContent-Length: 2\r\n\r\n", "response 304 length 0 Content-Length=\"2\"\nend", false},
		{"GET", "", "HTTP/1.1 204 \r\n\r\n", "response 204 length 0\nend", false},
		{"GET", "", "HTTP/1.1 200 OK\r\n\r\nuntil the end", "response 200 length -2\ndata \"until the end\"\nend", true},
		{"GET", "", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\ngrpc-status: 0\r\n\r\n", "response 200 length -1 Transfer-Encoding=\"chunked\"\ndata \"x\"\ntrailers grpc-status=\"0\"\nend", false},
		{"CONNECT", "", "HTTP/1.1 200 OK\r\n\r\n\x00raw", "response 200 length -3\ndata \"\\x00raw\"\nend", true},
		{"CONNECT", "", "HTTP/1.1 403 No\r\nContent-Length: 1\r\n\r\nx", "response 403 length 1 Content-Length=\"1\"\ndata \"x\"\nend", false},
		{"GET", "websocket", "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81", "response 101 length -3 Connection=\"upgrade\" Upgrade=\"websocket\"\ndata \"\\x81\"\nend", true},
	} {
		for _, size := range []int{0, 1, 3} {
			got, f := ask(c.method, c.protocol, c.in, size, c.eof)
			if f != nil {
				t.Errorf("%q in pieces of %d: %v", c.in, size, f)
			}
			check(t, c.in, got, c.want)
		}
	}
}

func TestBadResponses(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for in, want := range map[string]*message.Fault{
		ok + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx":              ErrTwoLengths,
		ok + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n": ErrBothLengths,
		ok + "Content-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n\r\n":            ErrUnasked,
		ok + "Content-Length: 2\r\n\r\nx":                                   ErrTruncated,
		ok + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n":                 ErrTruncated,
		ok + "Transfer-Encoding: gzip\r\n\r\n":                              ErrCoding,
		ok:                                                                  ErrTruncated, "": ErrTruncated,
		"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n":                         ErrSwitch,
		"HTTP/1.1 204 N\r\nContent-Length: 4\r\n\r\n":                  ErrUnwantedBody,
		"HTTP/1.1 103 E\r\nTransfer-Encoding: chunked\r\n\r\n":         ErrUnwantedBody,
		"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n":        ErrCodingOld,
		"HTTP/2.0 200 OK\r\n\r\n":                                      ErrVersion,
		"HTTP/1.1 2000 OK\r\n\r\n":                                     ErrStartLine,
		"HTTP/1.1  200 OK\r\n\r\n":                                     ErrStartLine,
		"HTTP/1.1 099 OK\r\n\r\n":                                      ErrStartLine,
		"HTTP/1.1 200 O\rK\r\n\r\n":                                    message.ErrValue,
		"HTTP/1.1 200 OK\nA: b\n\n":                                    ErrBareLF,
		strings.Repeat("HTTP/1.1 100 C\r\n\r\n", MaxInforms+1):         ErrInforms,
		"\r\nHTTP/1.1 200 OK\r\n\r\n":                                  ErrStartLine,
		ok + "Set-Cookie: a\r\n b\r\n\r\n":                             ErrFold,
		ok + "Connection: content-length\r\nContent-Length: 1\r\n\r\n": message.ErrConnectionName,
	} {
		for _, size := range []int{0, 1} {
			if got, f := ask("GET", "", in, size, true); f != want {
				t.Errorf("%q in pieces of %d: %v, want %v\n%s", in, size, f, want, got)
			}
		}
	}
	if _, f := NewClient(&recorder{}).Receive([]byte("H")); f != ErrUnasked {
		t.Errorf("a response to nothing: %v", f)
	}
}

func head(kv ...string) *message.Head {
	h := &message.Head{Method: []byte("GET"), Authority: []byte("h"), Path: []byte("/")}
	for i := 0; i < len(kv); i += 2 {
		h.Add(message.NewKey(kv[i]), []byte(kv[i+1]))
	}
	return h
}

func status(n int, kv ...string) *message.Head {
	h := head(kv...)
	h.Method, h.Status = nil, n
	return h
}

func TestServerWrites(t *testing.T) {
	const get, old = "GET / HTTP/1.1\r\nHost: h\r\n", "GET / HTTP/1.0\r\n"
	for _, c := range []struct {
		in     string
		status int
		length int64
		body   string
		want   string
		close  bool
	}{
		{get + "\r\n", 200, 2, "ab", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\nab", false},
		{get + "\r\n", 200, Chunked, "ab", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n2\r\nab\r\n0\r\nT: u\r\n\r\n", false},
		{get + "Connection: close\r\n\r\n", 404, 0, "", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\nX: y\r\n\r\n", true},
		{old + "\r\n", 200, Chunked, "ab", "HTTP/1.1 200 OK\r\nConnection: close\r\nX: y\r\n\r\nab", true},
		{old + "Connection: keep-alive\r\n\r\n", 200, 2, "ab", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nX: y\r\n\r\nab", false},
		{old + "Connection: keep-alive\r\n\r\n", 200, Chunked, "ab", "HTTP/1.1 200 OK\r\nConnection: close\r\nX: y\r\n\r\nab", true},
		{"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", 200, 5, "", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n", false},
		{"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", 200, Chunked, "", "HTTP/1.1 200 OK\r\nX: y\r\n\r\n", false},
		{get + "\r\n", 304, 5, "", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nX: y\r\n\r\n", false},
		{get + "\r\n", 204, Chunked, "", "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", false},
		{"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", 200, 0, "raw", "HTTP/1.1 200 OK\r\nX: y\r\n\r\nraw", true},
		{get + "Connection: Upgrade\r\nUpgrade: ws\r\n\r\n", 101, 0, "raw", "HTTP/1.1 101 Switching Protocols\r\nX: y\r\nConnection: upgrade\r\nUpgrade: ws\r\n\r\nraw", true},
		{get + "Connection: Upgrade\r\nUpgrade: ws\r\n\r\n", 200, 1, "a", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: y\r\n\r\na", false},
		{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n", 403, 0, "", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\nX: y\r\n\r\n", true},
	} {
		r := &recorder{}
		s := NewServer(r)
		if f := feed(s, c.in, 0); f != nil {
			t.Fatalf("%q: %v", c.in, f)
		}
		h := status(c.status, "X", "y", "Content-Length", "99", "Transfer-Encoding", "gzip", "Connection", "foo", "Keep-Alive", "x")
		h.Protocol = []byte("ws")
		out, err := s.Respond(nil, h, c.length)
		if err == nil {
			out, err = s.Data(out, []byte(c.body))
		}
		if err == nil && !s.Raw() {
			out, err = s.Finish(out, head("T", "u"))
		}
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
		}
		check(t, c.in, string(out), c.want)
		if s.Closing() != c.close || !c.close && !s.Waiting() {
			t.Errorf("%q: closing %t, waiting %t", c.in, s.Closing(), s.Waiting())
		}
	}
}

// TestWritersRefuse: what came by HTTP/2 or a filter cannot become a line of
// its own, and a body is as long as its head promised.
func TestWritersRefuse(t *testing.T) {
	bad := func(edit func(*message.Head)) {
		t.Helper()
		h := head("A", "b")
		edit(h)
		if out, err := NewClient(&recorder{}).Request(nil, h, 0); err == nil {
			t.Errorf("written: %q", out)
		}
	}
	field := func(n, v string) func(*message.Head) {
		return func(h *message.Head) { h.Add(message.NewKey(n), []byte(v)) }
	}
	bad(field("X", "a\r\nTransfer-Encoding: chunked"))
	bad(field("X", "a\nb"))
	bad(field("X", "a\x00"))
	bad(field("X\r\nY", "z"))
	bad(field("X: a\r\nY", "z"))
	bad(field("X ", "z"))
	bad(func(h *message.Head) { h.Method = []byte("GET / HTTP/1.1\r\nA: b\r\n\r\nGET") })
	bad(func(h *message.Head) { h.Path = []byte("/ HTTP/1.1\r\nA: b") })
	bad(func(h *message.Head) { h.Path = []byte("") })
	bad(func(h *message.Head) { h.Authority = []byte("h\r\nA: b") })
	bad(func(h *message.Head) { h.Protocol = []byte("ws\r\nA: b") })

	c := NewClient(&recorder{})
	out, err := c.Request(nil, head(), 3)
	if err != nil || string(out) != "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n" {
		t.Fatal(string(out), err)
	}
	if _, err := c.Data(nil, []byte("abcd")); !errors.Is(err, ErrBodySize) {
		t.Errorf("more than promised: %v", err)
	}
	if _, err := c.Finish(nil, nil); !errors.Is(err, ErrBodySize) {
		t.Errorf("less than promised: %v", err)
	}
	if _, err := c.Request(nil, head(), 0); !errors.Is(err, ErrState) {
		t.Errorf("second request: %v", err)
	}
}

// TestClientIsIdleWhenBothAreDone: a response that ends before the request
// leaves the connection busy.
func TestClientIsIdleWhenBothAreDone(t *testing.T) {
	c := NewClient(&recorder{})
	c.Request(nil, head(), Chunked)
	if f := feed(c, "HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n", 0); f != nil || c.Idle() {
		t.Fatalf("%v, idle %t", f, c.Idle())
	}
	if _, err := c.Finish(nil, nil); err != nil || !c.Idle() {
		t.Fatalf("%v, idle %t", err, c.Idle())
	}
	c.Request(nil, head(), 0)
	if f := feed(c, "HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 0); f != nil || c.Idle() || !c.Closing() {
		t.Fatalf("%v, idle %t, closing %t", f, c.Idle(), c.Closing())
	}
}

func TestServerStopsUntilAnswered(t *testing.T) {
	r := &recorder{}
	s := NewServer(r)
	const one = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	n, f := s.Receive([]byte(one + one))
	if n != len(one) || f != nil {
		t.Fatalf("used %d bytes (%v), want %d: the second request waits", n, f, len(one))
	}
	if out := s.Refuse(nil); len(out) != 0 {
		t.Errorf("refused without a fault: %q", out)
	}
	s.Drain()
	out, _ := s.Respond(nil, status(200), 0)
	if !strings.Contains(string(out), "Connection: close") || !s.Closing() {
		t.Errorf("drain: %q", out)
	}
	// What follows the last message is discarded.
	if n, f := s.Receive([]byte(one)); n != len(one) || f != nil || len(r.lines) != 2 {
		t.Errorf("%d %v %q", n, f, r.lines)
	}
}

// TestAnIdleConnectionIsSmall: what a large head needed goes once it was read.
func TestAnIdleConnectionIsSmall(t *testing.T) {
	s := NewServer(&recorder{})
	large := "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("A: "+strings.Repeat("b", 500)+"\r\n", 90) + "\r\n"
	for _, size := range []int{0, 1} {
		if f := feed(s, large, size); f != nil {
			t.Fatal(f)
		}
		if _, err := s.Respond(nil, status(200), 0); err != nil {
			t.Fatal(err)
		}
		if cap(s.held) > keepHeld || cap(s.head.Fields) > keepFields {
			t.Errorf("idle, it holds %d bytes and %d fields", cap(s.held), cap(s.head.Fields))
		}
	}
}

// TestFrame: bytes that the caller writes itself are framed as Data frames them.
func TestFrame(t *testing.T) {
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"} {
		for _, length := range []int64{Chunked, 6} {
			var whole, framed []byte
			for _, own := range []bool{false, true} {
				c := NewServer(&nobody{})
				if _, f := c.Receive([]byte(request)); f != nil {
					t.Fatal(f)
				}
				b, err := c.Respond(nil, &message.Head{Status: 200}, length)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range []string{"abc", "def"} {
					if !own {
						if b, err = c.Data(b, []byte(p)); err != nil {
							t.Fatal(err)
						}
						continue
					}
					before, after, err := c.Frame(b, len(p))
					if err != nil {
						t.Fatal(err)
					}
					b = append(append(before, p...), after...)
				}
				if own {
					framed = b
				} else {
					whole = b
				}
				if length == 6 {
					if _, _, err := c.Frame(nil, 1); err == nil {
						t.Error("more than the head has said")
					}
				}
			}
			if string(whole) != string(framed) {
				t.Errorf("%q, want %q", framed, whole)
			}
		}
	}
	c := NewServer(&nobody{})
	if _, _, err := c.Frame(nil, 1); err == nil {
		t.Error("a body without a head")
	}
}

// TestFail: the owner's own fault is answered as one of the parser, also in the middle
// of a head.
func TestFail(t *testing.T) {
	c := NewServer(&nobody{})
	if c.Partial() {
		t.Error("a head has begun before its first byte")
	}
	if _, f := c.Receive([]byte("GET / HT")); f != nil || !c.Partial() {
		t.Fatal(f, c.Partial())
	}
	c.Fail(message.NewFault(408, "too late"))
	if got := string(c.Refuse(nil)); got != "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" {
		t.Errorf("%q", got)
	}
	if n, f := c.Receive([]byte("TP/1.1\r\n\r\n")); n != 0 || f == nil {
		t.Error("a refused connection is read")
	}
}

type nobody struct{}

func (*nobody) OnHead(*message.Head, Body) {}
func (*nobody) OnData([]byte)              {}
func (*nobody) OnTrailers(*message.Head)   {}
func (*nobody) OnEnd()                     {}
