package ratelimit

import "time"

// Bucket is a token bucket. The zero value is full.
type Bucket struct {
	// at is when it was used last, in nanoseconds of any clock.
	at int64
	// debt is what is missing, in nanoseconds of the period for each rate: one connection
	// costs as many as the period has, and each nanosecond gives back the rate. So nothing is
	// rounded.
	debt int64
}

// at returns the bucket at a time. A clock that goes back gives nothing back.
func (b Bucket) settled(r *Rate, now int64) Bucket {
	passed := now - b.at
	switch {
	case b.debt == 0:
		return Bucket{max(now, b.at), 0}
	case passed <= 0:
		return b
	case passed >= (b.debt+int64(r.Count)-1)/int64(r.Count):
		return Bucket{now, 0}
	}
	return Bucket{now, b.debt - passed*int64(r.Count)}
}

// Take returns the bucket after one connection, and whether there was room for it.
func (b Bucket) Take(r *Rate, now int64) (Bucket, bool) {
	b = b.settled(r, now)
	cost := int64(r.Per)
	if b.debt > (int64(r.Burst)-1)*cost {
		return b, false
	}
	b.debt += cost
	return b, true
}

// Give returns the bucket after a connection that was not let in is taken back.
func (b Bucket) Give(r *Rate) Bucket {
	b.debt = max(0, b.debt-int64(r.Per))
	return b
}

// Full reports whether a bucket is as a new one.
func (b Bucket) Full(r *Rate, now int64) bool { return b.settled(r, now).debt == 0 }

// Left returns how many connections there is room for.
func (b Bucket) Left(r *Rate, now int64) int {
	debt := b.settled(r, now).debt
	return max(0, int((int64(r.Burst)*int64(r.Per)-debt)/int64(r.Per)))
}

// Wait returns how long it takes until there is room for one; 0 when there is.
func (b Bucket) Wait(r *Rate, now int64) time.Duration {
	over := b.settled(r, now).debt - (int64(r.Burst)-1)*int64(r.Per)
	if over <= 0 {
		return 0
	}
	return time.Duration((over + int64(r.Count) - 1) / int64(r.Count))
}
