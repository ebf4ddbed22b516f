package sni

import (
	"bytes"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"
)

// hello returns what a client of package crypto/tls sends first.
func hello(t testing.TB, name string, edit func(*tls.Config)) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()                                                   //nolint:errcheck // a pipe
	defer far.Close()                                                    //nolint:errcheck // a pipe
	cfg := &tls.Config{ServerName: name, InsecureSkipVerify: name == ""} //nolint:gosec // no server answers
	if edit != nil {
		edit(cfg)
	}
	go func() { _ = tls.Client(near, cfg).Handshake() }()
	_ = far.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, MaxHello)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// split divides the handshake message of one record into records of n bytes.
func split(record []byte, n int) (out []byte) {
	for p := record[recordHeader:]; len(p) > 0; {
		m := min(n, len(p))
		out = append(append(out, record[0], record[1], record[2], byte(m>>8), byte(m)), p[:m]...)
		p = p[m:]
	}
	return out
}

func TestRead(t *testing.T) {
	plain := hello(t, "Web.Example.org", nil)
	for _, tc := range []struct {
		title string
		p     []byte
		name  string
		v     Verdict
	}{
		{"TLS 1.3", plain, "web.example.org", Hello},
		{"TLS 1.2", hello(t, "a.b", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), "a.b", Hello},
		{"no name", hello(t, "", nil), "", Hello},
		{"an address, which clients leave out", hello(t, "10.0.0.1", nil), "", Hello},
		{"with bytes behind it", append(bytes.Clone(plain), "early"...), "web.example.org", Hello},
		{"in records of 30 bytes", split(plain, max(30, len(plain)/60)), "web.example.org", Hello},
		{"in records of one byte", split(plain, 1), "", Broken},
		{"in records of 100 bytes", split(plain, 100), "web.example.org", Hello},
		{"nothing yet", nil, "", More},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), "", Plain},
		{"one byte of a record", plain[:1], "", More},
		{"SSL 2", []byte{22, 2, 0, 0, 5}, "", Plain},
		{"an alert", []byte{21, 3, 1, 0, 2, 1, 0}, "", Plain},
		{"an empty record", []byte{22, 3, 1, 0, 0}, "", Broken},
		{"a record that is too long", []byte{22, 3, 1, 0xff, 0xff}, "", Broken},
		{"another message", []byte{22, 3, 1, 0, 4, 2, 0, 0, 0}, "", Broken},
		{"a message that is too long", []byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, "", Broken},
		{"another record in the middle", append(split(plain, 100)[:105], 23, 3, 3, 0, 1, 0), "", Broken},
		{"an empty message", []byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, "", Broken},
	} {
		name, v := Read(tc.p)
		if name != tc.name || v != tc.v {
			t.Errorf("%s: %q %v, want %q %v", tc.title, name, v, tc.name, tc.v)
		}
	}
	for i := range plain {
		if _, v := Read(plain[:i]); v != More {
			t.Fatalf("%d of %d bytes: %v", i, len(plain), v)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Read(plain) }); n > 2 {
		t.Errorf("%v allocations", n)
	}
}

// TestDripping: the cost of a hello that comes byte by byte is bounded, however it is
// divided into records: nothing is copied before it is complete.
func TestDripping(t *testing.T) {
	p := append([]byte{22, 3, 1, 0x3f, 0x00, 1, 0, 0x3e, 0xf0}, make([]byte, 16000)...)
	for _, all := range [][]byte{p, split(p[:recordHeader+60*200], 200)} {
		if n := testing.AllocsPerRun(1, func() {
			for i := range len(all) {
				if _, v := Read(all[:i]); v != More {
					t.Fatalf("%d bytes: %v", i, v)
				}
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// extensions returns a ClientHello with these extensions.
func extensions(all ...[]byte) []byte {
	var x []byte
	for _, e := range all {
		x = append(x, e...)
	}
	body := make([]byte, randomAndVersion, 512)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0, byte(len(x)>>8), byte(len(x)))
	body = append(body, x...)
	p := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 1, byte(len(p) >> 8), byte(len(p))}, p...)
}

// named returns an extension with names.
func named(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(append(list, 0, byte(len(n)>>8), byte(len(n))), n...)
	}
	return append([]byte{0, 0, 0, byte(len(list) + 2), byte(len(list) >> 8), byte(len(list))}, list...)
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "a.b", "A.B", "a_b.c", "xn--4ca.de", "1.a", strings.Repeat("a.", 100) + "b"} {
		if got, v := Read(extensions(named(name))); v != Hello || got != strings.ToLower(name) {
			t.Errorf("%q: %q %v", name, got, v)
		}
	}
	// What one server may read in one way and another in another way is refused.
	for title, p := range map[string][]byte{
		"two names": extensions(named("a.b", "c.d")), "twice": extensions(named("a.b"), named("a.b")), "no name": extensions(named()), "an empty name": extensions(named("")),
		"a dot at the end": extensions(named("a.b.")), "an address": extensions(named("10.0.0.1")), "zero": extensions(named("a\x00.b")), "a space": extensions(named("a b")),
		"a wildcard": extensions(named("*.b")), "letters that are not ASCII": extensions(named("ä.b")), "two dots": extensions(named("a..b")), "a long name": extensions(named(strings.Repeat("a.", 126) + "bb")),
		"another type": extensions([]byte{0, 0, 0, 6, 0, 4, 1, 0, 1, 'a'}), "a list that is too short": extensions([]byte{0, 0, 0, 6, 0, 3, 0, 0, 1, 'a'}),
		"an extension that is cut": extensions([]byte{0, 0, 0, 60, 0, 3}),
	} {
		if got, v := Read(p); v != Broken {
			t.Errorf("%s: %q %v", title, got, v)
		}
	}
	if _, v := Read(append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xf7}, make([]byte, MaxHello)...)); v != Broken {
		t.Errorf("a hello that is as long as may be: %v", v)
	}
}

// once is a connection that has some bytes to read.
type once struct {
	net.Conn
	r *bytes.Reader
}

func (o once) Read(p []byte) (int, error)       { return o.r.Read(p) }
func (once) Write(p []byte) (int, error)        { return len(p), nil }
func (once) Close() error                       { return nil }
func (once) SetWriteDeadline(_ time.Time) error { return nil }

// FuzzRead: no input crashes it; more bytes change no verdict but More; records do not
// matter; and what it finds crypto/tls finds.
func FuzzRead(f *testing.F) {
	f.Add(hello(f, "web.example.org", nil), 3)
	f.Add(extensions(named("a.b")), 1)
	f.Add(extensions(named("a.b"), named("c.d")), 7)
	f.Add([]byte("GET / HTTP/1.1"), 1)
	f.Fuzz(func(t *testing.T, p []byte, at int) {
		name, v := Read(p)
		if name != "" && (v != Hello || !valid([]byte(name)) || name != strings.ToLower(name)) {
			t.Fatalf("%q %v", name, v)
		}
		if len(p) > 0 {
			cut := int(uint(at) % uint(len(p)))
			if n, w := Read(p[:cut]); w != More && (w != v || n != name) {
				t.Fatalf("%d bytes: %q %v; %d bytes: %q %v", cut, n, w, len(p), name, v)
			}
		}
		if v != Hello {
			return
		}
		seen, ok := "", false
		_ = tls.Server(once{r: bytes.NewReader(p)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { //nolint:gosec // no client gets an answer
			seen, ok = strings.ToLower(h.ServerName), true
			return nil, net.ErrClosed
		}}).Handshake()
		if ok && seen != name {
			t.Fatalf("%q, and crypto/tls reads %q", name, seen)
		}
	})
}
