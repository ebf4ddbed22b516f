package h2

import (
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/transport/hpack"
)

// Conn is one HTTP/2 connection. See the package comment for who may use it.
type Conn struct {
	h     Handler
	err   error  // why the connection ended
	fault string // of the header section for which a stream is being reset
	cfg   Config
	now   int64 // of the Receive that runs, ns

	rx       receiver
	streams  table
	graves   graveyard
	enc      *hpack.Encoder // nil before the first header section we send
	dec      *hpack.Decoder // nil before the first we receive
	waitHead *Stream        // streams that wait for the connection's window,
	waitTail *Stream        // longest first
	waiting  int

	out     *buffer // nil when nothing waits
	outSent int     // how much of out the owner wrote
	unsent  unsent

	resets, empty, noise allowance

	// Flow control of the connection.
	sendWindow int32 // what the peer lets us send in all
	recvWindow int32 // what the peer may still send in all
	recvOwed   int32 // received, credit not returned yet
	extra      int64 // by how much the windows of open streams exceed StreamWindow
	held       int64 // unread bytes of ended streams
	deniedAt   int64 // when a window could last not grow, ns

	// What the peer's SETTINGS permit.
	peerWindow     int32
	peerMaxFrame   uint32
	peerMaxStreams uint32
	peerHeaderList uint32

	nextID     uint32 // of the next stream we open
	lastPeer   uint32 // highest stream the peer opened
	lastServed uint32 // highest stream that our GOAWAY left alive

	rtt       time.Duration // smoothed, 0 before the first sample
	rttSentAt int64         // when the last measuring PING left, ns
	shutdown  uint8         // 0, 1: announced, 2: final GOAWAY sent

	rttPending  bool
	gotSettings bool // the peer's first frame arrived
	acked       bool // the peer acknowledged our SETTINGS
	peerGoAway  bool
	peerExtends bool // the peer permits extended CONNECT
	heard       bool // something arrived since the last KeepAlive
	asked       bool // KeepAlive sent a PING and heard nothing since
}

// unsent counts control frames in Output, to within a factor of two, in two
// generations: those before mark and those after it.
type unsent struct {
	old, fresh int
	mark       int // bytes of Output up to the end of the old generation
}

// readers lends the scratch space of header decoding.
var readers = sync.Pool{New: func() any { return new(reader) }}

// New makes a connection. The preface of a client and the SETTINGS of both
// roles are in Output already.
func New(cfg Config, h Handler) *Conn {
	cfg = cfg.withDefaults()
	a := &cfg.Abuse
	c := &Conn{
		h: h, cfg: cfg,
		resets:         newAllowance(a.Resets, a.ResetsPerSecond),
		empty:          newAllowance(a.EmptyData, a.EmptyDataPerSecond),
		noise:          newAllowance(a.Noise, a.NoisePerSecond),
		sendWindow:     defaultWindow,
		recvWindow:     int32(cfg.ConnWindow),
		peerWindow:     defaultWindow,
		peerMaxFrame:   minMaxFrame,
		peerMaxStreams: cfg.MaxStreams, // until its SETTINGS say so: our own limit
		peerHeaderList: maxWindow,
		nextID:         1,
		lastServed:     maxStreamID,
	}
	if cfg.Server {
		c.rx.state = rxPreface
	} else {
		c.pending().b = append(c.pending().b, clientPreface...)
	}
	c.sendSettings()
	if cfg.ConnWindow > defaultWindow {
		c.sendWindowUpdate(0, cfg.ConnWindow-defaultWindow)
	}
	return c
}

func (c *Conn) sendSettings() {
	var p [6 * settingLen]byte
	b := p[:0]
	if c.cfg.Server {
		b = appendSetting(b, settingMaxStreams, c.cfg.MaxStreams)
		if c.cfg.ExtendedConnect {
			b = appendSetting(b, settingExtendedConnect, 1)
		}
	} else {
		b = appendSetting(b, settingEnablePush, 0)
	}
	b = appendSetting(b, settingInitialWindow, c.cfg.StreamWindow)
	b = appendSetting(b, settingMaxFrame, c.cfg.MaxFrame)
	b = appendSetting(b, settingMaxHeaderList, c.cfg.MaxHeaderList)
	out := c.pending()
	out.b = append(appendFrameHeader(out.b, len(b), frameSettings, 0, 0), b...)
}

// pending is the buffer that output is appended to.
func (c *Conn) pending() *buffer {
	if c.out == nil {
		c.out = borrow()
	}
	return c.out
}

// Output is what waits to be sent, in order, valid until the next call of any
// method. Wrote tells how much of it was.
func (c *Conn) Output() []byte {
	if c.out == nil {
		return nil
	}
	return c.out.b[c.outSent:]
}

// Wrote takes the first n bytes from Output.
func (c *Conn) Wrote(n int) {
	if c.out == nil || n <= 0 {
		return
	}
	c.outSent = min(c.outSent+n, len(c.out.b))
	left := len(c.out.b) - c.outSent
	if left == 0 {
		giveBack(c.out)
		c.out, c.outSent, c.unsent = nil, 0, unsent{}
		return
	}
	u := &c.unsent
	if u.mark -= n; u.mark <= 0 {
		u.old, u.fresh, u.mark = u.fresh, 0, left
	}
	// What was sent is dropped once it is the larger part, so that a peer
	// that always lags a little does not make the buffer grow.
	if c.outSent > left && c.outSent > keptBuffer/2 {
		c.out.b = c.out.b[:copy(c.out.b, c.out.b[c.outSent:])]
		c.outSent = 0
	}
}

// control appends a control frame without its payload and counts it.
func (c *Conn) control(length int, typ, flags uint8, id uint32) *buffer {
	out := c.pending()
	out.b = appendFrameHeader(out.b, length, typ, flags, id)
	c.unsent.fresh++
	return out
}

func (c *Conn) sendUint32(typ uint8, id, v uint32) {
	out := c.control(4, typ, 0, id)
	out.b = append(out.b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func (c *Conn) sendWindowUpdate(id, n uint32)   { c.sendUint32(frameWindowUpdate, id, n) }
func (c *Conn) sendRST(id uint32, code ErrCode) { c.sendUint32(frameRST, id, uint32(code)) }

func (c *Conn) sendPing(flags uint8, data [8]byte) {
	out := c.control(pingLen, framePing, flags, 0)
	out.b = append(out.b, data[:]...)
}

func (c *Conn) sendGoAway(last uint32, code ErrCode, debug string) {
	out := c.control(8+len(debug), frameGoAway, 0, 0)
	out.b = append(out.b, byte(last>>24), byte(last>>16), byte(last>>8), byte(last),
		byte(code>>24), byte(code>>16), byte(code>>8), byte(code))
	out.b = append(out.b, debug...)
}

// PINGs of our own, by payload. The owner's may be equal by chance; then its
// OnPong is missed, nothing worse.
var (
	pingRTT   = [8]byte{'a', 'm', 'b', 'i', 't', 'r', 't', 't'}
	pingAlive = [8]byte{'a', 'm', 'b', 'i', 't', 'k', 'a', 0}
	pingDrain = [8]byte{'a', 'm', 'b', 'i', 't', 'd', 'r', 0}
)

// Ping asks the peer to answer with the same data: OnPong.
func (c *Conn) Ping(data [8]byte) {
	if c.err == nil {
		c.sendPing(0, data)
	}
}

// KeepAlive is for the owner to call at its keepalive interval. If nothing
// arrived since the last call it sends a PING; if nothing arrived since then
// either, it reports false: the peer is dead.
func (c *Conn) KeepAlive() bool {
	switch {
	case c.err != nil:
		return false
	case c.heard:
		c.heard, c.asked = false, false
		return true
	case c.asked:
		return false
	}
	c.asked = true
	c.sendPing(0, pingAlive)
	return true
}

// Shutdown ends the connection gracefully. A server announces it by a GOAWAY
// that names no stream, and one round trip later (or at the next Shutdown) by
// one with the last stream it will serve; a client opens no more streams.
// Streams that are open continue; see Drained.
func (c *Conn) Shutdown() {
	if c.err != nil || c.shutdown == 2 {
		return
	}
	if !c.cfg.Server || c.shutdown == 1 {
		c.finalGoAway()
		return
	}
	c.shutdown = 1
	c.sendGoAway(maxStreamID, NoError, "")
	c.sendPing(0, pingDrain)
}

func (c *Conn) finalGoAway() {
	c.shutdown = 2
	c.lastServed = c.lastPeer
	c.sendGoAway(c.lastServed, NoError, "")
}

// Drained tells that after Shutdown no stream is left or will come.
func (c *Conn) Drained() bool {
	return c.err != nil || (c.shutdown == 2 && len(c.streams.rows) == 0)
}

// GoAway ends the connection at once: GOAWAY is in Output, each stream gets
// OnReset(s, code).
func (c *Conn) GoAway(code ErrCode, debug string) { c.fail(code, debug) }

// Close tells that the transport is gone: each stream gets OnReset(s, code);
// Output is dropped.
func (c *Conn) Close(code ErrCode) {
	if c.err == nil {
		c.end(code, ErrClosed)
	}
	giveBack(c.out)
	c.out, c.outSent, c.unsent = nil, 0, unsent{}
}

// fail ends the connection because of what the peer did, or the owner wants.
func (c *Conn) fail(code ErrCode, why string) {
	if c.err != nil {
		return
	}
	c.sendGoAway(min(c.lastPeer, c.lastServed), code, why)
	c.end(code, &ConnError{Code: code, Reason: why})
}

func (c *Conn) end(code ErrCode, err error) {
	c.err = err
	c.rx.drop()
	rows := c.streams.rows
	c.streams = table{}
	c.waitHead, c.waitTail, c.waiting = nil, nil, 0
	for _, r := range rows {
		r.s.next, r.s.prev = nil, nil
		r.s.flags |= ended
	}
	for _, r := range rows {
		c.h.OnReset(r.s, code)
	}
}

// Err is the error that ended the connection, nil while it lives.
func (c *Conn) Err() error { return c.err }

// GoingAway tells that no stream can be opened any more, by either side's
// GOAWAY or because numbers ran out.
func (c *Conn) GoingAway() bool {
	return c.err != nil || c.peerGoAway || c.shutdown > 0 || c.nextID > maxStreamID
}

// Streams is how many streams are open.
func (c *Conn) Streams() int { return len(c.streams.rows) }

// Each calls f for every open stream, oldest first, until f returns false. f
// may end streams.
func (c *Conn) Each(f func(*Stream) bool) {
	for id := uint32(0); ; {
		i := c.streams.search(id)
		if i == len(c.streams.rows) {
			return
		}
		s := c.streams.rows[i].s
		if !f(s) {
			return
		}
		id = s.ID + 1
	}
}

// RTT is the smoothed round trip time, measured while data arrives; 0 if it
// never was.
func (c *Conn) RTT() time.Duration { return c.rtt }
