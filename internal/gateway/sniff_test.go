package gateway

import (
	"strings"
	"testing"
)

func TestSniff(t *testing.T) {
	for in, want := range map[string]guess{
		"": undecided, "G": undecided, "GET": undecided, "GET /": undecided, "GET / HTTP/1.1\r\n": isHTTP1, "GET / HTTP/1.0\n": isHTTP1,
		"PROPFIND /x HTTP/1.1\r\nHost: a\r\n\r\n": isHTTP1, "GET / HTTP/1.1": undecided,
		preface: isHTTP2, preface + "x": isHTTP2, preface[:5]: undecided, preface[:23]: undecided, "PRI / HTTP/1.1\r\n": isHTTP1,
		"PRI * HTTP/2.0\r\n\r\nXX": isOther,
		"SET foo bar\r\n":          isOther, "*1\r\n": isOther, "EHLO host\r\n": isOther, "\x16\x03\x01": isOther, "get / HTTP/1.1\r\n": isOther,
		" GET / HTTP/1.1\r\n": isOther, "GET\x00": isOther, "GET \x01": isOther, "GET HTTP/1.1\r\n": isOther,
		strings.Repeat("A", 33): isOther, strings.Repeat("A", 32): undecided, "GET /" + strings.Repeat("a", 9000): isOther,
	} {
		if got := sniff([]byte(in)); got != want {
			t.Errorf("%.40q: %d, want %d", in, got, want)
		}
	}
}

// FuzzSniff: more bytes never turn one decision into another.
func FuzzSniff(f *testing.F) {
	f.Add([]byte(preface))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("SET a b\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		decided := undecided
		for i := range len(p) + 1 {
			g := sniff(p[:i])
			if decided != undecided && g != decided {
				t.Fatalf("%d after %d bytes, %d before: %q", g, i, decided, p[:i])
			}
			decided = g
		}
	})
}
