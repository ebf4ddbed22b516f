package admission

import (
	"strings"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/egress"
)

// egressPolicy judges what needs no other object.
func (c *checker) egressPolicy(p *ambit.EgressPolicy) {
	if invalid := egress.Invalid(&p.Spec); invalid != "" {
		field, what, _ := strings.Cut(invalid, ": ")
		c.invalid("spec."+field, "%s", what)
		return
	}
	for _, w := range egress.Warnings(&p.Spec) {
		field, what, _ := strings.Cut(w, ": ")
		c.say(Ignored, "spec."+field, "", "%s", what)
	}
}
