package registry

import (
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
)

// SetTelemetry replaces what the mesh's settings say of telemetry.
func (r *Registry) SetTelemetry(m *telemetry.Mesh) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.mesh.Set(struct{}{}, m)
	r.settle()
}

// observes compiles a Telemetry for gateways.
func (t *tables) observes(r *collection.Reader, p *telemetryv1.Telemetry) *telemetry.Made {
	mesh, _ := collection.Fetch(r, t.meshTelemetry, struct{}{})
	return telemetry.Translate(p, mesh, func(host string) (string, bool) { return t.hostOwner(r, host) })
}

// hostOwner returns the namespace of the entry that has a host.
func (t *tables) hostOwner(r *collection.Reader, host string) (string, bool) {
	at, ok := collection.Fetch(r, t.owners, host)
	return at.Namespace, ok
}

func (d describer) telemetry(n Ref, p *telemetryv1.Telemetry) []status.Condition {
	if res, ok := collection.Fetch(d.r, d.t.targets.Telemetry, n); ok {
		return res.Conditions
	}
	return []status.Condition{targets.Observed(n, p, d.t.observes(d.r, p), d.t.opts.RootNamespace)}
}
