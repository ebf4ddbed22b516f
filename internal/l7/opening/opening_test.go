package opening

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// hello returns the first message of TLS for a name.
func hello(t testing.TB, name string) []byte {
	a, b := net.Pipe()
	defer func() { _ = a.Close() }()
	go func() {
		_ = tls.Client(b, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() //nolint:gosec // a test
		_ = b.Close()
	}()
	p := make([]byte, 5)
	if _, err := io.ReadFull(a, p); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, int(p[3])<<8|int(p[4]))
	if _, err := io.ReadFull(a, rest); err != nil {
		t.Fatal(err)
	}
	return append(p, rest...)
}

func table(t testing.TB, plain bool) *route.Connections {
	rules := []route.Rule{
		{Origin: "exact", Route: "a", Carries: route.TLS, Hosts: []string{"a.example.org"}, Backends: []route.Backend{{Name: "a", Weight: 1}}},
		{Origin: "wild", Route: "b", Carries: route.TLS, Hosts: []string{"*.example.org"}, Backends: []route.Backend{{Name: "b", Weight: 1}}},
	}
	if plain {
		rules = append(rules, route.Rule{Origin: "plain", Route: "c", Carries: route.Anything, Backends: []route.Backend{{Name: "c", Weight: 1}}})
	}
	c, problems := route.CompileConnections(rules)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return c
}

func TestFind(t *testing.T) {
	exact, other := hello(t, "a.example.org"), hello(t, "x.y.example.org")
	foreign, none := hello(t, "example.com"), hello(t, "")
	broken := append([]byte{22, 3, 1, 0, 4}, 9, 9, 9, 9)
	for _, tt := range []struct {
		name         string
		p            []byte
		end, plain   bool
		want, failed string
		more         bool
	}{
		{"exact", exact, false, false, "exact", "", false},
		{"wildcard", other, false, true, "wild", "", false},
		{"another name", foreign, false, true, "", "a connection of TLS to example.com", false},
		{"no name", none, false, true, "", "a connection of TLS whose client names no server", false},
		{"a part", exact[:len(exact)-1], false, true, "", "", true},
		{"a part and the end", exact[:len(exact)-1], true, true, "", "its TLS handshake cannot be read", false},
		{"one byte", exact[:1], false, true, "", "", true},
		{"nothing", nil, false, true, "plain", "", true},
		{"nothing and the end", nil, true, true, "plain", "", false},
		{"plain", []byte("EHLO a\r\n"), false, true, "plain", "", false},
		{"plain without a route", []byte("EHLO a\r\n"), false, false, "", "a connection without TLS, on a port that has routes of TLS alone", false},
		{"broken", broken, false, true, "", "its TLS handshake cannot be read", false},
		{"huge", append([]byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}, make([]byte, MaxBytes)...), false, true, "", "its TLS handshake cannot be read", false},
	} {
		o, more := Look(tt.p, tt.end)
		if more != tt.more {
			t.Errorf("%s: more %v", tt.name, more)
		}
		if more {
			continue
		}
		got, failure := o.Find(table(t, tt.plain))
		if failure != tt.failed || (got == nil) != (tt.want == "") || got != nil && got.Rule.Origin != tt.want {
			t.Errorf("%s: %+v, %q", tt.name, got, failure)
		}
	}
}

// FuzzLook: whatever comes decides once MaxBytes are there or the client has ended, and no
// bytes that follow change what has been decided.
func FuzzLook(f *testing.F) {
	f.Add(hello(f, "a.example.org"), uint16(7))
	f.Add([]byte("SSH-2.0-x\r\n"), uint16(1))
	c := table(f, true)
	f.Fuzz(func(t *testing.T, p []byte, cut uint16) {
		if _, more := Look(p, true); more {
			t.Fatal("undecided at the end")
		}
		whole, more := Look(p, false)
		if more && len(p) >= MaxBytes {
			t.Fatal("undecided with all bytes")
		}
		part, undecided := Look(p[:min(int(cut), len(p))], false)
		if !undecided && (more || part != whole) {
			t.Fatalf("%+v became %+v", part, whole)
		}
		if target, failure := whole.Find(c); (target == nil) == (failure == "") {
			t.Fatalf("%+v: %v, %q", whole, target, failure)
		}
	})
}
