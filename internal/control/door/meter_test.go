package door

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// wire writes what a client sends.
type wire struct {
	bytes.Buffer
	fr *http2.Framer
}

func newWire() *wire {
	w := &wire{}
	w.WriteString(http2.ClientPreface)
	w.fr = http2.NewFramer(&w.Buffer, nil)
	w.fr.AllowIllegalWrites = true
	_ = w.fr.WriteSettings()
	return w
}

// announced is the beginning of a message of some size.
func announced(size int) []byte {
	return binary.BigEndian.AppendUint32([]byte{0}, uint32(size))
}

// message writes n bytes of a message that is announced with size bytes.
func (w *wire) message(stream uint32, size, n int, pad []byte, end bool) {
	body := append(announced(size), make([]byte, n)...)
	for len(body) > 0 {
		chunk := min(len(body), 16000)
		_ = w.fr.WriteDataPadded(stream, end && chunk == len(body), body[:chunk], pad)
		body = body[chunk:]
	}
}

// verdict feeds bytes in pieces.
func verdict(text []byte, piece int, limit int64) (*meter, error) {
	c := &Conn{heard: make(chan struct{})}
	c.limit.Store(limit)
	m := newMeter(c)
	for len(text) > 0 {
		n := min(piece, len(text))
		if err := m.feed(text[:n]); err != nil {
			return m, err
		}
		text = text[n:]
	}
	return m, nil
}

func TestMeter(t *testing.T) {
	for name, tt := range map[string]struct {
		send  func(w *wire)
		limit int64
		want  string // part of the error
		left  int    // incomplete messages
	}{
		"nothing": {func(*wire) {}, SmallMessage, "", 0},
		"many small ones": {func(w *wire) {
			for range 1000 {
				w.message(1, 1000, 1000, nil, false)
			}
		}, SmallMessage, "", 0},
		"the largest small one":  {func(w *wire) { w.message(1, SmallMessage, SmallMessage, nil, true) }, SmallMessage, "", 0},
		"one byte more":          {func(w *wire) { w.message(1, SmallMessage+1, SmallMessage+1, nil, true) }, SmallMessage, "a message of 65537 bytes", 0},
		"announced and not sent": {func(w *wire) { w.message(1, 1<<30, SmallMessage, nil, false) }, SmallMessage, "", 1},
		"announced and begun":    {func(w *wire) { w.message(1, 1<<30, SmallMessage+1, nil, false) }, SmallMessage, "a message of 1073741824 bytes", 1},
		"allowed":                {func(w *wire) { w.message(1, 1<<20, 1<<20, nil, false) }, 1 << 20, "", 0},
		"more than allowed":      {func(w *wire) { w.message(1, 1<<20+1, 1<<20, nil, false) }, 1 << 20, "the caller may send 1048576", 1},
		"padded":                 {func(w *wire) { w.message(1, SmallMessage+1, SmallMessage+1, make([]byte, 200), false) }, SmallMessage, "a message of", 1},
		"padding is no message": {func(w *wire) {
			w.message(1, 90000, 60000, make([]byte, 200), false)
			w.message(3, 5, 5, make([]byte, 255), false)
		}, SmallMessage, "", 1},
		"on another stream":       {func(w *wire) { w.message(1, 100, 50, nil, false); w.message(3, 1<<20, 70000, nil, false) }, SmallMessage, "a message of", 2},
		"a stream that was reset": {func(w *wire) { w.message(1, 1<<20, 60000, nil, false); _ = w.fr.WriteRSTStream(1, http2.ErrCodeCancel) }, SmallMessage, "", 0},
		"a stream that has ended": {func(w *wire) { w.message(1, 1<<20, 60000, nil, true) }, SmallMessage, "", 0},
		"frames between": {func(w *wire) {
			w.message(1, 1<<20, 60000, nil, false)
			_ = w.fr.WritePing(false, [8]byte{})
			_ = w.fr.WriteData(1, false, make([]byte, 10000))
		}, SmallMessage, "a message of", 1},
		"more padding than frame": {func(w *wire) { _ = w.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1, 2}) }, SmallMessage, "padding", 0},
		"many incomplete messages": {func(w *wire) {
			for i := range uint32(1000) {
				w.message(2*i+1, 10, 5, nil, false)
			}
		}, SmallMessage, "incomplete", maxPartial},
	} {
		w := newWire()
		tt.send(w)
		for _, piece := range []int{1, 7, 4096, 1 << 20} {
			m, err := verdict(w.Bytes(), piece, tt.limit)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s in pieces of %d: %v, not %q", name, piece, err, tt.want)
			}
			if err == nil && len(m.partial) != tt.left {
				t.Errorf("%s: %d incomplete messages", name, len(m.partial))
			}
		}
	}
}

// FuzzMeter: how the bytes are cut decides nothing.
func FuzzMeter(f *testing.F) {
	w := newWire()
	w.message(1, 1<<20, 70000, []byte{1, 2, 3}, true)
	f.Add(w.Bytes(), uint16(100))
	f.Add([]byte(http2.ClientPreface+"\x00\x00\x01\x00\x08\x00\x00\x00\x01\x05"), uint16(1))
	f.Fuzz(func(t *testing.T, text []byte, piece uint16) {
		_, whole := verdict(text, max(1, len(text)), SmallMessage)
		_, cut := verdict(text, int(piece)+1, SmallMessage)
		if (whole == nil) != (cut == nil) {
			t.Errorf("whole: %v, in pieces of %d: %v", whole, piece+1, cut)
		}
	})
}
