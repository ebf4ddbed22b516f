package tables

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/control/policy"
)

// samePointer is the equality of inputs: a source that delivers the very same
// object reports that nothing changed.
func samePointer[T any](a, b *T) bool { return a == b }

func sameDomains(a, b policy.TrustDomains) bool { return slices.Equal(a.All(), b.All()) }

// Same is the equality of values that compare.
func Same[V comparable](a, b V) bool { return a == b }

// Never is the equality of values that are only remade when something changed.
func Never[V any](V, V) bool { return false }
