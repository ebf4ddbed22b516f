package h2

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// t0 is when the tests begin; only differences matter.
var t0 = time.Unix(1_700_000_000, 0)

// recorder is a Handler that notes every call, and can act in it.
type recorder struct {
	events  []string
	streams map[uint32]*Stream
	got     map[uint32][]byte
	conn    *Conn
	consume bool // OnData consumes at once
	quiet   bool // DATA is not recorded

	onHeaders  func(s *Stream, h *Header, end bool)
	onData     func(s *Stream, p []byte, end bool)
	onWritable func(s *Stream)
	onReset    func(s *Stream, code ErrCode)
}

func (r *recorder) note(format string, a ...any) {
	r.events = append(r.events, fmt.Sprintf(format, a...))
}

func (r *recorder) OnHeaders(s *Stream, h *Header, end bool) {
	r.streams[s.ID] = s
	var b strings.Builder
	for _, v := range []string{h.Method, h.Scheme, h.Authority, h.Path, h.Protocol} {
		if v != "" {
			b.WriteString(" " + v)
		}
	}
	if h.Status != 0 {
		fmt.Fprintf(&b, " %d", h.Status)
	}
	if h.Trailer {
		b.WriteString(" trailers")
	}
	for _, f := range h.Fields {
		fmt.Fprintf(&b, " %s=%s", f.Name, f.Value)
	}
	r.note("headers %d%s%s", s.ID, b.String(), ending(end))
	if r.onHeaders != nil {
		r.onHeaders(s, h, end)
	}
}

func (r *recorder) OnData(s *Stream, p []byte, end bool) {
	if !r.quiet {
		r.note("data %d %d%s", s.ID, len(p), ending(end))
		r.got[s.ID] = append(r.got[s.ID], p...)
	}
	if r.consume {
		r.conn.Consumed(s, len(p))
	}
	if r.onData != nil {
		r.onData(s, p, end)
	}
}

func (r *recorder) OnReset(s *Stream, code ErrCode) {
	r.note("reset %d %s", s.ID, code)
	if r.onReset != nil {
		r.onReset(s, code)
	}
}

func (r *recorder) OnWritable(s *Stream) {
	r.note("writable %d quota=%d", s.ID, r.conn.SendQuota(s))
	if r.onWritable != nil {
		r.onWritable(s)
	}
}

func (r *recorder) OnGoAway(last uint32, code ErrCode, debug []byte) {
	r.note("goaway %d %s %q", last, code, debug)
}

func (r *recorder) OnSettings() {
	if r.conn != nil {
		r.note("settings available=%d", r.conn.Available())
	}
}

func (r *recorder) OnPong(data [8]byte) { r.note("pong %x", data) }

func ending(end bool) string {
	if end {
		return " end"
	}
	return ""
}

// rig is a Conn under test and the peer it talks to: frames are written and
// read with x/net's framer, so that our own codec does not judge itself.
type rig struct {
	*recorder
	t    testing.TB
	conn *Conn
	now  time.Time

	wire   bytes.Buffer // to the Conn
	framer *http2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder

	fromConn bytes.Buffer
	reader   *http2.Framer
	dec      *hpack.Decoder
	prefaced bool
}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, now: t0, recorder: &recorder{streams: map[uint32]*Stream{}, got: map[uint32][]byte{}}}
	r.conn = New(cfg, r.recorder)
	r.recorder.conn = r.conn
	r.framer = http2.NewFramer(&r.wire, nil)
	r.framer.AllowIllegalWrites = true
	r.enc = hpack.NewEncoder(&r.block)
	r.reader = http2.NewFramer(nil, &r.fromConn)
	r.reader.AllowIllegalReads = true
	r.reader.SetMaxReadFrameSize(1<<24 - 1)
	r.dec = hpack.NewDecoder(4096, nil)
	r.prefaced = cfg.Server
	return r
}

// start exchanges preface and SETTINGS and forgets what that produced.
func (r *rig) start(settings ...http2.Setting) *rig {
	r.t.Helper()
	if r.conn.cfg.Server {
		r.wire.WriteString(clientPreface)
	}
	_ = r.framer.WriteSettings(settings...)
	_ = r.framer.WriteSettingsAck()
	if err := r.flush(); err != nil {
		r.t.Fatalf("start: %v", err)
	}
	r.output()
	r.events = nil
	return r
}

// flush delivers what was written to the Conn.
func (r *rig) flush() error {
	b := bytes.Clone(r.wire.Bytes())
	r.wire.Reset()
	return r.conn.Receive(r.now, b)
}

func (r *rig) headerBlock(fields ...string) []byte {
	r.block.Reset()
	for _, f := range fields {
		i := strings.Index(f[1:], "=") + 1
		_ = r.enc.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+1:]})
	}
	return bytes.Clone(r.block.Bytes())
}

func (r *rig) headers(id uint32, end bool, fields ...string) {
	_ = r.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: r.headerBlock(fields...),
	})
}

func (r *rig) connect(id uint32) { r.headers(id, false, ":method=CONNECT", ":authority=10.0.0.1:80") }

// output takes what the Conn sends, one line a frame.
func (r *rig) output() []string {
	r.t.Helper()
	b := r.conn.Output()
	r.fromConn.Write(b)
	r.conn.Wrote(len(b))
	if !r.prefaced && r.fromConn.Len() > 0 {
		if string(r.fromConn.Next(len(clientPreface))) != clientPreface {
			r.t.Fatal("client does not begin with the preface")
		}
		r.prefaced = true
	}
	var lines []string
	for r.fromConn.Len() > 0 {
		f, err := r.reader.ReadFrame()
		if err != nil {
			r.t.Fatalf("our own frames are invalid: %v", err)
		}
		lines = append(lines, r.line(f))
	}
	return lines
}

func (r *rig) line(f http2.Frame) string {
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ack"
		}
		var b strings.Builder
		_ = f.ForeachSetting(func(s http2.Setting) error {
			fmt.Fprintf(&b, " %v=%d", s.ID, s.Val)
			return nil
		})
		return "SETTINGS" + b.String()
	case *http2.HeadersFrame:
		fields, err := r.dec.DecodeFull(f.HeaderBlockFragment())
		if err != nil && f.HeadersEnded() {
			r.t.Fatalf("our own header block is invalid: %v", err)
		}
		var b strings.Builder
		for _, h := range fields {
			fmt.Fprintf(&b, " %s=%s", h.Name, h.Value)
		}
		return fmt.Sprintf("HEADERS %d%s%s", id, b.String(), ending(f.StreamEnded()))
	case *http2.DataFrame:
		return fmt.Sprintf("DATA %d %d%s", id, len(f.Data()), ending(f.StreamEnded()))
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("RST_STREAM %d %v", id, ErrCode(f.ErrCode))
	case *http2.GoAwayFrame:
		return fmt.Sprintf("GOAWAY %d %v %q", f.LastStreamID, ErrCode(f.ErrCode), f.DebugData())
	case *http2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW_UPDATE %d %d", id, f.Increment)
	case *http2.PingFrame:
		if f.IsAck() {
			return fmt.Sprintf("PING ack %x", f.Data)
		}
		return fmt.Sprintf("PING %x", f.Data)
	}
	return fmt.Sprintf("%v %d", f.Header().Type, id)
}

// takeEvents returns the handler's calls since the last time.
func (r *rig) takeEvents() []string {
	e := r.events
	r.events = nil
	return e
}

// wantCode fails unless the connection ended with that code.
func (r *rig) wantCode(err error, code ErrCode) {
	r.t.Helper()
	var ce *ConnError
	if !errors.As(err, &ce) || ce.Code != code {
		r.t.Fatalf("connection: %v, want %s", err, code)
	}
}

func wantLines(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("%s:\n%s\nwant:\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
