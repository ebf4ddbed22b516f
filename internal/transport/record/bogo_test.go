package record

import (
	"crypto/tls"
	"errors"
	"io"
	"testing"
)

// none is for cases in which no alert is sent.
const none = -1

// TestAsBoGo has the cases of BoGo, BoringSSL's tests of the protocol, that come after a
// handshake of TLS 1.3, by their names there: what a peer sends, what comes of it, and the alert
// that it gets. Where BoGo's result is that of BoringSSL and not of RFC 8446, ours is said to
// differ, and why.
func TestAsBoGo(t *testing.T) {
	const toServer, toClient = false, true
	updates := func(n int, request byte) func(c *Conn) []byte {
		return func(c *Conn) []byte {
			return append(repeat(n, func() []byte { return update(c, request) }), typed(c, typeApplication, 7, 0)...)
		}
	}
	data := func(n, pad int) func(c *Conn) []byte {
		return func(c *Conn) []byte { return typed(c, typeApplication, n, pad) }
	}
	remote := func(code tls.AlertError) error { return code }
	for _, tc := range []struct {
		name    string
		client  bool // the receiver
		send    func(c *Conn) []byte
		n       int   // bytes of data
		err     error // nil: it goes on
		alert   int   // that is sent
		answers bool  // with a KeyUpdate
	}{
		{"KeyUpdate-ToClient", toClient, updates(10, 0), 7, nil, none, false},
		{"KeyUpdate-ToServer", toServer, updates(10, 0), 7, nil, none, false},
		{"KeyUpdate-Requested", toClient, updates(5, 1), 7, nil, none, true},
		// BoringSSL: decode_error; RFC 8446, 4.6.3: illegal_parameter.
		{"KeyUpdate-InvalidRequestMode", toClient, func(c *Conn) []byte { return update(c, 42) }, 0, errRequest, 47, false},
		// BoringSSL allows 32 in a row, crypto/tls and Ambit 16.
		{"TooManyKeyUpdates", toServer, updates(33, 0), 0, errIdle, 10, false},
		{"SendEmptyRecords-Pass", toServer, func(c *Conn) []byte { return append(empties(c, maxIdle), typed(c, typeApplication, 7, 0)...) }, 7, nil, none, false},
		{"SendEmptyRecords", toServer, func(c *Conn) []byte { return empties(c, 33) }, 0, errIdle, 10, false},
		{"SendUserCanceledAlerts-TLS13", toClient, func(c *Conn) []byte {
			return append(repeat(4, func() []byte { return alert(c, 1, 90) }), typed(c, typeApplication, 7, 0)...)
		}, 7, nil, none, false},
		// BoringSSL allows 4.
		{"SendUserCanceledAlerts-TooMany-TLS13", toClient, func(c *Conn) []byte { return repeat(maxIdle+1, func() []byte { return alert(c, 1, 90) }) }, 0, errIdle, 10, false},
		// BoringSSL: decode_error; RFC 8446, 6: every error alert is fatal, whatever its level.
		{"SendWarningAlerts-TLS13", toClient, func(c *Conn) []byte { return alert(c, 1, 46) }, 0, remote(46), none, false},
		// BoringSSL: illegal_parameter; RFC 8446, 6: the level can be ignored.
		{"SendBogusAlertType", toServer, func(c *Conn) []byte { return alert(c, 42, 10) }, 0, remote(10), none, false},
		{"FragmentAlert", toServer, func(c *Conn) []byte { return alert(c, 2) }, 0, errAlert, 50, false},
		{"DoubleAlert", toServer, func(c *Conn) []byte { return alert(c, 2, 10, 2, 10) }, 0, errAlert, 50, false},
		{"Unclean-Shutdown-Alert", toClient, func(c *Conn) []byte { return alert(c, 2, 30) }, 0, remote(30), none, false},
		{"Shutdown-Shim", toServer, func(c *Conn) []byte { return append(typed(c, typeApplication, 7, 0), alert(c, 1, 0)...) }, 7, io.EOF, none, false},
		{"LargePlaintext", toServer, data(MaxPlain+1, 0), 0, errOverflow, 22, false},
		{"LargePlaintext-TLS13-Padded-8192-8192", toServer, data(8192, 8192), 8192, nil, none, false},
		{"LargePlaintext-TLS13-Padded-8193-8192", toServer, data(8192, 8193), 0, errOverflow, 22, false},
		{"LargePlaintext-TLS13-Padded-16383-1", toServer, data(16383, 1), 16383, nil, none, false},
		{"LargePlaintext-TLS13-Padded-16384-1", toServer, data(16384, 1), 0, errOverflow, 22, false},
		{"LargeCiphertext", toServer, data(2*MaxPlain, 0), 0, errOverflow, 22, false},
		{"SendInvalidRecordType", toServer, func(c *Conn) []byte { p := typed(c, typeApplication, 7, 0); p[0] = 255; return p }, 0, errType, 10, false},
		{"TLS13-WrongOuterRecord-TLS", toServer, func(c *Conn) []byte { p := typed(c, typeApplication, 7, 0); p[0] = typeHandshake; return p }, 0, errType, 10, false},
		{"TLS13-EmptyRecords-TLS", toServer, func(c *Conn) []byte { return raw(c, nil) }, 0, errBadMAC, 20, false},
		// BoringSSL: bad_record_mac; RFC 8446, 5.4: unexpected_message.
		{"TLS13-OnlyPadding-TLS", toServer, func(c *Conn) []byte { return raw(c, make([]byte, 32)) }, 0, errPadding, 10, false},
		{"SendHelloRequest (renegotiation)", toClient, func(c *Conn) []byte { return message(c, 0, 0, 0, 0) }, 0, errMessage, 10, false},
		{"SendClientHello (renegotiation)", toServer, func(c *Conn) []byte { return message(c, 1, 0, 0, 2, 3, 3) }, 0, errMessage, 10, false},
		{"SendExtraFinished", toServer, func(c *Conn) []byte { return message(c, append([]byte{20, 0, 0, 48}, make([]byte, 48)...)...) }, 0, errMessage, 10, false},
		{"SendNewSessionTicket to a server", toServer, func(c *Conn) []byte { return message(c, msgTicket, 0, 0, 1, 0) }, 0, errMessage, 10, false},
		{"KeyUpdate-ExtraMessage-DTLS, by TLS", toClient, func(c *Conn) []byte { return message(c, msgKeyUpdate, 0, 0, 1, 0, msgTicket, 0, 0, 0) }, 0, errBehind, 10, false},
		{"AppData in a message", toServer, func(c *Conn) []byte { return append(message(c, msgKeyUpdate, 0), typed(c, typeApplication, 7, 0)...) }, 0, errInterleaved, 10, false},
		{"CCS behind the handshake", toServer, func(*Conn) []byte { return []byte{typeCCS, 3, 3, 0, 1, 1} }, 0, errType, 10, false},
		{"record cut short", toServer, func(c *Conn) []byte { p := typed(c, typeApplication, 7, 0); return p[:len(p)-1] }, 0, nil, none, false},
		{"bad record", toServer, func(c *Conn) []byte { p := typed(c, typeApplication, 7, 0); p[HeaderLen] ^= 0x80; return p }, 0, errBadMAC, 20, false},
		{"record of another version", toServer, func(c *Conn) []byte { p := typed(c, typeApplication, 7, 0); p[1] = 2; return p }, 0, errVersion, 70, false},
	} {
		client, server := mirror(t, tls.TLS_AES_128_GCM_SHA256)
		from, to := client, server
		if tc.client {
			from, to = server, client
		}
		got, _, err := to.Open(tc.send(from))
		if len(got) != tc.n || !errors.Is(err, tc.err) {
			t.Errorf("%s: %d bytes, %v", tc.name, len(got), err)
		}
		if to.Due() != tc.answers {
			t.Errorf("%s: a KeyUpdate is due: %v", tc.name, to.Due())
		}
		if tc.answers {
			out, err := to.Control(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := from.Open(out); err != nil || from.in.generation != 1 || to.Due() {
				t.Errorf("%s: the answer is wrong: %v, %d keys", tc.name, err, from.in.generation)
			}
			continue
		}
		sent := none
		if out := to.Refuse(nil); len(out) > 0 {
			_, _, err := from.Open(out)
			var code tls.AlertError
			if !errors.As(err, &code) {
				t.Errorf("%s: the peer gets %v, and no alert", tc.name, err)
			}
			sent = int(code)
		}
		if sent != tc.alert {
			t.Errorf("%s: alert %d, want %d", tc.name, sent, tc.alert)
		}
	}
}
