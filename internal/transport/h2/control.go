package h2

import "encoding/binary"

// onSettings takes a SETTINGS frame, all or nothing.
func (c *Conn) onSettings(f frameHeader, p []byte) {
	if c.spendNoise(); c.err != nil {
		return
	}
	if f.flags&flagAck != 0 {
		c.onSettingsAck()
		return
	}
	window := c.peerWindow
	for rest := p; len(rest) >= settingLen; rest = rest[settingLen:] {
		id, v := binary.BigEndian.Uint16(rest), be32(rest[2:])
		if code, why := c.checkSetting(id, v); why != "" {
			c.fail(code, why)
			return
		}
		switch id {
		case settingHeaderTableSize:
			if v < defaultTable || c.enc != nil {
				c.encoder().SetTableSize(min(v, defaultTable))
			}
		case settingMaxStreams:
			c.peerMaxStreams = v
		case settingInitialWindow:
			window = int32(v)
		case settingMaxFrame:
			c.peerMaxFrame = v
		case settingMaxHeaderList:
			c.peerHeaderList = v
		case settingExtendedConnect:
			c.peerExtends = v == 1
		}
	}
	c.gotSettings = true
	c.control(0, frameSettings, flagAck, 0)
	if window != c.peerWindow && !c.shiftSendWindows(window) {
		return
	}
	c.wake()
	if c.err == nil {
		c.h.OnSettings()
	}
}

func (c *Conn) checkSetting(id uint16, v uint32) (ErrCode, string) {
	switch {
	case id == settingEnablePush && (v > 1 || (v == 1 && !c.cfg.Server)):
		return ProtocolError, "invalid SETTINGS_ENABLE_PUSH"
	case id == settingInitialWindow && v > maxWindow:
		return FlowControlError, "invalid SETTINGS_INITIAL_WINDOW_SIZE"
	case id == settingMaxFrame && (v < minMaxFrame || v > maxMaxFrame):
		return ProtocolError, "invalid SETTINGS_MAX_FRAME_SIZE"
	case id == settingExtendedConnect && v > 1:
		return ProtocolError, "invalid SETTINGS_ENABLE_CONNECT_PROTOCOL"
	}
	return NoError, ""
}

// shiftSendWindows applies a new SETTINGS_INITIAL_WINDOW_SIZE to all streams
// (RFC 9113, 6.9.2).
func (c *Conn) shiftSendWindows(window int32) bool {
	delta := int64(window) - int64(c.peerWindow)
	c.peerWindow = window
	for _, r := range c.streams.rows {
		w := int64(r.s.sendWindow) + delta
		if w > maxWindow {
			c.fail(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE makes a window exceed 2^31-1")
			return false
		}
		r.s.sendWindow = int32(w)
		if r.s.is(waitsStream) && w > 0 {
			r.s.flags &^= waitsStream
			c.wait(r.s)
		}
	}
	return true
}

// onSettingsAck: from now on streams have the window we announced. A smaller
// one than the default could not be enforced before.
func (c *Conn) onSettingsAck() {
	if c.acked {
		return
	}
	c.acked = true
	for _, r := range c.streams.rows {
		if r.s.is(beforeAck) {
			r.s.recvWindow -= defaultWindow - int32(c.cfg.StreamWindow)
		}
	}
}

func (c *Conn) onPing(f frameHeader, data [8]byte) {
	if f.flags&flagAck == 0 {
		if c.spendNoise(); c.err == nil {
			c.sendPing(flagAck, data)
		}
		return
	}
	switch data {
	case pingRTT:
		c.sampleRTT()
	case pingAlive:
	case pingDrain:
		if c.shutdown == 1 {
			c.finalGoAway()
		}
	default:
		if c.spendNoise(); c.err == nil {
			c.h.OnPong(data)
		}
	}
}

func (c *Conn) onPriority(f frameHeader, p []byte) {
	if c.spendNoise(); c.err != nil {
		return
	}
	s := c.streams.get(f.id)
	switch {
	case len(p) != prioLen:
		c.oneStreamError(s, FrameSizeError, "PRIORITY of the wrong length")
	case be32(p)&maxStreamID == f.id:
		c.oneStreamError(s, ProtocolError, "stream depends on itself")
	}
}

// oneStreamError is a stream error where the stream may not be open: then
// there is nothing to reset and it is an error of the connection.
func (c *Conn) oneStreamError(s *Stream, code ErrCode, why string) {
	if s == nil {
		c.fail(code, why)
		return
	}
	c.streamError(s, code)
}

func (c *Conn) onRST(id uint32, code ErrCode) {
	if c.idle(id) {
		c.fail(ProtocolError, "RST_STREAM on an idle stream")
		return
	}
	s := c.streams.get(id)
	if s == nil {
		c.spendNoise()
		return
	}
	early := c.cfg.Server && !s.is(sentHead)
	c.remove(s, resetByPeer)
	c.h.OnReset(s, code)
	// Cancelled before it was answered: work for nothing (rapid reset).
	if early && c.err == nil {
		c.spendReset()
	}
}

// onGoAway takes the peer's word that it serves no streams above last.
func (c *Conn) onGoAway(last uint32, code ErrCode, debug []byte) {
	if c.spendNoise(); c.err != nil {
		return
	}
	c.peerGoAway = true
	if !c.cfg.Server {
		for rows := c.streams.rows; len(rows) > 0 && rows[len(rows)-1].id > last; rows = c.streams.rows {
			s := rows[len(rows)-1].s
			c.remove(s, resetByPeer)
			c.h.OnReset(s, RefusedStream)
		}
	}
	if c.err == nil {
		c.h.OnGoAway(last, code, debug)
	}
}

// streamError resets a stream that the peer mishandled, and tells its owner.
// It costs the peer of a server part of its allowance: making the server reset
// is as cheap as resetting.
func (c *Conn) streamError(s *Stream, code ErrCode) {
	c.sendRST(s.ID, code)
	c.remove(s, resetByUs)
	c.h.OnReset(s, code)
	if c.err == nil {
		c.spendReset()
	}
}

// Reset ends s with RST_STREAM and releases what it held; no OnReset follows.
func (c *Conn) Reset(s *Stream, code ErrCode) {
	if !s.is(ended) {
		c.sendRST(s.ID, code)
		c.remove(s, resetByUs)
	}
	c.Release(s)
}
