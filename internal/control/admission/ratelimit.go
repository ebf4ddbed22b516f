package admission

import (
	"strings"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/limits"
)

// rateLimit judges what needs no other object.
func (c *checker) rateLimit(o *ambit.RateLimit) {
	for _, i := range limits.Translate(o).Invalid {
		field, what, _ := strings.Cut(i, ": ")
		c.invalid(field, "%s", what)
	}
}
