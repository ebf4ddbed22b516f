package registry

import (
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
)

// followKeys has the keys fetched that objects name.
func (r *Registry) followKeys() {
	if r.opts.Keys == nil {
		return
	}
	keySources(&r.in).OnChange(func(changes []collection.Change[jwks.Source, struct{}]) {
		for _, c := range changes {
			if c.Has {
				r.opts.Keys.Want(c.Key)
			} else {
				r.opts.Keys.Forget(c.Key)
			}
		}
	})
}

// SetKeys takes in what is known of the keys of a source; nil when that is nothing.
func (r *Registry) SetKeys(s jwks.Source, state *jwks.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if state == nil {
		r.in.Keys.Delete(s)
	} else {
		r.in.Keys.Set(s, state)
	}
	r.settle()
}

// SetTelemetry replaces what the mesh's settings say of telemetry.
func (r *Registry) SetTelemetry(m *telemetry.Mesh) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.Mesh.Set(struct{}{}, m)
	r.settle()
}

// keySources are where the keys of RequestAuthentications come from.
func keySources(in *tables.Inputs) *collection.Collection[jwks.Source, struct{}] {
	return collection.FlatMap(in.Tokens.Collection, "sources of keys", tables.Same[struct{}], tables.Ref.Compare,
		func(_ *collection.Reader, k tables.Ref, p *securityv1.RequestAuthentication, emit func(jwks.Source, struct{})) {
			if len(targets.Refs(&p.Spec)) == 0 {
				return
			}
			for _, rule := range p.Spec.GetJwtRules() {
				if s, ok := policy.SourceOf(k.Namespace, rule); ok {
					emit(s, struct{}{})
				}
			}
		})
}
