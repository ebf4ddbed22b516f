package h2

import (
	"testing"

	"golang.org/x/net/http2"
)

// However a stream ends, its connection has no use of its memory afterwards: neither what
// still arrives for it nor the end of the connection changes another stream there.
func TestMemoryOfAnEndedStreamMayBeUsedAgain(t *testing.T) {
	half := func(r *rig, id uint32) { // a DATA frame that is cut
		_ = r.framer.WriteData(id, false, make([]byte, 1000))
		all := append([]byte(nil), r.wire.Bytes()...)
		r.wire.Reset()
		if err := r.conn.Receive(r.now, all[:500]); err != nil {
			r.t.Fatal(err)
		}
		r.wire.Write(all[500:])
	}
	for name, end := range map[string]func(r *rig, s *Stream){
		"reset here within a DATA frame": func(r *rig, s *Stream) { half(r, s.ID); r.conn.Reset(s, Cancel) },
		"reset here":                     func(r *rig, s *Stream) { r.conn.Reset(s, Cancel) },
		"reset by the peer": func(r *rig, s *Stream) {
			_ = r.framer.WriteRSTStream(s.ID, http2.ErrCodeCancel)
			_ = r.flush()
		},
		"ended by both": func(r *rig, s *Stream) {
			_ = r.conn.Respond(s, &Header{Status: 200}, true)
			_ = r.framer.WriteData(s.ID, true, []byte("x"))
			_ = r.flush()
			r.conn.Release(s)
		},
		"reset while it waits for the connection's window": func(r *rig, s *Stream) {
			_ = r.conn.Respond(s, &Header{Status: 200}, false)
			r.conn.AppendData(s, make([]byte, r.conn.SendQuota(s)), false)
			for n := r.conn.SendQuota(s); n > 0; n = r.conn.SendQuota(s) {
				r.conn.AppendData(s, make([]byte, n), false)
			}
			r.conn.Reset(s, Cancel)
		},
		"more than it has promised": func(r *rig, s *Stream) {
			_ = r.framer.WriteData(s.ID, false, make([]byte, 1<<20))
			_ = r.flush()
			r.conn.Release(s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var memory Stream
			cfg := Config{Server: true, MaxFrame: 2 << 20, NewStream: func() *Stream { return &memory }}
			r := newRig(t, cfg).start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
			r.headers(1, false, ":method=POST", ":scheme=http", ":authority=a", ":path=/")
			_ = r.flush()
			s := r.streams[1]
			end(r, s)
			if !s.Closed() {
				t.Fatal("the stream has not ended")
			}
			memory = Stream{}
			other := newRig(t, cfg).start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
			other.headers(1, false, ":method=POST", ":scheme=http", ":authority=b", ":path=/")
			_ = other.flush()
			_ = other.conn.Respond(other.streams[1], &Header{Status: 200}, false)
			before := memory
			r.events = nil

			if r.wire.Len() == 0 {
				_ = r.framer.WriteData(1, false, make([]byte, 100))
			}
			_ = r.framer.WriteWindowUpdate(1, 5000)
			_ = r.framer.WriteWindowUpdate(0, 5000)
			_ = r.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 18})
			_ = r.framer.WriteRSTStream(1, http2.ErrCodeCancel)
			_ = r.flush()
			r.conn.Close(InternalError)
			for _, e := range r.events {
				if e != "settings available=100" {
					t.Errorf("the old connection still calls: %s", e)
				}
			}
			if memory != before {
				t.Errorf("the old connection changed the new stream: %+v, before %+v", memory, before)
			}
			_ = other.framer.WriteData(1, true, []byte("hello"))
			_ = other.flush()
			if got := string(other.got[1]); got != "hello" {
				t.Errorf("the new stream got %q", got)
			}
		})
	}
}

// With Config.Transient, no string of a header section outlives the call: the next section
// may overwrite it, and what the handler copied stays.
func TestTransientStringsAreOfOneCall(t *testing.T) {
	r := newRig(t, Config{Server: true, Transient: true}).start()
	var copies []string
	r.onHeaders = func(_ *Stream, h *Header, _ bool) { copies = append(copies, string([]byte(h.Path))) }
	paths := []string{"/first", "/second-and-longer", "/x"}
	for i, p := range paths {
		r.headers(uint32(2*i+1), true, ":method=GET", ":scheme=http", ":authority=a", ":path="+p)
	}
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	for i, p := range paths {
		if copies[i] != p {
			t.Errorf("section %d: %q", i, copies[i])
		}
	}
}
