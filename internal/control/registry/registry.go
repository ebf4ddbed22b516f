// Package registry knows what the mesh consists of: it turns the objects of
// all sources into the resources that node proxies are told about (workloads,
// services, policies), into who may ask for whose certificate, and into what
// there is to say about each object. Everything is derived incrementally; an
// edit of a pod recomputes that pod's workload.
package registry

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Options describe the mesh; zero values mean the defaults.
type Options struct {
	ClusterID     string // default Kubernetes
	ClusterDomain string // of service names; default cluster.local
	TrustDomain   string // default cluster.local
	// TrustDomainAliases stand for TrustDomain in policies, from the beginning on;
	// see SetTrustDomainAliases.
	TrustDomainAliases []string
	Network            string // of everything that does not say otherwise
	RootNamespace      string // whose policies hold everywhere; default istio-system
	// Revisions are the names of this control plane, when there may be others:
	// what users configure for another of them is not looked at. None: all is.
	Revisions []string
	// Visibility is what SetVisibility says, from the beginning on.
	Visibility *meshconfig.Visibility
	// Providers are those of SetProviders, from the beginning on.
	Providers meshconfig.Providers
	// Telemetry is the value of SetTelemetry from the beginning on.
	Telemetry *telemetry.Mesh
	// WaypointBypass lets traffic go around waypoints, as Istio does, where no
	// annotation decides for its object.
	WaypointBypass bool
	// WriteBack keeps Reports, for a writer.
	WriteBack bool
	// BoundCallers makes Nodes accept only callers whose credentials are bound
	// to a pod that is known. Credentials of Kubernetes are.
	BoundCallers bool
	// Keys gets the sources of keys that objects name; none are fetched without it.
	Keys Keys
}

func (o Options) withDefaults() Options {
	o.ClusterID = cmp.Or(o.ClusterID, wellknown.DefaultCluster)
	o.ClusterDomain = cmp.Or(o.ClusterDomain, wellknown.DefaultDomain)
	o.TrustDomain = cmp.Or(o.TrustDomain, identity.DefaultTrustDomain)
	o.RootNamespace = cmp.Or(o.RootNamespace, wellknown.SystemNamespace)
	return o
}

// Ref names an object.
type Ref = source.Ref

// Space names an object of cluster scope.
type Space = source.Space

// Host is a host name as the objects of a namespace have it. It is of no
// cluster: what several clusters have under it is one service.
type Host struct{ Namespace, Hostname string }

// String renders namespace/hostname, which is the name of the service's
// resource.
func (h Host) String() string { return h.Namespace + "/" + h.Hostname }

// Compare orders by namespace, then host name.
func (h Host) Compare(o Host) int {
	return cmp.Or(strings.Compare(h.Namespace, o.Namespace), strings.Compare(h.Hostname, o.Hostname))
}

// Publisher takes updates, in order, one at a time.
type Publisher interface {
	Publish(Update)
	// Synced is called once, after the update with the first full state.
	Synced()
}

// Registry derives. It is a source.Sink; its methods may be called from any
// goroutine, and do their work one at a time.
type Registry struct {
	opts     Options
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
	in      inputs
	origins map[source.Key]string
	t       *tables
	update  pending
	moves   moves
	kinds   []*reporter
}

func sameDomains(a, b policy.TrustDomains) bool { return slices.Equal(a.All(), b.All()) }

// New returns an empty registry that publishes to out.
func New(opts Options, out Publisher) *Registry {
	r := &Registry{
		opts:    opts.withDefaults(),
		out:     out,
		graph:   collection.NewGraph(),
		origins: map[source.Key]string{},
		update:  newPending(),
	}
	r.Nodes, r.Gateways = access.NewNodes(r.opts.TrustDomain, r.opts.BoundCallers), access.NewGateways()
	r.in = newInputs(r.graph)
	r.t = newTables(r.opts, &r.in)
	r.in.clusters.Set(source.Cluster{}, clusterFacts{
		id: r.opts.ClusterID, domain: r.opts.ClusterDomain, network: r.opts.Network, trustDomain: r.opts.TrustDomain,
	})
	r.in.domains.Set(struct{}{}, policy.TrustDomains{Local: r.opts.TrustDomain, Aliases: r.opts.TrustDomainAliases})
	if opts.Visibility != nil {
		r.in.visibility.Set(struct{}{}, opts.Visibility)
	}
	r.in.providers.Set(struct{}{}, opts.Providers)
	if opts.Telemetry != nil {
		r.in.mesh.Set(struct{}{}, opts.Telemetry)
	}
	r.update.follow(r.t)
	r.t.placements.OnChange(r.placed)
	r.t.gatewayAccounts.OnChange(r.gatewaysChanged)
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
		r.in.put(e.Key, e.Object)
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
		r.in.visibility.Delete(struct{}{})
	} else {
		r.in.visibility.Set(struct{}{}, v)
	}
	r.settle()
}

// SetProviders replaces the external authorizers that policies may name.
func (r *Registry) SetProviders(p meshconfig.Providers) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.providers.Set(struct{}{}, p)
	r.settle()
}

// SetTrustDomainAliases replaces the other names of the trust domain that
// policies may use.
func (r *Registry) SetTrustDomainAliases(aliases []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.domains.Set(struct{}{}, policy.TrustDomains{Local: r.opts.TrustDomain, Aliases: slices.Clone(aliases)})
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

// encode marshals a resource, once, the same bytes for the same content.
func encode(typeURL, name string, aliases []string, m proto.Message) *xds.Resource {
	// Messages made here marshal: their strings come from decoded JSON.
	body, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return xds.NewResource(typeURL, name, aliases, body)
}

func sameResource(a, b *xds.Resource) bool {
	return a.Name == b.Name && bytes.Equal(a.Body, b.Body) && slices.Equal(a.Aliases, b.Aliases) && slices.Equal(a.With, b.With) && slices.Equal(a.Groups, b.Groups) && a.Late == b.Late
}
