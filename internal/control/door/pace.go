package door

import (
	"maps"
	"time"
)

// pace is a token bucket: how many connections of one network address may go on
// to TLS. An authenticated call gives its connection's token back, so that only
// connections that come to nothing use the bucket up. The zero value is empty and
// has never been used.
type pace struct {
	tokens float64
	at     time.Time // when tokens was right
}

// rate is what fills a bucket.
type rate struct {
	burst     int     // the most that a bucket holds
	perSecond float64 // how many tokens come each second
}

// fill brings the bucket to a time.
func (r rate) fill(p *pace, now time.Time) {
	switch d := now.Sub(p.at); {
	case p.at.IsZero():
		p.tokens, p.at = float64(r.burst), now
	case d > 0:
		p.tokens, p.at = min(float64(r.burst), p.tokens+d.Seconds()*r.perSecond), now
	}
}

// take removes a token; it reports whether there was one.
func (r rate) take(p *pace, now time.Time) bool {
	r.fill(p, now)
	if p.tokens < 1 {
		return false
	}
	p.tokens--
	return true
}

// giveBack returns a token that was taken.
func (r rate) giveBack(p *pace) { p.tokens = min(float64(r.burst), p.tokens+1) }

// next returns how long it takes until the bucket has a token.
func (r rate) next(p *pace, now time.Time) time.Duration {
	r.fill(p, now)
	if p.tokens >= 1 {
		return 0
	}
	// A nanosecond more than is needed: the bucket has the token then, whatever
	// was rounded.
	return time.Duration((1-p.tokens)/r.perSecond*float64(time.Second)) + 1
}

// maxPaces bounds the network addresses whose pace is remembered. At the bound,
// those with full buckets are forgotten first, which changes nothing for them.
const maxPaces = 4096

// paces has the bucket of each network address.
type paces struct {
	rate rate
	of   map[string]*pace
}

// get returns the bucket of a network address.
func (ps *paces) get(peer string, now time.Time) *pace {
	p := ps.of[peer]
	if p == nil {
		if len(ps.of) >= maxPaces {
			ps.sweep(now)
		}
		p = &pace{}
		ps.rate.fill(p, now)
		ps.of[peer] = p
	}
	return p
}

// sweep forgets full buckets, or any one when none is full.
func (ps *paces) sweep(now time.Time) {
	maps.DeleteFunc(ps.of, func(_ string, p *pace) bool {
		ps.rate.fill(p, now)
		return p.tokens >= float64(ps.rate.burst)
	})
	for peer := range ps.of {
		if len(ps.of) < maxPaces {
			break
		}
		delete(ps.of, peer)
	}
}
