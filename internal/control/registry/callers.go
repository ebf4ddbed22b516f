package registry

import (
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/source"
)

// placement leaves out pods without an account of their own: a node can create
// such a pod in any namespace, and gets no identity by it.
func (t *tables) placement(_ *collection.Reader, _ Ref, p *corev1.Pod) (access.Placement, bool) {
	account, ok := source.Account(p)
	if !ok || source.Ended(p) || p.Spec.NodeName == "" {
		return access.Placement{}, false
	}
	return access.Placement{Node: p.Spec.NodeName, Account: account, UID: string(p.UID)}, true
}

// placed passes on where pods run.
func (r *Registry) placed(changes []collection.Change[Ref, access.Placement]) {
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

// gatewayAccount returns the service account that the proxies of a Gateway run
// as. Classes of other projects have none that is known.
func gatewayAccount(_ *collection.Reader, _ Ref, g *gatewayv1.Gateway) (string, bool) {
	return deploy.Account(g)
}

// gatewaysChanged passes on which accounts are of gateways.
func (r *Registry) gatewaysChanged(changes []collection.Change[Ref, string]) {
	for _, c := range changes {
		account := ""
		if c.Has {
			account = c.New
		}
		r.Gateways.Set(access.Gateway{Cluster: r.clusterID(c.Key.Cluster), Namespace: c.Key.Namespace, Name: c.Key.Name}, account)
	}
}
