package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"testing"
)

// raw is a record of the given inner plaintext.
func raw(c *Conn, inner []byte) []byte {
	n := len(inner) + tagLen
	rec := append([]byte{typeApplication, 3, 3, byte(n >> 8), byte(n)}, inner...)
	rec = append(rec, make([]byte, tagLen)...)
	c.out.aead.Seal(rec[HeaderLen:HeaderLen], c.out.next(), rec[HeaderLen:HeaderLen+len(inner)], rec[:HeaderLen])
	return rec
}

// typed is a record of n bytes of content with a type and padding.
func typed(c *Conn, typ byte, n, pad int) []byte {
	inner := append(bytes.Repeat([]byte{'x'}, n), typ)
	return raw(c, append(inner, make([]byte, pad)...))
}

// message is a record with a part of messages.
func message(c *Conn, p ...byte) []byte { return raw(c, append(p, typeHandshake)) }

func alert(c *Conn, p ...byte) []byte { return raw(c, append(p, typeAlert)) }

func update(c *Conn, request byte) []byte {
	p := message(c, msgKeyUpdate, 0, 0, 1, request)
	c.out = must(c.out.updated())
	return p
}

func join2(p ...[]byte) []byte { return bytes.Join(p, nil) }

// Records and messages as BoringSSL's runner (BoGo) sends them, and more: what each
// brings, and how it ends.
func TestOddRecords(t *testing.T) {
	const toServer, toClient = false, true
	for _, tc := range []struct {
		name   string
		client bool // the receiver
		send   func(c *Conn) []byte
		n      int // bytes of data
		err    error
		due    bool
	}{
		{name: "padded", send: func(c *Conn) []byte { return typed(c, typeApplication, 100, 200) }, n: 100},
		{name: "padded as far as it goes", send: func(c *Conn) []byte { return typed(c, typeApplication, 1, MaxPlain-1) }, n: 1},
		{name: "padded beyond", send: func(c *Conn) []byte { return typed(c, typeApplication, MaxPlain, 1) }, err: errOverflow},
		{name: "largest", send: func(c *Conn) []byte { return typed(c, typeApplication, MaxPlain, 0) }, n: MaxPlain},
		{name: "one byte too large", send: func(c *Conn) []byte { return typed(c, typeApplication, MaxPlain+1, 0) }, err: errOverflow},
		{name: "much too large", send: func(c *Conn) []byte { return typed(c, typeApplication, MaxPlain+239, 0) }, err: errOverflow},
		{name: "too large before it is there", send: func(*Conn) []byte { return []byte{23, 3, 3, 0x41, 1} }, err: errOverflow},
		{name: "only padding", send: func(c *Conn) []byte { return raw(c, make([]byte, 9)) }, err: errPadding},
		{name: "nothing inside", send: func(c *Conn) []byte { return raw(c, nil) }, err: errBadMAC},
		{name: "data of zeros", send: func(c *Conn) []byte { return raw(c, []byte{0, 0, typeApplication, 0}) }, n: 2},
		{name: "one byte short of a tag", send: func(*Conn) []byte { return append([]byte{23, 3, 3, 0, 16}, make([]byte, 16)...) }, err: errBadMAC},
		{name: "forged", send: func(c *Conn) []byte { p := typed(c, typeApplication, 9, 0); p[7] ^= 1; return p }, err: errBadMAC},
		{name: "forged tag", send: func(c *Conn) []byte { p := typed(c, typeApplication, 9, 0); p[len(p)-1] ^= 1; return p }, err: errBadMAC},
		{name: "length forged", send: func(c *Conn) []byte {
			p := typed(c, typeApplication, 9, 0)
			p[4]++
			return append(p, 0)
		}, err: errBadMAC},
		{name: "sent twice", send: func(c *Conn) []byte {
			p := typed(c, typeApplication, 9, 0)
			return append(p, p...)
		}, n: 9, err: errBadMAC},
		{name: "one left out", send: func(c *Conn) []byte { _ = typed(c, typeApplication, 9, 0); return typed(c, typeApplication, 9, 0) }, err: errBadMAC},
		{name: "other version", send: func(c *Conn) []byte { p := typed(c, typeApplication, 9, 0); p[2] = 1; return p }, err: errVersion},
		{name: "alert in the clear", send: func(*Conn) []byte { return []byte{21, 3, 3, 0, 2, 2, 40} }, err: errType},
		{name: "handshake in the clear", send: func(*Conn) []byte { return []byte{22, 3, 3, 0, 5, 24, 0, 0, 1, 0} }, err: errType},
		{name: "CCS in the clear", send: func(*Conn) []byte { return []byte{20, 3, 3, 0, 1, 1} }, err: errType},
		{name: "HTTP", send: func(*Conn) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, err: errType},
		{name: "CCS inside", send: func(c *Conn) []byte { return typed(c, typeCCS, 1, 0) }, err: errType},
		{name: "unknown type inside", send: func(c *Conn) []byte { return typed(c, 99, 1, 0) }, err: errType},
		{name: "heartbeat inside", send: func(c *Conn) []byte { return typed(c, 24, 1, 0) }, err: errType},

		{name: "sixteen empty", send: func(c *Conn) []byte { return empties(c, maxIdle) }},
		{name: "seventeen empty", send: func(c *Conn) []byte { return empties(c, maxIdle+1) }, err: errIdle},
		{name: "data between empty ones", send: func(c *Conn) []byte {
			return join2(empties(c, maxIdle), typed(c, typeApplication, 1, 0), empties(c, maxIdle))
		}, n: 1},

		{name: "end", send: func(c *Conn) []byte { return alert(c, 1, 0) }, err: io.EOF},
		{name: "data and the end", send: func(c *Conn) []byte { return join2(typed(c, typeApplication, 3, 0), alert(c, 1, 0)) }, n: 3, err: io.EOF},
		{name: "data behind the end", send: func(c *Conn) []byte { return join2(alert(c, 1, 0), typed(c, typeApplication, 3, 0)) }, err: io.EOF},
		{name: "alert", send: func(c *Conn) []byte { return alert(c, 2, 40) }, err: tls.AlertError(40)},
		{name: "alert that is called a warning", send: func(c *Conn) []byte { return alert(c, 1, 48) }, err: tls.AlertError(48)},
		{name: "unknown alert", send: func(c *Conn) []byte { return alert(c, 2, 250) }, err: tls.AlertError(250)},
		{name: "canceled", send: func(c *Conn) []byte { return join2(alert(c, 1, 90), alert(c, 1, 0)) }, err: io.EOF},
		{name: "canceled for ever", send: func(c *Conn) []byte { return repeat(maxIdle+1, func() []byte { return alert(c, 1, 90) }) }, err: errIdle},
		{name: "empty alert", send: func(c *Conn) []byte { return alert(c) }, err: errAlert},
		{name: "half an alert", send: func(c *Conn) []byte { return alert(c, 1) }, err: errAlert},
		{name: "two alerts in a record", send: func(c *Conn) []byte { return alert(c, 1, 90, 1, 0) }, err: errAlert},

		{name: "key update", send: func(c *Conn) []byte { return join2(update(c, 0), typed(c, typeApplication, 5, 0)) }, n: 5},
		{name: "key update that requests one", send: func(c *Conn) []byte { return join2(update(c, 1), typed(c, typeApplication, 5, 0)) }, n: 5, due: true},
		{name: "key update, and the old key", send: func(c *Conn) []byte {
			return join2(message(c, msgKeyUpdate, 0, 0, 1, 0), typed(c, typeApplication, 5, 0))
		}, err: errBadMAC},
		{name: "new key without a key update", send: func(c *Conn) []byte { c.out = must(c.out.updated()); return typed(c, typeApplication, 5, 0) }, err: errBadMAC},
		{name: "key update in two records", send: func(c *Conn) []byte {
			p := join2(message(c, msgKeyUpdate, 0), message(c, 0, 1, 1))
			c.out = must(c.out.updated())
			return append(p, typed(c, typeApplication, 5, 0)...)
		}, n: 5, due: true},
		{name: "key update byte by byte", send: func(c *Conn) []byte {
			p := join2(message(c, msgKeyUpdate), message(c, 0), message(c, 0), message(c, 1), message(c, 0))
			c.out = must(c.out.updated())
			return append(p, typed(c, typeApplication, 5, 0)...)
		}, n: 5},
		{name: "data in the middle of a key update", send: func(c *Conn) []byte {
			return join2(message(c, msgKeyUpdate, 0, 0), typed(c, typeApplication, 1, 0))
		}, err: errInterleaved},
		{name: "empty data in the middle of a key update", send: func(c *Conn) []byte {
			return join2(message(c, msgKeyUpdate, 0, 0, 1), typed(c, typeApplication, 0, 0))
		}, err: errInterleaved},
		{name: "alert in the middle of a key update", send: func(c *Conn) []byte { return join2(message(c, msgKeyUpdate, 0, 0), alert(c, 1, 0)) }, err: errInterleaved},
		{name: "two key updates in a record", send: func(c *Conn) []byte {
			return message(c, msgKeyUpdate, 0, 0, 1, 0, msgKeyUpdate, 0, 0, 1, 0)
		}, err: errBehind},
		{name: "ticket behind a key update", client: toClient, send: func(c *Conn) []byte {
			return message(c, msgKeyUpdate, 0, 0, 1, 0, msgTicket)
		}, err: errBehind},
		{name: "bad request", send: func(c *Conn) []byte { return message(c, msgKeyUpdate, 0, 0, 1, 2) }, err: errRequest},
		{name: "long key update", send: func(c *Conn) []byte { return message(c, msgKeyUpdate, 0, 0, 2, 0, 0) }, err: errLength},
		{name: "empty key update", send: func(c *Conn) []byte { return message(c, msgKeyUpdate, 0, 0, 0) }, err: errLength},
		{name: "sixteen key updates", send: func(c *Conn) []byte {
			return append(repeat(maxIdle, func() []byte { return update(c, 1) }), typed(c, typeApplication, 5, 0)...)
		}, n: 5, due: true},
		{name: "seventeen key updates", send: func(c *Conn) []byte { return repeat(maxIdle+1, func() []byte { return update(c, 1) }) }, err: errIdle, due: true},
		{name: "a key update with every byte", send: func(c *Conn) []byte {
			return repeat(100, func() []byte { return append(update(c, 1), typed(c, typeApplication, 1, 0)...) })
		}, n: 73, err: errUpdates, due: true},
		{name: "a key update with every eighth record", send: func(c *Conn) []byte {
			return repeat(500, func() []byte {
				return append(update(c, 0), repeat(updateCost, func() []byte { return typed(c, typeApplication, 1, 0) })...)
			})
		}, n: 500 * updateCost},
		{name: "empty handshake record", send: func(c *Conn) []byte { return message(c) }, err: errEmpty},

		{name: "ticket to a client", client: toClient, send: func(c *Conn) []byte {
			return join2(message(c, append([]byte{msgTicket, 0, 0, 200}, make([]byte, 200)...)...), typed(c, typeApplication, 4, 0))
		}, n: 4},
		{name: "two tickets in a record", client: toClient, send: func(c *Conn) []byte {
			one := append([]byte{msgTicket, 0, 0, 20}, make([]byte, 20)...)
			return join2(message(c, append(one, one...)...), typed(c, typeApplication, 4, 0))
		}, n: 4},
		{name: "ticket and key update in a record", client: toClient, send: func(c *Conn) []byte {
			p := message(c, msgTicket, 0, 0, 2, 9, 9, msgKeyUpdate, 0, 0, 1, 1)
			c.out = must(c.out.updated())
			return append(p, typed(c, typeApplication, 4, 0)...)
		}, n: 4, due: true},
		{name: "ticket in pieces", client: toClient, send: func(c *Conn) []byte {
			return join2(message(c, msgTicket, 0), message(c, 0, 3, 1), message(c, 1, 1), typed(c, typeApplication, 4, 0))
		}, n: 4},
		{name: "data in the middle of a ticket", client: toClient, send: func(c *Conn) []byte {
			return join2(message(c, msgTicket, 0, 0, 3, 1), typed(c, typeApplication, 4, 0))
		}, err: errInterleaved},
		{name: "ticket that is too long", client: toClient, send: func(c *Conn) []byte { return message(c, msgTicket, 1, 0, 1) }, err: errLength},
		{name: "empty ticket", client: toClient, send: func(c *Conn) []byte { return message(c, msgTicket, 0, 0, 0) }, err: errLength},
		{name: "tickets for ever", client: toClient, send: func(c *Conn) []byte {
			return repeat(maxIdle+1, func() []byte { return message(c, msgTicket, 0, 0, 1, 0) })
		}, err: errIdle},
		{name: "ticket to a server", client: toServer, send: func(c *Conn) []byte { return message(c, msgTicket, 0, 0, 1, 0) }, err: errMessage},
		{name: "ClientHello", client: toServer, send: func(c *Conn) []byte { return message(c, 1, 0, 0, 1, 0) }, err: errMessage},
		{name: "HelloRequest", client: toClient, send: func(c *Conn) []byte { return message(c, 0, 0, 0, 0) }, err: errMessage},
		{name: "CertificateRequest", client: toClient, send: func(c *Conn) []byte { return message(c, 13, 0, 0, 3, 0, 0, 0) }, err: errMessage},
		{name: "Certificate", client: toServer, send: func(c *Conn) []byte { return message(c, 11, 0, 0, 4, 0, 0, 0, 0) }, err: errMessage},
		{name: "Finished", client: toServer, send: func(c *Conn) []byte { return message(c, append([]byte{20, 0, 0, 32}, make([]byte, 32)...)...) }, err: errMessage},
		{name: "EndOfEarlyData", client: toServer, send: func(c *Conn) []byte { return message(c, 5, 0, 0, 0) }, err: errMessage},
	} {
		for _, whole := range []bool{true, false} {
			client, server := mirror(t, tls.TLS_AES_256_GCM_SHA384)
			from, to := client, server
			if tc.client {
				from, to = server, client
			}
			p := tc.send(from)
			var got, rest []byte
			var err error
			if whole {
				got, rest, err = to.Open(p)
			} else {
				got, rest, err = bytewise(to, p)
			}
			if len(got) != tc.n || !errors.Is(err, tc.err) || to.Due() != tc.due || err == nil && len(rest) > 0 {
				t.Errorf("%s (whole %v): %d bytes, %d left, %v, due %v", tc.name, whole, len(got), len(rest), err, to.Due())
			}
			if _, _, again := to.Open(typed(from, typeApplication, 1, 0)); err != nil && !errors.Is(again, tc.err) {
				t.Errorf("%s: after the error it went on: %v", tc.name, again)
			}
		}
	}
}

func repeat(n int, f func() []byte) (p []byte) {
	for range n {
		p = append(p, f()...)
	}
	return p
}

func empties(c *Conn, n int) []byte {
	return repeat(n, func() []byte { return typed(c, typeApplication, 0, 0) })
}

// bytewise opens what arrives byte by byte.
func bytewise(c *Conn, p []byte) (got, rest []byte, err error) {
	for i := range p {
		rest = append(rest, p[i])
		var plain []byte
		plain, rest, err = c.Open(rest)
		got = append(got, plain...)
		if err != nil {
			return got, nil, err
		}
		rest = bytes.Clone(rest)
	}
	return got, rest, nil
}
