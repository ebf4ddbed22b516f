package tables

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
func (t *Tables) placement(_ *collection.Reader, _ Ref, p *corev1.Pod) (access.Placement, bool) {
	account, ok := source.Account(p)
	if !ok || source.Ended(p) || p.Spec.NodeName == "" {
		return access.Placement{}, false
	}
	return access.Placement{Node: p.Spec.NodeName, Account: account, UID: string(p.UID)}, true
}

// gatewayAccount returns the service account that the proxies of a Gateway run
// as. Classes of other projects have none that is known.
func gatewayAccount(_ *collection.Reader, _ Ref, g *gatewayv1.Gateway) (string, bool) {
	return deploy.Account(g)
}
