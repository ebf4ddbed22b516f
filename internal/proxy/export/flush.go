package export

import (
	"context"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// flushLook is how often FlushAll looks whether anything is left.
const flushLook = 20 * time.Millisecond

// FlushAll calls flush on each loop, with its number, until all report that nothing is
// left or ctx ends.
func FlushAll(ctx context.Context, loops *poll.Group, flush func(loop int) (empty bool)) {
	for {
		empty := make(chan bool, loops.Len())
		n := 0
		for i := range loops.Len() {
			if loops.Loop(i).Post(func() { empty <- flush(i) }) {
				n++
			}
		}
		again := false
		for range n {
			select {
			case one := <-empty:
				again = again || !one
			case <-ctx.Done():
				return
			}
		}
		if !again {
			return
		}
		select {
		case <-time.After(flushLook):
		case <-ctx.Done():
			return
		}
	}
}
