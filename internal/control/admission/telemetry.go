package admission

import (
	"strings"

	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/internal/control/telemetry"
)

// telemetry judges what needs no other object: providers are of the mesh's settings, and
// the status says whether they are there.
func (c *checker) telemetry(t *telemetryv1.Telemetry) {
	c.targets(t.Namespace, &t.Spec)
	if len(t.Spec.GetSelector().GetMatchLabels()) > 0 {
		c.say(Ignored, "spec.selector", "name the Service or the waypoint in targetRefs", "no waypoint honours a selector, which selects pods with sidecars")
	}
	m := telemetry.Check(t)
	for _, i := range m.Invalid {
		field, what, _ := strings.Cut(i, ": ")
		c.invalid(field, "%s", what)
	}
	for _, r := range m.Refused {
		field, what, _ := strings.Cut(r, ": ")
		c.say(Ignored, field, "remove it", "%s", what)
	}
}
