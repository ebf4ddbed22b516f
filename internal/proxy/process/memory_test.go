package process

import (
	"testing"
	"time"
)

// TestCalm: memory is given back once after a start and after each burst, not while there is
// work, not twice in a row, and again when a calm proxy has allocated much.
func TestCalm(t *testing.T) {
	now := time.Unix(1000, 0)
	var turns, bytes uint64
	c := calm{}
	given := 0
	// run takes time with some work a second, and returns how often memory was given back.
	run := func(d time.Duration, perSecond, allocates uint64) int {
		was := given
		for end := now.Add(d); now.Before(end); {
			pause := max(c.pause, lookBusy)
			now = now.Add(pause)
			turns += perSecond * uint64(pause/time.Second)
			bytes += allocates * uint64(pause/time.Second)
			if c.look(now, turns, bytes) {
				given++
				c.gave(now, turns, bytes)
			}
		}
		return given - was
	}
	for _, step := range []struct {
		name                 string
		d                    time.Duration
		perSecond, allocates uint64
		want                 int
	}{
		{"a start", 4 * time.Second, 10, 1000, 1},
		{"nothing to do", time.Minute, 0, 0, 0},
		{"little to do", time.Minute, calmTurns / 2, 1000, 0},
		{"a burst", time.Minute, 10 * calmTurns, 1 << 20, 0},
		{"after the burst", 10 * time.Second, 1, 1000, 1},
		{"little to do, much memory", 2 * time.Minute, calmTurns / 2, worthwhile, 8},
		{"steady work", time.Minute, calmTurns + 1, worthwhile, 0},
	} {
		if got := run(step.d, step.perSecond, step.allocates); got != step.want {
			t.Errorf("%s: memory was given back %d times, want %d", step.name, got, step.want)
		}
	}
	// Bursts with a second between are one.
	for range 20 {
		if run(time.Second, 10*calmTurns, 0)+run(time.Second, 0, 0) > 0 {
			t.Error("memory is given back between bursts")
		}
	}
}
