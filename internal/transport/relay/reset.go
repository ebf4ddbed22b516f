package relay

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	// lingerStep and lingerMax bound how long a socket that is going to be
	// reset is kept for its peer to receive what was written before. Peers are
	// programs on this node or one network away; one that has not taken the
	// bytes by then is not going to.
	lingerStep = 5 * time.Millisecond
	lingerMax  = time.Second

	// LingerBlocked is how long a flow whose one side was reset waits for the
	// other side to take what came before the reset.
	LingerBlocked = 10 * time.Second
)

// Reset closes a TCP socket with a reset as soon as its peer has acknowledged
// everything written to it, or after a second: a reset throws away what is
// still in the send buffer, and what came before a reset must not be lost by
// passing it on. The socket belongs to Reset and is watched by no loop. It is
// called on the loop's goroutine.
func Reset(l *poll.Loop, fd int) {
	if poll.Unsent(fd) == 0 {
		poll.ResetFD(fd)
		return
	}
	// Whatever ends this process or loop meanwhile closes it as a reset.
	poll.SetReset(fd)
	left := int(lingerMax / lingerStep)
	var t *poll.Timer
	t = l.AfterFunc(lingerStep, func() {
		if left--; left <= 0 || poll.Unsent(fd) == 0 {
			poll.CloseFD(fd)
			return
		}
		t.Reset(lingerStep)
	})
}
