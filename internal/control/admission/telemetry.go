package admission

import (
	"strings"

	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
)

// telemetry judges what needs no other object: providers are of the mesh's settings, and
// the status says whether they are there.
func (c *checker) telemetry(t *telemetryv1.Telemetry) {
	c.targets(t.Namespace, &t.Spec)
	m := telemetry.Check(t)
	invalid, refused := m.Invalid, m.Refused
	if targets.Selects(t) { // it is for node proxies alone
		invalid, refused = m.Nodes.Invalid, m.Nodes.Refused
	}
	for _, i := range invalid {
		field, what, _ := strings.Cut(i, ": ")
		c.invalid(field, "%s", what)
	}
	for _, r := range refused {
		field, what, _ := strings.Cut(r, ": ")
		c.say(Ignored, field, "remove it", "%s", what)
	}
}
