package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Sparse returns a logger that passes at most one record per interval on, after
// the first burst of them. The next record that passes has the number of those
// that did not, as "suppressed". It is for records that a stranger can cause.
func Sparse(l *slog.Logger, interval time.Duration, burst int) *slog.Logger {
	return slog.New(&sparse{Handler: l.Handler(), bucket: &bucket{interval: interval, burst: burst, left: burst}})
}

type sparse struct {
	slog.Handler
	bucket *bucket
}

// Handle implements slog.Handler.
func (s *sparse) Handle(ctx context.Context, r slog.Record) error {
	suppressed, ok := s.bucket.take(r.Time)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (s *sparse) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sparse{s.Handler.WithAttrs(attrs), s.bucket}
}

// WithGroup implements slog.Handler.
func (s *sparse) WithGroup(name string) slog.Handler {
	return &sparse{s.Handler.WithGroup(name), s.bucket}
}

// bucket holds tokens, one for each record that may pass.
type bucket struct {
	interval time.Duration
	burst    int

	mu         sync.Mutex
	left       int
	filled     time.Time // when left was last right
	suppressed int
}

// take returns whether a record may pass, and how many did not before it.
func (b *bucket) take(now time.Time) (suppressed int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if gained := now.Sub(b.filled) / b.interval; b.filled.IsZero() || gained >= time.Duration(b.burst) {
		b.left, b.filled = b.burst, now
	} else if gained > 0 {
		b.left = min(b.burst, b.left+int(gained))
		b.filled = b.filled.Add(gained * b.interval)
	}
	if b.left == 0 {
		b.suppressed++
		return 0, false
	}
	b.left--
	suppressed, b.suppressed = b.suppressed, 0
	return suppressed, true
}
