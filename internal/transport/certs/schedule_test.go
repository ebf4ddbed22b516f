package certs

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

func TestRenewAt(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, tt := range []struct {
		left, min, max time.Duration
	}{
		{24 * time.Hour, 24 * time.Hour * 45 / 100, 24 * time.Hour * 55 / 100},
		{time.Second, time.Second, time.Second},
		{-time.Hour, time.Second, time.Second},
	} {
		for _, r := range []float64{0, 0.5, 0.999} {
			if got := renewAt(now, now.Add(tt.left), r).Sub(now); got < tt.min || got > tt.max {
				t.Errorf("%s left, r %v: %s", tt.left, r, got)
			}
		}
	}
}

func TestRetryAt(t *testing.T) {
	now := time.Unix(1e9, 0)
	for failures, want := range map[int]time.Duration{
		0: time.Second, 1: time.Second, 2: 2 * time.Second, 7: 64 * time.Second, 8: 128 * time.Second,
		9: 150 * time.Second, 100: 150 * time.Second, 1 << 40: 150 * time.Second,
	} {
		if got := retryAt(now, time.Time{}, failures, 0.5).Sub(now); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
	if got := retryAt(now, now.Add(30*time.Second), 100, 0.5).Sub(now); got != 30*time.Second {
		t.Errorf("before the end: %s", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		failures := rapid.IntRange(0, 1000).Draw(t, "failures")
		r := rapid.Float64Range(0, 0.9999).Draw(t, "r")
		left := time.Duration(rapid.Int64Range(int64(-time.Hour), int64(48*time.Hour)).Draw(t, "left"))
		got := retryAt(now, now.Add(left), failures, r).Sub(now)
		if got < firstRetry*4/5 || got > maxRetry*6/5 {
			t.Fatalf("wait of %s", got)
		}
	})
}

// TestQueue compares with the plainest model: sort by priority, keep order.
func TestQueue(t *testing.T) {
	type waiter struct {
		id   identity.Identity
		prio Priority
	}
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue()
		var model []waiter
		find := func(i identity.Identity) int {
			return slices.IndexFunc(model, func(w waiter) bool { return w.id == i })
		}
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				i := id(rapid.StringMatching("[a-e]").Draw(t, "id"))
				p := Priority(rapid.IntRange(0, 2).Draw(t, "prio"))
				q.push(i, p)
				if at := find(i); at >= 0 {
					model[at].prio = max(model[at].prio, p)
				} else {
					model = append(model, waiter{i, p})
				}
			},
			"remove": func(t *rapid.T) {
				i := id(rapid.StringMatching("[a-e]").Draw(t, "id"))
				q.remove(i)
				if at := find(i); at >= 0 {
					model = slices.Delete(model, at, at+1)
				}
			},
			"pop": func(t *rapid.T) {
				floor := Priority(rapid.IntRange(0, 2).Draw(t, "floor"))
				best := -1
				for n, w := range model {
					if w.prio >= floor && (best < 0 || w.prio > model[best].prio) {
						best = n
					}
				}
				got, ok := q.pop(floor)
				if ok != (best >= 0) || ok && got != model[best].id {
					t.Fatalf("popped %v %v, model %v", got, ok, model)
				}
				if ok {
					model = slices.Delete(model, best, best+1)
				}
			},
			"": func(t *rapid.T) {
				if q.len() != len(model) || len(q.index) != len(model) {
					t.Fatalf("%d waiting, want %d", q.len(), len(model))
				}
			},
		})
	})
}

func TestSharedFakeSigner(t *testing.T) {
	a, err := NewSharedFakeSigner("x")
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewSharedFakeSigner("x")
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewSharedFakeSigner("y")
	if err != nil {
		t.Fatal(err)
	}
	if !a.Key().Equal(b.Key()) || a.Key().Equal(c.Key()) {
		t.Error("keys")
	}
}
