package http1

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// TestSmuggling: each is read in two ways by some pair of programs. None may
// be delivered as more than the request before the trick, and each has its
// status.
func TestSmuggling(t *testing.T) {
	const post, end = "POST / HTTP/1.1\r\nHost: h\r\n", "\r\n"
	const chunked = post + "Transfer-Encoding: chunked\r\n\r\n"
	many := strings.Repeat("A: b\r\n", MaxFields)
	for _, c := range []struct {
		name, in string
		status   int
	}{
		{"CL.TE", post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", 400},
		{"TE.CL", post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGPOST", 400},
		{"two lengths", post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		{"equal lengths", post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400},
		{"list of lengths", post + "Content-Length: 1, 1\r\n\r\na", 400},
		{"signed length", post + "Content-Length: +1\r\n\r\na", 400},
		{"negative length", post + "Content-Length: -1\r\n\r\n", 400},
		{"hex length", post + "Content-Length: 0x1\r\n\r\na", 400},
		{"empty length", post + "Content-Length:\r\n\r\n", 400},
		{"length with space", post + "Content-Length: 1 1\r\n\r\n", 400},
		{"length overflow", post + "Content-Length: 18446744073709551617\r\n\r\n", 400},
		{"length underscore", post + "Content_Length: 1\r\n\r\na", 400},
		{"decimal length", post + "Content-Length: 1.0\r\n\r\na", 400},
		{"non-ASCII digit", post + "Content-Length: \xd9\xa1\r\n\r\na", 400},
		{"chunked, identity", post + "Transfer-Encoding: chunked, identity\r\n\r\n", 400},
		{"identity, chunked", post + "Transfer-Encoding: identity, chunked\r\n\r\n", 501},
		{"gzip, chunked", post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
		{"identity", post + "Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\na", 400},
		{"empty coding", post + "Transfer-Encoding:\r\n\r\n", 400},
		{"coding twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"second coding", post + "Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n\r\n", 400},
		{"xchunked", post + "Transfer-Encoding: xchunked\r\n\r\n", 501},
		{"quoted coding", post + "Transfer-Encoding: \"chunked\"\r\n\r\n", 400},
		{"coding with parameter", post + "Transfer-Encoding: chunked;a=b\r\n\r\n", 400},
		{"coding with vertical tab", post + "Transfer-Encoding: \x0bchunked\r\n\r\n", 400},
		{"coding with NUL", post + "Transfer-Encoding: chunked\x00\r\n\r\n", 400},
		{"coding underscore", post + "Transfer_Encoding: chunked\r\n\r\n", 400},
		{"space before colon", post + "Transfer-Encoding : chunked\r\n\r\n", 400},
		{"tab before colon", post + "Transfer-Encoding\t: chunked\r\n\r\n", 400},
		{"folded coding", post + "Transfer-Encoding:\r\n chunked\r\n\r\n", 400},
		{"folded first line", "POST / HTTP/1.1\r\n Host: h\r\n\r\n", 400},
		{"folded with tab", post + "X: a\r\n\tb\r\n\r\n", 400},
		{"coding after CR", post + "X: a\rTransfer-Encoding: chunked\r\n\r\n", 400},
		{"coding after LF", post + "X: a\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"LF alone", "GET / HTTP/1.1\nHost: h\n\n", 400},
		{"head ends LF LF", post + "X: a\n\nGET", 400},
		{"CR CR LF", post + "X: a\r\r\n\r\n", 400},
		{"leading empty line", "\r\n" + post + end, 400},
		{"leading LF", "\n" + post + end, 400},
		{"TE in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"name with control", post + "Transfer\x00-Encoding: chunked\r\n\r\n", 400},
		{"non-ASCII name", post + "Transfer-Encoding\xa0: chunked\r\n\r\n", 400},
		{"empty name", post + ": x\r\n\r\n", 400},
		{"no colon", post + "X\r\n\r\n", 400},
		{"quoted name", post + "\"X\": y\r\n\r\n", 400},
		{"Connection names length", post + "Connection: Content-Length\r\nContent-Length: 1\r\n\r\na", 400},
		{"Connection names coding", post + "Connection: close, transfer-encoding\r\n\r\n", 400},
		{"Connection names host", post + "Connection: host\r\n\r\n", 400},
		{"Connection names identity", post + "Connection: x-forwarded-client-cert\r\n\r\n", 400},
		{"Connection with NUL", post + "Connection: a\x00\r\n\r\n", 400},
		{"Connection quoted", post + "Connection: \"close\"\r\n\r\n", 400},
		{"two Hosts", post + "Host: h\r\n\r\n", 400},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"Host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400},
		{"Host with user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400},
		{"Host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
		{"Host port", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400},
		{"Host differs", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400},
		{"target with user", "GET http://h@a/ HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"target with space", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"target with tab", "GET /a\tb HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"target with NUL", "GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"target with fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"target with CR", "GET /a\rb HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"leading space", " GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"trailing space", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400},
		{"HTTP/0.9", "GET /\r\nHost: h\r\n\r\n", 400},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		{"http/1.1", "GET / http/1.1\r\nHost: h\r\n\r\n", 400},
		{"HTTP/1.10", "GET / HTTP/1.10\r\nHost: h\r\n\r\n", 400},
		{"bad method", "G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"long method", strings.Repeat("G", message.MaxMethod+1) + " / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"bad escape", "GET /%2 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"CONNECT with body", "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 1\r\n\r\na", 400},
		{"CONNECT with chunks", "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"CONNECT without port", "CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"expectation", post + "Expect: 200-ok\r\n\r\n", 417},
		{"long line", "GET /" + strings.Repeat("a", MaxStartLine) + " HTTP/1.1\r\nHost: h\r\n\r\n", 414},
		{"many fields", post + many + end, 431},
		{"large head", post + "A: " + strings.Repeat("b", MaxHead) + "\r\n\r\n", 431},
		{"endless head", post + strings.Repeat("b", MaxHead+10), 431},

		{"chunk: bare LF after size", chunked + "1\na\r\n0\r\n\r\n", 400},
		{"chunk: bare LF after data", chunked + "1\r\na\n0\r\n\r\n", 400},
		{"chunk: bare CR after size", chunked + "1\ra\r\n0\r\n\r\n", 400},
		{"chunk: LF in extension", chunked + "1;a\nb\r\nc\r\n0\r\n\r\n", 400},
		{"chunk: CR in extension", chunked + "1;a\rb\r\nc\r\n0\r\n\r\n", 400},
		{"chunk: NUL in extension", chunked + "1;a\x00\r\nc\r\n0\r\n\r\n", 400},
		{"chunk: long extension", chunked + "1;" + strings.Repeat("a", MaxExtension) + "\r\nc\r\n0\r\n\r\n", 400},
		{"chunk: many extensions", chunked + strings.Repeat("1;"+strings.Repeat("a", 200)+"\r\nc\r\n", 30) + "0\r\n\r\n", 400},
		{"chunk: 0x", chunked + "0x1\r\na\r\n0\r\n\r\n", 400},
		{"chunk: sign", chunked + "+1\r\na\r\n0\r\n\r\n", 400},
		{"chunk: negative", chunked + "-1\r\na\r\n0\r\n\r\n", 400},
		{"chunk: no size", chunked + "\r\na\r\n0\r\n\r\n", 400},
		{"chunk: extension alone", chunked + ";a\r\n\r\n", 400},
		{"chunk: leading space", chunked + " 1\r\na\r\n0\r\n\r\n", 400},
		{"chunk: trailing space", chunked + "1 \r\na\r\n0\r\n\r\n", 400},
		{"chunk: underscore", chunked + "1_0\r\n", 400},
		{"chunk: overflow", chunked + "10000000000000001\r\na\r\n0\r\n\r\n", 400},
		{"chunk: too many zeros", chunked + strings.Repeat("0", maxDigits+1) + "\r\n\r\n", 400},
		{"chunk: longer than its size", chunked + "1\r\nab\r\n0\r\n\r\n", 400},
		{"chunk: spill", chunked + "1\r\naXX2\r\nbc\r\n0\r\n\r\n", 400},
		{"trailer: length", chunked + "0\r\nContent-Length: 1\r\n\r\n", 400},
		{"trailer: coding", chunked + "0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"trailer: host", chunked + "0\r\nHost: b\r\n\r\n", 400},
		{"trailer: authorization", chunked + "0\r\nAuthorization: x\r\n\r\n", 400},
		{"trailer: identity", chunked + "0\r\nX-Forwarded-For: x\r\n\r\n", 400},
		{"trailer: fold", chunked + "0\r\nA: b\r\n c\r\n\r\n", 400},
		{"trailer: bare LF", chunked + "0\r\nA: b\n\r\n", 400},
		{"trailer: space before colon", chunked + "0\r\nA : b\r\n\r\n", 400},
		{"trailer: start line", chunked + "0\r\nGET / HTTP/1.1\r\n\r\n", 400},
		{"trailer: large", chunked + "0\r\nA: " + strings.Repeat("b", MaxTrailers) + "\r\n\r\n", 431},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{0, 1, 2, 13} {
				requests := 0
				r := &recorder{onHead: func(*message.Head, Body) { requests++ }}
				s := NewServer(r)
				r.onEnd = func() { t.Errorf("the request is complete: %q", r.lines) }
				f := feed(s, c.in, size)
				if f == nil || f.Status() != c.status {
					t.Fatalf("pieces of %d: %v, want status %d", size, f, c.status)
				}
				if body := strings.HasPrefix(c.name, "chunk") && strings.HasPrefix(c.in, chunked) || strings.HasPrefix(c.name, "trailer"); !body && requests > 0 {
					t.Errorf("pieces of %d: the request was delivered: %q", size, r.lines)
				}
				if out := string(s.Refuse(nil)); !strings.HasPrefix(out, fmt.Sprintf("HTTP/1.1 %d ", c.status)) || !s.Closing() {
					t.Errorf("answered %q, closing %t", out, s.Closing())
				}
				if _, again := s.Receive([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n")); again != f {
					t.Errorf("read on after the fault: %v", again)
				}
			}
		})
	}
}

// TestNoBodyMeansNoBody (CL.0, GET with a body): a body that a method seldom
// has is still read as a body, never as the next request.
func TestNoBodyMeansNoBody(t *testing.T) {
	const next = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "X"} {
		got, f := serve(fmt.Sprintf("%s / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", method, len(next), next), 0)
		if f != nil || strings.Contains(got, "request GET h /smuggled") || !strings.Contains(got, "data \"GET /smuggled") {
			t.Errorf("%s: %v\n%s", method, f, got)
		}
	}
}
