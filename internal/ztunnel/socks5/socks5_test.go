package socks5

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// read has a handshake read all of b, in pieces of at most n bytes, and returns the
// answers, how it ends, and how many bytes it has left.
func read(h *Handshake, b []byte, n int) (answers []byte, last Step, left int) {
	h.Begin()
	for len(b) > 0 {
		room := h.Room()
		k := copy(room[:min(len(room), n)], b)
		b = b[k:]
		answer, next := h.Got(k)
		answers = append(answers, answer...)
		if next == Refusal || next == Done {
			return answers, next, len(b)
		}
	}
	return answers, More, 0
}

func message(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case string:
			b = append(b, p...)
		}
	}
	return b
}

var greeted = []byte{5, 0}

func TestHandshake(t *testing.T) {
	hello := message(5, 1, 0)
	request := func(parts ...any) []byte { return append(slices.Clone(hello), message(parts...)...) }
	named := func(name string) []byte { return request(5, 1, 0, 3, len(name), name, 0, 80) }
	failed := func(c Code) []byte { return AppendReply(slices.Clone(greeted), c) }
	for name, tt := range map[string]struct {
		in      []byte
		answers []byte
		want    string // of the request; a part of the error with a refusal
	}{
		"IPv4":                    {request(5, 1, 0, 1, 10, 0, 0, 1, 1, 187), greeted, "10.0.0.1:443"},
		"IPv6":                    {request(5, 1, 0, 4, "\xfd\x00", strings.Repeat("\x00", 13), 1, 0, 80), greeted, "[fd00::1]:80"},
		"IPv4 in IPv6":            {request(5, 1, 0, 4, strings.Repeat("\x00", 10), "\xff\xff", 10, 0, 0, 1, 0, 80), greeted, "10.0.0.1:80"},
		"name":                    {named("Web.Shop.svc"), greeted, "web.shop.svc:80"},
		"name with a dot":         {named("web."), greeted, "web:80"},
		"name with an underscore": {named("_db.example"), greeted, "_db.example:80"},
		"address as a name":       {named("10.0.0.1"), greeted, "10.0.0.1:80"},
		"IPv6 address as a name":  {named("fd00::1"), greeted, "[fd00::1]:80"},
		"the longest name":        {named(strings.Repeat("a.", 126) + "b."), greeted, strings.Repeat("a.", 126) + "b:80"},
		"one of 255 methods":      {append(message(5, 255, strings.Repeat("\x01", 254), 0), request(5, 1, 0, 1, 1, 2, 3, 4, 0, 1)[3:]...), greeted, "1.2.3.4:1"},
		"nothing":                 {nil, nil, ""},
		"version 4":               {message(4, 1, 0, 80), nil, "version 4"},
		"HTTP":                    {[]byte("GET / HTTP/1.1"), nil, "version 71"},
		"no method":               {message(5, 0), message(5, 255), "no method"},
		"password":                {message(5, 1, 2), message(5, 255), "has authentication"},
		"version changes":         {request(4, 1, 0, 1, 1, 2, 3, 4, 0, 1), failed(GeneralFailure), "version 4"},
		"BIND":                    {request(5, 2, 0, 1, 1, 2, 3, 4, 0, 1), failed(CommandUnsupported), "command 2"},
		"UDP ASSOCIATE":           {request(5, 3, 0, 1, 1, 2, 3, 4, 0, 1), failed(CommandUnsupported), "command 3"},
		"command 0":               {request(5, 0, 0, 1, 1, 2, 3, 4, 0, 1), failed(CommandUnsupported), "command 0"},
		"reserved":                {request(5, 1, 7, 1, 1, 2, 3, 4, 0, 1), failed(GeneralFailure), "reserved"},
		"address type":            {request(5, 1, 0, 2, 1, 2, 3, 4, 0, 1), failed(AddressUnsupported), "address type 2"},
		"port 0":                  {request(5, 1, 0, 1, 1, 2, 3, 4, 0, 0), failed(GeneralFailure), "port 0"},
		"empty name":              {request(5, 1, 0, 3, 0, 0, 80), failed(GeneralFailure), "empty"},
		"a dot":                   {named("."), failed(GeneralFailure), "label of 0"},
		"two dots":                {named("a..b"), failed(GeneralFailure), "label of 0"},
		"zero byte":               {named("a\x00b"), failed(GeneralFailure), "host name"},
		"line":                    {named("a\nb"), failed(GeneralFailure), "host name"},
		"space":                   {named("a b"), failed(GeneralFailure), "host name"},
		"slash":                   {named("a/b"), failed(GeneralFailure), "host name"},
		"not ASCII":               {named("bücher.example"), failed(GeneralFailure), "host name"},
		"zone":                    {named("fe80::1%eth0"), failed(GeneralFailure), "host name"},
		"brackets":                {named("[fd00::1]"), failed(GeneralFailure), "host name"},
		"long label":              {named(strings.Repeat("a", 64)), failed(GeneralFailure), "label of 64"},
		"long name":               {named(strings.Repeat("a.", 127) + "b"), failed(GeneralFailure), "255 bytes"},
	} {
		for _, n := range []int{1, 2, 3, 300} {
			h := Handshake{}
			rest := []byte("early")
			in := tt.in
			if len(in) > 0 {
				in = append(slices.Clone(in), rest...)
			}
			answers, last, left := read(&h, in, n)
			switch {
			case !bytes.Equal(answers, tt.answers):
				t.Errorf("%s: answers %v, want %v", name, answers, tt.answers)
			case h.Err != nil:
				if last != Refusal || tt.want == "" || !strings.Contains(h.Err.Error(), tt.want) {
					t.Errorf("%s: %v, step %d", name, h.Err, last)
				}
			case tt.want == "":
				if last != More {
					t.Errorf("%s: step %d", name, last)
				}
			case last != Done || h.Request.String() != tt.want || left != len(rest):
				t.Errorf("%s in pieces of %d: step %d, %s, %d bytes left", name, n, last, h.Request, left)
			}
		}
	}
}

// FuzzHandshake: whatever a program sends, however it is cut, the handshake ends or reads
// on, within its memory, alike; and a request is one that can be dialled or looked up.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte{5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 1, 0, 80}, 1)
	f.Add(append([]byte{5, 1, 0, 5, 1, 0, 3, 3}, "web\x00\x50"...), 2)
	f.Add([]byte{5, 1, 0, 5, 3, 0, 4}, 7)
	f.Add([]byte{4, 1}, 3)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		var whole, cut Handshake
		answers, last, left := read(&whole, b, len(b)+1)
		n = max(1, n%17)
		a2, l2, left2 := read(&cut, b, n)
		if !bytes.Equal(answers, a2) || last != l2 || left != left2 || whole.Request != cut.Request || fmt.Sprint(whole.Err) != fmt.Sprint(cut.Err) {
			t.Fatalf("whole: %v %d %d %v %v; in pieces of %d: %v %d %d %v %v", answers, last, left, whole.Request, whole.Err, n, a2, l2, left2, cut.Request, cut.Err)
		}
		if len(answers) > 12 || len(b)-left > 2+255+maxMessage {
			t.Fatalf("%d bytes of answers to %d bytes", len(answers), len(b)-left)
		}
		switch last {
		case More:
			if len(whole.Room()) == 0 && len(b) > 0 {
				t.Fatal("it reads on, and has no room")
			}
		case Refusal:
			if whole.Err == nil {
				t.Fatal("a refusal without a cause")
			}
		case Done:
			r := whole.Request
			if r.Port == 0 || r.Addr.IsValid() == (r.Host != "") || r.Addr.Is4In6() || r.Addr.Zone() != "" || len(r.Host) > maxName ||
				strings.ContainsFunc(r.Host, func(c rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_.", c) }) {
				t.Fatalf("request %q %v %d", r.Host, r.Addr, r.Port)
			}
		}
	})
}

func TestCodeOf(t *testing.T) {
	for _, tt := range []struct {
		err    *reason.Error
		status int
		want   Code
	}{
		{&reason.Error{Reason: reason.NotInRegistry}, 0, NotAllowed},
		{&reason.Error{Reason: reason.PolicyDenied}, 0, NotAllowed},
		{&reason.Error{Reason: reason.RecursiveCall}, 0, NotAllowed},
		{&reason.Error{Reason: reason.NoHealthyUpstream}, 0, HostUnreachable},
		{&reason.Error{Reason: reason.ConnectTimeout}, 0, HostUnreachable},
		{&reason.Error{Reason: reason.UnknownGateway}, 0, NetworkUnreachable},
		{reason.Errorf(reason.ConnectFailure, "x: %w", syscall.ECONNREFUSED), 0, ConnectionRefused},
		{reason.Errorf(reason.ConnectFailure, "x: %w", syscall.ENETUNREACH), 0, NetworkUnreachable},
		{reason.Errorf(reason.ConnectFailure, "x: %w", syscall.EHOSTUNREACH), 0, HostUnreachable},
		{reason.Errorf(reason.ConnectFailure, "x"), 0, GeneralFailure},
		{&reason.Error{Reason: reason.TunnelRefused}, 401, NotAllowed},
		{&reason.Error{Reason: reason.TunnelRefused}, 503, ConnectionRefused},
		{&reason.Error{Reason: reason.TunnelRefused}, 400, GeneralFailure},
		{&reason.Error{Reason: reason.TLSFailure}, 0, GeneralFailure},
		{&reason.Error{Reason: reason.ResourceExhausted}, 0, GeneralFailure},
	} {
		if got := CodeOf(tt.err, tt.status); got != tt.want {
			t.Errorf("%v, status %d: %d, want %d", tt.err, tt.status, got, tt.want)
		}
	}
	for _, r := range reason.All() {
		if CodeOf(&reason.Error{Reason: r}, 0) == Succeeded {
			t.Errorf("a failure for %s is reported as success", r)
		}
	}
}

func TestPermitted(t *testing.T) {
	for a, want := range map[string]bool{
		"10.0.0.1": true, "fd00::1": true, "169.254.169.254": true,
		"127.0.0.1": false, "127.8.8.8": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "::": false, "::ffff:0.0.0.0": false,
		"224.0.0.1": false, "ff02::1": false, "255.255.255.255": false,
	} {
		if err := Permitted(netip.MustParseAddr(a)); (err == nil) != want {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// TestResolve: names of the mesh come first, in the families of the pod.
func TestResolve(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")
	addrs := map[string][]netip.Addr{"both": {four, six}, "six": {six}, "none": {}, "loop": {netip.MustParseAddr("127.0.0.1")}}
	p := &Pod{Host: Host{
		Do: func(func() error) error { return errors.New("no name server") },
		Mesh: func(_ context.Context, name string, v6 bool) (out []netip.Addr, known bool) {
			all, known := addrs[name]
			for _, a := range all {
				if a.Is6() == v6 {
					out = append(out, a)
				}
			}
			return out, known
		},
	}}
	own4, own6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for _, tt := range []struct {
		request Request
		own     []netip.Addr
		want    string
	}{
		{Request{Host: "both", Port: 80}, []netip.Addr{own4, own6}, "10.0.0.9:80"},
		{Request{Host: "both", Port: 80}, []netip.Addr{own6, own4}, "10.0.0.9:80"},
		{Request{Host: "both", Port: 80}, []netip.Addr{own6}, "[fd00::9]:80"},
		{Request{Host: "six", Port: 80}, []netip.Addr{own4, own6}, "[fd00::9]:80"},
		{Request{Host: "six", Port: 80}, []netip.Addr{own4}, "NO_HEALTHY_UPSTREAM"},
		{Request{Host: "none", Port: 80}, []netip.Addr{own4}, "NO_HEALTHY_UPSTREAM"},
		{Request{Host: "loop", Port: 80}, []netip.Addr{own4}, "RECURSIVE_CALL"},
		{Request{Host: "elsewhere", Port: 80}, []netip.Addr{own4}, "NO_HEALTHY_UPSTREAM"},
		{Request{Addr: six, Port: 80}, []netip.Addr{own4}, "[fd00::9]:80"},
		{Request{Addr: netip.MustParseAddr("::"), Port: 80}, []netip.Addr{own4}, "RECURSIVE_CALL"},
	} {
		c := Client{Request: tt.request, pod: p}
		got, err := c.Resolve(tt.own)
		if result := got.String(); err == nil && result != tt.want || err != nil && err.Reason.String() != tt.want {
			t.Errorf("%s from %v: %s, %v", tt.request, tt.own, result, err)
		}
	}
}

func BenchmarkHandshake(b *testing.B) {
	in := append([]byte{5, 1, 0, 5, 1, 0, 1}, 10, 0, 0, 1, 0, 80)
	var h Handshake
	b.ReportAllocs()
	for b.Loop() {
		h.Begin()
		rest := in
		for len(rest) > 0 {
			n := copy(h.Room(), rest)
			rest = rest[n:]
			h.Got(n)
		}
	}
}
