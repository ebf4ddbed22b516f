package h2

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// get is a well-formed request to vary.
var get = []string{":method=GET", ":scheme=https", ":authority=a.b", ":path=/"}

func vary(base []string, more ...string) []string { return append(slices.Clone(base), more...) }

func TestRequestsAreJudged(t *testing.T) {
	connect := []string{":method=CONNECT", ":authority=a:1"}
	ws := []string{":method=CONNECT", ":protocol=websocket", ":scheme=https", ":authority=a", ":path=/c"}
	cases := []struct {
		name     string
		fields   []string
		ok       bool
		extended bool
	}{
		{name: "GET", fields: get, ok: true},
		{name: "CONNECT", fields: connect, ok: true},
		{name: "OPTIONS *", fields: []string{":method=OPTIONS", ":scheme=http", ":authority=a", ":path=*"}, ok: true},
		{name: "host instead of authority", fields: []string{":method=GET", ":scheme=http", ":path=/", "host=a"}, ok: true},
		{name: "host like authority", fields: vary(get, "host=A.b"), ok: true},
		{name: "another scheme", fields: []string{":method=GET", ":scheme=coap", ":path=x"}, ok: true},
		{name: "te: trailers", fields: vary(get, "te=trailers"), ok: true},
		{name: "tab in a value", fields: vary(get, "x=a\tb"), ok: true},
		{name: "empty value", fields: vary(get, "x="), ok: true},
		{name: "bytes beyond ASCII in a value", fields: vary(get, "x=\xff\x80"), ok: true},
		{name: "CONNECT with content-length", fields: vary(connect, "content-length=5"), ok: true},
		{name: "CONNECT with a host field that differs", fields: vary(connect, "host=other"), ok: true},
		{name: "extended CONNECT", fields: ws, ok: true, extended: true},

		{name: "extended CONNECT, not enabled", fields: ws},
		{name: ":protocol without CONNECT", fields: vary(get, ":protocol=x"), extended: true},
		{name: "extended CONNECT without :path", fields: ws[:4], extended: true},
		{name: "no :method", fields: get[1:]},
		{name: "empty :method", fields: vary(get[1:], ":method=")},
		{name: "method that is no token", fields: vary(get[1:], ":method=G T")},
		{name: "no :scheme", fields: []string{":method=GET", ":authority=a", ":path=/"}},
		{name: "no :path", fields: get[:3]},
		{name: "empty :path", fields: vary(get[:3], ":path=")},
		{name: "relative :path", fields: vary(get[:3], ":path=x")},
		{name: "GET *", fields: vary(get[:3], ":path=*")},
		{name: "no authority at all", fields: []string{":method=GET", ":scheme=http", ":path=/"}},
		{name: "authority with user", fields: []string{":method=GET", ":scheme=http", ":authority=u@a", ":path=/"}},
		{name: "authority with path", fields: []string{":method=CONNECT", ":authority=a/b"}},
		{name: "authority and host differ", fields: vary(get, "host=c")},
		{name: "two hosts", fields: vary(get, "host=a.b", "host=a.b")},
		{name: "CONNECT without authority", fields: connect[:1]},
		{name: "CONNECT with empty authority", fields: vary(connect[:1], ":authority=")},
		{name: "CONNECT with :scheme", fields: vary(connect, ":scheme=http")},
		{name: "CONNECT with :path", fields: vary(connect, ":path=/")},
		{name: "CONNECT with empty :path", fields: vary(connect, ":path=")},
		{name: "pseudo field twice", fields: vary(get, ":path=/")},
		{name: "unknown pseudo field", fields: vary(get, ":x=/")},
		{name: ":status in a request", fields: vary(get, ":status=200")},
		{name: "pseudo field after a regular one", fields: []string{":method=GET", ":scheme=http", "x=y", ":path=/", ":authority=a"}},
		{name: "upper case", fields: vary(get, "X=y")},
		{name: "space in a name", fields: vary(get, "a b=y")},
		{name: "colon in a name", fields: vary(get, "a:b=y")},
		{name: "NUL in a value", fields: vary(get, "x=a\x00b")},
		{name: "CR in a value", fields: vary(get, "x=a\rb")},
		{name: "LF in a value", fields: vary(get, "x=a\nb")},
		{name: "LF in a pseudo field", fields: vary(get[:3], ":path=/\n")},
		{name: "value begins with space", fields: vary(get, "x= a")},
		{name: "value ends with tab", fields: vary(get, "x=a\t")},
		{name: "connection", fields: vary(get, "connection=close")},
		{name: "proxy-connection", fields: vary(get, "proxy-connection=close")},
		{name: "keep-alive", fields: vary(get, "keep-alive=5")},
		{name: "transfer-encoding", fields: vary(get, "transfer-encoding=chunked")},
		{name: "upgrade", fields: vary(get, "upgrade=h2c")},
		{name: "te: gzip", fields: vary(get, "te=gzip")},
		{name: "content-length of letters", fields: vary(get, "content-length=a")},
		{name: "content-length signed", fields: vary(get, "content-length=+1")},
		{name: "content-length empty", fields: vary(get, "content-length=")},
		{name: "content-length too large", fields: vary(get, "content-length=99999999999999999999")},
		{name: "content-length twice", fields: vary(get, "content-length=1", "content-length=1")},
		{name: "content-length list", fields: vary(get, "content-length=1,1")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{Server: true, ExtendedConnect: c.extended}).start()
			r.headers(1, false, c.fields...)
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
			if c.ok {
				if len(r.takeEvents()) != 1 {
					t.Fatalf("refused: %q", r.output())
				}
				return
			}
			wantLines(t, "calls", r.takeEvents())
			wantLines(t, "answer", r.output(), "RST_STREAM 1 PROTOCOL_ERROR")
		})
	}
}

func TestResponsesAreJudged(t *testing.T) {
	cases := []struct {
		name   string
		fields []string
		want   string // the only call
	}{
		{"200", []string{":status=200", "x=y"}, "headers 1 200 x=y"},
		{"599", []string{":status=599"}, "headers 1 599"},
		{"content-length of a tunnel is ignored", []string{":status=200", "content-length=3"}, "headers 1 200 content-length=3"},
		{"no :status", []string{"x=y"}, "reset 1 PROTOCOL_ERROR"},
		{"600", []string{":status=600"}, "reset 1 PROTOCOL_ERROR"},
		{"099", []string{":status=099"}, "reset 1 PROTOCOL_ERROR"},
		{"two digits", []string{":status=20"}, "reset 1 PROTOCOL_ERROR"},
		{"letters", []string{":status=2x0"}, "reset 1 PROTOCOL_ERROR"},
		{"101", []string{":status=101"}, "reset 1 PROTOCOL_ERROR"},
		{":status twice", []string{":status=200", ":status=200"}, "reset 1 PROTOCOL_ERROR"},
		{"request pseudo field", []string{":status=200", ":path=/"}, "reset 1 PROTOCOL_ERROR"},
		{"connection", []string{":status=200", "connection=close"}, "reset 1 PROTOCOL_ERROR"},
		{"too large", []string{":status=200", "x=" + strings.Repeat("y", 17000)}, "reset 1 ENHANCE_YOUR_CALM"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{MaxHeaderList: 17000}).start()
			if _, err := r.conn.Open(&Header{Method: "CONNECT", Authority: "a:1"}, false); err != nil {
				t.Fatal(err)
			}
			r.headers(1, false, c.fields...)
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
			wantLines(t, "calls", r.takeEvents(), c.want)
		})
	}
}

// A body where there must be none, or a length that cannot be.
func TestResponseBodies(t *testing.T) {
	for _, c := range []struct {
		name, method, status, length string
		body                         int
		ok                           bool
	}{
		{"HEAD", "HEAD", "200", "10", 0, true},
		{"HEAD with a body", "HEAD", "200", "10", 10, false},
		{"304", "GET", "304", "10", 0, true},
		{"204 with a body", "GET", "204", "", 1, false},
		{"right length", "GET", "200", "10", 10, true},
		{"short", "GET", "200", "10", 9, false},
		{"long", "GET", "200", "10", 11, false},
		{"refused CONNECT has a body", "CONNECT", "503", "10", 10, true},
		{"refused CONNECT, wrong length", "CONNECT", "503", "10", 9, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{}).start()
			h := &Header{Method: c.method, Authority: "a:1"}
			if c.method != "CONNECT" {
				h.Scheme, h.Path = "http", "/"
			}
			s, err := r.conn.Open(h, false)
			if err != nil {
				t.Fatal(err)
			}
			r.streams[1] = s
			fields := []string{":status=" + c.status}
			if c.length != "" {
				fields = append(fields, "content-length="+c.length)
			}
			r.headers(1, false, fields...)
			_ = r.framer.WriteData(1, true, make([]byte, c.body))
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
			if got := !slices.Contains(r.takeEvents(), "reset 1 PROTOCOL_ERROR"); got != c.ok {
				t.Errorf("accepted: %v", got)
			}
		})
	}
}

// What the peer would have to refuse never leaves, and harms nothing.
func TestOwnHeadersAreChecked(t *testing.T) {
	r := newRig(t, Config{}).start(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 2000})
	for name, h := range map[string]*Header{
		"no method":             {Authority: "a"},
		"CONNECT with path":     {Method: "CONNECT", Authority: "a", Path: "/"},
		"CONNECT without":       {Method: "CONNECT"},
		"GET without path":      {Method: "GET", Scheme: "http", Authority: "a"},
		"LF in authority":       {Method: "CONNECT", Authority: "a\nb"},
		"CR in a value":         {Method: "CONNECT", Authority: "a", Fields: []Field{{Name: "baggage", Value: "a\r\nb"}}},
		"upper case":            {Method: "CONNECT", Authority: "a", Fields: []Field{{Name: "Baggage", Value: "a"}}},
		"connection":            {Method: "CONNECT", Authority: "a", Fields: []Field{{Name: "connection", Value: "close"}}},
		"pseudo in disguise":    {Method: "CONNECT", Authority: "a", Fields: []Field{{Name: ":path", Value: "/"}}},
		"unwanted :protocol":    {Method: "CONNECT", Scheme: "http", Authority: "a", Path: "/", Protocol: "websocket"},
		"more than peer allows": {Method: "CONNECT", Authority: "a", Fields: []Field{{Name: "x", Value: strings.Repeat("y", 2000)}}},
	} {
		want := ErrMalformed
		if name == "more than peer allows" {
			want = ErrHeaderList
		}
		if _, err := r.conn.Open(h, false); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(r.conn.Output()) != 0 || r.conn.Streams() != 0 {
		t.Error("a refused request left something behind")
	}
	if _, err := newRig(t, Config{Server: true}).conn.Open(&Header{Method: "CONNECT", Authority: "a"}, false); !errors.Is(err, ErrState) {
		t.Errorf("a server opened a stream: %v", err)
	}
	ext := newRig(t, Config{}).start(http2.Setting{ID: settingExtendedConnect, Val: 1})
	if _, err := ext.conn.Open(&Header{Method: "CONNECT", Scheme: "http", Authority: "a", Path: "/", Protocol: "websocket"}, false); err != nil {
		t.Errorf("extended CONNECT: %v", err)
	}
	wantLines(t, "frames", ext.output(), "HEADERS 1 :method=CONNECT :scheme=http :authority=a :path=/ :protocol=websocket")
	sv := newRig(t, Config{Server: true}).start()
	sv.connect(1)
	_ = sv.flush()
	s := sv.streams[1]
	for _, status := range []int{0, 99, 101, 600} {
		if err := sv.conn.Respond(s, &Header{Status: status}, false); !errors.Is(err, ErrMalformed) {
			t.Errorf("status %d: %v", status, err)
		}
	}
	if err := sv.conn.Trailers(s, nil); !errors.Is(err, ErrState) {
		t.Errorf("trailers before the response: %v", err)
	}
	if err := sv.conn.Respond(s, &Header{Status: 503, Fields: []Field{{Name: "x", Value: "\n"}}}, false); !errors.Is(err, ErrMalformed) {
		t.Errorf("LF in a response: %v", err)
	}
}

// A header section larger than a frame leaves as HEADERS and CONTINUATIONs.
func TestLongHeadersAreSplit(t *testing.T) {
	long := strings.Repeat("x#", 25_000) // does not compress
	p := newPair(t)
	rec := &recorder{streams: map[uint32]*Stream{}, got: map[uint32][]byte{}}
	p.server = New(Config{Server: true, MaxHeaderList: 1 << 20}, rec)
	rec.conn = p.server
	p.client = New(Config{}, &p.cs)
	p.cs.conn = p.client
	p.settle()
	if _, err := p.client.Open(&Header{Method: "CONNECT", Authority: "a:1", Fields: []Field{{Name: "x", Value: long, Sensitive: true}}}, false); err != nil {
		t.Fatal(err)
	}
	p.client.peerMaxFrame = minMaxFrame
	if _, err := p.client.Open(&Header{Method: "CONNECT", Authority: "a:1", Fields: []Field{{Name: "x", Value: long, Sensitive: true}}}, true); err != nil {
		t.Fatal(err)
	}
	p.settle()
	want := "headers 1 CONNECT a:1 x=" + long
	if got := rec.events; len(got) != 3 || got[1] != want || got[2] != strings.Replace(want, "1", "3", 1)+" end" {
		t.Errorf("%d calls", len(got))
	}
}

// Both ends' compression tables follow SETTINGS_HEADER_TABLE_SIZE.
func TestHeaderTableSize(t *testing.T) {
	r := newRig(t, Config{}).start(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	r.dec.SetAllowedMaxDynamicTableSize(0)
	for range 2 {
		if _, err := r.conn.Open(&Header{Method: "CONNECT", Authority: "a:1", Fields: []Field{{Name: "x", Value: "y"}}}, false); err != nil {
			t.Fatal(err)
		}
	}
	wantLines(t, "frames", r.output(), "HEADERS 1 :method=CONNECT :authority=a:1 x=y", "HEADERS 3 :method=CONNECT :authority=a:1 x=y")
}

// A byte of a value is judged the same wherever it is.
func TestValuesOfEveryByte(t *testing.T) {
	for length := 1; length < 20; length++ {
		for at := range length {
			for c := range 256 {
				b := bytes.Repeat([]byte{'x'}, length)
				b[at] = byte(c)
				inside := at > 0 && at < length-1
				want := c >= ' ' && c != 0x7f && (c != ' ' || inside) || c == '\t' && inside
				if got := validValue(string(b)); got != want {
					t.Fatalf("%q: %v", b, got)
				}
			}
		}
	}
}
