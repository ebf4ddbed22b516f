package h2

import "github.com/ambit-mesh/ambit/internal/transport/hpack"

// blockSlack is what a header block may be longer, encoded, than the decoded
// list: padding, and the priority fields of HEADERS.
const blockSlack = 512

// admitBlock bounds a header block before a byte of it is stored.
func (c *Conn) admitBlock(f frameHeader) bool {
	r := &c.rx
	var size int
	if r.block != nil {
		size = len(r.block.b)
	}
	if f.typ == frameContinuation {
		if r.blockID == 0 {
			c.fail(ProtocolError, "CONTINUATION without HEADERS")
			return false
		}
		if r.blockParts++; r.blockParts > c.cfg.Abuse.Continuations {
			c.fail(EnhanceYourCalm, "too many CONTINUATION frames")
			return false
		}
	}
	if uint64(size)+uint64(f.length) > uint64(c.cfg.MaxHeaderList)+blockSlack {
		c.fail(EnhanceYourCalm, "header block larger than SETTINGS_MAX_HEADER_LIST_SIZE")
		return false
	}
	return true
}

func (c *Conn) onHeaders(f frameHeader, p []byte) {
	if f.flags&flagPadded != 0 {
		if len(p) == 0 || int(p[0]) > len(p)-1 {
			c.fail(ProtocolError, "padding longer than its frame")
			return
		}
		p = p[1 : len(p)-int(p[0])]
	}
	r := &c.rx
	r.selfDep = false
	if f.flags&flagPriority != 0 {
		if len(p) < prioLen {
			c.fail(FrameSizeError, "HEADERS too short for its priority")
			return
		}
		r.selfDep = be32(p)&maxStreamID == f.id
		p = p[prioLen:]
	}
	if f.flags&flagEndHeaders != 0 {
		c.headerBlock(f.id, f.flags, p)
		return
	}
	r.blockID, r.blockFlags, r.blockParts = f.id, f.flags, 0
	r.block = borrow()
	r.block.b = append(r.block.b, p...)
}

func (c *Conn) onContinuation(f frameHeader, p []byte) {
	r := &c.rx
	r.block.b = append(r.block.b, p...)
	if f.flags&flagEndHeaders == 0 {
		return
	}
	b := r.block
	r.block, r.blockID = nil, 0
	c.headerBlock(f.id, r.blockFlags, b.b)
	giveBack(b)
}

// headerBlock takes a complete header block. It is decoded even if nobody
// wants it: both ends' compression tables must stay equal.
func (c *Conn) headerBlock(id uint32, flags uint8, block []byte) {
	s := c.streams.get(id)
	kind, opens := c.sectionOf(s, id)
	if c.err != nil {
		return
	}
	rd := readers.Get().(*reader)
	defer func() {
		clear(rd.h.Fields) // pins no strings
		readers.Put(rd)
	}()
	rd.reset(kind)
	if !c.decode(rd, block) {
		return
	}
	end := flags&flagEndStream != 0
	switch {
	case opens:
		c.openedByPeer(id, rd, end)
	case s == nil:
	case c.rx.selfDep:
		c.streamError(s, ProtocolError)
	case s.is(recvEnded):
		c.streamError(s, StreamClosed)
	case kind == trailerSection:
		c.trailers(s, rd, end)
	default:
		c.response(s, rd, end)
	}
}

// sectionOf finds what HEADERS on a stream mean; opens tells that they open
// it. Headers for a stream that is not open are judged here.
func (c *Conn) sectionOf(s *Stream, id uint32) (kind section, opens bool) {
	switch {
	case s != nil && s.is(recvHead):
		return trailerSection, false
	case s != nil:
		return responseSection, false
	case c.cfg.Server && id&1 == 1 && id > c.lastPeer:
		return requestSection, true
	case c.idle(id):
		c.fail(ProtocolError, "HEADERS on a stream that the peer must not open")
		return requestSection, false
	}
	switch c.graves.find(id) {
	case endedByBoth:
		c.fail(StreamClosed, "HEADERS on a closed stream")
	case unknownFate:
		if id <= c.lastServed && !c.graves.forgot() {
			c.fail(ProtocolError, "HEADERS on a stream ID lower than one that was opened")
			break
		}
		fallthrough
	case resetByPeer:
		c.lateFrame(id, "HEADERS")
	case resetByUs:
	}
	// Only decoded. The tightest rules do: nobody looks at the result.
	return trailerSection, false
}

// decode reads a block into rd; false means that the connection ended.
func (c *Conn) decode(rd *reader, block []byte) bool {
	if c.dec == nil {
		c.dec = hpack.NewDecoder(defaultTable, int(c.cfg.MaxHeaderList))
	}
	var scratch *hpack.Scratch
	if c.cfg.Transient {
		scratch = &rd.scratch
	}
	block, err := c.dec.Begin(block, scratch)
	for err == nil && len(block) > 0 {
		var f Field
		if f, block, err = c.dec.Next(block, !rd.tooBig); err == nil && !rd.tooBig {
			rd.field(f, c.cfg.MaxHeaderList)
		}
	}
	if err != nil {
		c.fail(CompressionError, "invalid header block")
		return false
	}
	rd.finish(c.cfg.ExtendedConnect)
	return true
}

// openedByPeer takes a request.
func (c *Conn) openedByPeer(id uint32, rd *reader, end bool) {
	c.lastPeer = id
	if id > c.lastServed {
		return // the client knows from our GOAWAY, or will
	}
	var code ErrCode
	switch {
	case rd.tooBig:
		code = EnhanceYourCalm
	case rd.fault != "" || c.rx.selfDep || (end && rd.bodyLength() > 0):
		if code = ProtocolError; c.rx.selfDep {
			rd.malformed("stream that depends on itself")
		}
		rd.malformed("content-length without content")
	case len(c.streams.rows) >= int(c.cfg.MaxStreams) || c.held > int64(c.cfg.Budget):
		code = RefusedStream
	default:
		c.noise.earn()
		s := c.newStream(id)
		s.flags |= recvHead
		s.bodyLeft = rd.bodyLength()
		if rd.h.Method == methodConnect && rd.seen&seenProtocol == 0 {
			s.flags |= isConnect
		}
		if end {
			s.flags |= recvEnded
		}
		c.h.OnHeaders(s, &rd.h, end)
		return
	}
	if mh, ok := c.h.(MalformedHandler); ok && code != RefusedStream {
		c.malformed(mh, id, rd, code, end)
	} else {
		c.sendRST(id, code)
		c.graves.bury(id, resetByUs)
	}
	if c.err == nil {
		c.spendReset()
	}
}

// Why a request is refused, as the status of an answer.
const (
	statusBadRequest     = 400
	statusFieldsTooLarge = 431
)

// malformed has the owner answer a request that is not served, and ends its stream.
func (c *Conn) malformed(mh MalformedHandler, id uint32, rd *reader, code ErrCode, end bool) {
	status, why := statusBadRequest, rd.fault
	if rd.tooBig {
		status, why = statusFieldsTooLarge, "header list larger than SETTINGS_MAX_HEADER_LIST_SIZE"
	}
	s := c.newStream(id)
	s.flags |= recvHead
	if end {
		s.flags |= recvEnded
	}
	if rd.h.Method == methodHead {
		s.flags |= isHead
	}
	mh.OnMalformed(s, &rd.h, status, why)
	if s.is(ended) {
		return
	}
	if s.is(sendEnded) {
		code = NoError // the answer is complete, the rest of the request is not wanted
	}
	c.sendRST(id, code)
	c.remove(s, resetByUs)
}

// bodyLength is what content-length promises, -1 for nothing. A CONNECT has no
// content, only a tunnel.
func (r *reader) bodyLength() int64 {
	if r.h.Method == methodConnect {
		return -1
	}
	return r.length
}

// response takes a response, or 1xx before it.
func (c *Conn) response(s *Stream, rd *reader, end bool) {
	status := rd.h.Status
	if rd.tooBig || rd.fault != "" || (status < 200 && end) {
		rd.malformed("1xx that ends its stream")
		c.sectionError(s, rd)
		return
	}
	if status < 200 {
		if c.spendNoise(); c.err == nil && c.cfg.Informational {
			c.h.OnHeaders(s, &rd.h, false)
		}
		return
	}
	s.flags |= recvHead
	switch {
	case s.is(isConnect) && status < 300:
		s.flags |= isTunnel
	case s.is(isHead) || status == 204 || status == 304:
		s.bodyLeft = 0
	default:
		s.bodyLeft = rd.length
	}
	if end && s.bodyLeft > 0 {
		rd.malformed("content-length without content")
		c.sectionError(s, rd)
		return
	}
	if end {
		c.endReceive(s)
	}
	c.h.OnHeaders(s, &rd.h, end)
}

// trailers takes the header section that ends a body.
func (c *Conn) trailers(s *Stream, rd *reader, end bool) {
	if rd.tooBig || rd.fault != "" || !end || s.is(isTunnel) || s.bodyLeft > 0 {
		rd.malformed("trailers that do not belong here")
		c.sectionError(s, rd)
		return
	}
	c.endReceive(s)
	c.h.OnHeaders(s, &rd.h, true)
}

// sectionError ends a stream whose header section must not be used.
func (c *Conn) sectionError(s *Stream, rd *reader) {
	code, why := ProtocolError, rd.fault
	if rd.tooBig {
		code, why = EnhanceYourCalm, "header list larger than SETTINGS_MAX_HEADER_LIST_SIZE"
	}
	c.fault = why
	c.streamError(s, code)
	c.fault = ""
}

// Fault says why OnReset is called, if the cause is a header section that the peer
// sent and that must not be used; "" otherwise. It is valid during OnReset.
func (c *Conn) Fault() string { return c.fault }

// newStream makes a stream with the windows of now.
func (c *Conn) newStream(id uint32) *Stream {
	var s *Stream
	if c.cfg.NewStream != nil {
		s = c.cfg.NewStream()
	} else {
		s = new(Stream)
	}
	s.ID, s.bodyLeft, s.sendWindow = id, -1, c.peerWindow
	s.recvWindow, s.window = int32(c.cfg.StreamWindow), c.cfg.StreamWindow
	if !c.acked && c.cfg.StreamWindow < defaultWindow {
		s.recvWindow = defaultWindow
		s.flags |= beforeAck
	}
	c.streams.add(s)
	return s
}
