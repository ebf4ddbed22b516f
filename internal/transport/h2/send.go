package h2

import (
	"strconv"

	"github.com/ambit-mesh/ambit/internal/transport/hpack"
)

// Open starts a stream with a request (client). end tells that no body
// follows. Errors: ErrTooManyStreams, ErrGoingAway, ErrClosed, ErrHeaderList,
// ErrMalformed; the connection is unharmed.
func (c *Conn) Open(h *Header, end bool) (*Stream, error) {
	switch {
	case c.err != nil:
		return nil, ErrClosed
	case c.cfg.Server:
		return nil, ErrState
	case c.GoingAway():
		return nil, ErrGoingAway
	case c.Available() == 0:
		return nil, ErrTooManyStreams
	}
	if err := c.checkRequest(h); err != nil {
		return nil, err
	}
	s := c.newStream(c.nextID)
	c.nextID += 2
	s.flags |= sentHead
	switch h.Method {
	case methodConnect:
		if h.Protocol == "" {
			s.flags |= isConnect
		}
	case methodHead:
		s.flags |= isHead
	}
	c.sendHeaders(s.ID, h, end)
	if end {
		c.endSend(s)
	}
	return s, nil
}

// Available is how many streams Open would permit now.
func (c *Conn) Available() int {
	if c.GoingAway() || c.held > int64(c.cfg.Budget) {
		return 0
	}
	return max(int(min(c.peerMaxStreams, c.cfg.MaxStreams))-len(c.streams.rows), 0)
}

// Respond sends a response on s (server): any number of 1xx, then one other.
// Errors: ErrClosed, ErrState, ErrHeaderList, ErrMalformed.
func (c *Conn) Respond(s *Stream, h *Header, end bool) error {
	switch {
	case c.err != nil || s.is(ended|sendEnded):
		return ErrClosed
	case !c.cfg.Server || s.is(sentHead):
		return ErrState
	case h.Status < 100 || h.Status > 599 || h.Status == 101 || (h.Status < 200 && end):
		return ErrMalformed
	}
	if err := c.checkFields(h.Fields); err != nil {
		return err
	}
	if h.Status >= 200 {
		s.flags |= sentHead
		if s.is(isConnect) && h.Status < 300 {
			s.flags |= isTunnel
		}
	}
	c.sendHeaders(s.ID, h, end)
	if end {
		c.endSend(s)
	}
	return nil
}

// Trailers sends a last header section, which ends our direction of s.
// Errors as Respond.
func (c *Conn) Trailers(s *Stream, f []Field) error {
	switch {
	case c.err != nil || s.is(ended|sendEnded):
		return ErrClosed
	case !s.is(sentHead) || s.is(isTunnel):
		return ErrState
	}
	if err := c.checkFields(f); err != nil {
		return err
	}
	c.sendHeaders(s.ID, &Header{Trailer: true, Fields: f}, true)
	c.endSend(s)
	return nil
}

// checkRequest keeps what the peer would call malformed from leaving.
func (c *Conn) checkRequest(h *Header) error {
	if !validToken(h.Method) || !validValue(h.Authority) || !validValue(h.Path) ||
		!validValue(h.Scheme) || !validValue(h.Protocol) {
		return ErrMalformed
	}
	if h.Protocol != "" && (h.Method != methodConnect || !c.peerExtends) {
		return ErrMalformed
	}
	if h.Method == methodConnect && h.Protocol == "" {
		if h.Authority == "" || h.Scheme != "" || h.Path != "" {
			return ErrMalformed
		}
	} else if h.Scheme == "" || h.Path == "" {
		return ErrMalformed
	}
	return c.checkFields(h.Fields)
}

// pseudoSize is counted for the pseudo fields of any section when comparing
// with the peer's advisory limit.
const pseudoSize = 256

func (c *Conn) checkFields(fields []Field) error {
	size := uint32(pseudoSize)
	for i := range fields {
		f := &fields[i]
		if !validName(f.Name) || !validValue(f.Value) || forbidden(f.Name, f.Value) != "" {
			return ErrMalformed
		}
		size += f.Size()
	}
	if size > c.peerHeaderList && len(fields) > 0 {
		return ErrHeaderList
	}
	return nil
}

func (c *Conn) encoder() *hpack.Encoder {
	if c.enc == nil {
		c.enc = hpack.NewEncoder(defaultTable)
	}
	return c.enc
}

// field encodes one field.
func (c *Conn) field(f Field) { c.out.b = c.enc.Append(c.out.b, &f) }

// sendHeaders encodes a checked header section into the output.
func (c *Conn) sendHeaders(id uint32, h *Header, end bool) {
	out, enc := c.pending(), c.encoder()
	start := len(out.b)
	out.b = appendFrameHeader(out.b, 0, frameHeaders, 0, id) // what it holds is not known yet
	switch {
	case h.Trailer:
	case h.Method != "":
		c.requestPseudo(h)
	default:
		c.field(Field{Name: ":status", Value: statusText(h.Status)})
	}
	for i := range h.Fields {
		out.b = enc.Append(out.b, &h.Fields[i])
	}
	c.frameBlock(start, id, end)
}

func (c *Conn) requestPseudo(h *Header) {
	c.field(Field{Name: ":method", Value: h.Method})
	if h.Scheme != "" {
		c.field(Field{Name: ":scheme", Value: h.Scheme})
	}
	if h.Authority != "" {
		c.field(Field{Name: ":authority", Value: h.Authority})
	}
	if h.Path != "" {
		c.field(Field{Name: ":path", Value: h.Path, Sensitive: h.PathOnce})
	}
	if h.Protocol != "" {
		c.field(Field{Name: ":protocol", Value: h.Protocol})
	}
}

// frameBlock turns the block that follows start into frames the peer accepts.
func (c *Conn) frameBlock(start int, id uint32, end bool) {
	out, limit := c.out, int(c.peerMaxFrame)
	var flags uint8
	if end {
		flags = flagEndStream
	}
	n := len(out.b) - start - FrameHeaderLen
	if n <= limit {
		putFrameHeader(out.b[start:], n, frameHeaders, flags|flagEndHeaders, id)
		return
	}
	rest := append([]byte(nil), out.b[start+FrameHeaderLen+limit:]...)
	out.b = out.b[:start+FrameHeaderLen+limit]
	putFrameHeader(out.b[start:], limit, frameHeaders, flags, id)
	for len(rest) > 0 {
		part := rest[:min(limit, len(rest))]
		rest = rest[len(part):]
		flags = 0
		if len(rest) == 0 {
			flags = flagEndHeaders
		}
		out.b = append(appendFrameHeader(out.b, len(part), frameContinuation, flags, id), part...)
	}
}

func statusText(status int) string {
	switch status {
	case 200:
		return "200"
	case 400:
		return "400"
	case 401:
		return "401"
	case 503:
		return "503"
	}
	return strconv.Itoa(status)
}

// SendQuota is how many bytes the next DATA frame of s may carry: the least of
// the stream's window, the connection's and the peer's largest frame. After
// the answer 0 for a stream that may send DATA, OnWritable follows once it
// changes; ask until it is 0 before waiting.
func (c *Conn) SendQuota(s *Stream) int {
	if !c.maySend(s) {
		return 0
	}
	if s.sendWindow <= 0 {
		s.flags |= waitsStream
		return 0
	}
	if c.sendWindow <= 0 {
		c.wait(s)
		return 0
	}
	return int(min(uint32(s.sendWindow), uint32(c.sendWindow), c.peerMaxFrame))
}

// maySend reports whether DATA is in order on s: headers went before, no end.
func (c *Conn) maySend(s *Stream) bool {
	return c.err == nil && s.flags&(sentHead|sendEnded|ended) == sentHead
}

// AppendData copies a DATA frame to Output: for small payloads. It reports
// false, and does nothing, when s can no longer send or len(p) > SendQuota.
// An empty p with end ends our direction, whatever the quota.
func (c *Conn) AppendData(s *Stream, p []byte, end bool) bool {
	if len(p) == 0 && !end {
		return c.maySend(s)
	}
	if !c.spendWindow(s, len(p)) {
		return false
	}
	out := c.pending()
	out.b = append(appendFrameHeader(out.b, len(p), frameData, endFlag(end), s.ID), p...)
	if end {
		c.endSend(s)
	}
	return true
}

// FrameHeaderLen is the length of what DataHeader writes, in bytes.
const FrameHeaderLen = 9

// DataHeader accounts for a DATA frame of n bytes and writes its header into
// hdr (at least FrameHeaderLen long): for large payloads. The caller sends
// first Output, then hdr and the payload itself, before anything that enters
// Output later. It reports false, and does nothing, when s can no longer send
// or n > SendQuota.
func (c *Conn) DataHeader(hdr []byte, s *Stream, n int, end bool) bool {
	if n < 0 || !c.spendWindow(s, n) {
		return false
	}
	putFrameHeader(hdr, n, frameData, endFlag(end), s.ID)
	if end {
		c.endSend(s)
	}
	return true
}

// spendWindow takes n bytes off both send windows, or nothing.
func (c *Conn) spendWindow(s *Stream, n int) bool {
	if !c.maySend(s) {
		return false
	}
	if n == 0 {
		return true
	}
	if int64(n) > int64(s.sendWindow) || int64(n) > int64(c.sendWindow) || uint64(n) > uint64(c.peerMaxFrame) {
		return false
	}
	s.sendWindow -= int32(n)
	c.sendWindow -= int32(n)
	c.noise.earn()
	return true
}

func endFlag(end bool) uint8 {
	if end {
		return flagEndStream
	}
	return 0
}
