// Package outlier decides when an endpoint that fails is left out, and for how long. It is
// pure: times and counts are arguments. Gateways and node proxies use it.
//
//	         a failure, fewer than Consecutive in a row
//	                   ┌────┐
//	                   │    ▼
//	a success ────►  healthy ────────────────────────────────────────► ejected
//	                   ▲      Consecutive failures in a row, and        │
//	                   │      the share of ejected endpoints permits it │
//	                   │                                                │
//	                   └────────────────────────────────────────────────┘
//	                      Base × ejections have passed, at most Max
//
// Each ejection lasts longer than the one before. The count falls again while the endpoint
// is healthy.
package outlier

import "time"

// Settings are when an endpoint is ejected.
type Settings struct {
	Consecutive int           // failures in a row; 0 ejects nothing
	Base, Max   time.Duration // of an ejection: Base times how often it happened
	MaxPercent  int           // of the endpoints that may be ejected together
	// Interval, when set, is how long an endpoint is healthy for one ejection to be
	// forgotten. Without it, all are forgotten after Max.
	Interval time.Duration
	// First permits one endpoint to be ejected whatever MaxPercent is.
	First bool
}

// Health is the state of one endpoint. The zero value is healthy.
type Health struct {
	failures, ejections int
	until               time.Time
}

// Ejected reports whether the endpoint is left out at a time.
func (h Health) Ejected(now time.Time) bool { return now.Before(h.until) }

// Until returns the end of the last ejection.
func (h Health) Until() time.Time { return h.until }

// Failures returns how many there were in a row since the last ejection.
func (h Health) Failures() int { return h.failures }

// Result returns the state after a result. ejected and total count endpoints; one more is
// ejected only while the share stays within MaxPercent.
func (h Health) Result(s Settings, failed bool, now time.Time, ejected, total int) Health {
	if !failed {
		h.failures = 0
		return h
	}
	h.failures = min(h.failures+1, 1<<20)
	if s.Consecutive <= 0 || h.failures < s.Consecutive || h.Ejected(now) || !s.permits(ejected, total) {
		return h
	}
	h.ejections, h.failures = h.remembered(s, now)+1, 0
	h.until = now.Add(min(s.Base*time.Duration(min(h.ejections, 1000)), max(s.Base, s.Max)))
	return h
}

func (s Settings) permits(ejected, total int) bool {
	return s.First && ejected == 0 || (ejected+1)*100 <= total*s.MaxPercent
}

// remembered returns the ejections that still count.
func (h Health) remembered(s Settings, now time.Time) int {
	healthy := now.Sub(h.until)
	switch {
	case s.Interval > 0:
		return h.ejections - int(min(int64(max(healthy, 0)/s.Interval), int64(h.ejections)))
	case healthy > s.Max:
		return 0
	}
	return h.ejections
}

// Spent reports whether the state can be forgotten: it is as that of a new endpoint.
func (h Health) Spent(s Settings, now time.Time) bool {
	return h.failures == 0 && !h.Ejected(now) && h.remembered(s, now) == 0
}

// Panic reports whether so few endpoints are left that ejections do more harm than good:
// none, or less than percent of all.
func Panic(ejected, total, percent int) bool {
	left := total - ejected
	return ejected > 0 && (left <= 0 || left*100 < total*percent)
}
