package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"testing"
)

// With crypto/tls at the other end, in both roles and with both suites: bytes arrive,
// whatever the sizes, and so does the end.
func TestWithCryptoTLS(t *testing.T) {
	for _, client := range []bool{true, false} {
		c, w, far := pair(t, client)
		for _, n := range []int{1, 2, 1000, MaxPlain - 1, MaxPlain, MaxPlain + 1, 5 * MaxPlain, 300000} {
			want := bytes.Repeat([]byte{byte(n), 1, 2}, n)[:n]
			if _, err := w.Write(sent(t, c, want)); err != nil {
				t.Fatal(err)
			}
			if got, err := received(far); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("client %v: crypto/tls read %d bytes of %d: %v", client, len(got), n, err)
			}
			if _, err := far.Write(want); err != nil {
				t.Fatal(err)
			}
			got, rest, err := c.Open(w.take())
			if err != nil || !bytes.Equal(got, want) || len(rest) > 0 {
				t.Fatalf("client %v: opened %d bytes of %d, %d left: %v", client, len(got), n, len(rest), err)
			}
		}
		_, _ = w.Write(c.Close(nil))
		if _, err := received(far); !errors.Is(err, io.EOF) {
			t.Errorf("client %v: crypto/tls read %v instead of the end", client, err)
		}
		_ = far.CloseWrite()
		if _, _, err := c.Open(w.take()); !errors.Is(err, io.EOF) {
			t.Errorf("client %v: opened %v instead of the end", client, err)
		}
	}
}

// Two terabytes are 2^27 full records: with the real limit, eight keys. Here a key is for
// 64 records. crypto/tls never changes its key by itself, and must when it is asked.
func TestKeysOfTwoTerabytes(t *testing.T) {
	const limit = 64
	for _, client := range []bool{true, false} {
		c, w, far := pair(t, client)
		c.UpdateAfter(limit)
		const keys = 2 << 40 / MaxPlain / maxRecords
		for i := range limit * 2 * keys {
			msg := fmt.Appendf(nil, "message %d", i)
			_, _ = w.Write(sent(t, c, msg))
			if got, err := received(far); err != nil || !bytes.Equal(got, msg) {
				t.Fatalf("client %v, record %d: %q, %v", client, i, got, err)
			}
			if c.out.seq > limit || c.in.seq > limit*3/2 {
				t.Fatalf("client %v: a key has sealed %d records, the peer's %d", client, c.out.seq, c.in.seq)
			}
			if _, err := far.Write(msg); err != nil {
				t.Fatal(err)
			}
			if got, _, err := c.Open(w.take()); err != nil || !bytes.Equal(got, msg) {
				t.Fatalf("client %v, record %d: opened %q, %v", client, i, got, err)
			}
		}
		if in, out := c.Updates(); in < keys || out < keys {
			t.Errorf("client %v: keys changed %d and %d times, want at least %d", client, in, out, keys)
		}
	}
}

// The limit that counts when no smaller one is set (RFC 8446, 5.5).
func TestLimitOfAES(t *testing.T) {
	c, peer := mirror(t, tls.TLS_AES_128_GCM_SHA256)
	c.UpdateAfter(1 << 40)
	c.out.seq, peer.in.seq = maxRecords-1, maxRecords-1
	if c.Due() {
		t.Error("a key changes before it is used up")
	}
	p := sent(t, c, []byte("last"))
	if !c.Due() {
		t.Error("a key is used for more than 2^24 records")
	}
	p = append(p, sent(t, c, []byte("first"))...)
	if got, _, err := peer.Open(p); err != nil || string(got) != "lastfirst" || c.out.seq != 1 || peer.Due() {
		t.Errorf("%q, %v; %d records with the new key", got, err, c.out.seq)
	}
}

// A request is answered before the next data, once, and the answer requests nothing.
func TestRequestOfAKeyUpdate(t *testing.T) {
	c, peer := mirror(t, tls.TLS_AES_256_GCM_SHA384)
	var p []byte
	for range 3 {
		p = c.append(p, typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 1})
		c.out = must(c.out.updated())
	}
	if _, _, err := peer.Open(p); err != nil || !peer.Due() {
		t.Fatal(err, peer.Due())
	}
	q := sent(t, peer, []byte("answer"))
	if want := Len(5) + Len(6); len(q) != want {
		t.Errorf("the answer to three requests has %d bytes, want %d", len(q), want)
	}
	got, _, err := c.Open(q)
	if in, _ := c.Updates(); err != nil || string(got) != "answer" || in != 1 || peer.Due() || c.Due() {
		t.Errorf("%q, %v, %d updates, due %v %v", got, err, in, peer.Due(), c.Due())
	}
}

func must(h half, err error) half {
	if err != nil {
		panic(err)
	}
	return h
}

// What was sealed and opened in slots is what was put there.
func TestSlots(t *testing.T) {
	for _, n := range []int{10, MaxPlain, MaxPlain + 1, 3 * MaxPlain, 100000} {
		c, peer := mirror(t, tls.TLS_AES_128_GCM_SHA256)
		buf := make([]byte, Len(n))
		k := byte(0)
		var want []byte
		total := 0
		for _, s := range Slots(nil, buf, 9, n) {
			for i := range s {
				s[i] = k
				k += 7
			}
			want = append(want, s...)
			total += len(s)
		}
		if total != n-9 {
			t.Fatalf("slots for %d bytes have %d", n-9, total)
		}
		copy(buf[HeaderLen:], "123456789")
		c.Seal(buf, n)
		got, rest, err := peer.Open(buf)
		if err != nil || len(rest) > 0 || string(got[:9]) != "123456789" || !bytes.Equal(got[9:], want) {
			t.Errorf("%d bytes: opened %d, %v", n, len(got), err)
		}
	}
}

// Nothing is sent behind an alert, and nothing with keys that are gone.
func TestNothingBehindTheEnd(t *testing.T) {
	c, _ := mirror(t, tls.TLS_AES_128_GCM_SHA256)
	if p := c.Close(nil); len(p) != Len(2) {
		t.Errorf("close_notify has %d bytes", len(p))
	}
	p := c.Append(nil, []byte("x"))
	p, err := c.Control(p)
	if p = c.Close(p); err != nil || len(p) != 0 {
		t.Errorf("%d bytes behind close_notify, %v", len(p), err)
	}
	c, _ = mirror(t, tls.TLS_AES_128_GCM_SHA256)
	c.Forget()
	buf := append(make([]byte, HeaderLen), "plaintext of a secret"...)
	sealed := c.Seal(append(buf, make([]byte, TrailerLen)...), 21)
	if _, _, err := c.Open(make([]byte, 100)); sealed || err == nil || len(c.Append(nil, buf)) != 0 {
		t.Error("a connection without keys goes on")
	}
	if c.in != (half{}) || c.out != (half{}) {
		t.Error("secrets are kept")
	}
}

// A peer learns by an alert what it did wrong.
func TestRefuse(t *testing.T) {
	for _, client := range []bool{true, false} {
		c, w, far := pair(t, client)
		_, _ = far.Write([]byte("x"))
		p := w.take()
		p[len(p)-1] ^= 1
		if _, _, err := c.Open(p); !errors.Is(err, errBadMAC) {
			t.Fatal(err)
		}
		_, _ = w.Write(c.Refuse(nil))
		if _, err := received(far); err == nil || err.Error() != "remote error: tls: bad record MAC" {
			t.Errorf("client %v: the peer read %v", client, err)
		}
	}
	c, peer := mirror(t, tls.TLS_AES_128_GCM_SHA256)
	if _, _, err := peer.Open(c.Close(nil)); !errors.Is(err, io.EOF) || len(peer.Refuse(nil)) != 0 {
		t.Error("the end is answered by an alert", err)
	}
}

// No record costs an allocation.
func TestAllocations(t *testing.T) {
	c, peer := mirror(t, tls.TLS_AES_128_GCM_SHA256)
	const n = 4 * MaxPlain
	buf, out := make([]byte, Len(n)), make([]byte, 0, Len(n))
	slots := make([][]byte, 0, 8)
	data := make([]byte, n)
	if a := testing.AllocsPerRun(100, func() {
		slots = Slots(slots[:0], buf, 9, n)
		c.Seal(buf, n)
		if _, _, err := peer.Open(buf); err != nil {
			t.Fatal(err)
		}
		out = c.Append(out[:0], data)
		if _, _, err := peer.Open(out); err != nil {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("8 records cost %v allocations", a)
	}
}

// What crypto/tls sends arrives, wherever it is cut, with a key update in it.
func TestEveryCut(t *testing.T) {
	for _, client := range []bool{true, false} {
		c, w, far := pair(t, client)
		_, _ = far.Write([]byte("one"))
		request := []byte{msgKeyUpdate, 0, 0, 1, 1}
		_, _ = w.Write(c.append(nil, typeHandshake, request))
		c.out = must(c.out.updated())
		if _, err := received(far); err != nil { // and answers the request
			t.Fatal(err)
		}
		_, _ = far.Write([]byte("two"))
		_ = far.CloseWrite()
		p := w.take()
		for i := range len(p) + 1 {
			d := *c // the state before
			got, rest, err := d.Open(bytes.Clone(p[:i]))
			got = bytes.Clone(got)
			if err == nil {
				var more []byte
				more, rest, err = d.Open(append(bytes.Clone(rest), p[i:]...))
				got = append(got, more...)
			}
			if in, _ := d.Updates(); string(got) != "onetwo" || !errors.Is(err, io.EOF) || len(rest) > 0 || in != 1 {
				t.Fatalf("client %v, cut at %d of %d: %q, %v, %d updates", client, i, len(p), got, err, in)
			}
		}
	}
}
