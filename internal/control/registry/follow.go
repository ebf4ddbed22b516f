package registry

import (
	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/tables"
)

// placed passes on where pods run.
func (r *Registry) placed(changes []collection.Change[tables.Ref, access.Placement]) {
	out := make([]access.PodChange, 0, len(changes))
	for _, c := range changes {
		p := access.PodChange{Pod: access.Pod{Cluster: r.clusterID(c.Key.Cluster), Namespace: c.Key.Namespace, Name: c.Key.Name}}
		if c.Had {
			p.Old = &c.Old
		}
		if c.Has {
			p.New = &c.New
		}
		out = append(out, p)
	}
	r.Nodes.Apply(out)
}

// gatewaysChanged passes on which accounts are of gateways.
func (r *Registry) gatewaysChanged(changes []collection.Change[tables.Ref, string]) {
	for _, c := range changes {
		account := ""
		if c.Has {
			account = c.New
		}
		r.Gateways.Set(access.Gateway{Cluster: r.clusterID(c.Key.Cluster), Namespace: c.Key.Namespace, Name: c.Key.Name}, account)
	}
}
