package tables

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/testutil/eqtest"
)

// What an equality does not notice is never published.
func TestEqualitiesNoticeEveryField(t *testing.T) {
	eqtest.Fields(t, sameCore)
	eqtest.Fields(t, sameWaypoint)
	eqtest.Fields(t, func(a, b *attachment) bool { return sameAttachment(*a, *b) })
	// The version and the wire format follow from the body.
	eqtest.Fields(t, SameResource, "Version")
}
