package workload

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/testutil/eqtest"
)

// What an equality does not notice is never applied to a resource that exists.
func TestEqualitiesNoticeEveryField(t *testing.T) {
	eqtest.Fields(t, (*Service).same)
	// refs counts the owners of traits and is no part of them.
	eqtest.Fields(t, func(a, b *Traits) bool { return a.same(b) }, "refs")
	eqtest.Fields(t, func(a, b *Workload) bool {
		if x, y := a.Traits, b.Traits; x != nil && y != nil && x.same(y) {
			c := *b
			c.Traits, b = x, &c // as intern does
		}
		return a.same(b)
	}, "Traits.refs")
}
