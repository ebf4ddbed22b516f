package early

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
)

func TestServer(t *testing.T) {
	settings := "\x00\x00\x12\x04\x00\x00\x00\x00\x00"
	for in, want := range map[string]Next{
		"": Wait, "H": Wait, "HTTP/1": Wait, "HTTP/1.": GiveBack, "HTTP/1.1 408 Request Timeout\r\n": GiveBack, "HTTX": Join,
		"220 mail ESMTP\r\n": Join, "SSH-2.0-x\r\n": Join, "\x4a\x00\x00\x00\x0a8.0": Join, "R\x00\x00\x00\x08": Join, "\x00": Wait, "\x00\x00\x12": Wait,
		settings[:8]: Wait, settings: GiveBack, settings + "x": GiveBack, "\x00\x00\x12\x04\x01\x00\x00\x00\x00": Join, "\x00\x00\x12\x06": Join,
		"\x00\x00\x12\x04\x00\x00\x00\x00\x01": Join,
	} {
		if got := Server([]byte(in), false); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
		ended := want
		if want == Wait {
			ended = Join // its end is for the client
		}
		if got := Server([]byte(in), true); got != ended {
			t.Errorf("%q and the end: %d, want %d", in, got, ended)
		}
	}
}

func TestRoom(t *testing.T) {
	a, b := identity.Identity{ServiceAccount: "a"}, identity.Identity{ServiceAccount: "b"}
	r := Room{Total: 5, Each: 3}
	for i, want := range []bool{true, true, true, false, false} {
		if r.Enter(a) != want {
			t.Errorf("%d", i)
		}
	}
	if first, second, third := r.Enter(b), r.Enter(b), r.Enter(b); !first || !second || third {
		t.Error("the total does not hold")
	}
	r.Leave(a)
	if !r.Enter(b) || r.Enter(a) {
		t.Error("a place that was given back")
	}
	for range 3 {
		r.Leave(b)
	}
	r.Leave(a)
	r.Leave(a)
	if r.taken != 0 || len(r.by) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestDecided(t *testing.T) {
	for _, c := range []struct {
		client string
		server bool
		want   telemetry.Kind
	}{{"x", false, telemetry.KindClient}, {"x", true, telemetry.KindClient}, {"", true, telemetry.KindServer}, {"", false, telemetry.KindSilent}} {
		if got := Decided([]byte(c.client), c.server); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// FuzzWatch: HTTP is refused however it is divided, before its request line is complete
// at the server.
func FuzzWatch(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "EHLO a\r\n", "GET /" + strings.Repeat("a", 9000)} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, p []byte, step uint8) {
		var whole Watch
		_, want, _ := whole.Look(p)
		var w Watch
		got, more := reason.OK, true
		for n := 0; n < len(p) && more && got == reason.OK; {
			end := min(n+1+int(step), len(p))
			more, got, _ = w.Look(p[n:end])
			n = end
		}
		if got != want {
			t.Fatalf("%v in parts of %d, %v at once: %q", got, int(step)+1, want, p)
		}
	})
}
