package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// one is the first message of an input, as either parser reads it.
type one struct {
	start   string
	fields  string
	body    string
	trailer string
	rest    int // bytes after the message
}

// headers writes fields as net/http keeps them: those it removes left out.
func headers(h http.Header) string {
	h = h.Clone()
	for _, gone := range []string{"Host", "Transfer-Encoding", "Trailer"} {
		delete(h, gone)
	}
	if _, ok := h["Pragma"]; ok { // net/http derives Cache-Control from it
		delete(h, "Cache-Control")
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(h)) {
		fmt.Fprintf(&b, "%s=%q\n", k, h[k])
	}
	return b.String()
}

type collector struct {
	one
	head    http.Header
	trail   http.Header
	body    Body
	form    string // of the request target
	conn    bool   // CONNECT
	started bool
	done    bool
	data    bytes.Buffer
}

func toHeader(h *message.Head) http.Header {
	out := http.Header{}
	for _, f := range h.Fields {
		k := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		out[k] = append(out[k], string(f.Value))
	}
	return out
}

func (c *collector) OnHead(h *message.Head, b Body) {
	if h.Status != 0 {
		if h.Status >= 200 || h.Status == 101 {
			c.started = true
		}
		c.start = fmt.Sprint(h.Status)
	} else {
		c.started = true
		c.start = fmt.Sprintf("%s %s", h.Method, h.Authority)
		c.conn, c.form = string(h.Method) == "CONNECT", string(h.Path)
		c.done = h.Protocol != nil
	}
	c.head, c.body = toHeader(h), b
}
func (c *collector) OnData(p []byte)            { c.data.Write(p) }
func (c *collector) OnTrailers(h *message.Head) { c.trail = toHeader(h) }
func (c *collector) OnEnd()                     { c.done = true }

var requestSeeds = []string{
	"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
	"POST /a?b HTTP/1.1\r\nHost: h:80\r\nContent-Length: 3\r\nX: y\r\n\r\nabcGET / HTTP/1.1\r\n",
	"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-T: v\r\n\r\nrest",
	"GET http://h/x HTTP/1.1\r\nHost: h\r\nConnection: close, x\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / HTTP/1.1\nHost: h\n\n",
	"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: ws\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
	"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", "GET //x/..%2f HTTP/1.1\r\nHost: h\r\nPragma: no-cache\r\n\r\n",
}

// FuzzRequest: a request is read the same however it is cut; one that is
// accepted, net/http reads the same way and to the same byte.
func FuzzRequest(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, fault := serve(string(in), 0)
		if bytewise, other := serve(string(in), 1); fault != other || whole != bytewise {
			t.Fatalf("at once: %v\n%s\nby bytes: %v\n%s", fault, whole, other, bytewise)
		}
		c := &collector{}
		n, fault := NewServer(c).Receive(in)
		if fault != nil || !c.started || !c.done && !c.conn {
			return
		}
		r := bytes.NewReader(in)
		br := bufio.NewReader(r)
		req, err := http.ReadRequest(br)
		if err != nil {
			if c.head["Trailer"] != nil { // net/http judges this announcement, which decides nothing
				return
			}
			t.Fatalf("accepted, but net/http: %v", err)
		}
		got := one{start: fmt.Sprintf("%s %s", req.Method, strings.ToLower(req.Host)), fields: headers(req.Header)}
		want := one{start: strings.Replace(c.start, c.start[strings.IndexByte(c.start, ' '):], strings.ToLower(c.start[strings.IndexByte(c.start, ' '):]), 1), fields: headers(c.head)}
		if strings.HasPrefix(req.RequestURI, "/") && req.RequestURI != c.form {
			t.Fatalf("path %q, net/http %q", c.form, req.RequestURI)
		}
		if !c.conn {
			body, err := io.ReadAll(req.Body)
			if err != nil {
				t.Fatalf("accepted, but net/http reads the body: %v", err)
			}
			got.body, got.trailer, got.rest = string(body), headers(req.Trailer), br.Buffered()+r.Len()
			want.body, want.trailer, want.rest = c.data.String(), headers(c.trail), len(in)-n
			if c.head["Trailer"] != nil {
				got.trailer, want.trailer = "", ""
			}
		}
		if c.head["Connection"] != nil || !c.conn && req.ProtoMinor == 0 {
			got.rest, want.rest = 0, 0 // what follows a last message is discarded
		}
		if got != want {
			t.Fatalf("net/http: %+v\nhere: %+v", got, want)
		}
	})
}

// FuzzResponse is the same for responses to GET.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", "HTTP/1.1 204 No\r\n\r\n", "HTTP/1.1 304 \r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\nX: y\r\n\r\n", "HTTP/1.0 200 OK\r\nX: y\r\n\r\nuntil close", "HTTP/1.1 404\r\n\r\n",
		"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, fault := ask("GET", "", string(in), 0, true)
		if bytewise, other := ask("GET", "", string(in), 1, true); fault != other || whole != bytewise {
			t.Fatalf("at once: %v\n%s\nby bytes: %v\n%s", fault, whole, other, bytewise)
		}
		c := &collector{}
		cl := NewClient(c)
		cl.Request(nil, head(), 0)
		_, fault = cl.Receive(in)
		if fault == nil {
			fault = cl.End()
		}
		if fault != nil || !c.done || strings.HasPrefix(whole, "response 1") {
			return
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(in)), &http.Request{Method: "GET"})
		if err != nil {
			if c.head["Trailer"] != nil {
				return
			}
			t.Fatalf("accepted, but net/http: %v", err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("accepted, but net/http reads the body: %v", err)
		}
		got := one{start: fmt.Sprint(res.StatusCode), fields: headers(res.Header), body: string(body), trailer: headers(res.Trailer)}
		want := one{start: c.start, fields: headers(c.head), body: c.data.String(), trailer: headers(c.trail)}
		if c.head["Trailer"] != nil {
			got.trailer, want.trailer = "", ""
		}
		if got != want {
			t.Fatalf("net/http: %+v\nhere: %+v", got, want)
		}
	})
}

// FuzzRoundTrip: a request that is written here is read here and by net/http
// as it was given, whatever its parts are, or is not written.
func FuzzRoundTrip(f *testing.F) {
	f.Add("GET", "h:80", "/a?b", "X-A", "v", "body", true)
	f.Add("POST", "h", "/", "cookie", "a\r\nb: c", "", false)
	f.Fuzz(func(t *testing.T, method, authority, path, name, value, body string, chunked bool) {
		if value != strings.Trim(value, " \t") || method == "CONNECT" || message.EqualFold(name, "trailer") || message.EqualFold(name, "expect") {
			return
		}
		h := &message.Head{Method: []byte(method), Authority: []byte(authority), Path: []byte(path)}
		h.Fields = append(h.Fields, message.Field{Name: []byte(name), Value: []byte(value), ID: message.Lookup(name)})
		length := int64(len(body))
		if chunked {
			length = Chunked
		}
		c := NewClient(&recorder{})
		out, err := c.Request(nil, h, length)
		if err != nil {
			return
		}
		if out, err = c.Data(out, []byte(body)); err != nil {
			t.Fatal(err)
		}
		if out, err = c.Finish(out, nil); err != nil {
			t.Fatal(err)
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
		if err != nil {
			t.Fatalf("%q: net/http: %v", out, err)
		}
		read, err := io.ReadAll(req.Body)
		if err != nil || string(read) != body || req.Method != method || req.RequestURI != path || req.Host != authority {
			t.Fatalf("%q: net/http reads %v %q %v", out, req, read, err)
		}
		if _, bad := message.CheckName(name); bad != nil || own(message.Lookup(name)) {
			return
		}
		if v := toHeader(h); headers(req.Header) != headers(func() http.Header {
			if !chunked && (length > 0 || method == "POST" || method == "PUT" || method == "PATCH") {
				v["Content-Length"] = []string{fmt.Sprint(length)}
			}
			if message.EqualFold(name, "te") {
				v["Connection"] = []string{"TE"}
			}
			return v
		}()) {
			t.Fatalf("%q: net/http reads fields %v, want %v", out, req.Header, v)
		}
		got := &collector{}
		n, fault := NewServer(got).Receive(out)
		if fault != nil || n != len(out) || !got.done || got.data.String() != body || got.form != path {
			t.Fatalf("%q: read back %d bytes: %v %+v", out, n, fault, got)
		}
	})
}
