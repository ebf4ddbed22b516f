package poll

import (
	"math/bits"
	"time"
)

// DeadlineTick is the precision of a Deadline.
const DeadlineTick = 4 * time.Millisecond

// Deadline is a function due on a loop, for what is armed often and rarely runs out:
// the timeout of a request, an idle connection. It is part of its owner, and arming
// and stopping it allocate nothing and take constant time, however many a loop has.
// It runs up to DeadlineTick late. The zero value is not armed. Its methods are
// called on the loop's goroutine.
type Deadline struct {
	next, prev *Deadline // nil when it is not armed
	loop       *Loop
	fn         func()
	at         uint64 // due, in ticks of the wheel
	slot       uint64 // when the slot in which it lies is looked at, at most at
}

// Arm has fn run after d, counted from the beginning of this turn, and not what
// was armed before. It does not allocate when fn is kept by the owner: a method
// value is made anew each time it is written.
func (t *Deadline) Arm(l *Loop, d time.Duration, fn func()) {
	if t.loop != l {
		t.Stop()
		t.loop = l
	}
	t.fn = fn
	l.wheel.arm(t, l.now.Add(max(d, 0)))
}

// Rearm is Arm with the loop and the function of the last Arm. Without one it does
// nothing.
func (t *Deadline) Rearm(d time.Duration) {
	if t.loop != nil {
		t.loop.wheel.arm(t, t.loop.now.Add(max(d, 0)))
	}
}

// Stop makes sure that the function does not run, unless armed again.
func (t *Deadline) Stop() { t.unlink() }

// Armed reports whether the function is going to run.
func (t *Deadline) Armed() bool { return t.next != nil }

func (t *Deadline) unlink() {
	if t.next == nil {
		return
	}
	t.next.prev, t.prev.next = t.prev, t.next
	t.next, t.prev = nil, nil
}

const (
	wheelBits   = 6 // a level has as many slots as a word has bits
	wheelSlots  = 1 << wheelBits
	wheelLevels = 6 // 2^36 ticks of 4 ms are 8 years
	wheelMax    = 1<<(wheelBits*wheelLevels) - 1
)

// wheel is a hierarchical timing wheel. A tick is a number of 36 bits, six digits of
// six bits each. A deadline lies at the level of the highest digit in which it
// differs from now, in the slot of that digit. When now reaches a slot's first
// tick, each of its deadlines is due or moves to a lower level.
//
// Because the digits above agree with now, slots of a level are ahead of now, and
// every slot of a level comes before every slot of the level above.
type wheel struct {
	base   time.Time // tick 0
	now    uint64    // the tick up to which slots were looked at
	levels [wheelLevels]*wheelLevel
	due    Deadline // list: of the slot that is being looked at
}

type wheelLevel struct {
	used  uint64 // slots that may have deadlines
	slots [wheelSlots]Deadline
}

// tick returns the tick that has begun at t, or begins next.
func (w *wheel) tick(t time.Time, up bool) uint64 {
	d := t.Sub(w.base)
	if up {
		d += DeadlineTick - 1
	}
	return min(uint64(max(d/DeadlineTick, 0)), wheelMax)
}

func (w *wheel) arm(t *Deadline, at time.Time) {
	if w.base.IsZero() {
		w.base = t.loop.now
	}
	t.at = max(w.tick(at, true), w.now+1)
	if t.next != nil && t.slot <= t.at && t.slot > w.now {
		return // later than before: seen when its slot is looked at
	}
	t.unlink()
	w.insert(t)
}

func (w *wheel) insert(t *Deadline) {
	level := (bits.Len64(t.at^w.now) - 1) / wheelBits
	shift := level * wheelBits
	v := w.levels[level]
	if v == nil {
		v = &wheelLevel{}
		w.levels[level] = v
	}
	i := t.at >> shift % wheelSlots
	v.used |= 1 << i
	t.slot = t.at >> shift << shift
	v.slots[i].push(t)
}

// push puts d at the end of the list that begins with t.
func (t *Deadline) push(d *Deadline) {
	if t.next == nil {
		t.next, t.prev = t, t
	}
	d.next, d.prev = t, t.prev
	t.prev.next = d
	t.prev = d
}

// empty reports whether the list that begins with t has nothing else.
func (t *Deadline) empty() bool { return t.next == nil || t.next == t }

// first returns the first slot with deadlines, and its first tick.
func (w *wheel) first() (level, slot int, at uint64, ok bool) {
	for level, v := range w.levels {
		if v == nil {
			continue
		}
		shift := level * wheelBits
		for v.used != 0 {
			i := bits.TrailingZeros64(v.used)
			if !v.slots[i].empty() {
				above := w.now >> (shift + wheelBits) << (shift + wheelBits)
				return level, i, above | uint64(i)<<shift, true
			}
			v.used &^= 1 << i // what was in it was stopped
		}
	}
	return 0, 0, 0, false
}

// next returns when advance has something to do.
func (w *wheel) next() (time.Time, bool) {
	_, _, at, ok := w.first()
	if !ok {
		return time.Time{}, false
	}
	return w.base.Add(time.Duration(at) * DeadlineTick), true
}

// advance runs what is due.
func (w *wheel) advance(now time.Time) {
	if w.base.IsZero() {
		return
	}
	until := w.tick(now, false)
	for {
		level, i, at, ok := w.first()
		if !ok || at > until {
			break
		}
		w.now = at
		w.levels[level].used &^= 1 << i
		w.take(&w.levels[level].slots[i])
		for !w.due.empty() {
			t := w.due.next
			t.unlink()
			if t.at > at {
				w.insert(t)
				continue
			}
			t.fn()
		}
	}
	w.now = max(w.now, until)
}

// take moves a slot's deadlines to the list of those that are looked at.
func (w *wheel) take(head *Deadline) {
	first, last := head.next, head.prev
	head.next, head.prev = nil, nil
	first.prev, last.next = &w.due, &w.due
	w.due.next, w.due.prev = first, last
}
