package tables

import (
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
)

// Observes compiles a Telemetry for gateways.
func (t *Tables) Observes(r *collection.Reader, p *telemetryv1.Telemetry) *telemetry.Made {
	mesh, _ := collection.Fetch(r, t.meshTelemetry, struct{}{})
	return telemetry.Translate(p, mesh, func(host string) (string, bool) { return t.hostOwner(r, host) })
}

// hostOwner returns the namespace of the entry that has a host.
func (t *Tables) hostOwner(r *collection.Reader, host string) (string, bool) {
	at, ok := collection.Fetch(r, t.owners, host)
	return at.Namespace, ok
}
