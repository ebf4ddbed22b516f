// Package upstream decides which endpoint gets a request, when an endpoint is
// left out, and when a request is sent again. Every function is pure: random
// numbers, counts and times are arguments.
//
// Gateways use Outliers and Backoff. They choose as node proxies do, by
// workload.Snapshot.Pick. No configuration asks for the other choices yet: Random,
// LeastRequest, RoundRobin, Ring, Panic and Budget. What asks for one belongs into
// route.Upstream.
package upstream

import (
	"hash/fnv"
	"math/bits"
	"slices"
	"sort"
	"strconv"
	"time"
)

// Endpoint is what the choice depends on.
type Endpoint struct {
	Key     string // stays the same while the endpoint lives
	Weight  uint32 // 0 gets nothing
	Active  uint32 // requests on it now
	Ejected bool   // left out by outlier detection
}

// usable reports whether an endpoint may get requests. In a panic ejected ones
// may: see Panic.
func usable(e *Endpoint, panicking bool) bool { return e.Weight > 0 && (panicking || !e.Ejected) }

// Panic reports whether so many endpoints are ejected that the ejections do
// more harm than good: fewer than percent of those with a weight are left.
func Panic(all []Endpoint, percent int) bool {
	total, healthy := 0, 0
	for i := range all {
		if all[i].Weight > 0 {
			total++
			if !all[i].Ejected {
				healthy++
			}
		}
	}
	return total > 0 && (healthy == 0 || healthy*100 < total*percent)
}

// Random returns the place of an endpoint with a chance by its weight, or -1.
func Random(all []Endpoint, panicking bool, random uint64) int {
	return without(all, panicking, random, -1)
}

// without is Random among all endpoints but one.
func without(all []Endpoint, panicking bool, random uint64, skip int) int {
	var total uint64
	for i := range all {
		if i != skip && usable(&all[i], panicking) {
			total += uint64(all[i].Weight)
		}
	}
	at, _ := bits.Mul64(random, total)
	for i := range all {
		if i == skip || !usable(&all[i], panicking) {
			continue
		}
		if at < uint64(all[i].Weight) {
			return i
		}
		at -= uint64(all[i].Weight)
	}
	return -1
}

// LeastRequest draws two different endpoints and returns the place of the one
// with fewer requests for its weight, or -1.
func LeastRequest(all []Endpoint, panicking bool, random, second uint64) int {
	a := without(all, panicking, random, -1)
	if a < 0 {
		return -1
	}
	b := without(all, panicking, second, a)
	if b < 0 {
		return a
	}
	x, y := &all[a], &all[b]
	if uint64(y.Active+1)*uint64(x.Weight) < uint64(x.Active+1)*uint64(y.Weight) {
		return b
	}
	return a
}

// RoundRobin is the state of weighted turns: each endpoint gets its share of
// every full round, spread evenly.
type RoundRobin struct{ credit map[string]int64 }

// Next returns the place of the endpoint whose turn it is, or -1.
func (r *RoundRobin) Next(all []Endpoint, panicking bool) int {
	if r.credit == nil || len(r.credit) > 2*len(all)+8 { // of endpoints that are gone
		r.credit = make(map[string]int64, len(all))
	}
	best, total := -1, int64(0)
	for i := range all {
		e := &all[i]
		if !usable(e, panicking) {
			continue
		}
		total += int64(e.Weight)
		r.credit[e.Key] += int64(e.Weight)
		if best < 0 || r.credit[e.Key] > r.credit[all[best].Key] {
			best = i
		}
	}
	if best >= 0 {
		r.credit[all[best].Key] -= total
	}
	return best
}

// Ring maps hashes to endpoints so that few move when endpoints come or go.
type Ring struct{ points []point }

type point struct {
	hash uint64
	key  string
}

// pointsPerWeight spreads the shares of endpoints of equal weight to within
// about a tenth; maxPoints bounds the memory of one ring.
const (
	pointsPerWeight = 128
	maxPoints       = 1 << 20
)

// NewRing returns the ring of the endpoints with a weight.
func NewRing(all []Endpoint) *Ring {
	var least uint32
	var total uint64
	for i := range all {
		if w := all[i].Weight; w > 0 {
			total += uint64(w)
			if least == 0 || w < least {
				least = w
			}
		}
	}
	r := &Ring{}
	if total == 0 {
		return r
	}
	each := min(pointsPerWeight/float64(least), maxPoints/float64(total))
	for i := range all {
		if all[i].Weight == 0 {
			continue
		}
		for n := range max(1, int(float64(all[i].Weight)*each)) {
			r.points = append(r.points, point{Hash(all[i].Key + "_" + strconv.Itoa(n)), all[i].Key})
		}
	}
	slices.SortFunc(r.points, func(a, b point) int {
		if a.hash != b.hash {
			if a.hash < b.hash {
				return -1
			}
			return 1
		}
		return len(a.key) - len(b.key)
	})
	return r
}

// Pick returns the key of the first endpoint at or after hash that ok accepts,
// "" if there is none.
func (r *Ring) Pick(hash uint64, ok func(key string) bool) string {
	at := sort.Search(len(r.points), func(i int) bool { return r.points[i].hash >= hash })
	for i := range r.points {
		if p := &r.points[(at+i)%len(r.points)]; ok(p.key) {
			return p.key
		}
	}
	return ""
}

// Hash is the hash of a value for Ring.Pick.
func Hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	x := h.Sum64() // FNV spreads short keys badly: mix its bits
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Budget bounds the retries of an upstream by its requests.
type Budget struct {
	Percent int // of the active requests
	Min     int // retries that are permitted always
}

// Allows reports whether one more retry fits beside those that are active.
func (b Budget) Allows(active, retries int) bool {
	return retries < max(b.Min, active*b.Percent/100)
}

// Backoff returns the pause before a retry, counted from 1: at random between
// least and an interval that doubles from base up to limit.
func Backoff(least, base, limit time.Duration, retry int, random uint64) time.Duration {
	interval := base
	for i := 1; i < retry && interval < limit; i++ {
		interval *= 2
	}
	spread, _ := bits.Mul64(random, uint64(max(0, min(interval, limit)-least)))
	return least + time.Duration(spread)
}
