package ratelimit

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

func TestBucket(t *testing.T) {
	r := &Rate{Count: 2, Per: time.Second, Burst: 3}
	const half = int64(time.Second) / 2
	var b Bucket
	for i, tt := range []struct {
		at   int64
		want bool
		left int
		wait time.Duration
	}{
		{100, true, 2, 0}, {100, true, 1, 0}, {100, true, 0, 500 * time.Millisecond}, {100, false, 0, 500 * time.Millisecond},
		{100 + half - 1, false, 0, 1}, {100 + half, true, 0, 500 * time.Millisecond},
		{0, false, 0, 500 * time.Millisecond}, // a clock that goes back gives nothing
		{100 + 100*half, true, 2, 0},          // no more than the burst
	} {
		var ok bool
		if b, ok = b.Take(r, tt.at); ok != tt.want {
			t.Errorf("%d: taken %v", i, ok)
		}
		at := max(tt.at, b.at)
		if left, wait := b.Left(r, at), b.Wait(r, at); left != tt.left || wait != tt.wait {
			t.Errorf("%d: left %d, wait %v", i, left, wait)
		}
	}
	if b = b.Give(r).Give(r); !b.Full(r, b.at) {
		t.Error("what is taken back is missing")
	}
}

func someRate(rt *rapid.T) *Rate {
	return &Rate{
		Count: rapid.Uint32Range(1, MaxCount).Draw(rt, "rate"), Burst: rapid.Uint32Range(1, MaxCount).Draw(rt, "burst"),
		Per: rapid.SampledFrom([]time.Duration{MinPer, 1001 * time.Millisecond, time.Minute, MaxPer}).Draw(rt, "per"),
		By:  rapid.SampledFrom([]By{Destination, SourceNamespace, SourceIdentity, SourceAddress}).Draw(rt, "by"),
	}
}

// permitted reports whether n connections in a time are within burst + rate*time, without
// rounding: all of it in nanoseconds of the period.
func permitted(r *Rate, n int, passed int64) bool {
	over := float64(n-int(r.Burst)) * float64(r.Per)
	return over <= 0 || over <= float64(passed)*float64(r.Count)
}

// TestNeverMore: in no stretch of time are more connections let in than burst and rate
// permit, whatever the times, and a client that comes no faster than the rate is always let
// in.
func TestNeverMore(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := someRate(rt)
		r.Burst = min(r.Burst, rapid.Uint32Range(1, 20).Draw(rt, "small burst"))
		var b Bucket
		var in []int64
		now := int64(0)
		each := int64(r.Per) / int64(r.Count)
		for range rapid.IntRange(1, 100).Draw(rt, "connections") {
			now += rapid.Int64Range(0, 2*each+1).Draw(rt, "pause")
			var ok bool
			if b, ok = b.Take(r, now); ok {
				in = append(in, now)
			}
		}
		for i := range in {
			for j := i; j < len(in); j++ {
				if n := j - i + 1; !permitted(r, n, in[j]-in[i]) {
					rt.Fatalf("%v: %d connections in %d ns", r, n, in[j]-in[i])
				}
			}
		}
		slow, at := Bucket{}, int64(0)
		for range 50 {
			var ok bool
			if slow, ok = slow.Take(r, at); !ok {
				rt.Fatalf("%v: refused at %d", r, at)
			}
			at += each + 1
		}
	})
}

// places is a Room.
type places struct{ taken, total int }

func (p *places) Take() bool {
	if p.taken >= p.total {
		return false
	}
	p.taken++
	return true
}
func (p *places) Give(n int) { p.taken -= n }

func source(namespace, account string, addr byte) *Source {
	return &Source{identity.Identity{TrustDomain: "cluster.local", Namespace: namespace, ServiceAccount: account}, netip.AddrFrom4([4]byte{10, 0, 0, addr})}
}

// TestParties: parties are counted by themselves, and those without an identity together.
func TestParties(t *testing.T) {
	a, b, other, none := source("shop", "a", 1), source("shop", "b", 1), source("bank", "a", 2), &Source{Addr: netip.MustParseAddr("10.0.0.9")}
	for _, tt := range []struct {
		by   By
		free []*Source // that have room after a has used its own
		none []*Source
	}{
		{Destination, nil, []*Source{a, b, other, none}},
		{SourceNamespace, []*Source{other, none}, []*Source{a, b}},
		{SourceIdentity, []*Source{b, other, none}, []*Source{a}},
		{SourceAddress, []*Source{other, none, source("shop", "a", 3)}, []*Source{a, b}},
	} {
		c := NewCounter(&Rate{Count: 1, Per: time.Hour, Burst: 1, By: tt.by}, &places{total: 10})
		taken, ok := c.Take(a, 0)
		if !ok {
			t.Fatal("the first is refused")
		}
		for _, s := range tt.none {
			if _, ok := c.Take(s, 0); ok {
				t.Errorf("%s: %+v is let in", tt.by, s)
			}
			if c.Look(s, 0).Left(c.rate, 0) != 0 {
				t.Errorf("%s: %+v has room", tt.by, s)
			}
		}
		for _, s := range tt.free {
			if _, ok := c.Take(s, 0); !ok {
				t.Errorf("%s: %+v is refused", tt.by, s)
			}
		}
		c.Give(taken)
		if _, ok := c.Take(a, 0); !ok {
			t.Errorf("%s: what was given back is missing", tt.by)
		}
	}
}

// TestBounded: whatever comes, a counter keeps no more than it may; a party that finds no
// room gets no more than one that does, and parties of another namespace lose nothing.
func TestBounded(t *testing.T) {
	p := &places{total: 4}
	c := NewCounter(&Rate{Count: 1, Per: time.Hour, Burst: 2, By: SourceAddress}, p)
	in := 0
	for range 4 {
		for i := range byte(200) {
			if _, ok := c.Take(source("shop", "a", i), 0); ok {
				in++
			}
		}
	}
	if in != 4*2+2 || p.taken != 4 {
		t.Errorf("%d connections, %d places", in, p.taken)
	}
	if _, ok := c.Take(source("bank", "a", 1), 0); !ok {
		t.Error("another namespace is refused")
	}
	// What is spent makes room, and gains nothing by the change.
	later := int64(3 * time.Hour)
	for i := range byte(4) {
		if _, ok := c.Take(source("shop", "a", 100+i), later); !ok {
			t.Errorf("%d is refused later", i)
		}
	}
	if p.taken > 4 {
		t.Errorf("%d places", p.taken)
	}
	c.Close()
	if _, _ = c.Take(source("shop", "a", 1), later); p.taken != 0 {
		t.Errorf("%d places after the end", p.taken)
	}
	many := NewCounter(&Rate{Count: 1, Per: time.Hour, Burst: 1, By: SourceNamespace}, p)
	in = 0
	for i := range 3 * MaxTenants {
		if _, ok := many.Take(source(fmt.Sprint(i), "a", 1), 0); ok {
			in++
		}
	}
	if len(many.tenants) != MaxTenants || in != MaxTenants+1 {
		t.Errorf("%d namespaces, %d connections", len(many.tenants), in)
	}
}

// TestNeverMoreOfAny: no party is let in more often than the rate permits, whatever else
// comes and however little room there is.
func TestNeverMoreOfAny(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := &Rate{Count: rapid.Uint32Range(1, 5).Draw(rt, "rate"), Per: time.Second, Burst: rapid.Uint32Range(1, 4).Draw(rt, "burst"), By: SourceAddress}
		c := NewCounter(r, &places{total: rapid.IntRange(0, 3).Draw(rt, "room")})
		in := map[byte][]int64{}
		now := int64(0)
		for range rapid.IntRange(1, 200).Draw(rt, "connections") {
			now += rapid.Int64Range(0, int64(time.Second)).Draw(rt, "pause")
			who := rapid.ByteRange(0, 5).Draw(rt, "who")
			if _, ok := c.Take(source("shop", "a", who), now); ok {
				in[who] = append(in[who], now)
			}
		}
		for who, at := range in {
			for i := range at {
				for j := i; j < len(at); j++ {
					if !permitted(r, j-i+1, at[j]-at[i]) {
						rt.Fatalf("%d: %d connections in %d ns", who, j-i+1, at[j]-at[i])
					}
				}
			}
		}
	})
}

func TestWire(t *testing.T) {
	good := Limit{
		Namespace: "shop", Name: "web", Hosts: []string{"web.shop.svc.cluster.local"}, Workloads: []string{"a", "b"}, DryRun: true,
		Rates: []Rate{{Count: 1, Per: time.Second, Burst: 2, By: SourceIdentity}, {Count: MaxCount, Per: time.Hour, Burst: MaxCount}},
	}
	body, err := good.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(body); err != nil || !reflect.DeepEqual(got, &good) {
		t.Fatalf("%+v, error %v", got, err)
	}
	for name, change := range map[string]func(*Limit){
		"no name": func(l *Limit) { l.Name = "" }, "no rate": func(l *Limit) { l.Rates = nil },
		"rate 0":  func(l *Limit) { l.Rates = []Rate{{Per: time.Second, Burst: 1}} },
		"burst 0": func(l *Limit) { l.Rates = []Rate{{Count: 1, Per: time.Second}} },
		"short":   func(l *Limit) { l.Rates = []Rate{{Count: 1, Per: time.Millisecond, Burst: 1}} },
		"long":    func(l *Limit) { l.Rates = []Rate{{Count: 1, Per: 2 * time.Hour, Burst: 1}} },
		"by":      func(l *Limit) { l.Rates = []Rate{{Count: 1, Per: time.Second, Burst: 1, By: 9}} },
		"order":   func(l *Limit) { l.Workloads = []string{"b", "a"} },
		"case":    func(l *Limit) { l.Hosts = []string{"Web"} },
	} {
		bad := good
		change(&bad)
		if _, err := bad.Encode(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := Decode(append(body, 0x7a, 1, 1)); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("an unknown field: %v", err)
	}
}

// FuzzDecode: what is accepted is within bounds, and is the same after another turn.
func FuzzDecode(f *testing.F) {
	l := Limit{Namespace: "a", Name: "b", Hosts: []string{"c"}, Rates: []Rate{{Count: 1, Per: time.Second, Burst: 1}}}
	body, _ := l.Encode()
	f.Add(body)
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := Decode(p)
		if err != nil {
			return
		}
		again, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Decode(again); err != nil || back.Text() != l.Text() || back.String() != l.String() {
			t.Fatalf("%+v became %+v: %v", l, back, err)
		}
		for i := range l.Rates {
			var b Bucket
			for _, now := range []int64{0, 1 << 62, 5, 1<<63 - 1} {
				b, _ = b.Take(&l.Rates[i], now)
				if b.debt < 0 || b.Left(&l.Rates[i], now) < 0 {
					t.Fatalf("%v: %+v", l.Rates[i], b)
				}
			}
		}
	})
}

func BenchmarkTake(b *testing.B) {
	for _, by := range []By{Destination, SourceNamespace, SourceIdentity, SourceAddress} {
		b.Run(by.String(), func(b *testing.B) {
			c := NewCounter(&Rate{Count: 1000, Per: time.Second, Burst: 100, By: by}, &places{total: 100})
			s := source("shop", "a", 1)
			b.ReportAllocs()
			for now := int64(0); b.Loop(); now += 1000 {
				_, _ = c.Take(s, now)
			}
		})
	}
}

func TestNoAllocation(t *testing.T) {
	c := NewCounter(&Rate{Count: 1000, Per: time.Second, Burst: 100, By: SourceIdentity}, &places{total: 100})
	s, now := source("shop", "a", 1), int64(0)
	if n := testing.AllocsPerRun(100, func() {
		now += 1e6
		t, _ := c.Take(s, now)
		c.Give(t)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
