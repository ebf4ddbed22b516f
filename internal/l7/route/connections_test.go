package route

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// served reports whether a name fits a pattern, without tables: the oracle of the look-up.
func served(pattern, name string) (specific int, ok bool) {
	switch {
	case pattern == name:
		return 1000, true
	case strings.HasPrefix(pattern, "*.") && strings.HasSuffix(name, pattern[1:]) && len(name) > len(pattern)-1:
		return len(pattern), true
	}
	return 0, false
}

// TestConnectionsLookup: of any rules, the one for the most specific name that fits is
// taken, and among equals that of the oldest route, whatever their order.
func TestConnectionsLookup(t *testing.T) {
	labels := rapid.SampledFrom([]string{"a", "b", "c"})
	rapid.Check(t, func(rt *rapid.T) {
		host := func(least int) string {
			return strings.Join(rapid.SliceOfN(labels, least, 4).Draw(rt, "labels"), ".")
		}
		var rules []Rule
		for i := range rapid.IntRange(0, 8).Draw(rt, "rules") {
			r := Rule{Origin: string(rune('A' + i)), Route: string(rune('A' + i)), Created: time.Unix(int64(rapid.IntRange(0, 2).Draw(rt, "age")), 0), Carries: TLS}
			for range rapid.IntRange(0, 3).Draw(rt, "names") {
				h := host(1)
				if rapid.Bool().Draw(rt, "wild") {
					h = "*." + h
				}
				r.Hosts = append(r.Hosts, h)
			}
			rules = append(rules, r)
		}
		if rapid.Bool().Draw(rt, "plain") {
			rules = append(rules, Rule{Origin: "plain", Route: "plain", Carries: Anything})
		}
		c, problems := CompileConnections(rapid.Permutation(rules).Draw(rt, "order"))
		if len(problems) > 0 {
			rt.Fatal(problems)
		}
		name := host(0)
		var want *Rule
		best, tls := -1, false
		for i := range rules {
			r := &rules[i]
			if r.Carries != TLS {
				continue
			}
			tls = true
			fit := -1
			if len(r.Hosts) == 0 {
				fit = 0
			}
			for _, h := range r.Hosts {
				if n, ok := served(h, name); ok {
					fit = max(fit, n)
				}
			}
			older := want != nil && (r.Created.Before(want.Created) || r.Created.Equal(want.Created) && r.Route < want.Route)
			if fit > best || fit >= 0 && fit == best && older {
				want, best = r, fit
			}
		}
		got := c.Lookup(name)
		switch {
		case !tls: // then the rule for everything has it
			if got != c.Plain() {
				rt.Fatalf("%q: %+v", name, got)
			}
		case (got == nil) != (want == nil) || got != nil && got.Rule.Origin != want.Origin:
			rt.Fatalf("%q of %+v: got %+v, want %+v", name, rules, got, want)
		}
		if c.Named() != tls {
			rt.Fatalf("named: %v", c.Named())
		}
	})
}

// TestConnectionsShare: of many random numbers each backend gets its share, refused ones
// too.
func TestConnectionsShare(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := Rule{Carries: Anything}
		total := uint64(0)
		for range rapid.IntRange(1, 5).Draw(rt, "backends") {
			w := rapid.Uint32Range(0, 20).Draw(rt, "weight")
			total += uint64(w)
			b := Backend{Weight: w, Name: "b"}
			if rapid.Bool().Draw(rt, "invalid") {
				b = Backend{Weight: w, Invalid: "refused"}
			}
			r.Backends = append(r.Backends, b)
		}
		c, _ := CompileConnections([]Rule{r})
		target := c.Lookup("")
		got := map[*Backend]uint64{}
		const steps = 1000
		for i := range uint64(steps) {
			b, failure := target.Pick(i * ((1<<64 - 1) / steps))
			if total == 0 {
				if failure != NoBackends {
					rt.Fatal(failure)
				}
				continue
			}
			if (failure == InvalidBackend) != (b.Invalid != "") {
				rt.Fatalf("%+v: %v", b, failure)
			}
			got[b]++
		}
		for i := range target.Rule.Backends {
			b := &target.Rule.Backends[i]
			if total == 0 {
				break
			}
			want := float64(b.Weight) / float64(total) * steps
			if d := float64(got[b]) - want; d < -2 || d > 2 {
				rt.Fatalf("weight %d of %d: %d of %d", b.Weight, total, got[b], steps)
			}
		}
	})
}

func TestConnectionsAllocateNothing(t *testing.T) {
	c, _ := CompileConnections([]Rule{{Carries: TLS, Hosts: []string{"a.example.org", "*.b.example.org"}}})
	long := strings.Repeat("a.", 100)
	if n := testing.AllocsPerRun(100, func() {
		_ = c.Lookup("a.example.org")
		_ = c.Lookup("x.y.b.example.org")
		_ = c.Lookup(long)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
