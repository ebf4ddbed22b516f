//go:build !race

// The race detector allocates, so that allocations are counted without it.

package authn

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// TestNoAllocations: a token that is remembered costs no allocation, nor does a request
// without one.
func TestNoAllocations(t *testing.T) {
	set, heads := steady(t)
	for name, from := range heads {
		c, h := NewCheck(NewVerifier(), nil), &message.Head{}
		run := func() {
			h.CopyFrom(from)
			if err := c.Request(set, h, now); err != nil {
				t.Fatal(why(err))
			}
		}
		for range 3 {
			run()
		}
		if n := testing.AllocsPerRun(100, run); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
