package admission

import (
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/internal/control/traffic"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// destinationRule judges what needs no other object.
func (c *checker) destinationRule(d *networkingv1.DestinationRule) {
	m := traffic.Translate(d, traffic.Place{Domain: wellknown.DefaultDomain, RootNamespace: c.root})
	for _, i := range m.Invalid {
		field, what, _ := strings.Cut(i, ": ")
		c.invalid(field, "%s", what)
	}
	for _, r := range m.Refused {
		field, what, _ := strings.Cut(r, ": ")
		c.say(Ignored, field, "remove it", "%s", what)
	}
}
