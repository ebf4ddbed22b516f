package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// FuzzDowngrade (H2.TE, H2.CL, CR LF injection): a request of HTTP/2 that is
// accepted and written as HTTP/1 is one request there, with nothing in it that
// was not a field before.
func FuzzDowngrade(f *testing.F) {
	f.Add("GET", "/a", "h", "foo", "bar", "cookie", "a=b", "body")
	f.Add("POST", "/", "h", "foo", "b\r\nTransfer-Encoding: chunked", "content-length", "1", "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
	f.Add("GET", "/ HTTP/1.1\r\nHost: x\r\n\r\nGET /", "h", "a", "b", "transfer-encoding", "chunked", "0\r\n\r\n")
	f.Add("GET /x HTTP/1.1\r\nA:", "/", "h\r\nA: b", "a\r\nb", "c", ":path", "/y", "")
	f.Fuzz(func(t *testing.T, method, path, authority, name, value, name2, value2, body string) {
		h := &message.Head{}
		for _, field := range [][2]string{{":method", method}, {":scheme", "http"}, {":path", path}, {":authority", authority}, {name, value}, {name2, value2}} {
			if h.AddHTTP2(field[0], field[1]) != nil {
				return
			}
		}
		if h.CheckRequest() != nil || len(h.Protocol) > 0 || h.Index(message.TrailerName, 0) >= 0 || h.Index(message.Expect, 0) >= 0 {
			return
		}
		h.RemoveHopByHop()
		h.JoinCookies()
		c := NewClient(&recorder{})
		out, err := c.Request(nil, h, int64(len(body)))
		if err != nil {
			t.Fatalf("accepted, but not written: %v", err)
		}
		if out, err = c.Data(out, []byte(body)); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(bytes.NewReader(out))
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Fatalf("%q: net/http: %v", out, err)
		}
		read, err := io.ReadAll(req.Body)
		if err != nil || string(read) != body || r.Buffered() != 0 || req.Method != method || req.RequestURI != path {
			t.Fatalf("%q: net/http reads body %q, leaves %d bytes (%v)", out, read, r.Buffered(), err)
		}
		fields := 0
		for n, v := range req.Header {
			if n != "Content-Length" && n != "Connection" {
				fields += len(v)
			}
		}
		if want := len(h.Fields) - count(h, message.ContentLength); fields != want {
			t.Fatalf("%q: net/http reads %d fields, want %d: %v", out, fields, want, req.Header)
		}
	})
}

func count(h *message.Head, id message.Name) (n int) {
	for i := h.Index(id, 0); i >= 0; i = h.Index(id, i+1) {
		n++
	}
	return n
}
