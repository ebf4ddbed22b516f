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
	c := calm{at: now}
	given, slept := 0, 0
	// run takes time with some work a second, and returns how often memory was given back.
	// Loops without work wake no goroutine.
	run := func(d time.Duration, perSecond, allocates uint64) int {
		was, asleep := given, false
		for end := now.Add(d); now.Before(end); {
			now = now.Add(lookEvery)
			turns += perSecond / uint64(time.Second/lookEvery)
			bytes += allocates / uint64(time.Second/lookEvery)
			if asleep && perSecond == 0 {
				continue
			}
			switch c.look(now, turns, func() uint64 { return bytes }) {
			case giveBack:
				given++
				c.gave(now, now.Add(10*time.Millisecond), turns, bytes)
			case sleep:
				slept++
				asleep = true
			case lookAgain:
				asleep = false
			}
		}
		return given - was
	}
	for _, step := range []struct {
		name                 string
		d                    time.Duration
		perSecond, allocates uint64
		want                 int
		sleeps               bool
	}{
		{"a start", time.Second, 10, 1000, 1, false},
		{"nothing to do", time.Minute, 0, 0, 0, true},
		{"little to do", time.Minute, calmTurns / 2, 1000, 0, true},
		{"a burst", time.Minute, 10 * calmTurns, 1 << 20, 0, false},
		{"after the burst", 10 * time.Second, 10, 1000, 1, true},
		{"little to do, much memory", time.Minute, calmTurns / 2, worthwhile, 6, true},
		{"steady work", time.Minute, calmTurns + 10, worthwhile, 0, false},
	} {
		slept = 0
		if got := run(step.d, step.perSecond, step.allocates); got != step.want || step.sleeps != (slept > 0) {
			t.Errorf("%s: memory was given back %d times, want %d; slept %d times", step.name, got, step.want, slept)
		}
	}
	run(time.Second, 0, 0)
	// Bursts with moments between are one.
	for range 20 {
		if run(time.Second, 10*calmTurns, 0)+run((calmLooks-1)*lookEvery, 0, 0) > 0 {
			t.Error("memory is given back between bursts")
		}
	}
	// What takes long happens rarely.
	c.gave(now, now.Add(time.Second), turns, bytes)
	run(time.Second, 10*calmTurns, 0)
	if got := run(mostPause-2*time.Second, 10, worthwhile); got != 0 {
		t.Errorf("memory was given back %d times", got)
	}
}
