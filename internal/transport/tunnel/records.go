package tunnel

import (
	"errors"
	"io"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/record"
)

// maxOut is how large a buffer for ciphertext may become before what was sent is removed
// from its front: as large as hub.putOut keeps.
const maxOut = 2 * outCap

// errSlots is why a tunnel ends whose records are not where they were meant to be.
var errSlots = errors.New("what precedes the data has another length than was reserved")

// open gives the engine what all whole records carry, in one piece: what arrives in one
// piece is delivered by one system call.
func (t *Tunnel) open(p []byte, end bool) {
	plain, rest, err := t.rec.Open(p)
	t.part = t.hub.keep(t.part, rest)
	if len(plain) > 0 && !t.deliver(plain) {
		return
	}
	switch {
	case err == nil && !end:
	case err == nil && len(t.part) > 0:
		t.Fail(reason.TunnelClosed, io.ErrUnexpectedEOF)
	case err == nil, err == io.EOF: //nolint:errorlint // it is never wrapped
		t.Fail(reason.TunnelClosed, nil)
	default:
		t.refuse(err)
	}
}

// refuse ends a tunnel because of what its peer sent, and tries to have the peer know.
func (t *Tunnel) refuse(err error) {
	t.reserve(record.Len(2))
	t.wire.out = t.rec.Refuse(t.wire.out)
	if t.under != nil {
		t.writeInside()
	} else {
		_, _ = t.sock.Write(t.wire.out[t.sent:]) // that peer is not waited for
	}
	t.Fail(reason.TunnelClosed, err)
}

// reserve makes room for n bytes behind what waits. What has been written already may go.
func (t *Tunnel) reserve(n int) {
	w := t.wire
	if w.out == nil {
		w.out = t.hub.takeOut()
	}
	if cap(w.out)-len(w.out) >= n {
		return
	}
	old, waits := w.out, w.out[t.sent:]
	// Moving in place is for less than was sent before, or for a buffer that is large.
	if need := len(waits) + n; need > cap(old) || t.sent < len(waits) && cap(old) < maxOut {
		w.out = append(make([]byte, 0, max(need, maxOut)), waits...)
		t.hub.putOut(old)
	} else {
		w.out = old[:copy(old[:cap(old)], waits)]
	}
	t.sent = 0
}

// sealRecords is seal with records of our own.
func (t *Tunnel) sealRecords(p []byte) bool {
	if t.closed || !t.keys() {
		return false
	}
	t.reserve(record.Len(len(p)))
	t.wire.out = t.rec.Append(t.wire.out, p)
	return true
}

// keys has the keys change when it is time for that. It returns false when that ended
// the tunnel.
func (t *Tunnel) keys() bool {
	if !t.rec.Due() {
		return true
	}
	t.reserve(record.Len(5))
	out, err := t.rec.Control(t.wire.out)
	t.wire.out = out
	t.Touch()
	if err != nil {
		t.Fail(reason.Internal, err)
		return false
	}
	return true
}

// slots is where one DATA frame goes: behind what waits to be written and what the
// engine has to send first, as the plaintext of the records that it will be sent in.
type slots struct {
	at     int      // where the first record begins, in wire.out
	pieces [][]byte // for the data
}

// slots lays out the records of a DATA frame of up to n bytes. They are valid until
// anything else is sent. It returns false when the tunnel has ended.
func (t *Tunnel) slots(n int) (slots, bool) {
	if t.closed || !t.keys() {
		return slots{}, false
	}
	before := record.Len(len(t.h2.Output()))
	n += h2.FrameHeaderLen
	t.reserve(before + record.Len(n))
	at := len(t.wire.out) + before
	t.hub.pieces = record.Slots(t.hub.pieces[:0], t.wire.out[at:cap(t.wire.out)], h2.FrameHeaderLen, n)
	return slots{at, t.hub.pieces}, true
}

// unused gives slots back.
func (t *Tunnel) unused() {
	if t.wire.out != nil && len(t.wire.out) == 0 {
		t.releaseOut()
	}
}

// frame makes a DATA frame of the n bytes in the slots. It reports false when it is not
// sent.
func (t *Tunnel) frame(r slots, s *h2.Stream, n int, end bool) bool {
	buf := t.wire.out[r.at:cap(t.wire.out)]
	if !t.sealOutput() {
		return false
	}
	if len(t.wire.out) != r.at || &t.wire.out[:r.at+1][r.at] != &buf[0] {
		t.Fail(reason.Internal, errSlots)
		return false
	}
	if !t.h2.DataHeader(buf[record.HeaderLen:], s, n, end) {
		return false
	}
	if n += h2.FrameHeaderLen; !t.rec.Seal(buf, n) {
		t.Fail(reason.Internal, errSlots)
		return false
	}
	t.wire.out = t.wire.out[:r.at+record.Len(n)]
	return true
}

// readSlots is readApp with records of our own: what the application has sent is read to
// where it is sealed.
func (s *Stream) readSlots(quota int) (int, bool) {
	t := s.t
	r, ok := t.slots(pieceSize(quota))
	if !ok {
		return 0, false
	}
	n, err := s.sock.ReadPieces(r.pieces)
	if !s.received(n, err) {
		t.unused()
		return 0, false
	}
	switch {
	case n < largeData:
		t.h2.AppendData(s.hs, r.pieces[0][:n], false)
		t.unused()
	case !t.frame(r, s.hs, n, false):
		return n, false
	}
	return n, s.sentFrame() && s.sock.Readable()
}

// frameSlots is frame with records of our own.
func (c *conn) frameSlots(p []byte, end bool) bool {
	t := c.t
	r, ok := t.slots(len(p))
	if !ok {
		return false
	}
	n := len(p)
	for _, piece := range r.pieces {
		p = p[copy(piece, p):]
	}
	return t.frame(r, c.hs, n, end)
}

// forgetRecords lets go of what only records need.
func (t *Tunnel) forgetRecords() {
	if t.rec != nil {
		t.rec.Forget()
	}
	t.part = t.hub.keep(t.part, nil)
}
