package accesslog

import (
	"net/netip"
	"testing"
	"time"
)

// TestStart: times are written as time.Format writes them.
func TestStart(t *testing.T) {
	for _, at := range []time.Time{
		{}, time.Unix(0, 0), time.Unix(1<<31, 999_999_999), time.Date(2026, 11, 29, 23, 59, 59, 7e6, time.FixedZone("", -3600)), time.Date(9999, 1, 2, 3, 4, 5, 60e6, time.UTC),
	} {
		if got, want := string(appendStart(nil, at)), at.UTC().Format("2006-01-02T15:04:05.000Z"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// FuzzEscape: what is escaped cannot end its quotes or its line, and plain text stays as it
// is.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "plain", `a"b`, "\\", "\n", "x\x00y\xff", `""`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := escape(nil, s)
		plain := true
		for i := range len(s) {
			plain = plain && s[i] >= ' ' && s[i] <= '~' && s[i] != '"' && s[i] != '\\'
		}
		if plain && string(got) != s {
			t.Fatalf("%q became %q", s, got)
		}
		for i := 0; i < len(got); i++ {
			switch c := got[i]; {
			case c < ' ' || c > '~' || c == '"':
				t.Fatalf("%q became %q", s, got)
			case c == '\\':
				i++ // what follows is escaped
			}
		}
		if n := len(got); n > 0 && got[n-1] == '\\' && (n == 1 || got[n-2] != '\\') {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

func BenchmarkAppendText(b *testing.B) {
	e := &Request{
		Start: time.Now(), Duration: time.Millisecond, FirstByte: time.Millisecond, Method: []byte("GET"), Path: []byte("/api/v1/items/12345?page=2"),
		Authority: []byte("shop.example.com"), Protocol: "HTTP/1.1", Status: 200, Sent: 1024, ForwardedFor: []byte("10.0.0.1"), UserAgent: []byte("Mozilla/5.0 (X11; Linux x86_64)"),
		ID: []byte("6f1f8c36-7c43-4f0a-a3f1-0f6c4a3c2f11"), Answered: true, Upstream: netip.MustParseAddrPort("10.0.0.2:8080"), ClusterKind: "http",
		ClusterHost: "front.shop.svc.cluster.local", ClusterPort: 80, Called: netip.MustParseAddrPort("10.96.0.1:80"), Client: netip.MustParseAddrPort("10.0.0.1:4000"),
		Route: "HTTPRoute shop/front, rule 0", Src: Party{Workload: "far", Namespace: "shop", Identity: "spiffe://cluster.local/ns/shop/sa/far"},
		Dst: Party{Workload: "v1", Namespace: "shop", Identity: "spiffe://cluster.local/ns/shop/sa/v1"},
	}
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		buf = e.AppendText(buf[:0])
	}
}
