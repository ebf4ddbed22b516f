package tables

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Moved names an object whose traffic moves.
type Moved struct {
	Kind *source.Kind
	Ref
}

// Passage is what is in effect for an object whose traffic moves.
type Passage struct {
	binding.State
	Left []Ref
}

func samePassage(a, b Passage) bool { return slices.Equal(a.Left, b.Left) && a.Equal(b.State) }
