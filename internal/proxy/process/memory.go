package process

import (
	"context"
	"log/slog"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/resident"
)

const (
	// lookEvery is how often the work of the loops is looked at, while they do some.
	lookEvery = 200 * time.Millisecond
	// calmTurns is up to how many turns in a second are little work, for all loops together.
	calmTurns = 200
	// calmLooks is how many looks in a row find little work before memory is given back.
	calmLooks = 3
	// Memory is given back at most once in leastPause. It takes at most one part in share of a
	// processor, unless that would be a wait longer than mostPause.
	leastPause, mostPause, share = 8 * time.Second, 15 * time.Second, 1000
	// lookAsleep is how often it is looked at while they sleep: scrapes of metrics allocate.
	lookAsleep = 10 * time.Second
	// worthwhile is how much a calm proxy allocates before memory is given back once more.
	worthwhile = 1 << 20
)

// GiveBack returns memory to the kernel whenever the loops have had little to do for a
// moment: what a start or a burst has left behind. While they sleep it looks rarely. It
// returns when ctx ends.
func GiveBack(ctx context.Context, loops *poll.Group, log *slog.Logger) {
	c := calm{at: time.Now(), turns: loops.Turns()}
	unmapped := false
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		switch c.look(time.Now(), loops.Turns(), allocated) {
		case giveBack:
			begun := time.Now()
			loops.Trim()
			debug.FreeOSMemory()
			if !unmapped { // once, after the start: what connections use comes back, and stays
				unmapped = true
				if err := resident.Unmap(); err != nil {
					log.Debug("pages of the program stay mapped", "error", err)
				}
			}
			c.gave(begun, time.Now(), loops.Turns(), allocated())
		case sleep:
			loops.Watch()
			select {
			case <-loops.Worked():
			case <-time.After(lookAsleep):
			case <-ctx.Done():
				return
			}
		case lookAgain:
		}
		timer.Reset(lookEvery)
	}
}

// allocated returns how many bytes the process has allocated on the heap in its life.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	if metrics.Read(s); s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}

// action is what follows from a look.
type action uint8

const (
	lookAgain action = iota
	giveBack
	sleep // until a loop works
)

// calm decides when memory is given back.
type calm struct {
	at      time.Time // of the last look
	turns   uint64    // up to then
	quiet   int       // looks in a row that have found little work
	resting bool      // memory was given back, and there was little work ever since
	next    time.Time // when memory may be given back again
	bytes   uint64    // that were allocated up to the last time
}

// look takes in the turns that loops have taken since the start, and the bytes that were
// allocated.
func (c *calm) look(now time.Time, turns uint64, allocated func() uint64) action {
	little := float64(turns-c.turns) <= calmTurns*max(now.Sub(c.at), lookEvery).Seconds()
	c.at, c.turns = now, turns
	if !little {
		c.quiet, c.resting = 0, false
		return lookAgain
	}
	if c.quiet++; c.quiet < calmLooks {
		return lookAgain
	}
	switch {
	case c.resting && allocated()-c.bytes < worthwhile:
		c.quiet = 0
		return sleep
	case now.Before(c.next):
		return lookAgain
	}
	return giveBack
}

// gave notes that memory was given back, from one time to another.
func (c *calm) gave(begun, now time.Time, turns, bytes uint64) {
	*c = calm{at: now, turns: turns, bytes: bytes, resting: true, next: now.Add(min(max(leastPause, share*now.Sub(begun)), mostPause))}
}
