package h2

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// end is one end of a connection with an application above it: it sends what
// is queued as windows permit and checks what arrives. Byte i of a direction
// of a stream is pattern(id, i), so order and completeness are visible.
type end struct {
	t    *rapid.T
	name string
	conn *Conn
	apps map[uint32]*app
}

type app struct {
	s                *Stream
	queued, sent     int // bytes to send, and sent
	finish, finished bool
	got, consumed    int
	gotEnd, gone     bool
}

func pattern(id uint32, i int) byte { return byte(i*7 + i>>8 + int(id)) }

func (e *end) app(s *Stream) *app {
	a := e.apps[s.ID]
	if a == nil {
		a = &app{s: s}
		e.apps[s.ID] = a
	}
	return a
}

// pump sends as much as windows permit; large frames by DataHeader.
func (e *end) pump(a *app) {
	for a.sent < a.queued {
		n := min(e.conn.SendQuota(a.s), a.queued-a.sent)
		if n == 0 {
			return
		}
		p := make([]byte, FrameHeaderLen+n)
		for i := range n {
			p[FrameHeaderLen+i] = pattern(a.s.ID, a.sent+i)
		}
		last := a.finish && a.sent+n == a.queued
		if n > 5000 {
			if !e.conn.DataHeader(p, a.s, n, last) {
				e.t.Fatalf("%s: DataHeader refused %d bytes within the quota", e.name, n)
			}
			out := e.conn.pending() // "sends Output first, then hdr and payload"
			out.b = append(out.b, p...)
		} else if !e.conn.AppendData(a.s, p[FrameHeaderLen:], last) {
			e.t.Fatalf("%s: AppendData refused %d bytes within the quota", e.name, n)
		}
		a.sent += n
		a.finished = a.finished || last
	}
	if a.finish && !a.finished {
		a.finished = e.conn.AppendData(a.s, nil, true)
	}
}

func (e *end) OnHeaders(s *Stream, h *Header, end bool) {
	a := e.app(s)
	a.gotEnd = a.gotEnd || end
	if h.Method != "" {
		if err := e.conn.Respond(s, &Header{Status: 200}, false); err != nil {
			e.t.Fatalf("respond: %v", err)
		}
		e.pump(a)
	}
}

func (e *end) OnData(s *Stream, p []byte, end bool) {
	a := e.app(s)
	for i, b := range p {
		if want := pattern(s.ID, a.got+i); b != want {
			e.t.Fatalf("%s: stream %d, byte %d is %#x, want %#x", e.name, s.ID, a.got+i, b, want)
		}
	}
	a.got += len(p)
	a.gotEnd = a.gotEnd || end
}

func (e *end) OnReset(s *Stream, _ ErrCode) {
	e.app(s).gone = true
	e.conn.Release(s)
}
func (e *end) OnWritable(s *Stream)           { e.pump(e.app(s)) }
func (*end) OnGoAway(uint32, ErrCode, []byte) {}
func (*end) OnSettings()                      {}
func (*end) OnPong([8]byte)                   {}
func (e *end) consume(a *app, n int)          { e.conn.Consumed(a.s, n); a.consumed += n }
func (e *end) String() string                 { return e.name }

func newEnd(t *rapid.T, name string, cfg Config) *end {
	e := &end{t: t, name: name, apps: map[uint32]*app{}}
	e.conn = New(cfg, e)
	return e
}

// balanced checks the books of one end.
func (e *end) balanced() {
	var extra int64
	e.conn.Each(func(s *Stream) bool {
		if s.is(recvEnded) {
			extra += int64(s.window - e.conn.cfg.StreamWindow)
			return true
		}
		if got := int64(s.recvWindow) + int64(s.unread) + int64(s.owed); e.conn.rx.cur == nil && e.conn.acked && got != int64(s.window) {
			e.t.Fatalf("%s: stream %d: %d + %d + %d is not %d", e.name, s.ID, s.recvWindow, s.unread, s.owed, s.window)
		}
		extra += int64(s.window - e.conn.cfg.StreamWindow)
		return true
	})
	if extra != e.conn.extra || extra > int64(e.conn.cfg.Budget) {
		e.t.Fatalf("%s: windows grew by %d, books say %d, budget %d", e.name, extra, e.conn.extra, e.conn.cfg.Budget)
	}
	if e.conn.held < 0 {
		e.t.Fatalf("%s: held %d", e.name, e.conn.held)
	}
}

// TestConnsAgree joins a client and a server by wires that split anywhere and
// lets both do anything in any order: all bytes arrive in order, and in the
// end both sides' windows are the same.
func TestConnsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		windows := rapid.SampledFrom([]uint32{1, 100, 5000, 65535, 64 << 10, 200_000})
		config := func(server bool) Config {
			return Config{
				Server: server, MaxStreams: 20, StreamWindow: windows.Draw(t, "window"),
				ConnWindow: rapid.SampledFrom([]uint32{65535, 100_000, 1 << 20}).Draw(t, "conn"),
				Budget:     300_000, MaxStreamWindow: 1 << 20,
				Abuse: AbuseLimits{Resets: 1 << 20, Noise: 1 << 24, Unsent: 1 << 20},
			}
		}
		client, server := newEnd(t, "client", config(false)), newEnd(t, "server", config(true))
		now := t0
		move := func(from, to *end, n int) {
			b := from.conn.Output()
			b = b[:min(n, len(b))]
			now = now.Add(time.Duration(len(b)) * time.Microsecond)
			if err := to.conn.Receive(now, b); err != nil {
				t.Fatalf("%s: %v", to, err)
			}
			from.conn.Wrote(len(b))
		}
		ends := []*end{client, server}
		pick := func() (*end, *app) {
			e := rapid.SampledFrom(ends).Draw(t, "end")
			var open []*app
			for id := uint32(1); id < client.conn.nextID; id += 2 {
				if a := e.apps[id]; a != nil && !a.gone {
					open = append(open, a)
				}
			}
			if len(open) == 0 {
				return e, nil
			}
			return e, rapid.SampledFrom(open).Draw(t, "stream")
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				s, err := client.conn.Open(&Header{Method: "CONNECT", Authority: "a:1", Fields: []Field{{Name: "n", Value: fmt.Sprint(client.conn.nextID)}}}, false)
				if err == nil {
					client.app(s)
				}
			},
			"send": func(t *rapid.T) {
				if e, a := pick(); a != nil && !a.finish {
					a.queued += rapid.IntRange(1, 100_000).Draw(t, "bytes")
					e.pump(a)
				}
			},
			"finish": func(t *rapid.T) {
				if e, a := pick(); a != nil && !a.finish {
					a.finish = true
					e.pump(a)
				}
			},
			"reset": func(t *rapid.T) {
				if e, a := pick(); a != nil && !a.s.Closed() && rapid.IntRange(0, 3).Draw(t, "rarely") == 0 {
					a.gone = true
					e.conn.Reset(a.s, Cancel)
				}
			},
			"consume": func(t *rapid.T) {
				if e, a := pick(); a != nil && a.got > a.consumed {
					e.consume(a, rapid.IntRange(1, a.got-a.consumed).Draw(t, "bytes"))
				}
			},
			"move": func(t *rapid.T) {
				n := rapid.IntRange(1, 70_000).Draw(t, "bytes")
				if rapid.Bool().Draw(t, "up") {
					move(client, server, n)
				} else {
					move(server, client, n)
				}
			},
			"": func(*rapid.T) { client.balanced(); server.balanced() },
		})
		// Let everything that was begun come to its end.
		for again := true; again; {
			again = false
			for i, e := range ends {
				for _, a := range e.apps {
					if !a.gone && a.got > a.consumed {
						e.consume(a, a.got-a.consumed)
						again = true
					}
				}
				if len(e.conn.Output()) > 0 {
					move(e, ends[1-i], 1<<30)
					again = true
				}
			}
		}
		agree(t, client, server)
	})
}

func agree(t *rapid.T, client, server *end) {
	if client.conn.sendWindow != server.conn.recvWindow || server.conn.sendWindow != client.conn.recvWindow {
		t.Fatalf("the connection's windows differ: client %d/%d, server %d/%d", client.conn.sendWindow,
			client.conn.recvWindow, server.conn.sendWindow, server.conn.recvWindow)
	}
	if client.conn.Streams() != server.conn.Streams() {
		t.Fatalf("%d streams at the client, %d at the server", client.conn.Streams(), server.conn.Streams())
	}
	for id, c := range client.apps {
		s := server.apps[id]
		if c.gone || (s != nil && s.gone) {
			continue
		}
		if s == nil {
			t.Fatalf("stream %d never arrived", id)
		}
		for _, d := range []struct {
			what     string
			from, to *app
		}{{"up", c, s}, {"down", s, c}} {
			if d.from.sent != d.from.queued || d.to.got != d.from.sent || d.to.gotEnd != d.from.finish {
				t.Fatalf("stream %d %s: queued %d, sent %d, got %d, finish %v, end %v", id, d.what,
					d.from.queued, d.from.sent, d.to.got, d.from.finish, d.to.gotEnd)
			}
			if !d.from.finish && d.from.s.sendWindow != d.to.s.recvWindow {
				t.Fatalf("stream %d %s: windows differ: %d and %d", id, d.what, d.from.s.sendWindow, d.to.s.recvWindow)
			}
		}
	}
	if client.conn.held != 0 || server.conn.held != 0 {
		t.Fatalf("held: client %d, server %d", client.conn.held, server.conn.held)
	}
}
