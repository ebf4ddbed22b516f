package http1

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// exchange is a proxy's work for one request and its response: read both,
// edit, write both.
type exchange struct {
	server, client *Conn
	request, reply message.Head
	out            []byte
	response       []byte
}

func (e *exchange) OnHead(h *message.Head, b Body) {
	e.request.CopyFrom(h)
	e.request.RemoveHopByHop()
}
func (e *exchange) OnData([]byte)            {}
func (e *exchange) OnTrailers(*message.Head) {}
func (e *exchange) OnEnd() {
	e.out, _ = e.client.Request(e.out[:0], &e.request, 0)
	e.client.Receive(e.response)
}

type backward struct{ *exchange }

func (e backward) OnHead(h *message.Head, b Body) {
	e.reply.CopyFrom(h)
	e.reply.RemoveHopByHop()
	e.out, _ = e.server.Respond(e.out[:0], &e.reply, b.Length)
}
func (e backward) OnData(p []byte) { e.out, _ = e.server.Data(e.out, p) }
func (e backward) OnEnd()          { e.out, _ = e.server.Finish(e.out, nil) }

const benchRequest = "GET /api/v1/items/12345?page=2 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n" +
	"Accept-Encoding: gzip, deflate\r\nX-Request-Id: 6f1f8c36-7c43-4f0a-a3f1-0f6c4a3c2f11\r\nCookie: session=abcdef; theme=dark\r\nConnection: keep-alive\r\n\r\n"

func newExchange(chunked bool) *exchange {
	e := &exchange{}
	e.server, e.client = NewServer(e), NewClient(backward{e})
	body := strings.Repeat("x", 1024)
	e.response = []byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 1024\r\n\r\n" + body)
	if chunked {
		e.response = []byte("HTTP/1.1 200 OK\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + body + "\r\n0\r\n\r\n")
	}
	return e
}

func (e *exchange) run(tb testing.TB, in []byte) {
	if n, f := e.server.Receive(in); n != len(in) || f != nil {
		tb.Fatalf("used %d bytes: %v", n, f)
	}
	if !e.server.Waiting() || !e.client.Idle() || len(e.out) < 1024 {
		tb.Fatalf("the exchange is not complete: %q", e.out)
	}
}

func TestExchangeAllocatesNothing(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		e, in := newExchange(chunked), []byte(benchRequest)
		e.run(t, in)
		if n := testing.AllocsPerRun(100, func() { e.run(t, in) }); n != 0 {
			t.Errorf("chunked %t: %v allocations a request, want 0", chunked, n)
		}
	}
}

func BenchmarkExchange(b *testing.B) {
	e, in := newExchange(false), []byte(benchRequest)
	b.ReportAllocs()
	for b.Loop() {
		e.run(b, in)
	}
}

func BenchmarkExchangeChunked(b *testing.B) {
	e, in := newExchange(true), []byte(benchRequest)
	b.ReportAllocs()
	for b.Loop() {
		e.run(b, in)
	}
}
