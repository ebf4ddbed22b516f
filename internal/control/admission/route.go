package admission

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/routes"
)

// route judges the rules of a route for services. What other controllers read
// as well is not refused: they may execute it.
func (c *checker) route(obj metav1.Object) {
	review, _ := routes.Check(obj)
	if !review.Mesh {
		return
	}
	if review.Hostnames {
		c.say(Ignored, "spec.hostnames", "remove them, or match the header Host", "hostnames have no meaning for a parent that is a Service or a ServiceEntry")
	}
	for _, p := range review.Problems {
		field := fmt.Sprintf("spec.rules[%d]", p.Rule)
		switch {
		case p.Effect == routes.Dropped && review.Only:
			c.invalid(field, "%s", p.Text)
		case p.Effect == routes.Dropped:
			c.say(Failing, field, "", "%s: in the mesh, the rule fits no request", p.Text)
		case p.Effect == routes.Failing:
			c.say(Failing, field, "", "%s: in the mesh, its %s", p.Text, review.Refusal)
		default:
			c.say(Ignored, field, "", "%s", p.Text)
		}
	}
}
