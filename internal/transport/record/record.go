// Package record protects the records of a TLS 1.3 connection whose handshake
// crypto/tls has made. It seals and opens in place, in buffers of the caller, and does
// no IO.
//
// It stands on two things, which New checks: crypto/tls has written both traffic secrets
// to a Secrets, and has sent nothing under them. A record that it had sent would have the
// sequence number 0, and so would the first one of a Conn: the nonce of AES-GCM would be
// used twice, and whoever sees both could forge records.
package record

import (
	"crypto/fips140"
	"crypto/tls"
	"encoding/binary"
)

const (
	// HeaderLen bytes precede the plaintext of a record.
	HeaderLen = 5
	// TrailerLen bytes follow it: its type and the tag.
	TrailerLen = 1 + tagLen
	// MaxPlain is the most plaintext of one record (RFC 8446, 5.1).
	MaxPlain = 16 << 10
	// MaxRecord is the longest record that Open takes, with its header (5.2).
	MaxRecord = HeaderLen + MaxPlain + 256

	tagLen = 16
	// maxRecords is how many records are sealed with one key. AES-GCM permits 2^24.5
	// (5.5); whoever seals several at once may exceed this one a little.
	maxRecords = 1 << 24
)

// The types of records (RFC 8446, B.1).
const (
	typeCCS         = 20
	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23
)

// Conn is both directions of a connection. It is for one goroutine at a time.
type Conn struct {
	in, out half
	limit   uint64 // of records for one key

	client bool
	owes   bool // the peer has requested a KeyUpdate
	asked  bool // the peer was requested to send one
	ended  bool // an alert was sent: nothing may follow

	messages messages
	idle     int // records in a row that carried nothing
	debt     int // for KeyUpdates of the peer
	err      error
}

// Usable reports whether this package may protect connections at all. In FIPS 140 mode
// it may not: it is not part of a validated module.
func Usable() bool { return !fips140.Enabled() }

// New takes a connection over from crypto/tls, and the secrets with it. The second
// result is false for a connection that crypto/tls has to go on with.
func New(state *tls.ConnectionState, s *Secrets, client bool) (*Conn, bool) {
	defer s.Forget()
	suite := suiteOf(state.CipherSuite)
	if !Usable() || suite == nil || state.Version != tls.VersionTLS13 || !state.HandshakeComplete || state.DidResume {
		return nil, false
	}
	c := &Conn{client: client, limit: maxRecords}
	in, out := &s.client, &s.server
	if client {
		in, out = out, in
	}
	if in.n != suite.secretLen || out.n != suite.secretLen ||
		c.in.set(suite, &in.b) != nil || c.out.set(suite, &out.b) != nil || !s.unused(&c.out) {
		c.Forget()
		return nil, false
	}
	return c, true
}

// Forget overwrites the secrets. Nothing can be sealed or opened afterwards.
func (c *Conn) Forget() {
	c.in, c.out = half{}, half{}
	c.ended = true
	if c.err == nil {
		c.err = errForgotten
	}
}

// UpdateAfter has keys change after n records, instead of the many that AES-GCM permits.
func (c *Conn) UpdateAfter(n uint64) { c.limit = min(max(n, 1), maxRecords) }

// Updates returns how often the keys of each direction have changed.
func (c *Conn) Updates() (in, out uint64) { return c.in.generation, c.out.generation }

// Len returns how long n bytes are as records.
func Len(n int) int { return n + (n+MaxPlain-1)/MaxPlain*(HeaderLen+TrailerLen) }

// Slots appends the places in buf where n bytes of plaintext belong, without the first
// skip bytes. They must be within the first record, and buf at least Len(n) long.
func Slots(to [][]byte, buf []byte, skip, n int) [][]byte {
	for n > 0 {
		m := min(n, MaxPlain)
		to = append(to, buf[HeaderLen+skip:HeaderLen+m])
		buf, n, skip = buf[Len(m):], n-m, 0
	}
	return to
}

// Seal makes records of the n bytes of plaintext that lie in the slots of buf. When Due
// reports true, Control comes first. After Close or Refuse it does nothing and reports
// false: what lies in buf must not be sent.
func (c *Conn) Seal(buf []byte, n int) bool {
	if c.ended {
		return false
	}
	for n > 0 {
		m := min(n, MaxPlain)
		c.seal(buf, m, typeApplication)
		buf, n = buf[Len(m):], n-m
	}
	return true
}

// Append is Seal for bytes that lie elsewhere, behind out.
func (c *Conn) Append(out, p []byte) []byte {
	for len(p) > 0 && !c.ended {
		n := min(len(p), MaxPlain)
		out = c.append(out, typeApplication, p[:n])
		p = p[n:]
	}
	return out
}

func (c *Conn) append(out []byte, typ byte, p []byte) []byte {
	at := len(out)
	out = append(out, make([]byte, HeaderLen)...)
	out = append(out, p...)
	out = append(out, make([]byte, TrailerLen)...)
	c.seal(out[at:], len(p), typ)
	return out
}

// seal makes a record of the n bytes behind the room for its header.
func (c *Conn) seal(rec []byte, n int, typ byte) {
	rec = rec[:HeaderLen+n+TrailerLen] // the tag must not make Seal allocate: rec would stay in the clear
	head, body := rec[:HeaderLen], rec[HeaderLen:HeaderLen+n+1]
	head[0], head[1], head[2] = typeApplication, 3, 3
	binary.BigEndian.PutUint16(head[3:], uint16(n+TrailerLen)) //nolint:gosec // n is at most MaxPlain
	body[n] = typ
	c.out.aead.Seal(body[:0], c.out.next(), body, head)
}

// Due reports whether Control has to come before the next Seal.
func (c *Conn) Due() bool {
	return c.owes || c.out.seq >= c.limit || c.mustAsk()
}

// mustAsk reports whether the peer's key is used up and the peer does nothing about it,
// as crypto/tls does not. A peer that counts does so before.
func (c *Conn) mustAsk() bool { return !c.asked && c.in.seq >= c.limit+c.limit/4 }

// Control appends that our key changes, and changes it.
func (c *Conn) Control(out []byte) ([]byte, error) {
	if c.ended {
		return out, nil
	}
	request := byte(0)
	if c.mustAsk() {
		c.asked, request = true, 1
	}
	next, err := c.out.updated()
	if err != nil {
		return out, err
	}
	c.owes = false
	out = c.append(out, typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, request})
	c.out = next
	return out, nil
}

// Close appends the alert that ends our direction.
func (c *Conn) Close(out []byte) []byte { return c.alert(out, alertCloseNotify) }

// Refuse appends the alert for the error that Open has returned. The peer's end and its
// alerts get none.
func (c *Conn) Refuse(out []byte) []byte {
	if f, ok := c.err.(*fault); ok { //nolint:errorlint // it is never wrapped
		return c.alert(out, f.alert)
	}
	return out
}

func (c *Conn) alert(out []byte, code tls.AlertError) []byte {
	if c.ended {
		return out
	}
	level := byte(2)
	if code == alertCloseNotify {
		level = 1
	}
	out = c.append(out, typeAlert, []byte{level, byte(code)})
	c.ended = true
	return out
}
