package h2

// beginData accounts for a DATA frame when its header is there, and finds out
// whose it is. The payload passes through receiveData as it arrives.
func (c *Conn) beginData(f frameHeader) {
	r := &c.rx
	if f.id == 0 {
		c.fail(ProtocolError, "DATA on stream 0")
		return
	}
	if int64(f.length) > int64(c.recvWindow) {
		c.fail(FlowControlError, "DATA exceeds the connection's window")
		return
	}
	c.creditConn(int32(f.length))
	r.end = f.flags&flagEndStream != 0
	r.cur = c.dataStream(f)
	if c.err != nil {
		return
	}
	r.need, r.pad = f.length, 0
	if f.flags&flagPadded != 0 {
		if f.length == 0 {
			c.fail(FrameSizeError, "padded DATA without pad length")
			return
		}
		r.state = rxPadLen
		return
	}
	c.beginBody()
}

// dataStream returns the stream that the DATA frame is for, nil when the
// payload is to be discarded.
func (c *Conn) dataStream(f frameHeader) *Stream {
	s := c.streams.get(f.id)
	if s == nil {
		c.lateFrame(f.id, "DATA")
		return nil
	}
	switch {
	case s.is(recvEnded):
		c.streamError(s, StreamClosed)
		return nil
	case !s.is(recvHead):
		c.streamError(s, ProtocolError)
		return nil
	case int64(f.length) > int64(s.recvWindow):
		c.streamError(s, FlowControlError)
		return nil
	}
	s.recvWindow -= int32(f.length)
	c.measure(s, f.length)
	return s
}

// padLen takes the first byte of a padded DATA frame.
func (c *Conn) padLen(n byte) {
	r := &c.rx
	r.need--
	if uint32(n) > r.need {
		c.fail(ProtocolError, "padding longer than its frame")
		return
	}
	r.pad = n
	r.need -= uint32(n)
	if r.cur != nil && !r.cur.is(ended) && !r.end {
		r.cur.owed += uint32(n) + 1
		c.credit(r.cur)
	}
	c.beginBody()
}

// beginBody starts the payload proper, r.need bytes followed by r.pad.
func (c *Conn) beginBody() {
	r, s := &c.rx, c.rx.cur
	if s != nil && !c.fitsLength(s, r.need, r.end) {
		c.streamError(s, ProtocolError)
		s, r.cur = nil, nil
	}
	if r.need > 0 {
		r.state = rxData
		c.noise.earn()
		return
	}
	if s != nil && !s.is(ended) && r.end {
		c.deliver(s, nil, true)
	} else if !r.end && !c.empty.spend(c.now) {
		c.fail(EnhanceYourCalm, "too many empty DATA frames")
		return
	}
	c.endBody()
}

// fitsLength checks a DATA frame of n bytes against content-length.
func (c *Conn) fitsLength(s *Stream, n uint32, end bool) bool {
	if s.bodyLeft < 0 {
		return true
	}
	s.bodyLeft -= int64(n)
	return s.bodyLeft >= 0 && (!end || s.bodyLeft == 0)
}

// receiveData hands what there is of the payload to the stream's owner.
func (c *Conn) receiveData(p []byte) []byte {
	r := &c.rx
	n := min(uint32(len(p)), r.need)
	r.need -= n
	last := r.need == 0
	// The owner may have ended the stream since the frame began.
	if s := r.cur; s != nil && !s.is(ended) {
		c.deliver(s, p[:n:n], last && r.end)
		if c.err != nil {
			return nil
		}
	}
	if last {
		c.endBody()
	}
	return p[n:]
}

func (c *Conn) endBody() {
	r := &c.rx
	r.cur = nil
	r.state = rxFrame
	if r.pad > 0 {
		r.state, r.need = rxSkip, uint32(r.pad)
	}
}

func (c *Conn) deliver(s *Stream, p []byte, end bool) {
	s.unread += uint32(len(p))
	if end {
		c.endReceive(s)
	}
	c.h.OnData(s, p, end)
}

// lateFrame judges a frame for a stream that is not open. Frames may still be
// under way for a stream that we reset; the others are the peer's errors.
func (c *Conn) lateFrame(id uint32, what string) {
	if c.idle(id) {
		c.fail(ProtocolError, what+" on an idle stream")
		return
	}
	if id > c.lastServed || c.graves.find(id) == resetByUs {
		return
	}
	c.sendRST(id, StreamClosed)
	c.spendReset()
}

// idle tells that the stream was never opened, or cannot exist.
func (c *Conn) idle(id uint32) bool {
	switch {
	case id&1 == 0:
		return true
	case c.cfg.Server:
		return id > c.lastPeer
	default:
		return id >= c.nextID
	}
}
