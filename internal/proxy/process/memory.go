package process

import (
	"context"
	"log/slog"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/resident"
)

const (
	// lookBusy is how often the work of the loops is looked at while memory may be given
	// back, lookCalm after that.
	lookBusy, lookCalm = time.Second, 5 * time.Second
	// calmTurns is up to how many turns in a second are little work, for all loops together.
	calmTurns = 200
	// calmLooks is how many looks in a row must find little work.
	calmLooks = 3
	// leastPause bounds how often memory is given back.
	leastPause = 15 * time.Second
	// worthwhile is how much a calm proxy allocates before memory is given back once more.
	worthwhile = 4 << 20
)

// GiveBack returns memory to the kernel whenever the loops have had little to do for a few
// seconds: what a start or a burst has left behind. It returns when ctx ends.
func GiveBack(ctx context.Context, loops *poll.Group, log *slog.Logger) {
	c := calm{last: loops.Turns()}
	timer := time.NewTimer(lookBusy)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if c.look(now, loops.Turns(), allocated()) {
			loops.Trim()
			runtime.GC() // what a sync.Pool holds goes with the second collection
			debug.FreeOSMemory()
			if err := resident.Unmap(); err != nil {
				log.Debug("pages of the program stay mapped", "error", err)
			}
			c.gave(time.Now(), loops.Turns(), allocated())
		}
		timer.Reset(c.pause)
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

// calm decides when memory is given back.
type calm struct {
	at      time.Time     // of the last look
	last    uint64        // turns up to then
	quiet   int           // looks in a row that have found little work
	since   time.Time     // when memory was given back
	then    uint64        // bytes that were allocated up to then
	resting bool          // there was little work ever since
	pause   time.Duration // until the next look
}

// look takes in the turns that loops have taken and the bytes that were allocated, both since
// the start. It reports whether memory is to be given back now.
func (c *calm) look(now time.Time, turns, bytes uint64) bool {
	past := max(now.Sub(c.at), lookBusy)
	if c.at.IsZero() {
		past = lookBusy
	}
	little := float64(turns-c.last) <= calmTurns*past.Seconds()
	c.at, c.last = now, turns
	c.pause = lookBusy
	if !little {
		c.quiet, c.resting = 0, false
		return false
	}
	if c.quiet++; c.quiet < calmLooks {
		return false
	}
	if c.resting {
		c.pause = lookCalm
	}
	return (!c.resting || bytes-c.then >= worthwhile) && now.Sub(c.since) >= leastPause
}

// gave notes that memory was given back.
func (c *calm) gave(now time.Time, turns, bytes uint64) {
	c.at, c.last, c.since, c.then, c.resting, c.pause = now, turns, now, bytes, true, lookCalm
}
