package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"testing"
)

// FuzzOpen opens whatever comes, in whatever pieces: nothing panics, nothing is invented,
// and no change of a byte goes unnoticed.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("hello"), uint16(3), uint8(0), uint16(0), []byte(nil))
	f.Add(bytes.Repeat([]byte{7}, 40000), uint16(1000), uint8(1), uint16(20), []byte{23, 3, 3, 0, 17})
	f.Add([]byte{}, uint16(1), uint8(0), uint16(0), []byte{msgKeyUpdate, 0, 0, 1, 1, typeHandshake})
	f.Add([]byte("x"), uint16(1), uint8(0), uint16(0), []byte{msgTicket, 0, 0, 1, 1, typeHandshake})
	f.Fuzz(func(t *testing.T, p []byte, cut uint16, flip uint8, where uint16, inner []byte) {
		if len(inner) > MaxPlain+200 {
			inner = inner[:MaxPlain+200]
		}
		client, server := mirror(t, tls.TLS_AES_128_GCM_SHA256)
		stream := client.Append(nil, p)
		data := len(stream)
		stream = append(stream, raw(client, inner)...) // any content at all
		if flip != 0 {
			stream[int(where)%len(stream)] ^= flip
		}
		var got, rest []byte
		var err error
		step := max(int(cut)+1, len(stream)/100) // few pieces: each copies what waits
		for q := stream; len(q) > 0 && err == nil; {
			n := min(len(q), step)
			buf := slices.Concat(rest, q[:n])
			q = q[n:]
			var plain []byte
			plain, rest, err = server.Open(buf)
			got = append(got, plain...)
			rest = bytes.Clone(rest)
		}
		server.Refuse(nil)
		want := p
		if len(inner) > 0 {
			if body := bytes.TrimRight(inner, "\x00"); len(body) > 0 && body[len(body)-1] == typeApplication {
				want = append(bytes.Clone(p), body[:len(body)-1]...)
			}
		}
		if !bytes.HasPrefix(want, got) {
			t.Fatalf("%d bytes were invented", len(got))
		}
		switch {
		case flip == 0 && len(got) < len(p):
			t.Fatalf("%d bytes of %d, %v", len(got), len(p), err)
		case flip != 0 && err == nil && len(rest) == 0:
			t.Fatalf("a changed byte of %d went unnoticed", data)
		}
	})
}

// FuzzBesideCryptoTLS has a script of sends, key updates and an end run against
// crypto/tls, in both roles, with what arrives cut anywhere.
func FuzzBesideCryptoTLS(f *testing.F) {
	f.Add(true, []byte{1, 5, 2, 9, 3, 0, 1, 200, 2, 255, 4, 4}, uint16(1))
	f.Add(false, []byte{2, 5, 1, 9, 3, 0, 2, 200, 1, 255, 3, 3, 1, 1, 2, 2, 5, 0}, uint16(4000))
	f.Fuzz(func(t *testing.T, client bool, script []byte, cut uint16) {
		c, w, far := pair(t, client)
		c.UpdateAfter(updateCost)
		var rest []byte
		open := func() (got []byte, err error) {
			q := w.take()
			step := max(int(cut)+1, len(q)/100) // few pieces: each copies what waits
			for len(q) > 0 && err == nil {
				n := min(len(q), step)
				buf := slices.Concat(rest, q[:n])
				q = q[n:]
				var plain []byte
				plain, rest, err = c.Open(buf)
				got = append(got, plain...)
				rest = bytes.Clone(rest)
			}
			return got, err
		}
		ours, theirs := 0, 0 // KeyUpdates without data behind them
		for len(script) >= 2 && len(script) < 200 {
			op, size := script[0], int(script[1])
			script = script[2:]
			p := bytes.Repeat([]byte{op, byte(size)}, size*100)
			switch op % 5 {
			case 0, 1:
				if size > 0 {
					ours = 0
				}
				_, _ = w.Write(sent(t, c, p))
				if got, err := received(far); err != nil || !bytes.Equal(got, p) {
					t.Fatalf("crypto/tls read %d bytes of %d: %v", len(got), len(p), err)
				}
			case 2:
				if size > 0 {
					theirs = 0
				}
				if _, err := far.Write(p); err != nil {
					t.Fatal(err)
				}
				if got, err := open(); err != nil || !bytes.Equal(got, p) {
					t.Fatalf("opened %d bytes of %d: %v", len(got), len(p), err)
				}
			case 3: // crypto/tls changes its key with its next data
				if ours, theirs = ours+1, theirs+1; ours == maxIdle || theirs == maxIdle {
					return // neither end takes more of them
				}
				c.asked = true
				_, _ = w.Write(c.append(nil, typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 1}))
				c.out = must(c.out.updated())
				if _, err := received(far); err != nil {
					t.Fatal(err)
				}
			case 4:
				_ = far.CloseWrite()
				if _, err := open(); !errors.Is(err, io.EOF) {
					t.Fatalf("opened %v instead of the end", err)
				}
				return
			}
		}
	})
}
