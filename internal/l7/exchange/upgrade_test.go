package exchange_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// peer is one end of an exchange in a test: it keeps what it gets, and answers by f.
type peer struct {
	s       codec.Stream
	head    message.Head
	length  int64
	data    []byte
	trailer string
	end     bool
	cut     *codec.Cut
	onHead  func()
	onData  func()
	onEnd   func()
}

func (p *peer) OnHead(h *message.Head, b http1.Body) {
	p.head.CopyFrom(h)
	p.length = b.Length
	call(p.onHead)
}

func (p *peer) OnData(b []byte) {
	p.data = append(p.data, b...)
	p.s.Consumed(len(b))
	call(p.onData)
}

func (p *peer) OnTrailers(h *message.Head) { p.trailer = string(h.Fields[0].Value) }
func (p *peer) OnEnd()                     { p.end = true; call(p.onEnd) }
func (p *peer) OnWritable()                {}
func (p *peer) OnAbort(c codec.Cut)        { p.cut = &c; call(p.onEnd) }

func call(f func()) {
	if f != nil {
		f()
	}
}

// room is the owner of a client connection.
type room struct{ gone bool }

func (r *room) OnRoom(codec.Client) {}
func (r *room) OnGone(codec.Client) { r.gone = true }

// TestSwitch: CONNECT, and upgrades by both versions of HTTP on both sides, become raw
// bytes in both directions, each of which ends by itself.
func TestSwitch(t *testing.T) {
	for _, down := range []bool{false, true} {
		for _, up := range []bool{false, true} {
			for _, connect := range []bool{false, true} {
				for name, cut := range map[string]func(int) int{"whole": nil, "cut": streamtest.Cuts(1, 2, 30)} {
					t.Run(fmt.Sprintf("%t %t connect=%t %s", down, up, connect, name), func(t *testing.T) {
						switched(t, down, up, connect, cut)
					})
				}
			}
		}
	}
}

func switched(t *testing.T, down, up, connect bool, cut func(int) int) {
	m := newMemory(t, toB(), func() func(int) int { return cut }, func(w *world, _ *configs, p *pool.Config) { w.h2, w.h2up = down, up })
	// The backend answers when the first raw bytes have come, and ends when the client
	// has.
	backend := &peer{}
	cfg := &codec.ServerConfig{Accept: func(r codec.Response) codec.Receiver {
		backend.s = r
		backend.onHead = func() {
			h := &message.Head{Status: 101, Protocol: backend.head.Protocol}
			if connect {
				h.Status = 200
			}
			if !r.Respond(h, codec.Raw) {
				t.Error("the backend cannot switch")
			}
			r.Data([]byte("welcome,"))
		}
		backend.onData = func() {
			if strings.HasSuffix(string(backend.data), "!") {
				r.Data([]byte("thanks"))
			}
		}
		backend.onEnd = func() { r.Finish(nil) }
		return backend
	}}
	m.serveStream(func(c stream.Conn) {
		if up {
			codec.NewHTTP2Server(c, cfg)
		} else {
			codec.NewHTTP1Server(c, cfg)
		}
	})
	client := &peer{}
	done := make(chan struct{})
	client.onEnd = func() { close(done) }
	owner := &room{}
	m.on(func() {
		a, b := streamtest.Pair(m.loop, streamtest.Options{Cut: cut})
		m.serve(b)
		var c codec.Client
		if down {
			c = codec.NewHTTP2Client(a, owner)
		} else {
			c = codec.NewHTTP1Client(a, owner)
		}
		send := func() {
			r := c.Open()
			client.s = r
			h := &message.Head{Method: []byte("GET"), Authority: []byte("h:80"), Path: []byte("/chat"), Protocol: []byte("websocket")}
			if connect {
				h = &message.Head{Method: []byte("CONNECT"), Authority: []byte("h:80")}
			}
			if err := r.Send(h, 0, client); err != nil {
				t.Error(err)
				close(done)
				return
			}
			client.onHead = func() { r.Data([]byte("hello!")) }
			client.onData = func() {
				if strings.HasSuffix(string(client.data), "thanks") {
					r.Finish(nil)
				}
			}
		}
		if !down || connect {
			send()
			return
		}
		m.settings(send) // extended CONNECT needs the server's word
	})
	<-done
	m.on(func() {
		if client.cut != nil || string(client.data) != "welcome,thanks" || client.length != codec.Raw {
			t.Errorf("the client got %d %q, %+v", client.head.Status, client.data, client.cut)
		}
		if want := map[bool]int{true: 200, false: 101}[connect]; client.head.Status != want {
			t.Errorf("status %d", client.head.Status)
		}
		if string(backend.data) != "hello!" || !backend.end || !connect && string(backend.head.Protocol) != "websocket" {
			t.Errorf("the backend got %q %+v", backend.data, backend.head)
		}
	})
	if r := m.record(0); r.Reason != reason.OK || r.Received != 6 || r.Sent != 14 {
		t.Errorf("%+v", r)
	}
	m.idle()
	m.on(func() {
		if n := m.pool.Idle(); n != 0 && !up {
			t.Errorf("%d connections of HTTP/1 are used again after a switch", n)
		}
	})
}

// settings runs f some turns later.
func (m *memory) settings(f func()) {
	n := 200
	var step func()
	step = func() {
		if n--; n > 0 {
			m.loop.Post(step)
			return
		}
		f()
	}
	step()
}

// serveStream runs f with each connection to the backend, on the loop.
func (m *memory) serveStream(f func(stream.Conn)) {
	m.raw = f
}
