package h2

import "time"

// allowance is a token bucket: what a peer may demand in a row without getting
// anything done.
type allowance struct {
	left int32
	size int32 // full bucket
	rate int32 // tokens a second
	last int64 // time of the last refill, ns; 0 before the first
}

func newAllowance(size, perSecond int) allowance {
	return allowance{left: int32(size), size: int32(size), rate: int32(perSecond)}
}

// spend takes one token at the time now (ns) and reports whether there was one.
func (a *allowance) spend(now int64) bool {
	if a.left <= 0 {
		a.refill(now)
	}
	if a.left <= 0 {
		return false
	}
	if a.last == 0 || a.left == a.size {
		a.last = now
	}
	a.left--
	return true
}

// refill adds what time brought. It runs only when the bucket is empty: that
// is when the answer matters.
func (a *allowance) refill(now int64) {
	passed := now - a.last
	if passed <= 0 || a.last == 0 {
		return
	}
	if passed >= int64(time.Second)*int64(a.size)/int64(a.rate) {
		a.left, a.last = a.size, now
		return
	}
	if n := passed * int64(a.rate) / int64(time.Second); n > 0 {
		a.left = int32(min(n, int64(a.size)))
		a.last = now
	}
}

// earn gives one token back.
func (a *allowance) earn() {
	if a.left < a.size {
		a.left++
	}
}
