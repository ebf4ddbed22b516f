package gateway

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// TestDrain: a gateway that goes away answers what it has, and serves what still comes
// once.
func TestDrain(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	quiet, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	get(t, quiet, "/")
	next, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	get(t, next, "/")
	w.g.Drain()
	if status, _ := get(t, next, "/"); status != 200 {
		t.Errorf("the next request of an idle connection: %d", status)
	}
	if _, err := next.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("behind its last request: %v", err)
	}
	_ = next.Close()
	w.g.EndIdle()
	if _, err := quiet.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection: %v", err)
	}
	_ = quiet.Close()
	late, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := get(t, late, "/"); status != 200 {
		t.Errorf("%d", status)
	}
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a connection that came late: %v", err)
	}
	_ = late.Close()
	for deadline := time.Now().Add(time.Minute); w.g.Active() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are left", w.g.Active())
		}
	}
}

// TestClientVanishes: a client that goes at any moment leaves nothing.
func TestClientVanishes(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	w.service("any", "10.1.0.8", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_UNKNOWN })
	w.endpoint("any", "10.0.8.1", "any", echo(t, "hello"))
	for _, authority := range []string{"10.1.0.1:80", "10.1.0.8:80"} {
		for _, sent := range []string{"", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "\x16\x03\x01"} {
			for _, reset := range []bool{true, false} {
				c, err := w.connect(authority)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(c, sent)
				if reset {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
				_ = c.Close()
			}
		}
	}
	for deadline := time.Now().Add(time.Minute); w.g.Active() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are left", w.g.Active())
		}
	}
	w.on(w.group.Loop(0), func() {
		if s := w.g.shards[0]; len(s.load) != 0 || s.engine.Active() != 0 {
			t.Errorf("%v, %d exchanges", s.load, s.engine.Active())
		}
	})
}

// TestEndpointRemoved: connections to a workload that left are not used any more.
func TestEndpointRemoved(t *testing.T) {
	w := newWorld(t, 1)
	w.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	w.endpoint("shop-1", "10.0.1.1", "shop", program(t, "old"))
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, b := get(t, c, "/"); b != "old GET / " {
		t.Errorf("%q", b)
	}
	// Another workload gets the address.
	if _, bad := w.dir.Apply(nil, []string{"c//Pod/ns/shop-1"}); len(bad) > 0 {
		t.Fatal(bad)
	}
	w.g.RemoveWorkload("c//Pod/ns/shop-1")
	w.endpoint("shop-2", "10.0.1.1", "shop", program(t, "new"))
	if _, b := get(t, c, "/"); b != "new GET / " {
		t.Errorf("%q", b)
	}
	if _, bad := w.dir.Apply(nil, []string{"c//Pod/ns/shop-2"}); len(bad) > 0 {
		t.Fatal(bad)
	}
	if status, b := get(t, c, "/"); status != 503 || b != "no healthy upstream" {
		t.Errorf("%d %q", status, b)
	}
}

// TestTCPFails: a connection goes to another endpoint if one cannot be reached, and is
// reset for the reason of the last one otherwise.
func TestTCPFails(t *testing.T) {
	w := newWorld(t, 1)
	w.service("db", "10.1.0.9", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_TCP })
	w.endpoint("dead", "10.0.9.1", "db", "127.0.0.1:1")
	c, err := w.connect("10.1.0.9:80")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("%q: it is no reset", b)
	}
	_ = c.Close()
	if r := w.seen(1, func() []Record { return w.conns })[0]; r.Reason != reason.ConnectFailure || r.Tries != 1 {
		t.Errorf("%+v", r)
	}
	w.endpoint("alive", "10.0.9.2", "db", echo(t, "hello"))
	for range 10 {
		c, err := w.connect("10.1.0.9:80")
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("%q %v", b, err)
		}
		_ = c.Close()
	}
}
