package accesslog

import (
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Rates are how many lines of one pod a second are written in the long run.
type Rates struct {
	// Complete is for connections that went well, Failed for the others. They do not
	// share: who floods a pod with connections that are refused does not hide those
	// that are served.
	Complete, Failed int
}

// DefaultRates let a busy pod log every connection: 3,000 lines a second are
// about 1.3 MB. Failures repeat each other: 200 a second show what is wrong.
var DefaultRates = Rates{Complete: 3000, Failed: 200}

// burstSeconds is how many seconds' lines a pod that was quiet may write at once:
// a restart of its clients, or a failure of all its connections.
const burstSeconds = 10

// summary is how often a pod with suppressed lines gets a line about them.
const summary = time.Second

// Limiter makes the limits of pods, and counts what they suppress.
type Limiter struct {
	rates      Rates
	log        *slog.Logger
	suppressed [2]atomic.Uint64
}

// NewLimiter makes a Limiter that writes its summaries to log. Rates that are not
// positive mean no bound.
func NewLimiter(log *slog.Logger, r Rates) *Limiter { return &Limiter{log: log, rates: r} }

// Suppressed counts the lines that were not written.
func (l *Limiter) Suppressed() (complete, failed uint64) {
	return l.suppressed[0].Load(), l.suppressed[1].Load()
}

// Limit is the budget of lines of one pod: two token buckets. The nil Limit has no
// bound. It is safe for concurrent use.
type Limit struct {
	of  *Limiter
	pod string

	mu      sync.Mutex // guards what follows
	buckets [2]bucket  // of complete and failed
	pending bool       // a summary is due
	left    [2]uint64  // lines suppressed since the last one
}

type bucket struct {
	rate, tokens float64
	at           time.Time
}

// Pod makes the limit of a pod.
func (l *Limiter) Pod(name string) *Limit {
	p := &Limit{of: l, pod: name}
	now := time.Now()
	for i, rate := range [...]int{l.rates.Complete, l.rates.Failed} {
		p.buckets[i] = bucket{rate: float64(rate), tokens: float64(rate) * burstSeconds, at: now}
	}
	return p
}

func (b *bucket) take(now time.Time) bool {
	if b.rate <= 0 {
		return true
	}
	b.tokens = min(b.tokens+now.Sub(b.at).Seconds()*b.rate, b.rate*burstSeconds)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// Pod returns the namespace and the name of the pod; nothing when there is no bound, or the
// pod has no such name.
func (p *Limit) Pod() (namespace, name string) {
	if p == nil {
		return "", ""
	}
	namespace, name, ok := strings.Cut(p.pod, "/")
	if !ok {
		return "", ""
	}
	return namespace, name
}

// Permit reports whether a line may be written: of a connection that went well, or
// of another one.
func (p *Limit) Permit(complete bool) bool {
	if p == nil {
		return true
	}
	class := 1
	if complete {
		class = 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.buckets[class].take(time.Now()) {
		return true
	}
	p.left[class]++
	p.of.suppressed[class].Add(1)
	if !p.pending {
		p.pending = true
		time.AfterFunc(summary, p.summarise)
	}
	return false
}

func (p *Limit) summarise() {
	p.mu.Lock()
	left := p.left
	p.left, p.pending = [2]uint64{}, false
	p.mu.Unlock()
	p.of.log.Warn("access log lines of a pod were suppressed: it has more connections than its rate permits",
		"pod", p.pod, "complete", left[0], "failed", left[1])
}
