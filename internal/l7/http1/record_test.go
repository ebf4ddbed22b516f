package http1

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// recorder writes events as lines. Adjacent data is one line, so that the
// record does not depend on how the input was cut.
type recorder struct {
	lines  []string
	data   strings.Builder
	onHead func(*message.Head, Body)
	onEnd  func()
}

func (r *recorder) add(format string, args ...any) {
	if r.data.Len() > 0 {
		d := r.data.String()
		r.data.Reset()
		r.lines = append(r.lines, fmt.Sprintf("data %q", d))
	}
	if format != "" {
		r.lines = append(r.lines, fmt.Sprintf(format, args...))
	}
}

func fieldText(h *message.Head) string {
	var b strings.Builder
	for _, f := range h.Fields {
		fmt.Fprintf(&b, " %s=%q", f.Name, f.Value)
	}
	return b.String()
}

func (r *recorder) OnHead(h *message.Head, body Body) {
	if h.Status != 0 {
		r.add("response %d length %d%s", h.Status, body.Length, fieldText(h))
	} else {
		r.add("request %s %s %s length %d expect %t protocol %q%s", h.Method, h.Authority, h.Path, body.Length, body.Expect, h.Protocol, fieldText(h))
	}
	if r.onHead != nil {
		r.onHead(h, body)
	}
}
func (r *recorder) OnData(p []byte)            { r.data.Write(p) }
func (r *recorder) OnTrailers(h *message.Head) { r.add("trailers%s", fieldText(h)) }
func (r *recorder) OnEnd() {
	r.add("end")
	if r.onEnd != nil {
		r.onEnd()
	}
}

// feed passes in to the Conn in pieces of size bytes; 0 is all at once. It
// keeps what the Conn leaves over.
func feed(c *Conn, in string, size int) *message.Fault {
	if size == 0 {
		size = len(in)
	}
	var rest []byte
	for len(in) > 0 {
		n := min(size, len(in))
		rest = append(rest, in[:n]...)
		in = in[n:]
		used, f := c.Receive(append([]byte(nil), rest...)) // a copy: slices of it must not be kept
		if f != nil {
			return f
		}
		rest = rest[used:]
	}
	return nil
}

// serve answers each request with an empty 200, as soon as it ends, and
// returns the record.
func serve(in string, size int) (string, *message.Fault) {
	r := &recorder{}
	c := NewServer(r)
	r.onEnd = func() {
		if c.out == outNone && !c.outDone && c.in == inWait {
			c.Respond(nil, &message.Head{Status: 200}, 0)
		}
	}
	f := feed(c, in, size)
	r.add("")
	return strings.Join(r.lines, "\n"), f
}

// ask sends a request with this method, then reads in.
func ask(method, protocol, in string, size int, eof bool) (string, *message.Fault) {
	r := &recorder{}
	c := NewClient(r)
	h := &message.Head{Method: []byte(method), Authority: []byte("h:1"), Path: []byte("/"), Protocol: []byte(protocol)}
	if method == "CONNECT" {
		h.Path = nil
	}
	if _, err := c.Request(nil, h, 0); err != nil {
		panic(err)
	}
	f := feed(c, in, size)
	if eof && f == nil {
		f = c.End()
	}
	r.add("")
	return strings.Join(r.lines, "\n"), f
}

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}
