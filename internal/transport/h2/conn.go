package h2

import "time"

// Conn is one HTTP/2 connection.
type Conn struct{}

// New makes a connection. The preface of a client and the SETTINGS of both
// roles are in Output already.
func New(cfg Config, h Handler) *Conn { return &Conn{} }

// Receive takes the next bytes from the peer, split anywhere, at the time now,
// and calls the Handler. p may be reused afterwards. A *ConnError means that
// the connection ended: each stream had OnReset; write Output and close. After
// an error or Close, Receive does nothing and returns the error again.
func (c *Conn) Receive(now time.Time, p []byte) error { return nil }

// Output is what waits to be sent, in order, valid until the next call of any
// method. Wrote tells how much of it was.
func (c *Conn) Output() []byte { return nil }

// Wrote takes the first n bytes from Output.
func (c *Conn) Wrote(n int) {}

// Open starts a stream with a request (client). end tells that no body
// follows. Errors: ErrTooManyStreams, ErrGoingAway, ErrClosed, ErrHeaderList,
// ErrMalformed; the connection is unharmed.
func (c *Conn) Open(h *Header, end bool) (*Stream, error) { return nil, nil }

// Available is how many streams Open would permit now.
func (c *Conn) Available() int { return 0 }

// Respond sends a response on s (server): any number of 1xx, then one other.
// Errors: ErrClosed, ErrState, ErrHeaderList, ErrMalformed.
func (c *Conn) Respond(s *Stream, h *Header, end bool) error { return nil }

// Trailers sends a last header section, which ends our direction of s.
// Errors as Respond.
func (c *Conn) Trailers(s *Stream, f []Field) error { return nil }

// SendQuota is how many bytes the next DATA frame of s may carry: the least of
// the stream's window, the connection's and the peer's largest frame. After
// the answer 0 for a stream that is still open, OnWritable follows once it
// changes; ask until it is 0 before waiting.
func (c *Conn) SendQuota(s *Stream) int { return 0 }

// AppendData copies a DATA frame to Output: for small payloads. It reports
// false, and does nothing, when s can no longer send or len(p) > SendQuota.
// An empty p with end ends our direction, whatever the quota.
func (c *Conn) AppendData(s *Stream, p []byte, end bool) bool { return false }

// FrameHeaderLen is the length of what DataHeader writes, in bytes.
const FrameHeaderLen = 9

// DataHeader accounts for a DATA frame of n bytes and writes its header into
// hdr (at least FrameHeaderLen long): for large payloads. The caller sends
// first Output, then hdr and the payload itself, before anything that enters
// Output later. It reports false, and does nothing, when s can no longer send
// or n > SendQuota.
func (c *Conn) DataHeader(hdr []byte, s *Stream, n int, end bool) bool { return false }

// Consumed tells that the owner no longer holds n bytes that OnData delivered
// on s; the peer may send as much again. It also counts after s has ended.
func (c *Conn) Consumed(s *Stream, n int) {}

// Release is Consumed for everything delivered on s and not consumed yet.
func (c *Conn) Release(s *Stream) {}

// Reset ends s with RST_STREAM and releases what it held; no OnReset follows.
func (c *Conn) Reset(s *Stream, code ErrCode) {}

// Ping asks the peer to answer with the same data: OnPong.
func (c *Conn) Ping(data [8]byte) {}

// KeepAlive is for the owner to call at its keepalive interval. If nothing
// arrived since the last call it sends a PING; if nothing arrived since then
// either, it reports false: the peer is dead.
func (c *Conn) KeepAlive() bool { return true }

// Shutdown ends the connection gracefully. A server announces it by a GOAWAY
// that names no stream, and one round trip later (or at the next Shutdown) by
// one with the last stream it will serve; a client opens no more streams.
// Streams that are open continue; see Drained.
func (c *Conn) Shutdown() {}

// Drained tells that after Shutdown no stream is left or will come.
func (c *Conn) Drained() bool { return false }

// GoAway ends the connection at once: GOAWAY is in Output, each stream gets
// OnReset(s, code).
func (c *Conn) GoAway(code ErrCode, debug string) {}

// Close tells that the transport is gone: each stream gets OnReset(s, code);
// Output is dropped.
func (c *Conn) Close(code ErrCode) {}

// Err is the error that ended the connection, nil while it lives.
func (c *Conn) Err() error { return nil }

// GoingAway tells that no stream can be opened any more, by either side's
// GOAWAY or because numbers ran out.
func (c *Conn) GoingAway() bool { return false }

// Streams is how many streams are open.
func (c *Conn) Streams() int { return 0 }

// Each calls f for every open stream, oldest first, until f returns false. f
// may end streams.
func (c *Conn) Each(f func(*Stream) bool) {}

// RTT is the last smoothed round trip that was measured, 0 if none was yet.
func (c *Conn) RTT() time.Duration { return 0 }
