package door

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
)

const (
	// SmallMessage is the largest message of a caller that is not known, or of
	// a kind that is never large: a certificate request has less than 16 KiB. It
	// is more than the window of a stream (64 KiB less one byte), so that whatever
	// exceeds it was let in by a handler, which runs behind authentication.
	SmallMessage = 64 << 10
	// maxPartial bounds the messages of a connection that are incomplete.
	maxPartial = 256
)

// Parts of HTTP/2 (RFC 9113) and of gRPC's framing that are followed.
const (
	prefaceLen  = 24
	frameHeader = 9
	typeData    = 0
	typeReset   = 3
	flagEnd     = 0x1
	flagPadded  = 0x8
	grpcPrefix  = 5 // a flag and the length of the message
)

var (
	errPadding = errors.New("padding is longer than its frame")
	errPartial = fmt.Errorf("more than %d incomplete messages", maxPartial)
)

// metered is the plaintext side of a connection.
type metered struct {
	net.Conn
	meter *meter
}

// Read implements net.Conn.
func (m metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if ferr := m.meter.feed(p[:n]); ferr != nil {
		m.meter.conn.refuse(TooLarge, ferr)
		return 0, ferr
	}
	return n, err
}

// meter follows the messages that a client sends, and ends the connection
// when one is larger than allowed. gRPC has one bound for all callers of a
// server; this one depends on who calls.
type meter struct {
	conn *Conn
	skip int // bytes of the preface that are still to come

	head [frameHeader]byte
	have int // bytes of head
	// The frame that is being read.
	left     int // bytes of its payload that are still to come
	pad      int // of these, padding at the end
	padKnown bool

	partial map[uint32]*message // by stream
}

// message is one that has begun and is not complete.
type message struct {
	prefix [grpcPrefix]byte
	have   int // bytes of prefix
	size   int64
	got    int64
}

func newMeter(c *Conn) *meter {
	return &meter{conn: c, skip: prefaceLen, partial: map[uint32]*message{}}
}

func (m *meter) kind() byte       { return m.head[3] }
func (m *meter) flags() byte      { return m.head[4] }
func (m *meter) streamID() uint32 { return binary.BigEndian.Uint32(m.head[5:]) &^ (1 << 31) }

// feed follows what was read.
func (m *meter) feed(p []byte) error {
	n := min(m.skip, len(p))
	m.skip -= n
	p = p[n:]
	for len(p) > 0 {
		if m.have < frameHeader {
			n := copy(m.head[m.have:], p)
			m.have += n
			p = p[n:]
			if m.have == frameHeader {
				m.begin()
			}
		} else {
			n := min(m.left, len(p))
			if err := m.payload(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
		if m.have == frameHeader && m.left == 0 {
			m.end()
		}
	}
	return nil
}

// begin is called when a frame's header is complete.
func (m *meter) begin() {
	m.left = int(m.head[0])<<16 | int(m.head[1])<<8 | int(m.head[2])
	m.pad = 0
	m.padKnown = m.kind() != typeData || m.flags()&flagPadded == 0
}

// end is called when a frame is complete.
func (m *meter) end() {
	if m.kind() == typeReset || m.kind() == typeData && m.flags()&flagEnd != 0 {
		delete(m.partial, m.streamID())
	}
	m.have = 0
}

// payload follows a part of a frame's payload, which is not longer than what
// is left of it.
func (m *meter) payload(p []byte) error {
	if !m.padKnown && len(p) > 0 {
		m.pad, m.padKnown = int(p[0]), true
		m.left--
		if p = p[1:]; m.pad > m.left {
			return errPadding
		}
	}
	data := min(len(p), m.left-m.pad)
	m.left -= len(p)
	if m.kind() != typeData || data <= 0 {
		return nil
	}
	m.conn.hear()
	return m.data(m.streamID(), p[:data])
}

// data follows a part of a stream's messages.
func (m *meter) data(stream uint32, p []byte) error {
	msg := m.partial[stream]
	for len(p) > 0 {
		if msg == nil {
			if len(m.partial) >= maxPartial {
				return errPartial
			}
			msg = &message{}
			m.partial[stream] = msg
		}
		if msg.have < grpcPrefix {
			n := copy(msg.prefix[msg.have:], p)
			msg.have += n
			p = p[n:]
			if msg.have < grpcPrefix {
				return nil
			}
			msg.size = int64(binary.BigEndian.Uint32(msg.prefix[1:]))
		}
		n := min(msg.size-msg.got, int64(len(p)))
		msg.got += n
		p = p[n:]
		if limit := m.conn.limit.Load(); msg.got > SmallMessage && msg.size > limit {
			return fmt.Errorf("a message of %d bytes, the caller may send %d", msg.size, limit)
		}
		if msg.got == msg.size {
			delete(m.partial, stream)
			msg = nil
		}
	}
	return nil
}

// hear notes that the first bytes of a message have come.
func (c *Conn) hear() { c.once.Do(func() { close(c.heard) }) }
