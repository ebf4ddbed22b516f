package h2

import (
	"strings"
	"testing"
)

// answerer is a recorder that answers malformed requests.
type answerer struct {
	*recorder
	answer func(s *Stream, status int)
}

func (a *answerer) OnMalformed(s *Stream, h *Header, status int, why string) {
	a.note("malformed %d %s %s %d: %s", s.ID, h.Method, h.Path, status, why)
	if a.answer != nil {
		a.answer(s, status)
	}
}

// many are more fields than fit 1,000 bytes when each counts 32 more than it has,
// though their block is small.
var many = strings.Split(strings.Repeat("a=b ", 50)+"a=b", " ")

// What a client sends, why it is not served, and what the client gets.
func TestMalformedRequests(t *testing.T) {
	get := []string{":method=GET", ":scheme=http", ":path=/x", ":authority=a"}
	with := func(more ...string) []string { return append(get[:len(get):len(get)], more...) }
	full := func(r *rig) func(*Stream, int) {
		return func(s *Stream, status int) {
			if err := r.conn.Respond(s, &Header{Status: status}, true); err != nil {
				r.t.Error(err)
			}
		}
	}
	body := func(r *rig) func(*Stream, int) {
		return func(s *Stream, status int) {
			if err := r.conn.Respond(s, &Header{Status: status}, false); err != nil {
				r.t.Error(err)
			}
			if !r.conn.AppendData(s, []byte("no"), true) {
				r.t.Error("no body")
			}
		}
	}
	half := func(r *rig) func(*Stream, int) {
		return func(s *Stream, status int) { _ = r.conn.Respond(s, &Header{Status: status}, false) }
	}
	none := func(*rig) func(*Stream, int) { return nil }
	for _, test := range []struct {
		name   string
		fields []string
		end    bool
		answer func(*rig) func(*Stream, int)
		event  string
		out    []string
	}{
		{"answered", with("connection=close"), true, full, "malformed 1 GET /x 400: connection-specific field",
			[]string{"HEADERS 1 :status=400 end"}},
		{"answered before the request is complete", with("te=gzip"), false, full, "malformed 1 GET /x 400: te other than trailers",
			[]string{"HEADERS 1 :status=400 end", "RST_STREAM 1 NO_ERROR"}},
		{"answered with content", with("content-length=5"), true, body, "malformed 1 GET /x 400: content-length without content",
			[]string{"HEADERS 1 :status=400", "DATA 1 2 end"}},
		{"answered in part", with("upgrade=h2c"), false, half, "malformed 1 GET /x 400: connection-specific field",
			[]string{"HEADERS 1 :status=400", "RST_STREAM 1 PROTOCOL_ERROR"}},
		{"not answered", with("content-length=x"), true, none, "malformed 1 GET /x 400: invalid content-length",
			[]string{"RST_STREAM 1 PROTOCOL_ERROR"}},
		{"too large", with(many...), false, full, "malformed 1 GET /x 431: header list larger than SETTINGS_MAX_HEADER_LIST_SIZE",
			[]string{"HEADERS 1 :status=431 end", "RST_STREAM 1 NO_ERROR"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, Config{Server: true, MaxHeaderList: 1000, MaxStreams: 1}).start()
			r.conn.h = &answerer{r.recorder, test.answer(r)}
			r.headers(1, test.end, test.fields...)
			if !test.end {
				_ = r.framer.WriteData(1, false, []byte("ignored"))
			}
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
			wantLines(t, "events", r.takeEvents(), test.event)
			wantLines(t, "frames", r.output(), test.out...)
			if n := r.conn.Streams(); n != 0 {
				t.Errorf("%d streams are open", n)
			}
			// The connection goes on.
			r.headers(3, true, get...)
			if err := r.flush(); err != nil {
				t.Fatal(err)
			}
			wantLines(t, "events", r.takeEvents(), "headers 3 GET http a /x end")
		})
	}
}

// Malformed requests that are answered still count as abuse.
func TestMalformedRequestsAreBounded(t *testing.T) {
	r := newRig(t, Config{Server: true, Abuse: AbuseLimits{Resets: 10}}).start()
	r.conn.h = &answerer{recorder: r.recorder}
	for id := uint32(1); id < 100; id += 2 {
		r.headers(id, true, ":method=GET", ":scheme=http", ":path=/", ":authority=a", "te=x")
	}
	r.wantCode(r.flush(), EnhanceYourCalm)
}

// The reason of a response that must not be used is there in OnReset.
func TestFaultOfResponses(t *testing.T) {
	for want, fields := range map[string][]string{
		"response without :status":                              {"a=b"},
		"connection-specific field":                             {":status=200", "connection=close"},
		"header list larger than SETTINGS_MAX_HEADER_LIST_SIZE": append([]string{":status=200"}, many...),
		"content-length without content":                        {":status=200", "content-length=1"},
	} {
		r := newRig(t, Config{MaxHeaderList: 1000}).start()
		s, err := r.conn.Open(&Header{Method: "GET", Scheme: "http", Path: "/", Authority: "a"}, true)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		r.onReset = func(*Stream, ErrCode) { got = r.conn.Fault() }
		r.headers(s.ID, true, fields...)
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		if got != want || r.conn.Fault() != "" {
			t.Errorf("fault %q, want %q; afterwards %q", got, want, r.conn.Fault())
		}
	}
}
