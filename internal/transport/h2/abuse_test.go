package h2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// Each attack must end the connection with ENHANCE_YOUR_CALM before its limit
// of frames, and the honest variant beside it must not.
func TestFloods(t *testing.T) {
	cases := []struct {
		name   string
		cfg    Config
		frame  func(r *rig, i uint32) // one step of the attack
		within int                    // steps
		drain  bool                   // the peer reads what we send
	}{
		{
			name:   "rapid reset",
			frame:  func(r *rig, i uint32) { r.connect(2*i + 1); _ = r.framer.WriteRSTStream(2*i+1, 8) },
			within: 1001, drain: true,
		},
		{
			name: "made you reset",
			frame: func(r *rig, i uint32) {
				r.connect(2*i + 1)
				_ = r.framer.WriteWindowUpdate(2*i+1, 0)
			},
			within: 1001, drain: true,
		},
		{
			name:   "malformed requests",
			frame:  func(r *rig, i uint32) { r.headers(2*i+1, true, ":method=GET") },
			within: 1001, drain: true,
		},
		{
			name: "streams beyond the limit", cfg: Config{MaxStreams: 1},
			frame:  func(r *rig, i uint32) { r.connect(2*i + 1) },
			within: 1002, drain: true,
		},
		{
			name: "DATA for streams reset by the peer",
			frame: func(r *rig, i uint32) {
				if i == 0 {
					r.connect(1)
					_ = r.framer.WriteRSTStream(1, 8)
				}
				_ = r.framer.WriteData(1, false, []byte("x"))
			},
			within: 1001, drain: true,
		},
		{
			name: "empty DATA",
			frame: func(r *rig, i uint32) {
				if i == 0 {
					r.connect(1)
				}
				_ = r.framer.WriteData(1, false, nil)
			},
			within: 1001, drain: true,
		},
		{
			name: "padding only",
			frame: func(r *rig, i uint32) {
				if i == 0 {
					r.connect(1)
				}
				_ = r.framer.WriteDataPadded(1, false, nil, make([]byte, 10))
			},
			within: 1001, drain: true,
		},
		{
			name:   "PING, answers unread",
			frame:  func(r *rig, _ uint32) { _ = r.framer.WritePing(false, [8]byte{}) },
			within: 4097,
		},
		{
			name:   "PING, answers read",
			frame:  func(r *rig, _ uint32) { _ = r.framer.WritePing(false, [8]byte{}) },
			within: 20001, drain: true,
		},
		{
			name:   "SETTINGS, answers unread",
			frame:  func(r *rig, _ uint32) { _ = r.framer.WriteSettings() },
			within: 4097,
		},
		{
			name:   "SETTINGS, answers read",
			frame:  func(r *rig, i uint32) { _ = r.framer.WriteSettings(http2.Setting{ID: 4, Val: i}) },
			within: 20001, drain: true,
		},
		{
			name:   "PRIORITY",
			frame:  func(r *rig, _ uint32) { _ = r.framer.WritePriority(7, http2.PriorityParam{}) },
			within: 20001, drain: true,
		},
		{
			name:   "unknown frames",
			frame:  func(r *rig, _ uint32) { _ = r.framer.WriteRawFrame(0x77, 0, 0, nil) },
			within: 20001, drain: true,
		},
		{
			name:   "WINDOW_UPDATE by the byte",
			frame:  func(r *rig, _ uint32) { _ = r.framer.WriteWindowUpdate(0, 1) },
			within: 20001, drain: true,
		},
		{
			name:   "GOAWAY",
			frame:  func(r *rig, _ uint32) { _ = r.framer.WriteGoAway(0, 0, nil) },
			within: 20001, drain: true,
		},
		{
			name: "CONTINUATION without content",
			frame: func(r *rig, i uint32) {
				if i == 0 {
					_ = r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
				}
				_ = r.framer.WriteContinuation(1, false, nil)
			},
			within: 17,
		},
		{
			name: "CONTINUATION with content",
			frame: func(r *rig, i uint32) {
				if i == 0 {
					_ = r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
				}
				_ = r.framer.WriteContinuation(1, false, make([]byte, 4096))
			},
			within: 5,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Server = true
			r := newRig(t, c.cfg).start()
			for i := range c.within {
				c.frame(r, uint32(i))
				err := r.flush()
				if err != nil {
					r.wantCode(err, EnhanceYourCalm)
					return
				}
				if c.drain {
					r.conn.Wrote(len(r.conn.Output()))
				}
			}
			t.Errorf("still alive after %d steps", c.within)
		})
	}
}

// The same work at an honest pace, or with something to show for it, goes on
// for ever.
func TestHonestTrafficIsNoFlood(t *testing.T) {
	cases := []struct {
		name  string
		frame func(r *rig, i uint32)
		every time.Duration
	}{
		{
			name:  "resets now and then",
			frame: func(r *rig, i uint32) { r.connect(2*i + 1); _ = r.framer.WriteRSTStream(2*i+1, 8) },
			every: 11 * time.Millisecond,
		},
		{
			name: "resets after the answer",
			frame: func(r *rig, i uint32) {
				r.connect(2*i + 1)
				_ = r.flush()
				_ = r.conn.Respond(r.streams[2*i+1], &Header{Status: 200}, false)
				_ = r.framer.WriteRSTStream(2*i+1, 8)
			},
		},
		{
			name: "a PING and a small update per DATA",
			frame: func(r *rig, i uint32) {
				if i == 0 {
					r.connect(1)
				}
				_ = r.framer.WriteData(1, false, []byte("x"))
				_ = r.framer.WriteWindowUpdate(1, 1)
			},
		},
		{
			name:  "PING",
			frame: func(r *rig, _ uint32) { _ = r.framer.WritePing(false, [8]byte{}) },
			every: 200 * time.Microsecond,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{Server: true}).start()
			r.consume = true
			for i := range uint32(50_000) {
				c.frame(r, i)
				r.now = r.now.Add(c.every)
				if err := r.flush(); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				r.conn.Wrote(len(r.conn.Output()))
				r.events, r.got = nil, map[uint32][]byte{}
				delete(r.streams, 2*i-1)
			}
		})
	}
}

// A block of a few kilobytes must not unfold into megabytes.
func TestHeaderBombIsCheap(t *testing.T) {
	r := newRig(t, Config{Server: true}).start()
	block := r.headerBlock(":method=CONNECT", ":authority=a:1", "x="+strings.Repeat("y", 3000))
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 12_000)...) // the field just indexed
	for i := range uint32(10) {
		_ = r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, EndHeaders: true, BlockFragment: block})
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		wantLines(t, "answer", r.output(), fmt.Sprintf("RST_STREAM %d ENHANCE_YOUR_CALM", 2*i+1))
	}
	// The tables are still in step.
	r.connect(101)
	_ = r.flush()
	wantLines(t, "calls", r.takeEvents(), "headers 101 CONNECT 10.0.0.1:80")
}

func TestAllowance(t *testing.T) {
	now := t0.UnixNano()
	a := newAllowance(3, 10)
	take := func(want bool) {
		t.Helper()
		if got := a.spend(now); got != want {
			t.Errorf("spend: %v", got)
		}
	}
	take(true)
	take(true)
	take(true)
	take(false)
	now += int64(99 * time.Millisecond)
	take(false)
	now += int64(time.Millisecond)
	take(true)
	take(false)
	now += int64(time.Hour)
	take(true)
	take(true)
	take(true)
	take(false)
	a.earn()
	take(true)
	take(false)
	now -= int64(time.Hour) // clocks may jump
	take(false)
}

// A peer that reads, but never all of it, is not one that does not read.
func TestLaggingReaderIsNoFlood(t *testing.T) {
	r := newRig(t, Config{Server: true}).start()
	for i := range 15_000 {
		_ = r.framer.WritePing(false, [8]byte{})
		if err := r.flush(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if n := len(r.conn.Output()); n > 20_000 {
			r.conn.Wrote(n - 20_000)
		}
	}
	if n := cap(r.conn.out.b); n > 4*keptBuffer {
		t.Errorf("the output buffer grew to %d bytes", n)
	}
}
