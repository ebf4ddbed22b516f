package message

import (
	"bytes"
	"strings"
	"testing"
)

func head(fields ...string) *Head {
	h := &Head{}
	for i := 0; i < len(fields); i += 2 {
		h.Add(NewKey(fields[i]), []byte(fields[i+1]))
	}
	return h
}

func text(h *Head) string {
	var b strings.Builder
	for _, f := range h.Fields {
		b.WriteString(string(f.Name) + ": " + string(f.Value) + "\n")
	}
	return b.String()
}

func TestEveryNameIsFound(t *testing.T) {
	for n := Other + 1; n < nameCount; n++ {
		if got := Lookup(strings.ToUpper(n.String())); got != n || n.String() == "" {
			t.Errorf("Lookup(%q) = %v, want %d", n, got, n)
		}
	}
	for _, s := range []string{"", "x", "hosT2", strings.Repeat("a", 300)} {
		if Lookup(s) != Other {
			t.Errorf("Lookup(%q) found a name", s)
		}
	}
}

func TestEdits(t *testing.T) {
	h := head("X-B", "1", "Accept", "a", "x-b", "2", "Via", "v")
	x := NewKey("x-B")
	h.Set(x, []byte("3"))
	h.Add(NewKey("Accept"), []byte("b"))
	h.Rename(NewKey("via"), NewKey("X-Via"))
	if got, want := text(h), "X-B: 3\nAccept: a\nX-Via: v\nAccept: b\n"; got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
	if n := h.Remove(NewKey("ACCEPT")); n != 2 || h.Get(Accept) != nil {
		t.Errorf("removed %d, left %s", n, text(h))
	}
	h.Set(NewKey("Host"), []byte("b.example"))
	if string(h.Authority) != "b.example" || h.Index(Host, 0) >= 0 {
		t.Errorf("Host is not the authority: %q, %s", h.Authority, text(h))
	}
}

func TestCopyOwnsItsBytes(t *testing.T) {
	in := []byte("Name value /path")
	src := Head{Path: in[11:], Fields: []Field{{Name: in[:4], Value: in[5:10]}}}
	var h Head
	h.CopyFrom(&src)
	clear(in)
	if text(&h) != "Name: value\n" || string(h.Path) != "/path" {
		t.Errorf("copy changed with its source: %q %s", h.Path, text(&h))
	}
	// A grown arena leaves earlier slices valid.
	for range 500 {
		h.Add(NewKey("x"), []byte(strings.Repeat("y", 50)))
	}
	if string(h.Fields[0].Value) != "value" || string(h.Fields[1].Value) != string(h.Fields[500].Value) {
		t.Error("a value was lost when the arena grew")
	}
}

func TestEditsAllocateNothing(t *testing.T) {
	src := head("Accept", "a", "Cookie", "a=1", "Cookie", "b=2", "X-Y", "z", "Connection", "keep-alive, x-y", "TE", "trailers")
	src.Method, src.Path, src.Authority = []byte("GET"), []byte("/%61bc?d"), []byte("h:80")
	var h Head
	set, add, remove, to := NewKey("x-set"), NewKey("x-add"), NewKey("accept"), NewKey("X-New")
	value := []byte("value")
	work := func() {
		h.CopyFrom(src)
		h.RemoveHopByHop()
		h.JoinCookies()
		h.LowerNames()
		h.Set(set, value)
		h.Add(add, value)
		h.Remove(remove)
		h.Rename(set, to)
		if h.NormalisePath(Strict) != nil || h.CheckRequest() != nil {
			t.Fatal("refused")
		}
	}
	work()
	if n := testing.AllocsPerRun(100, work); n != 0 {
		t.Errorf("%v allocations a request, want 0", n)
	}
	if want := "cookie: a=1; b=2\nte: trailers\nX-New: value\nx-add: value\n"; text(&h) != want {
		t.Errorf("got\n%swant\n%s", text(&h), want)
	}
}

func TestHopByHop(t *testing.T) {
	h := head("A", "1", "Connection", "close, b", "B", "2", "Keep-Alive", "3", "Proxy-Connection", "x", "TE", "gzip",
		"Transfer-Encoding", "chunked", "Upgrade", "h2c", "Connection", "C", "c", "4", "D", "5", "HTTP2-Settings", "x")
	if f := h.CheckConnection(); f != nil {
		t.Fatal(f)
	}
	if !h.HasConnection("CLOSE") || h.HasConnection("d") {
		t.Error("HasConnection is wrong")
	}
	h.RemoveHopByHop()
	if text(h) != "A: 1\nD: 5\n" {
		t.Errorf("left: %s", text(h))
	}
	for _, bad := range []string{"content-length", "close, Host", "transfer-encoding", "Cookie", "authorization", "X-Forwarded-For", "connection", "x_forwarded_for"} {
		if f := head("Connection", bad).CheckConnection(); f == nil {
			t.Errorf("Connection: %s is accepted", bad)
		}
	}
}

func TestNames(t *testing.T) {
	for in, want := range map[string]*Fault{
		"a": nil, "X-Ok_fine": nil, "": ErrName, "a b": ErrName, "a ": ErrNameSpace, "a\t": ErrNameSpace, " a": ErrName, "a\x00": ErrName,
		"a:": ErrName, "é": ErrName, "content_length": ErrNameDisguised, "Transfer_Encoding": ErrNameDisguised,
		"x_forwarded_for": ErrNameDisguised, "x-forwarded_client-cert": ErrNameDisguised, "a\xa0": ErrName,
	} {
		if _, f := CheckName(in); f != want {
			t.Errorf("%q: %v, want %v", in, f, want)
		}
	}
	for in, ok := range map[string]bool{"a b\tc": true, "\xff": true, "": true, "a\nb": false, "a\rb": false, "\x00": false, "\x7f": false, "\x0b": false} {
		if f := CheckValue(in); (f == nil) != ok {
			t.Errorf("value %q: %v", in, f)
		}
	}
}

func TestAuthority(t *testing.T) {
	for _, ok := range []string{"a", "a.b:1", "A_b-c.d", "1.2.3.4:65535", "[::1]", "[fe80::1]:80", "a."} {
		if f := CheckAuthority(ok); f != nil {
			t.Errorf("%q: %v", ok, f)
		}
	}
	for _, bad := range []string{"", ":80", "a:", "a:b", "a:65536", "a:123456", "u@a", "a b", "a/b", "a?b", "a#b", "a,b", "[::1", "[]", "[1.2.3.4]",
		"[fe80::1%eth0]", "::1", "a\x00", "a\r\nb", "a%20b", "[::1]a", "[::1]:x", "a\\b", "ü"} {
		if CheckAuthority(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestTargets(t *testing.T) {
	for _, c := range []struct{ method, target, authority, path string }{
		{"GET", "/", "", "/"}, {"GET", "/a?b?c=/../", "", "/a?b?c=/../"}, {"OPTIONS", "*", "", "*"},
		{"GET", "http://h/p?q", "h", "/p?q"}, {"GET", "HTTPS://h:1", "h:1", "/"}, {"CONNECT", "h:443", "h:443", ""},
	} {
		h := Head{Method: []byte(c.method)}
		if f := h.SetTarget([]byte(c.target)); f != nil || string(h.Authority) != c.authority || string(h.Path) != c.path {
			t.Errorf("%s %s: %v %q %q", c.method, c.target, f, h.Authority, h.Path)
		}
	}
	for _, c := range [][2]string{{"GET", ""}, {"GET", "*"}, {"GET", "a"}, {"GET", "h:80"}, {"CONNECT", "h"}, {"CONNECT", "/"}, {"CONNECT", "http://h:1/"},
		{"GET", "ftp://h/"}, {"GET", "http://u@h/"}, {"GET", "http:///p"}, {"GET", "http://h?x"}, {"GET", "/a#b"}, {"GET", "/a b"}, {"GET", "/\x00"},
		{"GET", "/%"}, {"GET", "/%g0"}, {"GET", "/é"}, {"GET", "://h/"}} {
		h := Head{Method: []byte(c[0])}
		if h.SetTarget([]byte(c[1])) == nil {
			t.Errorf("%s %q is accepted", c[0], c[1])
		}
	}
}

func TestHTTP2(t *testing.T) {
	ok := []string{":method", "GET", ":scheme", "http", ":path", "/a", ":authority", "h", "host", "H", "te", "trailers", "cookie", "a", "cookie", "b"}
	build := func(fields []string) (h Head, f *Fault) {
		for i := 0; i < len(fields) && f == nil; i += 2 {
			f = h.AddHTTP2(fields[i], fields[i+1])
		}
		if f == nil {
			f = h.CheckRequest()
		}
		return h, f
	}
	h, f := build(ok)
	if f != nil || string(h.Path) != "/a" || string(h.Authority) != "h" {
		t.Fatalf("%v %+v", f, h)
	}
	if h.JoinCookies(); string(h.Get(Cookie)) != "a; b" {
		t.Errorf("cookie %q", h.Get(Cookie))
	}
	if _, f := build([]string{":method", "GET", ":path", "/", "host", "h"}); f != nil {
		t.Errorf("Host without :authority: %v", f)
	}
	for _, bad := range [][]string{
		{":method", "GET", ":path", "/"}, {":method", strings.Repeat("G", MaxMethod+1), ":path", "/", ":authority", "h"}, {":method", "GET /admin HTTP/1.1\r\nX: ", ":path", "/", ":authority", "h"},
		{":method", "GET", ":path", "/ HTTP/1.1\r\nA: b", ":authority", "h"}, {":method", "GET", ":path", "a", ":authority", "h"},
		{":method", "GET", ":path", "/", ":authority", "h\r\nA: b"}, {":method", "GET", ":path", "/", ":authority", "u@h"},
		{":method", "GET", ":path", "/", ":path", "/", ":authority", "h"}, {":method", "GET", ":path", "", ":authority", "h"},
		{":method", "GET", ":path", "/", ":authority", "h", ":x", "y"}, {":method", "GET", ":path", "/", ":authority", "h", "a", "b", ":scheme", "http"},
		{":method", "GET", ":path", "/", ":scheme", "http://x/?", ":authority", "h"}, {":method", "CONNECT", ":path", "/", ":authority", "h:1"},
		{":status", "99"}, {":status", "0200"}, {":status", "2x0"},
	} {
		if _, f := build(bad); f == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for _, f := range [][2]string{{"transfer-encoding", "chunked"}, {"connection", "close"}, {"upgrade", "x"}, {"keep-alive", "x"}, {"te", "gzip"},
		{"host", "other"}, {"Foo", "x"}, {"foo\r\nbar", "x"}, {"foo", "a\r\nTransfer-Encoding: chunked"}, {"foo", "a\nb"}, {"foo", "\x00"}, {"foo", " a"}, {"foo", "a\t"},
		{"foo: bar", "x"}, {"content_length", "5"}, {"transfer-encoding ", "chunked"}, {"", "x"}, {"proxy-connection", "x"}, {"http2-settings", "x"}} {
		if _, bad := build(append(append([]string{}, ok...), f[:]...)); bad == nil {
			t.Errorf("%q is accepted", f)
		}
	}
}

func TestTrailerFields(t *testing.T) {
	if f := head("grpc-status", "0", "x", "y", "etag", "z").CheckTrailers(); f != nil {
		t.Error(f)
	}
	for _, n := range []string{"Content-Length", "transfer-encoding", "authorization", "cookie", "set-cookie", "x-forwarded-for", "connection", "te", "trailer", "content-type"} {
		if head(n, "x").CheckTrailers() == nil {
			t.Errorf("%s is accepted in trailers", n)
		}
	}
	h := &Head{Fields: []Field{{ID: Host}}}
	if h.CheckTrailers() == nil {
		t.Error("Host is accepted in trailers")
	}
}

func TestAppendAndShrink(t *testing.T) {
	var h Head
	h.Add(NewKey("Via"), []byte("a"))
	h.Append(0, "b")
	if got := string(h.Fields[0].Value); got != "a,b" {
		t.Error(got)
	}
	h.Add(NewKey("X"), bytes.Repeat([]byte("x"), 10_000))
	h.Shrink(1 << 20)
	if cap(h.arena) < 10_000 || len(h.Fields) != 0 {
		t.Errorf("%d bytes are kept, %d fields", cap(h.arena), len(h.Fields))
	}
	h.Shrink(100)
	if h.arena != nil || h.Fields != nil {
		t.Errorf("%d bytes are kept", cap(h.arena))
	}
}
