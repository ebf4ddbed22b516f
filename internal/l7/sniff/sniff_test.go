package sniff

import (
	"strings"
	"testing"
)

func TestSniff(t *testing.T) {
	for in, want := range map[string]Guess{
		"": Undecided, "G": Undecided, "GET": Undecided, "GET /": Undecided, "GET / HTTP/1.1\r\n": HTTP1, "GET / HTTP/1.0\n": HTTP1,
		"PROPFIND /x HTTP/1.1\r\nHost: a\r\n\r\n": HTTP1, "GET / HTTP/1.1": Undecided,
		preface: HTTP2, preface + "x": HTTP2, preface[:5]: Undecided, preface[:23]: Undecided, "PRI / HTTP/1.1\r\n": HTTP1,
		"PRI * HTTP/2.0\r\n\r\nXX": Other,
		"SET foo bar\r\n":          Other, "*1\r\n": Other, "EHLO host\r\n": Other, "\x16\x03\x01": Other, "get / HTTP/1.1\r\n": Other,
		" GET / HTTP/1.1\r\n": Other, "GET\x00": Other, "GET \x01": Other, "GET HTTP/1.1\r\n": Other,
		strings.Repeat("A", 33): Other, strings.Repeat("A", 32): Undecided, "GET /" + strings.Repeat("a", 9000): Other,
	} {
		if got := Look([]byte(in)); got != want {
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
		decided := Undecided
		for i := range len(p) + 1 {
			g := Look(p[:i])
			if decided != Undecided && g != decided {
				t.Fatalf("%d after %d bytes, %d before: %q", g, i, decided, p[:i])
			}
			decided = g
		}
	})
}
