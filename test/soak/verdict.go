// Package soak runs a mesh with churn for as long as one likes, and decides whether what its
// programs hold stays flat: make soak.
package soak

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Kind is what a series counts, which decides how much more at its end is still flat.
type Kind int

// The kinds.
const (
	// Memory is resident memory in bytes: an allocator and a collector of garbage move it.
	Memory Kind = iota
	// Count is a number of things that are held: descriptors, goroutines, resources.
	Count
)

// The slack of a kind: a part of what there was at first, or a number, whichever is more.
var slack = map[Kind]struct{ part, least float64 }{
	Memory: {0.15, 6 << 20},
	Count:  {0.10, 8},
}

// Series is what was seen of one thing, in order of time.
type Series struct {
	Name    string
	Kind    Kind
	Samples []float64
}

// Verdict is whether a series stays flat: the medians of its first and its last third.
type Verdict struct {
	Name               string
	First, Last, Limit float64
	Flat               bool
	Why                string // of what is not flat
}

// fewest is how many samples a series needs: three for each median.
const fewest = 9

// Judge compares the last third of a series with its first one. Medians let single samples
// be anything. A series that ends early, as of a program that is not there any more, is not flat.
func Judge(s Series, samples int) Verdict {
	v := Verdict{Name: s.Name}
	switch n := len(s.Samples); {
	case slices.ContainsFunc(s.Samples, func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) || x < 0 }):
		v.Why = "a sample is no number"
		return v
	case n != samples:
		v.Why = fmt.Sprintf("%d samples of %d", n, samples)
		return v
	case n < fewest:
		v.Why = fmt.Sprintf("%d samples are too few: it takes %d", n, fewest)
		return v
	}
	third := len(s.Samples) / 3
	v.First, v.Last = median(s.Samples[:third]), median(s.Samples[len(s.Samples)-third:])
	k := slack[s.Kind]
	v.Limit = v.First + max(k.part*v.First, k.least)
	if v.Flat = v.Last <= v.Limit; !v.Flat {
		v.Why = "it grows"
	}
	return v
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	n := len(x)
	if n%2 == 1 {
		return x[n/2]
	}
	return (x[n/2-1] + x[n/2]) / 2
}

// Table renders verdicts: those that are not flat first.
func Table(all []Series, samples int) (text string, bad int) {
	var good, grown []string
	for _, s := range all {
		v := Judge(s, samples)
		unit := 1.0
		if s.Kind == Memory {
			unit = 1 << 20
		}
		line := fmt.Sprintf("%-52s %10.1f %10.1f %10.1f  ", v.Name, v.First/unit, v.Last/unit, v.Limit/unit)
		if v.Flat {
			good = append(good, line+"flat")
		} else {
			grown = append(grown, line+"NOT FLAT: "+v.Why)
		}
	}
	head := fmt.Sprintf("%-52s %10s %10s %10s", "", "first", "last", "limit")
	return strings.Join(append(append([]string{head}, grown...), good...), "\n"), len(grown)
}
