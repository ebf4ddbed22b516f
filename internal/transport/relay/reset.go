package relay

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	// lingerStep is how often a socket that is going to be reset is looked at,
	// lingerIdle how long its peer may take nothing: it is a program on this
	// node or one network away, and if it took nothing for so long it does not
	// read any more.
	lingerStep = 5 * time.Millisecond
	lingerIdle = time.Second

	// LingerBlocked is how long a flow whose one side was reset waits for the
	// other side to take what came before the reset.
	LingerBlocked = 10 * time.Second
)

// Reset closes a TCP socket with a reset as soon as its peer has acknowledged
// everything written to it, or stopped doing so: a reset throws away what is
// still in the send buffer, and what came before a reset must not be lost by
// passing it on. The socket belongs to Reset and is watched by no loop. It is
// called on the loop's goroutine.
func Reset(l *poll.Loop, fd int) {
	unsent := poll.Unsent(fd)
	if unsent == 0 {
		poll.ResetFD(fd)
		return
	}
	// Whatever ends this process or loop meanwhile closes it as a reset.
	poll.SetReset(fd)
	began, moved := l.Now(), l.Now()
	var t *poll.Timer
	t = l.AfterFunc(lingerStep, func() {
		now := poll.Unsent(fd)
		if now != unsent {
			unsent, moved = now, l.Now()
		}
		if now == 0 || l.Now().Sub(moved) > lingerIdle || l.Now().Sub(began) > LingerBlocked {
			poll.CloseFD(fd)
			return
		}
		t.Reset(lingerStep)
	})
}
