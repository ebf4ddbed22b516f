package registry

import (
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Deployments holds the Gateways of the control plane's own cluster whose proxies it
// runs. It may be used from any goroutine.
type Deployments struct {
	mu      sync.Mutex
	now     map[tables.Ref]deployed // guarded by mu
	signals []chan struct{}         // guarded by mu
}

// deployed is what counts of a Gateway for its proxies.
type deployed struct {
	*deploy.Plan
	named bool // labelled for this control plane's revision
}

func sameDeployed(a, b deployed) bool {
	return a.named == b.named && tables.SamePlan(a.Plan, b.Plan) && equality.Semantic.DeepEqual(a.Gateway, b.Gateway)
}

// Changed returns a channel of the caller's own that has a value after a change.
func (d *Deployments) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := make(chan struct{}, 1)
	d.signals = append(d.signals, c)
	return c
}

// List returns the Gateways that are labelled for this control plane's revision
// (named), or for none. A plan that did not change is the same pointer.
func (d *Deployments) List(named bool) []*deploy.Plan {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*deploy.Plan
	for _, g := range d.now {
		if g.named == named {
			out = append(out, g.Plan)
		}
	}
	slices.SortFunc(out, func(a, b *deploy.Plan) int {
		return strings.Compare(a.Gateway.Namespace+"/"+a.Gateway.Name, b.Gateway.Namespace+"/"+b.Gateway.Name)
	})
	return out
}

func (d *Deployments) apply(changes []collection.Change[tables.Ref, deployed]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range changes {
		if c.Has {
			d.now[c.Key] = c.New
		} else {
			delete(d.now, c.Key)
		}
	}
	for _, s := range d.signals {
		select {
		case s <- struct{}{}:
		default:
		}
	}
}

// deriveDeployments adds the Gateways to run to the graph.
func (r *Registry) deriveDeployments() {
	r.Deployments = &Deployments{now: map[tables.Ref]deployed{}}
	collection.Map(r.in.Gateways.Collection, "gateways to run", sameDeployed, func(rd *collection.Reader, k tables.Ref, g *gatewayv1.Gateway) (deployed, bool) {
		revision, labelled := g.Labels[wellknown.LabelRevision]
		named := labelled && len(r.opts.Revisions) > 0
		if k.Cluster != (source.Cluster{}) || !deploy.Managed(g) || named && !slices.Contains(r.opts.Revisions, revision) {
			return deployed{}, false
		}
		return deployed{named: named, Plan: r.t.Plan(rd, &r.in, k, &gatewayv1.Gateway{
			ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: g.Name, UID: g.UID, Labels: g.Labels, Annotations: g.Annotations},
			Spec:       g.Spec,
		})}, true
	}).OnChange(r.Deployments.apply)
}
