package upstream

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func pool(weights ...uint32) (all []Endpoint) {
	for i, w := range weights {
		all = append(all, Endpoint{Key: fmt.Sprint("e", i), Weight: w})
	}
	return all
}

func TestRandomIsExact(t *testing.T) {
	all := pool(1, 0, 2, 5, 7)
	all[3].Ejected = true
	const n = 1000
	got := make([]int, len(all))
	for i := range uint64(n) {
		got[Random(all, false, i*(math.MaxUint64/n)+math.MaxUint64/n/2)]++
	}
	for i, want := range []int{100, 0, 200, 0, 700} {
		if d := got[i] - want; d < -1 || d > 1 {
			t.Errorf("endpoint %d: %d, want %d", i, got[i], want)
		}
	}
	if Random(nil, false, 1) != -1 || Random(pool(0), false, 1) != -1 || Random(pool(0), true, 1) != -1 {
		t.Error("an endpoint without a weight was chosen")
	}
}

func TestLeastRequest(t *testing.T) {
	all := pool(1, 1, 2)
	all[0].Active, all[1].Active, all[2].Active = 9, 1, 5
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		if got := LeastRequest(all, false, r.Uint64(), r.Uint64()); got == 0 {
			t.Fatal("the busiest of all was chosen: any other is better")
		}
	}
	if LeastRequest(pool(3), false, 1, 2) != 0 || LeastRequest(nil, false, 1, 2) != -1 {
		t.Error("one or no endpoint")
	}
}

func TestRoundRobin(t *testing.T) {
	all := pool(5, 1, 0, 2)
	var r RoundRobin
	for round := range 3 {
		got, run, last := make([]int, 4), 0, -1
		for range 8 {
			i := r.Next(all, false)
			got[i]++
			if run++; i != last {
				run, last = 1, i
			}
			if run > 2 {
				t.Errorf("endpoint %d has %d turns in a row", i, run)
			}
		}
		if fmt.Sprint(got) != "[5 1 0 2]" {
			t.Errorf("round %d: %v", round, got)
		}
	}
	for i := range 1000 { // endpoints that went leave nothing behind
		r.Next([]Endpoint{{Key: fmt.Sprint(i), Weight: 1}}, false)
	}
	if len(r.credit) > 20 || r.Next(nil, false) != -1 {
		t.Errorf("%d credits kept", len(r.credit))
	}
}

func TestRingMovesFew(t *testing.T) {
	all := pool(1, 1, 1, 1, 1)
	yes := func(string) bool { return true }
	before, after := NewRing(all), NewRing(all[:4])
	share, moved := map[string]int{}, 0
	for i := range 10000 {
		a, b := before.Pick(Hash(fmt.Sprint(i)), yes), after.Pick(Hash(fmt.Sprint(i)), yes)
		share[a]++
		if a != b {
			moved++
			if a != "e4" {
				t.Fatalf("a key of %s moved to %s, though only e4 went", a, b)
			}
		}
		if c := before.Pick(Hash(fmt.Sprint(i)), func(k string) bool { return k != "e4" }); c != b {
			t.Fatalf("left out, e4 is replaced by %s; removed, by %s", c, b)
		}
	}
	for k, n := range share {
		if n < 1400 || n > 2600 {
			t.Errorf("%s has %d of 10000", k, n)
		}
	}
	if moved != share["e4"] || NewRing(nil).Pick(1, yes) != "" || before.Pick(1, func(string) bool { return false }) != "" {
		t.Errorf("%d moved", moved)
	}
}

func TestPanic(t *testing.T) {
	all := pool(1, 1, 1, 1, 0)
	for ejected, want := range []bool{false, false, false, true, true} {
		for i := range ejected {
			all[i].Ejected = true
		}
		if got := Panic(all, 50); got != want {
			t.Errorf("%d of 4 ejected: %t", ejected, got)
		}
	}
	if !Panic(all, 0) || Panic(nil, 50) || Random(all, true, 0) != 0 {
		t.Error("with every endpoint ejected, ejections must not count")
	}
}

func TestBudgetAndBackoff(t *testing.T) {
	b := Budget{Percent: 20, Min: 3}
	if !b.Allows(0, 2) || b.Allows(0, 3) || !b.Allows(100, 19) || b.Allows(100, 20) {
		t.Error("budget")
	}
	const base, limit = 25 * time.Millisecond, 250 * time.Millisecond
	for retry, top := range []time.Duration{base, base, 2 * base, 4 * base, 8 * base, limit, limit} {
		if got := Backoff(0, base, limit, retry, math.MaxUint64); got >= top || got < top-time.Microsecond {
			t.Errorf("retry %d: at most %v, want %v", retry, got, top)
		}
		if Backoff(0, base, limit, retry, 0) != 0 {
			t.Errorf("retry %d: at least 0", retry)
		}
	}
	if Backoff(0, base, limit, math.MaxInt, math.MaxUint64) >= limit {
		t.Error("many retries")
	}
	if got := Backoff(base, 2*base, limit, 1, math.MaxUint64/2); got < base || got >= 2*base || Backoff(base, base, base, 9, 1) != base {
		t.Errorf("with a least pause of %v: %v", base, got)
	}
}
