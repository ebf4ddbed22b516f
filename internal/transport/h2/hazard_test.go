package h2

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

// A stream that nobody reads takes its own window and nothing else: not the
// connection's, however many there are of them.
func TestStuckReadersDoNotStopTheNextStream(t *testing.T) {
	const stuck = 64
	r := newRig(t, Config{Server: true, ConnWindow: 1 << 20, MaxFrame: 64 << 10}).start()
	window := int(r.conn.cfg.StreamWindow)
	payload := make([]byte, window)
	for i := range uint32(stuck) {
		r.connect(2*i + 1)
		_ = r.framer.WriteData(2*i+1, false, payload)
		if err := r.flush(); err != nil {
			t.Fatalf("stuck stream %d: %v", i, err)
		}
	}
	r.output()

	// Four times the connection's window through the next stream.
	r.connect(2*stuck + 1)
	r.onData = func(s *Stream, p []byte, _ bool) {
		if s.ID == 2*stuck+1 {
			r.conn.Consumed(s, len(p))
		}
	}
	for sent := 0; sent < 4<<20; sent += window / 2 {
		_ = r.framer.WriteData(2*stuck+1, false, payload[:window/2])
		if err := r.flush(); err != nil {
			t.Fatalf("after %d bytes: %v", sent, err)
		}
		r.output()
	}
	if got := len(r.got[2*stuck+1]); got != 4<<20 {
		t.Errorf("the moving stream got %d bytes", got)
	}
	// And what the stuck ones hold is bounded by their windows.
	var held uint32
	r.conn.Each(func(s *Stream) bool { held += s.unread; return true })
	if held != stuck*uint32(window) {
		t.Errorf("%d bytes are held, want %d", held, stuck*window)
	}
	if err := func() error { _ = r.framer.WriteData(1, false, []byte("x")); return r.flush() }(); err != nil {
		t.Fatalf("exceeding a stream's window must not end the connection: %v", err)
	}
	if ev := r.takeEvents(); !slices.Contains(ev, "reset 1 FLOW_CONTROL_ERROR") {
		t.Errorf("a stuck stream could receive beyond its window")
	}
}

// Bytes for streams that are gone count for the connection nevertheless: were
// they not credited, each reset would shrink it for ever.
func TestDataForClosedStreamsIsCredited(t *testing.T) {
	for _, how := range []string{"reset by us", "reset by the peer", "reset in the middle of a frame", "refused"} {
		t.Run(how, func(t *testing.T) {
			cfg := Config{Server: true, ConnWindow: 1 << 20, MaxFrame: 64 << 10}
			if how == "refused" {
				cfg.MaxStreams = 1
			}
			cfg.Abuse.Resets = 1 << 20
			r := newRig(t, cfg).start()
			payload := make([]byte, 60<<10)
			if how == "refused" {
				r.connect(1)
			}
			r.onData = func(s *Stream, _ []byte, _ bool) {
				if how == "reset in the middle of a frame" {
					r.conn.Reset(s, Cancel)
				}
			}
			var credit, sent int
			for id := uint32(3); id < 401; id += 2 {
				r.connect(id)
				if err := r.flush(); err != nil {
					t.Fatal(err)
				}
				switch how {
				case "reset by us":
					r.conn.Reset(r.streams[id], Cancel)
				case "reset by the peer":
					_ = r.framer.WriteRSTStream(id, 8)
				}
				_ = r.framer.WriteData(id, false, payload)
				sent += len(payload)
				// In pieces, so that a stream can end within its frame.
				b := bytes.Clone(r.wire.Bytes())
				r.wire.Reset()
				for piece := range slices.Chunk(b, 10_000) {
					if err := r.conn.Receive(r.now, piece); err != nil {
						t.Fatalf("stream %d after %d bytes: %v", id, sent, err)
					}
				}
				r.output()
			}
			credit = sent - (1<<20 - int(r.conn.recvWindow)) // what came back
			if missing := sent - credit; missing > 1<<19 {
				t.Errorf("%d of %d bytes were never credited", missing, sent)
			}
			if r.conn.held != 0 {
				t.Errorf("%d bytes are still held against the budget", r.conn.held)
			}
		})
	}
}

// A stream that ends while it waits for the connection's window leaves the
// queue, whoever ends it and in whatever call.
func TestStreamEndsWhileItWaits(t *testing.T) {
	setup := func(t *testing.T) (*rig, []*Stream) {
		r := newRig(t, Config{Server: true}).start()
		var all []*Stream
		for id := uint32(1); id <= 9; id += 2 {
			r.connect(id)
			_ = r.flush()
			s := r.streams[id]
			all = append(all, s)
			if err := r.conn.Respond(s, &Header{Status: 200}, false); err != nil {
				t.Fatal(err)
			}
		}
		for r.conn.sendWindow > 0 { // use up the connection's window
			s := all[4]
			if n := r.conn.SendQuota(s); n > 0 {
				r.conn.AppendData(s, make([]byte, n), false)
			}
		}
		for _, s := range all[:4] {
			if q := r.conn.SendQuota(s); q != 0 {
				t.Fatalf("quota %d of an exhausted connection", q)
			}
		}
		r.takeEvents()
		r.output()
		return r, all
	}
	t.Run("woken in order, once each", func(t *testing.T) {
		r, all := setup(t)
		r.onWritable = func(s *Stream) { r.conn.AppendData(s, make([]byte, min(r.conn.SendQuota(s), 10)), false) }
		_ = r.framer.WriteWindowUpdate(0, 15)
		_ = r.flush()
		wantLines(t, "first update", r.takeEvents(), "writable 1 quota=15", "writable 3 quota=5")
		r.conn.SendQuota(all[0]) // has more to send: behind the others
		_ = r.framer.WriteWindowUpdate(0, 100)
		_ = r.flush()
		wantLines(t, "second update", r.takeEvents(), "writable 5 quota=100", "writable 7 quota=90", "writable 1 quota=80")
	})
	t.Run("reset by the owner of another", func(t *testing.T) {
		r, all := setup(t)
		r.onWritable = func(s *Stream) {
			for _, other := range all[:3] {
				r.conn.Reset(other, Cancel)
			}
		}
		_ = r.framer.WriteWindowUpdate(0, 100)
		_ = r.flush()
		wantLines(t, "calls", r.takeEvents(), "writable 1 quota=100", "writable 7 quota=100")
		if r.conn.waiting != 0 || r.conn.waitHead != nil || r.conn.waitTail != nil {
			t.Error("the queue still holds streams")
		}
	})
	t.Run("reset by the peer", func(t *testing.T) {
		r, _ := setup(t)
		for _, id := range []uint32{1, 5, 7} {
			_ = r.framer.WriteRSTStream(id, 8)
		}
		_ = r.framer.WriteWindowUpdate(0, 100)
		_ = r.flush()
		wantLines(t, "calls", r.takeEvents(), "reset 1 CANCEL", "reset 5 CANCEL", "reset 7 CANCEL", "writable 3 quota=100")
	})
	t.Run("ended by its owner, or with the connection", func(t *testing.T) {
		r, all := setup(t)
		if !r.conn.AppendData(all[0], nil, true) {
			t.Error("END_STREAM needs no window")
		}
		r.onWritable = func(*Stream) { r.conn.GoAway(InternalError, "") }
		_ = r.framer.WriteWindowUpdate(0, 100)
		if r.flush() == nil {
			t.Error("the connection goes on after GoAway")
		}
		wantLines(t, "calls", r.takeEvents(), "writable 3 quota=100", "reset 1 INTERNAL_ERROR", "reset 3 INTERNAL_ERROR",
			"reset 5 INTERNAL_ERROR", "reset 7 INTERNAL_ERROR", "reset 9 INTERNAL_ERROR")
	})
}

// What was delivered before a reset may be used up afterwards; until then it
// counts, so that a peer cannot park bytes in streams that it resets.
func TestResetStreamsCountUntilConsumed(t *testing.T) {
	r := newRig(t, Config{Server: true, Budget: 100_000}).start()
	park := func(id uint32) {
		t.Helper()
		r.connect(id)
		_ = r.framer.WriteData(id, false, make([]byte, 60_000))
		_ = r.framer.WriteRSTStream(id, 8)
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
	}
	park(1)
	park(3)
	park(5)
	wantLines(t, "calls", r.takeEvents(), "headers 1 CONNECT 10.0.0.1:80", "data 1 60000", "reset 1 CANCEL",
		"headers 3 CONNECT 10.0.0.1:80", "data 3 60000", "reset 3 CANCEL")
	if got := r.output(); !slices.Contains(got, "RST_STREAM 5 REFUSED_STREAM") {
		t.Errorf("the third stream was not refused: %q", got)
	}
	r.conn.Consumed(r.streams[1], 50_000)
	r.conn.Consumed(r.streams[1], 50_000) // more than there was
	r.conn.Release(r.streams[3])
	r.conn.Reset(r.streams[3], Cancel)
	if r.conn.held != 0 {
		t.Fatalf("%d bytes held", r.conn.held)
	}
	park(7)
	if ev := r.takeEvents(); len(ev) != 3 {
		t.Errorf("a stream was refused although nothing is held: %q", ev)
	}
}

// The owner may do anything in any call.
func TestHandlersMayEndAnything(t *testing.T) {
	do := map[string]func(r *rig, s *Stream){
		"reset":    func(r *rig, s *Stream) { r.conn.Reset(s, Cancel) },
		"goaway":   func(r *rig, _ *Stream) { r.conn.GoAway(InternalError, "x") },
		"close":    func(r *rig, _ *Stream) { r.conn.Close(Cancel) },
		"shutdown": func(r *rig, _ *Stream) { r.conn.Shutdown(); r.conn.Shutdown() },
		"answer": func(r *rig, s *Stream) {
			_ = r.conn.Respond(s, &Header{Status: 200}, true)
		},
		"reset all": func(r *rig, _ *Stream) {
			r.conn.Each(func(s *Stream) bool { r.conn.Reset(s, Cancel); return true })
		},
	}
	for name, act := range do {
		for _, step := range []int{1, 7, 1 << 20} {
			r := newRig(t, Config{Server: true}).start()
			r.onHeaders = func(s *Stream, _ *Header, _ bool) {
				if s.ID > 3 {
					act(r, s)
				}
			}
			r.onData = func(s *Stream, _ []byte, _ bool) { act(r, s) }
			r.onReset = func(s *Stream, _ ErrCode) { act(r, s) }
			for id := uint32(1); id < 9; id += 2 {
				r.connect(id)
			}
			_ = r.framer.WriteData(1, false, make([]byte, 100))
			_ = r.framer.WriteDataPadded(3, true, make([]byte, 100), make([]byte, 20))
			_ = r.framer.WriteRSTStream(1, 8)
			_ = r.framer.WriteData(5, true, nil)
			for b := range slices.Chunk(bytes.Clone(r.wire.Bytes()), step) {
				_ = r.conn.Receive(r.now, b)
			}
			if r.conn.Err() == nil {
				_ = r.framer.WritePing(false, [8]byte{})
				r.wire.Next(r.wire.Len() - 17)
				if err := r.flush(); err != nil {
					t.Errorf("%s, %d bytes a time: the byte stream is out of step: %v", name, step, err)
				}
			}
		}
	}
}

// Everything that can arrive may arrive in any pieces.
func TestSplitsChangeNothing(t *testing.T) {
	var whole []string
	for step := 1; step < 60; step++ {
		r := newRig(t, Config{Server: true})
		r.consume = true
		r.wire.WriteString(clientPreface)
		_ = r.framer.WriteSettings()
		_ = r.framer.WritePing(false, [8]byte{1})
		r.headers(1, false, ":method=POST", ":scheme=http", ":authority=a", ":path=/", "content-length=30")
		_ = r.framer.WriteData(1, false, make([]byte, 10))
		_ = r.framer.WriteDataPadded(1, false, make([]byte, 20), make([]byte, 33))
		_ = r.framer.WriteRawFrame(0xcc, 0, 1, make([]byte, 40))
		_ = r.framer.WriteDataPadded(1, true, nil, make([]byte, 3))
		_ = r.framer.WriteGoAway(0, 0, []byte("done"))
		for b := range slices.Chunk(bytes.Clone(r.wire.Bytes()), step) {
			if err := r.conn.Receive(r.now, b); err != nil {
				t.Fatalf("%d bytes a time: %v", step, err)
			}
		}
		var calls []string
		for _, e := range r.takeEvents() {
			if e[:4] != "data" {
				calls = append(calls, e)
			}
		}
		calls = append(calls, r.output()...)
		if len(r.got[1]) != 30 {
			t.Fatalf("%d bytes a time: %d bytes of 30 arrived", step, len(r.got[1]))
		}
		if whole == nil {
			whole = calls
		}
		wantLines(t, "calls", calls, whole...)
	}
}

// feed sends bytes on stream 1 as a peer that respects its window would, in
// rounds: each takes one round trip, and PINGs are answered after it.
func feed(t *testing.T, r *rig, id uint32, rounds int, rtt time.Duration, consume func(s *Stream)) {
	t.Helper()
	s, payload := r.streams[id], make([]byte, 64<<10)
	for range rounds {
		r.now = r.now.Add(rtt)
		answers := r.output()
		for _, line := range answers {
			if line == "PING 616d626974727474" {
				_ = r.framer.WritePing(true, pingRTT)
			}
		}
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		for left := int(s.recvWindow); left > 0 && !s.Closed(); left -= 64 << 10 {
			_ = r.framer.WriteData(id, false, payload[:min(left, 64<<10)])
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
			if consume != nil {
				consume(s)
			}
		}
	}
}

func grownRig(t *testing.T, cfg Config, streams uint32) *rig {
	cfg.Server = true
	r := newRig(t, cfg).start()
	r.quiet = true
	for i := range streams {
		r.connect(2*i + 1)
	}
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	return r
}

// The window of a stream that is drained as fast as it fills grows to the
// limit; one that is not drained, or that the peer does not fill, stays.
func TestWindowFollowsTheTraffic(t *testing.T) {
	drain := func(r *rig) func(*Stream) { return func(s *Stream) { r.conn.Release(s) } }
	t.Run("fast", func(t *testing.T) {
		r := grownRig(t, Config{}, 1)
		feed(t, r, 1, 40, 20*time.Millisecond, drain(r))
		if w := r.streams[1].window; w != 4<<20 {
			t.Errorf("window %d", w)
		}
		if rtt := r.conn.RTT(); rtt != 20*time.Millisecond {
			t.Errorf("RTT %v", rtt)
		}
	})
	t.Run("slow peer", func(t *testing.T) {
		r := grownRig(t, Config{}, 1)
		for range 200 {
			r.now = r.now.Add(20 * time.Millisecond)
			_ = r.framer.WriteData(1, false, make([]byte, 8<<10))
			_ = r.flush()
			r.conn.Release(r.streams[1])
			if slices.Contains(r.output(), "PING 616d626974727474") {
				_ = r.framer.WritePing(true, pingRTT)
			}
		}
		if w := r.streams[1].window; w != 64<<10 || r.conn.rtt == 0 {
			t.Errorf("window %d, RTT %v", w, r.conn.rtt)
		}
	})
	t.Run("slow application", func(t *testing.T) {
		r := grownRig(t, Config{}, 1)
		feed(t, r, 1, 200, 20*time.Millisecond, func(s *Stream) {
			if s.unread > 60<<10 {
				r.conn.Consumed(s, 1<<10)
			}
		})
		if w := r.streams[1].window; w != 64<<10 {
			t.Errorf("window %d", w)
		}
	})
	t.Run("shrinks when it slows down", func(t *testing.T) {
		r := grownRig(t, Config{}, 1)
		feed(t, r, 1, 40, 20*time.Millisecond, drain(r))
		s := r.streams[1]
		for i := 0; i < 4000 && s.window > 64<<10; i++ {
			r.now = r.now.Add(200 * time.Millisecond)
			_ = r.framer.WriteData(1, false, make([]byte, min(8<<10, max(s.recvWindow, 0))))
			_ = r.flush()
			r.conn.Release(s)
			r.output()
		}
		if s.window != 64<<10 || r.conn.extra != 0 {
			t.Errorf("window %d, beyond initial windows %d", s.window, r.conn.extra)
		}
	})
}

// Windows together stay within streams × StreamWindow + Budget, also when all
// streams are fast and then all get stuck; and late ones still find some.
func TestWindowsStayWithinTheBudget(t *testing.T) {
	const n = 50
	r := grownRig(t, Config{Budget: 8 << 20}, n)
	bound := int64(n*64<<10 + 8<<20)
	sum := func() (windows, unread int64) {
		r.conn.Each(func(s *Stream) bool {
			windows += int64(s.window)
			unread += int64(s.unread)
			if got := int64(s.recvWindow) + int64(s.unread) + int64(s.owed); got != int64(s.window) {
				t.Fatalf("stream %d: credit %d + unread %d + owed %d is not the window %d", s.ID, s.recvWindow, s.unread, s.owed, s.window)
			}
			return true
		})
		return windows, unread
	}
	drain := func(s *Stream) { r.conn.Release(s) }
	for i := range uint32(n) {
		feed(t, r, 2*i+1, 40, 20*time.Millisecond, drain)
		if w, _ := sum(); w > bound || r.conn.extra != w-n*64<<10 {
			t.Fatalf("after stream %d windows are %d, bound %d, extra %d", i, w, bound, r.conn.extra)
		}
	}
	if w := r.streams[2*9+1].window; w <= 64<<10 {
		t.Errorf("the tenth stream found no budget: %d", w)
	}
	for i := range uint32(n) {
		feed(t, r, 2*i+1, 3, 20*time.Millisecond, nil)
	}
	if _, unread := sum(); unread > bound {
		t.Errorf("%d bytes unread, bound %d", unread, bound)
	}
	// All of it comes back.
	for i := range uint32(n) {
		r.conn.Reset(r.streams[2*i+1], Cancel)
	}
	if r.conn.extra != 0 || r.conn.held != 0 {
		t.Errorf("left over: extra %d, held %d", r.conn.extra, r.conn.held)
	}
}

// Under pressure a stream with more than its share gives some back.
func TestPressureShrinksTheLargest(t *testing.T) {
	r := grownRig(t, Config{Budget: 16 << 20}, 20)
	drain := func(s *Stream) { r.conn.Release(s) }
	for i := range uint32(20) {
		feed(t, r, 2*i+1, 30, 20*time.Millisecond, drain)
	}
	first := r.streams[1].window
	for range 30 {
		for i := range uint32(20) {
			feed(t, r, 2*i+1, 1, time.Millisecond, drain)
		}
	}
	if now := r.streams[1].window; first < 4<<20 || now > 1<<20 {
		t.Errorf("the first stream kept %d of %d", now, first)
	}
}

// A stream whose owner got stuck after a fast start must not take budget for
// a window that nobody uses.
func TestStuckStreamsTakeNoBudget(t *testing.T) {
	r := grownRig(t, Config{}, 20)
	feed(t, r, 1, 5, 20*time.Millisecond, func(s *Stream) { r.conn.Release(s) }) // measures the RTT
	r.conn.Reset(r.streams[1], Cancel)
	for i := range uint32(19) {
		s := r.streams[2*i+3]
		for range 15 {
			r.now = r.now.Add(time.Millisecond)
			_ = r.framer.WriteData(s.ID, false, make([]byte, 4<<10))
			_ = r.flush()
		}
		r.conn.Consumed(s, 16<<10)
	}
	if r.conn.extra != 0 {
		t.Errorf("windows of stuck streams grew by %d", r.conn.extra)
	}
}

// Padding counts against windows, and nobody but the engine can give it back.
func TestPaddingIsCredited(t *testing.T) {
	r := newRig(t, Config{Server: true}).start()
	r.consume = true
	r.connect(1)
	for i := range 2000 {
		_ = r.framer.WriteDataPadded(1, false, []byte("x"), make([]byte, 200))
		if err := r.flush(); err != nil || r.streams[1].Closed() {
			t.Fatalf("frame %d: %v, closed %v", i, err, r.streams[1].Closed())
		}
		r.output()
	}
}
