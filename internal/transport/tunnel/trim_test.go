package tunnel

import (
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// TestTrimmedWhileBusy: loops that drop their buffers after every turn carry every byte, in
// whatever state their tunnels are.
func TestTrimmedWhileBusy(t *testing.T) {
	for name, library := range map[string]bool{"own records": false, "crypto/tls": true} {
		t.Run(name, func(t *testing.T) {
			near, far := links(t, Security{Config: config(t), LibraryRecords: library}, Security{Config: server(config(t)), Server: true, LibraryRecords: library})
			p := newPair(t, near, far)
			over := make(chan struct{})
			var trimming, carrying sync.WaitGroup
			for _, g := range []*poll.Group{p.near, p.far} {
				trimming.Go(func() {
					for {
						select {
						case <-over:
							return
						default:
						}
						g.Trim()
						on(t, g.Loop(0), func() {})
					}
				})
			}
			for range 8 {
				c := p.open()
				carrying.Go(func() { echoes(t, c, 3<<20) })
			}
			for _, n := range []int{0, 1, 1000, 100_000} {
				echoes(t, p.open(), n)
			}
			carrying.Wait()
			close(over)
			trimming.Wait()
		})
	}
}
