package stream_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// Whatever a reader does (pause, resume, keep credit, hand the stream over), it gets
// the bytes that were written, in order and once, then the end, then OnClose.
func TestStreamsProperty(t *testing.T) {
	la, lb := streamtest.Loop(t), streamtest.Loop(t)
	for name, open := range map[string]func(testing.TB) streamtest.Ends{
		"pair": func(tb testing.TB) streamtest.Ends {
			var e streamtest.Ends
			streamtest.On(tb, la, func() {
				e.A, e.B = streamtest.Pair(la, streamtest.Options{Cut: streamtest.Cuts(1, 7, 30_000)})
			})
			return e
		},
		"socket": func(tb testing.TB) streamtest.Ends { return plainPair(tb, la, lb) },
		"TLS":    func(tb testing.TB) streamtest.Ends { return inside(tb, plainPair(tb, la, lb)) },
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				e := open(t)
				writes := rapid.SliceOfN(rapid.IntRange(0, 50_000), 0, 12).Draw(rt, "writes")
				acts := rapid.SliceOfN(rapid.IntRange(0, 5), 1, 30).Draw(rt, "what the reader does")
				var want []byte
				var w streamtest.Sink
				for i, n := range writes {
					p := bytes.Repeat([]byte{byte(i + 1)}, n)
					want = append(want, p...)
					streamtest.On(t, e.A.Loop(), func() {
						if i == 0 {
							e.A.Bind(&w)
						}
						e.A.Write(p)
					})
				}
				streamtest.On(t, e.A.Loop(), e.A.CloseWrite)
				r := &reader{conn: e.B, acts: acts}
				streamtest.On(t, e.B.Loop(), func() { e.B.Bind(r) })
				streamtest.Until(t, e.B.Loop(), "the end arrives", func() bool {
					r.settle()
					return r.end
				})
				streamtest.On(t, e.B.Loop(), func() {
					r.settle()
					e.B.CloseWrite()
				})
				streamtest.Until(t, e.B.Loop(), "the stream is closed", func() bool { return r.closed })
				if !bytes.Equal(r.data, want) || r.why != reason.OK || r.wrong != "" {
					rt.Fatalf("%d bytes of %d, closed with %s, %s", len(r.data), len(want), r.why, r.wrong)
				}
			})
		})
	}
}

// reader does the next of its acts at each piece.
type reader struct {
	conn        stream.Conn
	acts        []int
	data        []byte
	kept        int // credit that was not given back
	paused      bool
	end, closed bool
	why         reason.Reason
	wrong       string
}

func (r *reader) OnData(p []byte, end bool) {
	if r.paused || r.end || r.closed {
		r.wrong = "data in a pause or after the end"
	}
	r.data = append(r.data, p...)
	r.end = end
	r.kept += len(p)
	if len(r.acts) == 0 {
		r.settle()
		return
	}
	switch r.acts[0] {
	case 0:
		r.settle()
	case 1:
		r.paused = true
		r.conn.Pause()
	case 2:
		r.conn.Pause()
		r.conn.Resume()
	case 3:
		r.conn.Consumed(r.kept / 2)
		r.kept -= r.kept / 2
	case 4:
		r.conn.Bind(&relayed{r})
	case 5:
		// keeps what it has
	}
	r.acts = r.acts[1:]
}

// settle undoes what holds the stream up.
func (r *reader) settle() {
	r.conn.Consumed(r.kept)
	r.kept = 0
	if r.paused {
		r.paused = false
		r.conn.Resume()
	}
}

func (r *reader) OnWritable() {}

func (r *reader) OnClose(why reason.Reason, _ error) {
	if r.closed {
		r.wrong = "closed twice"
	}
	r.closed, r.why = true, why
}

// relayed is another Sink that does the same.
type relayed struct{ *reader }
