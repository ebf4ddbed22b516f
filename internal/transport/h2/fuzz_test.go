package h2

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// misuse is a Handler that does a little of everything, so that fuzzed input
// meets streams in all states.
type misuse struct {
	conn  *Conn
	waits []*Stream
	n     int
}

func (m *misuse) step(s *Stream) {
	m.n++
	switch m.n % 7 {
	case 0:
		m.conn.Reset(s, Cancel)
	case 1:
		m.conn.AppendData(s, make([]byte, min(m.conn.SendQuota(s), 300)), false)
	case 2:
		m.conn.AppendData(s, nil, true)
	case 3:
		m.conn.Release(s)
	}
}

func (m *misuse) OnHeaders(s *Stream, h *Header, _ bool) {
	if h.Method != "" {
		_ = m.conn.Respond(s, &Header{Status: 200, Fields: h.Fields}, m.n%3 == 0)
	}
	m.step(s)
}

func (m *misuse) OnData(s *Stream, p []byte, _ bool) {
	m.conn.Consumed(s, len(p)/2)
	m.step(s)
}
func (m *misuse) OnReset(s *Stream, _ ErrCode)   { m.step(s) }
func (m *misuse) OnWritable(s *Stream)           { m.step(s) }
func (*misuse) OnGoAway(uint32, ErrCode, []byte) {}
func (m *misuse) OnSettings()                    { m.waits = append(m.waits, nil) }
func (*misuse) OnPong([8]byte)                   {}

// books checks what must hold whatever arrived.
func books(t *testing.T, c *Conn) {
	if c.err != nil {
		if len(c.streams.rows) != 0 || c.waiting != 0 {
			t.Fatal("streams outlive their connection")
		}
		return
	}
	var extra int64
	c.Each(func(s *Stream) bool {
		if s.is(ended) || s.is(recvEnded) && s.is(sendEnded) {
			t.Fatalf("stream %d is over but open", s.ID)
		}
		extra += int64(s.window - c.cfg.StreamWindow)
		return true
	})
	if extra != c.extra || c.held < 0 || len(c.streams.rows) > int(c.cfg.MaxStreams) {
		t.Fatalf("extra %d, books %d, held %d, streams %d", extra, c.extra, c.held, len(c.streams.rows))
	}
	if n := len(c.Output()); n > 4<<20 {
		t.Fatalf("%d bytes of output", n)
	}
}

// receive feeds data in pieces of a size that data itself decides.
func receive(t *testing.T, c *Conn, data []byte) {
	step := 1 << 20
	if len(data) > 0 {
		step = int(data[0])%64*37 + 1
	}
	now := t0
	for len(data) > 0 {
		n := min(step, len(data))
		piece := bytes.Clone(data[:n])
		now = now.Add(time.Millisecond)
		if err := c.Receive(now, piece); (err != nil) != (c.Err() != nil) {
			t.Fatalf("Receive %v, Err %v", err, c.Err())
		}
		clear(piece) // nothing may refer to it any more
		data = data[n:]
		if step%2 == 0 {
			c.Wrote(len(c.Output()) / 2)
		}
		books(t, c)
	}
	// What we sent must be frames.
	out := bytes.TrimPrefix(c.Output(), []byte(clientPreface))
	if step%2 != 0 {
		for len(out) >= FrameHeaderLen {
			f := parseFrameHeader(out)
			if int(f.length) > len(out)-FrameHeaderLen {
				t.Fatal("torn frame in the output")
			}
			out = out[FrameHeaderLen+int(f.length):]
		}
		if len(out) != 0 {
			t.Fatal("half a frame header in the output")
		}
	}
}

// seeds are conversations as a peer would have them.
func seeds(f *testing.F, server bool) {
	r := newRig(f, Config{Server: server})
	if server {
		r.wire.WriteString(clientPreface)
	}
	_ = r.framer.WriteSettings(http2.Setting{ID: 4, Val: 100}, http2.Setting{ID: 1, Val: 0})
	_ = r.framer.WriteSettingsAck()
	f.Add(bytes.Clone(r.wire.Bytes()))
	for id := uint32(1); id < 9; id += 2 {
		if server {
			r.connect(id)
			r.headers(id+100, true, ":method=GET", ":scheme=http", ":authority=a", ":path=/", "te=trailers", "content-length=0")
		} else {
			r.headers(id, false, ":status=200", "x=y")
		}
		_ = r.framer.WriteData(id, false, make([]byte, 200))
		_ = r.framer.WriteDataPadded(id, id > 4, make([]byte, 20), make([]byte, 20))
		_ = r.framer.WriteWindowUpdate(id, 10)
		_ = r.framer.WriteWindowUpdate(0, 10)
		_ = r.framer.WritePing(id > 4, pingRTT)
		_ = r.framer.WritePriority(id, http2.PriorityParam{})
		f.Add(bytes.Clone(r.wire.Bytes()))
	}
	r.headers(3, true, "a=b")
	_ = r.framer.WriteRSTStream(1, 8)
	_ = r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 201, BlockFragment: []byte{0x82}})
	_ = r.framer.WriteContinuation(201, true, []byte{0x84})
	_ = r.framer.WriteGoAway(3, 0, []byte("x"))
	f.Add(bytes.Clone(r.wire.Bytes()))
}

func FuzzServerReceive(f *testing.F) {
	seeds(f, true)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &misuse{}
		m.conn = New(Config{Server: true, ExtendedConnect: true, StreamWindow: 1000, MaxStreams: 10, MaxHeaderList: 2000}, m)
		receive(t, m.conn, data)
	})
}

func FuzzClientReceive(f *testing.F) {
	seeds(f, false)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &misuse{}
		m.conn = New(Config{Informational: true, StreamWindow: 1000, MaxHeaderList: 2000}, m)
		for i, method := range []string{"CONNECT", "GET", "HEAD", "CONNECT", "CONNECT"} {
			h := &Header{Method: method, Authority: "a:1"}
			if method != "CONNECT" {
				h.Scheme, h.Path = "http", "/"
			}
			if _, err := m.conn.Open(h, i == 1); err != nil {
				t.Fatal(err)
			}
		}
		receive(t, m.conn, data)
	})
}

// FuzzHeaderFields: whatever a peer may put into fields, what passes is safe
// to write into HTTP/1.1 and into logs.
func FuzzHeaderFields(f *testing.F) {
	f.Add("x-a", "b", "10.0.0.1:80")
	f.Add("te", "trailers", "a")
	f.Add("x\r\ny", "a\nb", "a@b")
	f.Fuzz(func(t *testing.T, name, value, authority string) {
		r := newRig(t, Config{Server: true}).start()
		_ = r.enc.WriteField(hpack.HeaderField{})
		r.block.Reset()
		for _, fl := range []Field{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/"},
			{Name: ":authority", Value: authority}, {Name: name, Value: value}} {
			_ = r.enc.WriteField(hpack.HeaderField(fl))
		}
		r.onHeaders = func(_ *Stream, h *Header, _ bool) {
			for _, s := range []string{h.Authority, h.Get(name)} {
				for i := range len(s) {
					if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
						t.Fatalf("control character in %q", s)
					}
				}
			}
			for _, fl := range h.Fields {
				if !validName(fl.Name) {
					t.Fatalf("name %q", fl.Name)
				}
			}
		}
		if r.block.Len() > minMaxFrame {
			return
		}
		_ = r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: r.block.Bytes()})
		_ = r.flush()
	})
}
