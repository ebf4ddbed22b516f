package record

import (
	"bytes"
	"crypto/fips140"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// A connection is taken over only when everything fits. What does not leaves crypto/tls
// as it is.
func TestNewRefuses(t *testing.T) {
	ok := func(t *testing.T, client bool, change func(mine, peer *tls.Config)) (tls.ConnectionState, *Secrets) {
		mine, peer := config(t), config(t)
		if change != nil {
			change(mine, peer)
		}
		near, s, w, far := shake(t, client, mine, peer)
		_, _ = w, far
		return near.ConnectionState(), s
	}
	for _, tc := range []struct {
		name   string
		change func(mine, peer *tls.Config)
		spoil  func(*tls.ConnectionState, *Secrets)
		want   bool
	}{
		{name: "control", want: true},
		{name: "TLS 1.2", change: func(mine, _ *tls.Config) { mine.MaxVersion = tls.VersionTLS12 }},
		{name: "ChaCha20", spoil: func(s *tls.ConnectionState, _ *Secrets) { s.CipherSuite = tls.TLS_CHACHA20_POLY1305_SHA256 }},
		{name: "other AES", spoil: func(s *tls.ConnectionState, _ *Secrets) { s.CipherSuite ^= 3 }},
		{name: "resumed", spoil: func(s *tls.ConnectionState, _ *Secrets) { s.DidResume = true }},
		{name: "unfinished", spoil: func(s *tls.ConnectionState, _ *Secrets) { s.HandshakeComplete = false }},
		{name: "no secrets", spoil: func(_ *tls.ConnectionState, s *Secrets) { s.client, s.server = secret{}, secret{} }},
		{name: "no client's secret", spoil: func(_ *tls.ConnectionState, s *Secrets) { s.client = secret{} }},
		{name: "no server's secret", spoil: func(_ *tls.ConnectionState, s *Secrets) { s.server = secret{} }},
		{name: "second secret", spoil: func(_ *tls.ConnectionState, s *Secrets) {
			fmt.Fprintf(s, "CLIENT_TRAFFIC_SECRET_0 %x %x\n", make([]byte, 32), make([]byte, 32))
		}},
		{name: "nothing seen of the handshake", spoil: func(_ *tls.ConnectionState, s *Secrets) { s.sent = nil }},
		{name: "half a record seen", spoil: func(_ *tls.ConnectionState, s *Secrets) { s.sent = s.sent[:len(s.sent)-1] }},
		{name: "too much sent", spoil: func(_ *tls.ConnectionState, s *Secrets) { s.Sent(make([]byte, maxSent)) }},
		{name: "a record of the application sent", spoil: func(st *tls.ConnectionState, s *Secrets) {
			for _, sec := range []*secret{&s.client, &s.server} {
				var h half
				if err := h.set(suiteOf(st.CipherSuite), &sec.b); err != nil {
					t.Fatal(err)
				}
				s.Sent((&Conn{out: h}).Append(nil, []byte("early")))
			}
		}},
		{name: "wiped", spoil: func(_ *tls.ConnectionState, s *Secrets) { s.Forget() }},
	} {
		for _, client := range []bool{true, false} {
			state, s := ok(t, client, tc.change)
			if tc.spoil != nil {
				tc.spoil(&state, s)
			}
			c, got := New(&state, s, client)
			if got != tc.want || (c != nil) != tc.want {
				t.Errorf("%s, client %v: taken over %v", tc.name, client, got)
			}
			if s.client.b != [maxSecret]byte{} || s.server.b != [maxSecret]byte{} || s.sent != nil {
				t.Errorf("%s, client %v: New has left the secrets there", tc.name, client)
			}
		}
	}
}

// A real handshake with ChaCha20, which needs a peer without AES: crypto/tls chooses it
// by what the client prefers, so the lines alone are tried.
func TestSecretsOfOtherLengths(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33, 48, 49, 64} {
		s := &Secrets{}
		fmt.Fprintf(s, "CLIENT_TRAFFIC_SECRET_0 00 %x\n", make([]byte, n))
		fmt.Fprintf(s, "SERVER_TRAFFIC_SECRET_0 00 %x\n", make([]byte, n))
		state := tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, HandshakeComplete: true}
		s.Sent(append([]byte{typeApplication, 3, 3, 0, 17}, make([]byte, 17)...))
		if _, ok := New(&state, s, true); ok {
			t.Errorf("secrets of %d bytes were taken for AES-128", n)
		}
	}
	for _, line := range []string{"", "\n", "CLIENT_TRAFFIC_SECRET_0", "CLIENT_TRAFFIC_SECRET_0 00", "CLIENT_TRAFFIC_SECRET_0 00 zz\n", "x y z\n"} {
		s := &Secrets{}
		if n, err := s.Write([]byte(line)); n != len(line) || err != nil || s.client.n > 0 {
			t.Errorf("%q: %d, %v, a secret of %d bytes", line, n, err, s.client.n)
		}
	}
}

// Whatever crypto/tls sends in a handshake, nothing of it may be sealed with a key that is
// taken over: its nonce would be used again. With session tickets on a server does that,
// and New must notice. Once a new Go changes either, this test fails.
func TestHandshakeUsesNoApplicationKey(t *testing.T) {
	for _, tc := range []struct {
		name            string
		client, tickets bool
		want            bool
	}{
		{"client", true, false, true},
		{"server", false, false, true},
		{"client whose server sends tickets", true, true, true},
		{"server that sends tickets", false, true, false},
	} {
		conf := config(t)
		conf.SessionTicketsDisabled = !tc.tickets
		conf.ClientSessionCache, conf.ServerName = tls.NewLRUClientSessionCache(1), "x"
		near, s, _, _ := shake(t, tc.client, conf, conf)
		flight := bytes.Clone(s.sent)
		key := s.server
		if tc.client {
			key = s.client
		}
		state := near.ConnectionState()
		c, ok := New(&state, s, tc.client)
		if ok != tc.want {
			t.Errorf("%s: taken over %v", tc.name, ok)
		}
		// The same without New: one AEAD, every record.
		var h half
		if err := h.set(suiteOf(state.CipherSuite), &key.b); err != nil {
			t.Fatal(err)
		}
		used, encrypted := 0, 0
		for p := flight; len(p) > 0; {
			n := HeaderLen + int(p[3])<<8 + int(p[4])
			if p[0] == typeApplication {
				encrypted++
				h.seq = 0
				if _, err := h.aead.Open(nil, h.next(), p[HeaderLen:n], p[:HeaderLen]); err == nil {
					used++
				}
			}
			p = p[n:]
		}
		if (used == 0) != tc.want || encrypted == 0 {
			t.Errorf("%s: of %d encrypted records %d were sealed with the application's key", tc.name, encrypted, used)
		}
		if ok && (c.out.seq != 0 || c.in.seq != 0) {
			t.Errorf("%s: the first record has the number %d, of the peer %d", tc.name, c.out.seq, c.in.seq)
		}
	}
}

// What else this package stands on: the handshake reads no further than the last record
// of it, and both ends go on from number 0, whatever comes first.
func TestFirstRecordAfterTheHandshake(t *testing.T) {
	for _, client := range []bool{true, false} {
		c, w, far := pair(t, client)
		if _, err := far.Write([]byte("first")); err != nil {
			t.Fatal(err)
		}
		if got, _, err := c.Open(w.take()); err != nil || string(got) != "first" {
			t.Errorf("client %v: %q, %v", client, got, err)
		}
		_, _ = w.Write(c.Append(nil, []byte("second")))
		if got, err := received(far); err != nil || string(got) != "second" {
			t.Errorf("client %v: %q, %v", client, got, err)
		}
	}
}

// In FIPS 140 mode, which begins with a process, crypto/tls goes on.
func TestFIPSMode(t *testing.T) {
	if os.Getenv("RECORD_TEST_FIPS") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFIPSMode$", "-test.v")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=on", "RECORD_TEST_FIPS=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("FIPS mode is on")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if fips140.Enabled() {
		t.Log("FIPS mode is on")
	}
	near, s, _, _ := shake(t, true, config(t), config(t))
	state := near.ConnectionState()
	if _, ok := New(&state, s, true); ok || Usable() {
		t.Error("a connection was taken over in FIPS mode")
	}
}
