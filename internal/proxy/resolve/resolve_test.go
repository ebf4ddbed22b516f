package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// server answers every A query with 192.0.2.1 and every AAAA query with
// 2001:db8::1; names of the zone "gone." do not exist.
func server(t *testing.T, life uint32) (*Resolver, *atomic.Int64) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	asked := &atomic.Int64{}
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Additionals = true, nil
			h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: life}
			switch {
			case q.Name.String() == "gone.example.":
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				asked.Add(1)
				m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}}
			case q.Type == dnsmessage.TypeAAAA:
				h.TTL += 100
				m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::1").As16()}}}
			}
			out, _ := m.Pack()
			_, _ = c.WriteTo(out, from)
		}
	}()
	return newResolver(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, c.LocalAddr().String())
	}), asked
}

func TestAnswersAreRemembered(t *testing.T) {
	r, asked := server(t, 30)
	now := time.Now()
	var mu sync.Mutex
	r.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if a, err := r.Lookup(t.Context(), "db.example."); err != nil || len(a) != 2 {
				t.Errorf("%v %v", a, err)
			}
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times for one answer", n)
	}
	for _, step := range []struct {
		after  time.Duration
		cached bool
	}{{29 * time.Second, true}, {2 * time.Second, false}} {
		mu.Lock()
		now = now.Add(step.after)
		mu.Unlock()
		if _, _, ok := r.Cached("db.example."); ok != step.cached {
			t.Errorf("after %v more: %v", step.after, ok)
		}
	}
	if _, err := r.Lookup(t.Context(), "db.example."); err != nil || asked.Load() != 2 {
		t.Errorf("%v, asked %d times", err, asked.Load())
	}
}

func TestFailure(t *testing.T) {
	r, _ := server(t, 0)
	var dns *net.DNSError
	if a, err := r.Lookup(t.Context(), "gone.example."); !errors.As(err, &dns) || !dns.IsNotFound {
		t.Errorf("%v %v", a, err)
	}
	if _, err, ok := r.Cached("gone.example."); !ok || err == nil {
		t.Errorf("a failure is not remembered: %v %v", err, ok)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	r := New()
	r.lookup = func(context.Context, string) ([]netip.Addr, time.Duration, error) { return nil, time.Hour, nil }
	for i := range maxNames + 100 {
		if _, err := r.Lookup(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.names) > maxNames {
		t.Errorf("%d names", len(r.names))
	}
}

func TestImpatience(t *testing.T) {
	r := New()
	release := make(chan struct{})
	r.lookup = func(context.Context, string) ([]netip.Addr, time.Duration, error) { <-release; return nil, 0, nil }
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := r.Lookup(ctx, "slow."); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(release)
	if _, err := r.Lookup(t.Context(), "slow."); err != nil {
		t.Error(err)
	}
}
