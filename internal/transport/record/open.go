package record

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
)

const (
	// maxIdle is how many records in a row may carry nothing for the application. It
	// is the number of crypto/tls.
	maxIdle = 16
	// A KeyUpdate of the peer costs as much as several records: it may send one for
	// every updateCost records of data, and maxDebt/updateCost of them ahead.
	updateCost = 8
	maxDebt    = 64 * updateCost
	// maxMessage bounds the length of a session ticket.
	maxMessage = 64 << 10
)

// The types of messages that may follow the handshake (RFC 8446, B.3).
const (
	msgTicket    = 4
	msgKeyUpdate = 24

	messageHeader = 4
)

// Alerts (RFC 8446, 6).
const (
	alertCloseNotify       tls.AlertError = 0
	alertUnexpectedMessage tls.AlertError = 10
	alertBadRecordMAC      tls.AlertError = 20
	alertRecordOverflow    tls.AlertError = 22
	alertIllegalParameter  tls.AlertError = 47
	alertDecodeError       tls.AlertError = 50
	alertProtocolVersion   tls.AlertError = 70
	alertInternalError     tls.AlertError = 80
	alertUserCanceled      tls.AlertError = 90
)

// fault is what a peer did wrong, and the alert that it gets for that.
type fault struct {
	alert tls.AlertError
	text  string
}

func (f *fault) Error() string { return "tls: " + f.text }

var (
	errBadMAC      = &fault{alertBadRecordMAC, "bad record MAC"}
	errOverflow    = &fault{alertRecordOverflow, "a record is longer than the protocol permits"}
	errType        = &fault{alertUnexpectedMessage, "a record is of a type that does not belong there"}
	errVersion     = &fault{alertProtocolVersion, "a record is of another version"}
	errPadding     = &fault{alertUnexpectedMessage, "a record has padding only"}
	errAlert       = &fault{alertDecodeError, "an alert has another length than two bytes"}
	errEmpty       = &fault{alertUnexpectedMessage, "a record with a part of a message is empty"}
	errInterleaved = &fault{alertUnexpectedMessage, "a record of another type is in the middle of a message"}
	errMessage     = &fault{alertUnexpectedMessage, "a message does not belong behind the handshake"}
	errLength      = &fault{alertDecodeError, "a message has a wrong length"}
	errRequest     = &fault{alertIllegalParameter, "a KeyUpdate has an unknown value"}
	errBehind      = &fault{alertUnexpectedMessage, "bytes follow a KeyUpdate in its record"}
	errIdle        = &fault{alertUnexpectedMessage, "too many records in a row carry nothing"}
	errUpdates     = &fault{alertUnexpectedMessage, "too many KeyUpdates for so little data"}
	errKeys        = &fault{alertInternalError, "the next key cannot be made"}
	errForgotten   = errors.New("tls: the connection's keys are gone")
)

// Open opens every record that is whole in p, in place. plain is what they carry, in one
// piece inside of p. rest is the start of a record that is not whole yet, and stays where
// it is. What was carried before an error is good. The error is final; io.EOF is the
// proper end.
func (c *Conn) Open(p []byte) (plain, rest []byte, err error) {
	for c.err == nil {
		var n int
		if n, c.err = recordLen(p); c.err != nil {
			break
		}
		if n == 0 {
			return plain, p, nil
		}
		typ, body, err := c.open(p[:n])
		p = p[n:]
		switch {
		case err != nil:
			c.err = err
		case typ != typeHandshake && c.messages.begun():
			c.err = errInterleaved
		case typ != typeApplication:
			c.err = c.control(typ, body)
		case len(body) == 0:
			c.err = c.wasted()
		default:
			c.idle, c.debt = 0, max(c.debt-1, 0)
			plain = join(plain, body)
		}
	}
	return plain, nil, c.err
}

// join moves body behind plain. Both are in the same array, plain first.
func join(plain, body []byte) []byte {
	if len(plain) == 0 {
		return body
	}
	return append(plain, body...)
}

// recordLen returns the length of the record at the front of p, 0 when it is not whole.
func recordLen(p []byte) (int, error) {
	if len(p) < HeaderLen {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(p[3:]))
	switch {
	case p[0] != typeApplication:
		return 0, errType
	case p[1] != 3 || p[2] != 3:
		return 0, errVersion
	case n > MaxRecord-HeaderLen:
		return 0, errOverflow
	case n < TrailerLen:
		return 0, errBadMAC
	case len(p) < HeaderLen+n:
		return 0, nil
	}
	return HeaderLen + n, nil
}

// open opens one record.
func (c *Conn) open(rec []byte) (typ byte, body []byte, err error) {
	in := rec[HeaderLen:]
	body, err = c.in.aead.Open(in[:0], c.in.next(), in, rec[:HeaderLen])
	if err != nil {
		return 0, nil, errBadMAC
	}
	if len(body) > MaxPlain+1 {
		return 0, nil, errOverflow
	}
	for n := len(body) - 1; n >= 0; n-- {
		if body[n] != 0 {
			return body[n], body[:n], nil
		}
	}
	return 0, nil, errPadding
}

// wasted counts a record that carries nothing.
func (c *Conn) wasted() error {
	if c.idle++; c.idle > maxIdle {
		return errIdle
	}
	return nil
}

// control takes a record that is not data.
func (c *Conn) control(typ byte, p []byte) error {
	switch {
	case typ == typeAlert && len(p) != 2:
		return errAlert
	case typ == typeAlert:
		return c.alerted(tls.AlertError(p[1]))
	case typ != typeHandshake:
		return errType
	case len(p) == 0:
		return errEmpty
	}
	if err := c.wasted(); err != nil {
		return err
	}
	return c.handshake(p)
}

func (c *Conn) alerted(code tls.AlertError) error {
	switch code {
	case alertCloseNotify:
		return io.EOF
	case alertUserCanceled: // close_notify follows
		return c.wasted()
	}
	return &net.OpError{Op: "remote error", Err: code} // as crypto/tls has it
}

// messages is how far a message has come that several records may carry.
type messages struct {
	head [messageHeader]byte
	have int // of head
	skip int // of a session ticket
}

func (m *messages) begun() bool { return m.have > 0 || m.skip > 0 }

// handshake takes the part of messages that one record carries.
func (c *Conn) handshake(p []byte) error {
	m := &c.messages
	for len(p) > 0 {
		if m.skip > 0 {
			n := min(m.skip, len(p))
			m.skip, p = m.skip-n, p[n:]
			continue
		}
		if m.have < messageHeader {
			n := copy(m.head[m.have:], p)
			m.have, p = m.have+n, p[n:]
			if m.have < messageHeader {
				return nil
			}
			if err := c.message(m); err != nil {
				return err
			}
			continue
		}
		// The one byte of a KeyUpdate.
		m.have = 0
		return c.updated(p)
	}
	return nil
}

// message judges the header of a message.
func (c *Conn) message(m *messages) error {
	n := int(m.head[1])<<16 | int(m.head[2])<<8 | int(m.head[3])
	switch {
	case m.head[0] == msgKeyUpdate && n == 1:
	case m.head[0] == msgKeyUpdate:
		return errLength
	case m.head[0] == msgTicket && c.client && n > 0 && n <= maxMessage:
		// Sessions are not resumed.
		m.have, m.skip = 0, n
	case m.head[0] == msgTicket && c.client:
		return errLength
	default:
		return errMessage
	}
	return nil
}

// updated changes the key for what the peer sends from now on.
func (c *Conn) updated(p []byte) error {
	switch {
	case len(p) > 1:
		return errBehind
	case p[0] > 1:
		return errRequest
	}
	if c.debt += updateCost; c.debt > maxDebt {
		return errUpdates
	}
	next, err := c.in.updated()
	if err != nil {
		return errKeys
	}
	c.in, c.asked = next, false
	c.owes = c.owes || p[0] == 1
	return nil
}
