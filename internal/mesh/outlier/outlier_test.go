package outlier

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestResult(t *testing.T) {
	o := Settings{Consecutive: 3, Base: 30 * time.Second, Max: 300 * time.Second, MaxPercent: 50}
	now := time.Unix(1000, 0)
	var h Health
	fail := func(n, ejected int) {
		for range n {
			h = h.Result(o, true, now, ejected, 4)
		}
	}
	fail(2, 0)
	h = h.Result(o, false, now, 0, 4)
	if fail(2, 0); h.Ejected(now) {
		t.Error("a success between did not count")
	}
	if fail(1, 2); h.Ejected(now) {
		t.Error("more than the permitted share is ejected")
	}
	if fail(1, 1); !h.Ejected(now) || h.Ejected(now.Add(30*time.Second)) {
		t.Error("first ejection is not 30 s")
	}
	now = now.Add(31 * time.Second)
	if fail(3, 0); !h.Ejected(now.Add(59*time.Second)) || h.Ejected(now.Add(60*time.Second)) {
		t.Error("second ejection is not 60 s")
	}
	now = now.Add(time.Hour)
	if fail(3, 0); !h.Ejected(now) || h.Ejected(now.Add(30*time.Second)) {
		t.Error("after an hour of health the first ejection is not 30 s again")
	}
}

// TestInterval: an ejection is forgotten for each interval of health, and one endpoint may
// be ejected whatever the share is.
func TestInterval(t *testing.T) {
	s := Settings{Consecutive: 1, Base: 30 * time.Second, Max: 300 * time.Second, MaxPercent: 10, Interval: 10 * time.Second, First: true}
	now := time.Unix(1000, 0)
	var h Health
	lasts := func() time.Duration {
		h = h.Result(s, true, now, 0, 2)
		return h.Until().Sub(now)
	}
	if d := lasts(); d != 30*time.Second {
		t.Fatalf("first ejection: %v", d)
	}
	if now = h.Until(); lasts() != 60*time.Second {
		t.Fatal("the second ejection does not last longer")
	}
	if now = h.Until().Add(10 * time.Second); lasts() != 60*time.Second {
		t.Fatal("one interval of health did not let one ejection be forgotten")
	}
	if now = h.Until().Add(time.Minute); !h.Spent(s, now) || lasts() != 30*time.Second {
		t.Fatal("a minute of health did not let all be forgotten")
	}
	if (Health{}).Result(s, true, now, 1, 2).Ejected(now) {
		t.Error("a second endpoint of two is ejected with 10 %")
	}
}

// TestBounds: no sequence of results ejects for longer than Max, or more than the share
// permits.
func TestBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Settings{
			Consecutive: rapid.IntRange(0, 4).Draw(t, "consecutive"), Base: time.Duration(rapid.IntRange(1, 400).Draw(t, "base")) * time.Second,
			Max: 300 * time.Second, MaxPercent: rapid.IntRange(0, 100).Draw(t, "percent"), First: rapid.Bool().Draw(t, "first"),
			Interval: time.Duration(rapid.IntRange(0, 20).Draw(t, "interval")) * time.Second,
		}
		total := rapid.IntRange(1, 5).Draw(t, "total")
		all := make([]Health, total)
		now := time.Unix(1000, 0)
		for range rapid.IntRange(1, 60).Draw(t, "results") {
			now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "later")) * time.Second)
			i, ejected := rapid.IntRange(0, total-1).Draw(t, "endpoint"), 0
			for _, h := range all {
				if h.Ejected(now) {
					ejected++
				}
			}
			was := all[i].Ejected(now)
			all[i] = all[i].Result(s, rapid.Bool().Draw(t, "failed"), now, ejected, total)
			if !was && all[i].Ejected(now) {
				if s.Consecutive == 0 || (ejected+1)*100 > total*s.MaxPercent && (!s.First || ejected > 0) {
					t.Fatalf("ejected beside %d of %d", ejected, total)
				}
				if d := all[i].Until().Sub(now); d > max(s.Max, s.Base) || d < min(s.Base, s.Max) {
					t.Fatalf("ejected for %v", d)
				}
			}
		}
	})
}

func TestPanic(t *testing.T) {
	for _, c := range []struct {
		ejected, total, percent int
		want                    bool
	}{{0, 4, 100, false}, {4, 4, 0, true}, {3, 4, 0, false}, {3, 4, 26, true}, {3, 4, 25, false}, {0, 0, 50, false}, {1, 0, 0, true}} {
		if got := Panic(c.ejected, c.total, c.percent); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
