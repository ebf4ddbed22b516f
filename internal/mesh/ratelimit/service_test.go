package ratelimit

import (
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

func someService() *Service {
	return &Service{
		Namespace: "shop", Hostname: "limiter.shop.svc.cluster.local", Port: 80, Domain: "d", Timeout: time.Second,
		Descriptors: [][]Entry{{EntrySourceNamespace, EntryDestinationService}, {EntrySourceIdentity}},
	}
}

// fields returns the fields of a message that have bytes and a number, in their order.
func fields(t *testing.T, p []byte, number protowire.Number) (out [][]byte) {
	t.Helper()
	for len(p) > 0 {
		n, kind, size := protowire.ConsumeTag(p)
		if size < 0 {
			t.Fatalf("%x", p)
		}
		p = p[size:]
		if kind == protowire.BytesType && n == number {
			b, _ := protowire.ConsumeBytes(p)
			out = append(out, b)
		}
		if size = protowire.ConsumeFieldValue(n, kind, p); size < 0 {
			t.Fatalf("%x", p)
		}
		p = p[size:]
	}
	return out
}

func TestQuestion(t *testing.T) {
	var v Values
	v[EntrySourceNamespace], v[EntryDestinationService] = "market", "web.shop"
	q := someService().Question([]byte("before"), &v)
	q = q[len("before"):]
	if q[0] != 0 || int(q[4]) != len(q)-frameHeader {
		t.Fatalf("frame %x", q[:frameHeader])
	}
	q = q[frameHeader:]
	got := string(fields(t, q, 1)[0])
	for _, d := range fields(t, q, 2) {
		got += ";"
		for _, e := range fields(t, d, 1) {
			got += " " + string(fields(t, e, 1)[0]) + "=" + string(fields(t, e, 2)[0])
		}
	}
	if want := "d; source_namespace=market destination_service=web.shop; source_identity=none"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAnswer(t *testing.T) {
	frame := func(body ...byte) []byte { return append([]byte{0, 0, 0, 0, byte(len(body))}, body...) }
	for name, tt := range map[string]struct {
		p        []byte
		room, ok bool
	}{
		"ok": {frame(8, 1), true, true}, "over": {frame(8, 2), false, true}, "with more": {frame(18, 1, 'x', 8, 1), true, true},
		"unknown": {frame(8, 0), false, false}, "none": {frame(), false, false}, "other": {frame(8, 9), false, false}, "empty": {nil, false, false},
		"cut": {frame(8, 1)[:6], false, false}, "compressed": {append([]byte{1}, frame(8, 1)[1:]...), false, false}, "garbage": {frame(0xff, 0xff), false, false},
	} {
		if room, err := Answer(tt.p); room != tt.room || (err == nil) != tt.ok {
			t.Errorf("%s: %v, %v", name, room, err)
		}
	}
}

func TestServiceOnWire(t *testing.T) {
	l := Limit{Namespace: "shop", Name: "a", Service: someService()}
	body, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(body)
	if err != nil || !got.Service.Equal(l.Service) {
		t.Fatalf("%+v, error %v", got, err)
	}
	for name, change := range map[string]func(*Service){
		"host": func(s *Service) { s.Hostname = "" }, "port": func(s *Service) { s.Port = 0 }, "domain": func(s *Service) { s.Domain = "" },
		"timeout": func(s *Service) { s.Timeout = time.Hour }, "none": func(s *Service) { s.Descriptors = nil },
		"empty": func(s *Service) { s.Descriptors = [][]Entry{{}} }, "entry": func(s *Service) { s.Descriptors = [][]Entry{{99}} },
	} {
		l.Service = someService()
		change(l.Service)
		if _, err := l.Encode(); err == nil {
			t.Errorf("%s is accepted", name)
		}
		if l.Service.Equal(someService()) {
			t.Errorf("%s makes no difference", name)
		}
	}
}

// FuzzAnswer: only a whole answer with the code OK has room.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		if room, err := Answer(p); room && err != nil {
			t.Fatal(err)
		}
	})
}
