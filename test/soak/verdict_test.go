package soak

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// series makes samples of a function of the index.
func series(k Kind, n int, f func(i int) float64) Series {
	s := Series{Name: "x", Kind: k}
	for i := range n {
		s.Samples = append(s.Samples, f(i))
	}
	return s
}

func TestJudge(t *testing.T) {
	const mib = 1 << 20
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(n float64) float64 { return (r.Float64() - 0.5) * n }
	for name, tc := range map[string]struct {
		s    Series
		flat bool
		why  string
	}{
		"constant":                  {series(Count, 30, func(int) float64 { return 50 }), true, ""},
		"zero":                      {series(Count, 30, func(int) float64 { return 0 }), true, ""},
		"noise":                     {series(Count, 30, func(int) float64 { return 100 + noise(10) }), true, ""},
		"falls":                     {series(Count, 30, func(i int) float64 { return 500 - 10*float64(i) }), true, ""},
		"one more each time":        {series(Count, 30, func(i int) float64 { return 10 + float64(i) }), false, "it grows"},
		"one more each second time": {series(Count, 60, func(i int) float64 { return 10 + float64(i/2) + noise(2) }), false, "it grows"},
		"a peak":                    {series(Count, 30, func(i int) float64 { return map[bool]float64{true: 9999}[i == 28] + 10 }), true, ""},
		"a step that stays":         {series(Count, 30, func(i int) float64 { return map[bool]float64{true: 40}[i > 15] + 20 }), false, "it grows"},
		"memory, sawtooth":          {series(Memory, 60, func(i int) float64 { return (30 + float64(i%7)) * mib }), true, ""},
		"memory, half a MiB a time": {series(Memory, 60, func(i int) float64 { return (30 + float64(i)/2) * mib }), false, "it grows"},
		"memory, large and flat":    {series(Memory, 30, func(int) float64 { return 400*mib + noise(40*mib) }), true, ""},
		"too few":                   {series(Count, 8, func(int) float64 { return 1 }), false, "too few"},
		"the fewest":                {series(Count, 9, func(int) float64 { return 1 }), true, ""},
		"no number":                 {series(Count, 30, func(int) float64 { return math.NaN() }), false, "no number"},
		"less than nothing":         {series(Count, 30, func(int) float64 { return -1 }), false, "no number"},
	} {
		v := Judge(tc.s, len(tc.s.Samples))
		if v.Flat != tc.flat || !strings.Contains(v.Why, tc.why) || v.Flat != (v.Why == "") {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if v := Judge(series(Count, 20, func(int) float64 { return 1 }), 30); v.Flat || !strings.Contains(v.Why, "20 samples of 30") {
		t.Errorf("a program that has gone: %+v", v)
	}
}

func TestMedian(t *testing.T) {
	for want, x := range map[float64][]float64{3: {5, 3, 1}, 2: {1, 3}, 7: {7}} {
		if got := median(x); got != want {
			t.Errorf("%v: %v", x, got)
		}
	}
}

func TestTable(t *testing.T) {
	text, bad := Table([]Series{series(Count, 30, func(int) float64 { return 1 }), series(Count, 30, func(i int) float64 { return float64(i) })}, 30)
	lines := strings.Split(text, "\n")
	if bad != 1 || len(lines) != 3 || !strings.Contains(lines[1], "NOT FLAT: it grows") || !strings.HasSuffix(lines[2], "flat") {
		t.Errorf("%d\n%s", bad, text)
	}
}
