package registry

import "github.com/ambit-mesh/ambit/internal/mesh/egress"

// SetOutbound sets the outbound traffic policy of the mesh. nil stands for none, which
// allows any destination.
func (r *Registry) SetOutbound(m *egress.Mode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setOutbound(m)
	r.settle()
}

func (r *Registry) setOutbound(m *egress.Mode) {
	if m == nil {
		r.in.Outbound.Delete(struct{}{})
	} else {
		r.in.Outbound.Set(struct{}{}, *m)
	}
}
