package poll

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The wheel runs every deadline at the first tick that is not before it, whatever
// was armed, moved and stopped meanwhile, and sleeps no longer than to the first.
func TestDeadlineProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type item struct {
			Deadline
			at    time.Time // zero: not armed
			fired int
		}
		l := &Loop{now: time.Unix(1e9, 12345)}
		items := make([]*item, 20)
		for i := range items {
			items[i] = &item{}
		}
		pick := rapid.IntRange(0, len(items)-1)
		span := rapid.OneOf(rapid.Int64Range(-5, 50), rapid.Int64Range(0, 10_000), rapid.Int64Range(0, 100_000_000))
		arm := func(it *item) {
			d := time.Duration(span.Draw(t, "ms")) * time.Millisecond
			it.at = l.now.Add(max(d, 0))
			it.Arm(l, d, func() {
				it.fired++
				if it.at.IsZero() || it.at.After(l.now) {
					t.Fatalf("fired at %s, armed for %s", l.now, it.at)
				}
				if late := l.now.Sub(it.at); late < 0 {
					t.Fatalf("%s too early", -late)
				}
				it.at = time.Time{}
			})
		}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1:
				arm(items[pick.Draw(t, "item")])
			case 2:
				it := items[pick.Draw(t, "item")]
				it.Stop()
				it.at = time.Time{}
			case 3:
				l.now = l.now.Add(time.Duration(span.Draw(t, "ms"))*time.Millisecond + 6*time.Millisecond)
				l.wheel.advance(l.now)
				for i, it := range items {
					if !it.at.IsZero() && it.at.Add(DeadlineTick).Before(l.now) {
						t.Fatalf("%d was due at %s, it is %s", i, it.at, l.now)
					}
				}
			}
			first, armed := time.Time{}, false
			for i, it := range items {
				if it.Armed() == it.at.IsZero() {
					t.Fatalf("%d: armed %t, due %s", i, it.Armed(), it.at)
				}
				if !it.at.IsZero() && (!armed || it.at.Before(first)) {
					first, armed = it.at, true
				}
			}
			next, ok := l.wheel.next()
			if ok != armed || armed && next.After(later(first, l.now).Add(2*DeadlineTick)) {
				t.Fatalf("sleeps until %s (%t), the first is due at %s (%t)", next, ok, first, armed)
			}
		}
	})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// What runs may arm and stop its neighbours of the same slot, and itself.
func TestDeadlinesThatTouchOthers(t *testing.T) {
	l := &Loop{now: time.Unix(1e9, 0)}
	var order []string
	var a, b, c Deadline
	runs := 0
	a.Arm(l, 10*time.Millisecond, func() {
		order = append(order, "a")
		b.Stop()
		if runs++; runs < 3 {
			a.Rearm(10 * time.Millisecond)
		}
	})
	b.Arm(l, 10*time.Millisecond, func() { order = append(order, "b") })
	c.Arm(l, 10*time.Millisecond, func() {
		order = append(order, "c")
		b.Arm(l, 0, func() { order = append(order, "b again") })
	})
	for range 20 {
		l.now = l.now.Add(DeadlineTick)
		l.wheel.advance(l.now)
	}
	if want := []string{"a", "c", "b again", "a", "a"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if _, ok := l.wheel.next(); ok {
		t.Error("something is armed")
	}
	var zero Deadline
	zero.Stop()
	zero.Rearm(time.Second)
	if zero.Armed() {
		t.Error("a zero Deadline is armed by Rearm")
	}
}

// A sleeping loop wakes for a deadline, and does not tick meanwhile.
func TestDeadlineWakesASleepingLoop(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	var far, near Deadline
	fired := make(chan time.Duration, 1)
	on(t, l, func() {
		start := time.Now()
		far.Arm(l, time.Hour, func() { t.Error("an hour has passed") })
		near.Arm(l, 100*time.Millisecond, func() { fired <- time.Since(start) })
	})
	before := l.Turns()
	// Armed at the beginning of its turn, which was before start.
	if took := wait(t, fired, "the deadline runs"); took < 90*time.Millisecond {
		t.Errorf("fired after %s", took)
	}
	if n := l.Turns() - before; n > 10 {
		t.Errorf("%d turns in a sleep of 100 ms", n)
	}
	on(t, l, far.Stop)
}

func TestDeadlineAllocatesNothing(t *testing.T) {
	l := &Loop{now: time.Unix(1e9, 0)}
	all := make([]Deadline, 1000)
	n := 0
	fn := func() { n++ }
	step := func() {
		for i := range all {
			all[i].Arm(l, time.Duration(i)*time.Millisecond, fn)
		}
		for i := range all {
			if i%3 == 0 {
				all[i].Stop()
			}
		}
		l.now = l.now.Add(700 * time.Millisecond)
		l.wheel.advance(l.now)
	}
	for range 100 { // all levels that are needed
		step()
	}
	if a := testing.AllocsPerRun(100, step); a > 0 || n == 0 {
		t.Errorf("%.1f allocations, %d have run", a, n)
	}
}

func BenchmarkDeadline(b *testing.B) {
	l := &Loop{now: time.Unix(1e9, 0)}
	all := make([]Deadline, 10_000)
	fn := func() {}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		t := &all[i%len(all)]
		t.Stop()
		t.Arm(l, 15*time.Second, fn)
		if i%100 == 0 {
			l.now = l.now.Add(time.Millisecond)
			l.wheel.advance(l.now)
		}
	}
}
