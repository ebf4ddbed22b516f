package h2

import "time"

// receiver is where in the peer's byte stream we are.
type receiver struct {
	state rxState

	end  bool  // the DATA frame that arrives has END_STREAM
	have uint8 // how much of head arrived, or of the preface
	pad  uint8 // padding after the DATA that arrives
	head frameHeader
	part [FrameHeaderLen]byte // a frame header that was split
	need uint32               // bytes of the state still to come
	cur  *Stream              // whose DATA arrives; nil: discard
	buf  *buffer              // a payload that was split

	// The header block that CONTINUATION frames complete.
	block      *buffer
	blockID    uint32 // its stream; 0: none is open
	blockFlags uint8
	blockParts int
	selfDep    bool // the stream depends on itself (RFC 7540, 5.3.1)
}

type rxState uint8

const (
	rxFrame   rxState = iota // a frame header
	rxPreface                // the client's preface
	rxPayload                // the payload of a frame that is handled whole
	rxPadLen                 // the pad length of a DATA frame
	rxData                   // the payload of a DATA frame
	rxSkip                   // bytes of no interest
)

func (r *receiver) drop() {
	giveBack(r.buf)
	giveBack(r.block)
	*r = receiver{}
}

// Receive takes the next bytes from the peer, split anywhere, at the time now,
// and calls the Handler. p may be reused afterwards. A *ConnError means that
// the connection ended: each stream had OnReset; write Output and close. After
// an error or Close, Receive does nothing and returns the error again.
func (c *Conn) Receive(now time.Time, p []byte) error {
	if len(p) > 0 {
		c.heard = true
	}
	c.now = now.UnixNano()
	for len(p) > 0 && c.err == nil {
		switch c.rx.state {
		case rxFrame:
			p = c.receiveHead(p)
		case rxData:
			p = c.receiveData(p)
		case rxPayload:
			p = c.receivePayload(p)
		case rxPadLen:
			c.padLen(p[0])
			p = p[1:]
		case rxSkip:
			n := min(uint32(len(p)), c.rx.need)
			p = p[n:]
			if c.rx.need -= n; c.rx.need == 0 {
				c.rx.state = rxFrame
			}
		case rxPreface:
			p = c.receivePreface(p)
		}
	}
	return c.err
}

func (c *Conn) receivePreface(p []byte) []byte {
	n := min(len(p), len(clientPreface)-int(c.rx.have))
	if string(p[:n]) != clientPreface[c.rx.have:int(c.rx.have)+n] {
		c.fail(ProtocolError, "no HTTP/2 client preface")
		return nil
	}
	c.rx.have += uint8(n)
	if int(c.rx.have) == len(clientPreface) {
		c.rx.have = 0
		c.rx.state = rxFrame
	}
	return p[n:]
}

func (c *Conn) receiveHead(p []byte) []byte {
	r := &c.rx
	if r.have == 0 && len(p) >= FrameHeaderLen {
		r.head = parseFrameHeader(p)
		p = p[FrameHeaderLen:]
	} else {
		n := copy(r.part[r.have:], p)
		p = p[n:]
		if r.have += uint8(n); r.have < FrameHeaderLen {
			return p
		}
		r.have = 0
		r.head = parseFrameHeader(r.part[:])
	}
	c.frame()
	return p
}

// receivePayload passes on a payload as a whole: in place when all of it is
// there, else collected.
func (c *Conn) receivePayload(p []byte) []byte {
	r := &c.rx
	if r.buf == nil && uint32(len(p)) >= r.need {
		r.state = rxFrame
		c.payload(p[:r.need])
		return p[r.need:]
	}
	if r.buf == nil {
		r.buf = borrow()
	}
	n := min(uint32(len(p)), r.need)
	r.buf.b = append(r.buf.b, p[:n]...)
	if r.need -= n; r.need == 0 {
		b := r.buf
		r.buf, r.state = nil, rxFrame
		c.payload(b.b)
		giveBack(b)
	}
	return p[n:]
}

// maxControl bounds the payload of SETTINGS and GOAWAY, which are collected:
// no peer has a reason for more.
const maxControl = 16 << 10

// frame decides from the header of a frame what to do with its payload.
func (c *Conn) frame() {
	r, f := &c.rx, c.rx.head
	switch {
	case f.length > c.cfg.MaxFrame:
		c.fail(FrameSizeError, "frame longer than SETTINGS_MAX_FRAME_SIZE")
		return
	case !c.gotSettings && (f.typ != frameSettings || f.flags&flagAck != 0):
		c.fail(ProtocolError, "first frame is not SETTINGS")
		return
	case r.blockID != 0 && (f.typ != frameContinuation || f.id != r.blockID):
		c.fail(ProtocolError, "header block interrupted")
		return
	}
	if f.typ == frameData {
		c.beginData(f)
		return
	}
	if code, why := checkFrame(f); why != "" {
		c.fail(code, why)
		return
	}
	switch f.typ {
	case frameHeaders, frameContinuation:
		if !c.admitBlock(f) {
			return
		}
	case framePushPromise:
		// We never permit push, and clients never may.
		c.fail(ProtocolError, "PUSH_PROMISE is not permitted")
		return
	case framePriority, frameSettings, framePing, frameGoAway, frameRST, frameWindowUpdate:
	default:
		c.spendNoise()
		r.state, r.need = rxSkip, f.length
		if f.length == 0 {
			r.state = rxFrame
		}
		return
	}
	if f.length == 0 {
		c.payload(nil)
		return
	}
	r.state, r.need = rxPayload, f.length
}

// checkFrame judges what the header alone tells: fixed lengths, and whether
// the frame belongs to a stream or to the connection.
func checkFrame(f frameHeader) (ErrCode, string) {
	switch f.typ {
	case frameHeaders, framePriority, frameRST, frameContinuation, framePushPromise:
		if f.id == 0 {
			return ProtocolError, "frame of a stream on stream 0"
		}
	case frameSettings, framePing, frameGoAway:
		if f.id != 0 {
			return ProtocolError, "frame of the connection on a stream"
		}
	}
	var bad bool
	switch f.typ {
	case frameRST, frameWindowUpdate:
		bad = f.length != rstLen
	case framePing:
		bad = f.length != pingLen
	case frameSettings:
		bad = f.length%settingLen != 0 || (f.flags&flagAck != 0 && f.length != 0)
	case frameGoAway:
		bad = f.length < 8
	}
	if bad {
		return FrameSizeError, "frame of the wrong length"
	}
	if (f.typ == frameSettings || f.typ == frameGoAway) && f.length > maxControl {
		return EnhanceYourCalm, "oversized SETTINGS or GOAWAY"
	}
	return NoError, ""
}

// payload handles a whole frame other than DATA.
func (c *Conn) payload(p []byte) {
	f := c.rx.head
	switch f.typ {
	case frameHeaders:
		c.onHeaders(f, p)
	case frameContinuation:
		c.onContinuation(f, p)
	case frameRST:
		c.onRST(f.id, ErrCode(be32(p)))
	case frameSettings:
		c.onSettings(f, p)
	case framePing:
		c.onPing(f, [8]byte(p))
	case frameGoAway:
		c.onGoAway(be32(p)&maxStreamID, ErrCode(be32(p[4:])), p[8:])
	case frameWindowUpdate:
		c.onWindowUpdate(f.id, be32(p)&maxWindow)
	case framePriority:
		c.onPriority(f, p)
	}
	if c.unsent.old+c.unsent.fresh > c.cfg.Abuse.Unsent {
		c.fail(EnhanceYourCalm, "too many answers that the peer does not read")
	}
}

func be32(b []byte) uint32 {
	_ = b[3]
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func (c *Conn) spendNoise() {
	if !c.noise.spend(c.now) {
		c.fail(EnhanceYourCalm, "too many frames without content")
	}
}

func (c *Conn) spendReset() {
	if !c.resets.spend(c.now) {
		c.fail(EnhanceYourCalm, "too many streams reset")
	}
}
