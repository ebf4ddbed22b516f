// Package registry holds the objects of all sources and publishes what is derived of them
// (package tables): the resources of node proxies and waypoints, which callers may have
// whose certificate, and the status of each object. An edit of a pod recomputes that
// pod's workload alone.
package registry

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Publisher takes updates, in order, one at a time.
type Publisher interface {
	Publish(Update)
	// Synced is called once, after the update with the first full state.
	Synced()
}

// Registry derives. It is a source.Sink; its methods may be called from any
// goroutine, and do their work one at a time.
type Registry struct {
	opts     tables.Options
	out      Publisher
	Nodes    *access.Nodes
	Gateways *access.Gateways
	// Deployments are the Gateways whose proxies this control plane runs. It is nil
	// without Options.WriteBack.
	Deployments *Deployments
	// Reports are for writers of status. It is nil without Options.WriteBack.
	Reports *status.Reports

	mu      sync.Mutex
	graph   *collection.Graph
	in      tables.Inputs
	origins map[source.Key]string
	t       *tables.Tables
	update  pending
	moves   moves
	kinds   []*reporter
}

// New returns an empty registry that publishes to out.
func New(opts tables.Options, out Publisher) *Registry {
	r := &Registry{
		opts:    opts.WithDefaults(),
		out:     out,
		graph:   collection.NewGraph(),
		origins: map[source.Key]string{},
		update:  newPending(),
	}
	r.Nodes, r.Gateways = access.NewNodes(r.opts.TrustDomain, r.opts.BoundCallers), access.NewGateways()
	r.in = tables.NewInputs(r.graph)
	r.t = tables.New(r.opts, &r.in)
	r.in.Clusters.Set(source.Cluster{}, tables.ClusterFacts{
		ID: r.opts.ClusterID, Domain: r.opts.ClusterDomain, Network: r.opts.Network, TrustDomain: r.opts.TrustDomain,
	})
	r.in.Domains.Set(struct{}{}, policy.TrustDomains{Local: r.opts.TrustDomain, Aliases: r.opts.TrustDomainAliases})
	if opts.Visibility != nil {
		r.in.Visibility.Set(struct{}{}, opts.Visibility)
	}
	r.setOutbound(opts.Outbound)
	r.in.Providers.Set(struct{}{}, opts.Providers)
	if opts.Telemetry != nil {
		r.in.Mesh.Set(struct{}{}, opts.Telemetry)
	}
	r.update.follow(r.t)
	r.t.Placements.OnChange(r.placed)
	r.t.GatewayAccounts.OnChange(r.gatewaysChanged)
	r.followMoves()
	r.followKeys()
	r.kinds = r.reporters()
	if r.opts.WriteBack {
		r.deriveReports()
		r.deriveDeployments()
	}
	out.Publish(fixedUpdate(r.opts))
	return r
}

// Apply implements source.Sink.
func (r *Registry) Apply(events []source.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if e.Object != nil && (!r.knows(e.Key) || !r.sees(e.Key.Kind, e.Object)) {
			e.Object = nil // or no longer for this control plane
		}
		if e.Object == nil {
			delete(r.origins, e.Key)
		} else {
			if _, had := r.origins[e.Key]; !had && r.moves.on {
				r.moves.fresh[e.Key] = struct{}{}
			}
			r.origins[e.Key] = e.Origin
		}
		r.in.Put(e.Key, e.Object)
	}
	r.settle()
	clear(r.moves.fresh)
}

// SetVisibility says who may see ServiceEntries; nil when they say so
// themselves.
func (r *Registry) SetVisibility(v *meshconfig.Visibility) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v == nil {
		r.in.Visibility.Delete(struct{}{})
	} else {
		r.in.Visibility.Set(struct{}{}, v)
	}
	r.settle()
}

// SetProviders replaces the external authorizers that policies may name.
func (r *Registry) SetProviders(p meshconfig.Providers) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.Providers.Set(struct{}{}, p)
	r.settle()
}

// SetTrustDomainAliases replaces the other names of the trust domain that
// policies may use.
func (r *Registry) SetTrustDomainAliases(aliases []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.Domains.Set(struct{}{}, policy.TrustDomains{Local: r.opts.TrustDomain, Aliases: slices.Clone(aliases)})
	r.settle()
}

// settle derives, and publishes what has changed. Targets that changed put what is in
// effect meanwhile into an input, which is derived before anything is published.
func (r *Registry) settle() {
	r.graph.Settle()
	r.graph.Settle()
	if u := r.update.take(); len(u) > 0 {
		r.out.Publish(u)
	}
}

// sees reports whether an object is meant for this control plane.
func (r *Registry) sees(kind *source.Kind, obj metav1.Object) bool {
	revision, named := obj.GetLabels()[wellknown.LabelRevision]
	return !named || !kind.Revisioned || len(r.opts.Revisions) == 0 || slices.Contains(r.opts.Revisions, revision)
}

// named reports whether an object that is looked at is labelled for this control
// plane, so that others do not look at it.
func (r *Registry) named(kind *source.Kind, obj metav1.Object) bool {
	_, labelled := obj.GetLabels()[wellknown.LabelRevision]
	return labelled && kind.Revisioned && len(r.opts.Revisions) > 0
}

// Synced implements source.Sink.
func (r *Registry) Synced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out.Synced()
}
