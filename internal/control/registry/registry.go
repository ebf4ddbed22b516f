// Package registry knows what the mesh consists of: it turns the objects of
// all sources into the resources that node proxies are told about (workloads,
// services, policies), into who may ask for whose certificate, and into what
// there is to say about each object. Everything is derived incrementally; an
// edit of a pod recomputes that pod's workload.
package registry

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
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
	// WriteBack keeps Verdicts, for a writer.
	WriteBack bool
	// BoundCallers makes Nodes accept only callers whose credentials are bound
	// to a pod that is known. Credentials of Kubernetes are.
	BoundCallers bool
}

func (o Options) withDefaults() Options {
	o.ClusterID = cmp.Or(o.ClusterID, wellknown.DefaultCluster)
	o.ClusterDomain = cmp.Or(o.ClusterDomain, wellknown.DefaultDomain)
	o.TrustDomain = cmp.Or(o.TrustDomain, identity.DefaultTrustDomain)
	o.RootNamespace = cmp.Or(o.RootNamespace, wellknown.SystemNamespace)
	return o
}

// Name is a namespaced name.
type Name struct{ Namespace, Name string }

// String renders namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders by namespace, then name.
func (n Name) Compare(o Name) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

// Update is what changed for node proxies. Resources are never changed once
// published.
type Update struct {
	Addresses, Policies               []*xds.Resource
	RemovedAddresses, RemovedPolicies []string
}

func (u *Update) empty() bool {
	return len(u.Addresses)+len(u.Policies)+len(u.RemovedAddresses)+len(u.RemovedPolicies) == 0
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
	opts  Options
	out   Publisher
	Nodes *Nodes
	// Verdicts are on what is labelled for no revision, which all of several
	// control planes look at and one should write, and NamedVerdicts on what is
	// labelled for this one. Both are nil without Options.WriteBack.
	Verdicts, NamedVerdicts *Verdicts

	mu      sync.Mutex
	graph   *collection.Graph
	in      inputs
	origins map[source.Key]string
	t       *tables
	update  Update
}

// inputs are the objects as their sources deliver them.
type inputs struct {
	namespaces collection.Input[string, *corev1.Namespace]
	nodes      collection.Input[string, *corev1.Node]
	accounts   collection.Input[Name, *corev1.ServiceAccount]
	pods       collection.Input[Name, *corev1.Pod]
	services   collection.Input[Name, *corev1.Service]
	slices     collection.Input[Name, *discoveryv1.EndpointSlice]
	workloads  collection.Input[Name, *networkingv1.WorkloadEntry]
	entries    collection.Input[Name, *networkingv1.ServiceEntry]
	policies   collection.Input[Name, *securityv1.AuthorizationPolicy]
	peers      collection.Input[Name, *securityv1.PeerAuthentication]
	gateways   collection.Input[Name, *source.Gateway]
	// What the mesh's administrator says about entries: one row, or none.
	visibility collection.Input[struct{}, *meshconfig.Visibility]
	// The names of the trust domain: always one row.
	domains collection.Input[struct{}, policy.TrustDomains]
}

// samePointer is the equality of inputs: a source that delivers the very same
// object says that nothing changed.
func samePointer[T any](a, b *T) bool { return a == b }

func newInputs(g *collection.Graph) inputs {
	return inputs{
		namespaces: collection.NewInput[string](g, "namespaces", samePointer[corev1.Namespace]),
		nodes:      collection.NewInput[string](g, "nodes", samePointer[corev1.Node]),
		accounts:   collection.NewInput[Name](g, "service accounts", samePointer[corev1.ServiceAccount]),
		pods:       collection.NewInput[Name](g, "pods", samePointer[corev1.Pod]),
		services:   collection.NewInput[Name](g, "services", samePointer[corev1.Service]),
		slices:     collection.NewInput[Name](g, "endpoint slices", samePointer[discoveryv1.EndpointSlice]),
		workloads:  collection.NewInput[Name](g, "workload entries", samePointer[networkingv1.WorkloadEntry]),
		entries:    collection.NewInput[Name](g, "service entries", samePointer[networkingv1.ServiceEntry]),
		policies:   collection.NewInput[Name](g, "authorization policies", samePointer[securityv1.AuthorizationPolicy]),
		peers:      collection.NewInput[Name](g, "peer authentications", samePointer[securityv1.PeerAuthentication]),
		gateways:   collection.NewInput[Name](g, "gateways", samePointer[source.Gateway]),
		visibility: collection.NewInput[struct{}](g, "visibility of entries", samePointer[meshconfig.Visibility]),
		domains:    collection.NewInput[struct{}](g, "trust domains", sameDomains),
	}
}

func sameDomains(a, b policy.TrustDomains) bool { return slices.Equal(a.All(), b.All()) }

// New returns an empty registry that publishes to out.
func New(opts Options, out Publisher) *Registry {
	r := &Registry{
		opts:    opts.withDefaults(),
		out:     out,
		graph:   collection.NewGraph(),
		origins: map[source.Key]string{},
	}
	r.Nodes = newNodes(r.opts.TrustDomain, r.opts.BoundCallers)
	r.in = newInputs(r.graph)
	r.t = newTables(r.opts, &r.in)
	r.in.domains.Set(struct{}{}, policy.TrustDomains{Local: r.opts.TrustDomain, Aliases: r.opts.TrustDomainAliases})
	if opts.Visibility != nil {
		r.in.visibility.Set(struct{}{}, opts.Visibility)
	}
	for _, c := range []*collection.Collection[string, *xds.Resource]{r.t.services, r.t.podWorkloads, r.t.entryWorkloads, r.t.inlineWorkloads, r.t.sliceWorkloads} {
		c.OnChange(func(changes []collection.Change[string, *xds.Resource]) {
			collect(changes, &r.update.Addresses, &r.update.RemovedAddresses)
		})
	}
	for _, c := range []*collection.Collection[string, *xds.Resource]{r.t.authorizations, r.t.converted} {
		c.OnChange(func(changes []collection.Change[string, *xds.Resource]) {
			collect(changes, &r.update.Policies, &r.update.RemovedPolicies)
		})
	}
	r.t.placements.OnChange(r.Nodes.apply)
	if r.opts.WriteBack {
		r.deriveVerdicts()
	}
	strict := policy.StrictPolicy(r.opts.RootNamespace)
	out.Publish(Update{Policies: []*xds.Resource{encode(wellknown.TypeAuthorization, policyName(strict), nil, strict)}})
	return r
}

func collect(changes []collection.Change[string, *xds.Resource], set *[]*xds.Resource, removed *[]string) {
	for _, c := range changes {
		if c.Has {
			*set = append(*set, c.New)
		} else {
			*removed = append(*removed, c.Key)
		}
	}
}

// Apply implements source.Sink.
func (r *Registry) Apply(events []source.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if e.Object != nil && !r.sees(e.Key.Kind, e.Object) {
			e.Object = nil // or no longer ours
		}
		if e.Object == nil {
			delete(r.origins, e.Key)
		} else {
			r.origins[e.Key] = e.Origin
		}
		r.put(e.Key, e.Object)
	}
	r.settle()
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

// SetTrustDomainAliases replaces the other names of the trust domain that
// policies may use.
func (r *Registry) SetTrustDomainAliases(aliases []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.domains.Set(struct{}{}, policy.TrustDomains{Local: r.opts.TrustDomain, Aliases: slices.Clone(aliases)})
	r.settle()
}

// settle derives, and publishes what has changed.
func (r *Registry) settle() {
	r.graph.Settle()
	if r.update.empty() {
		return
	}
	u := r.update
	r.update = Update{}
	u.sort()
	r.out.Publish(u)
}

// OfRevision tells whether objects of a kind may be meant for one revision of the
// control plane. What the cluster is made of is everybody's.
func OfRevision(kind string) bool {
	switch kind {
	case source.KindAuthorizationPolicy, source.KindPeerAuthentication, source.KindServiceEntry, source.KindWorkloadEntry:
		return true
	}
	return false
}

// sees tells whether an object is meant for this control plane.
func (r *Registry) sees(kind string, obj metav1.Object) bool {
	revision, named := obj.GetLabels()[wellknown.LabelRevision]
	return !named || !OfRevision(kind) || len(r.opts.Revisions) == 0 || slices.Contains(r.opts.Revisions, revision)
}

// named tells whether an object that is looked at is labelled for this control
// plane, so that others do not look at it.
func (r *Registry) named(kind string, obj metav1.Object) bool {
	_, labelled := obj.GetLabels()[wellknown.LabelRevision]
	return labelled && OfRevision(kind) && len(r.opts.Revisions) > 0
}

// sort makes updates the same in every run.
func (u *Update) sort() {
	byName := func(a, b *xds.Resource) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(u.Addresses, byName)
	slices.SortFunc(u.Policies, byName)
	slices.Sort(u.RemovedAddresses)
	slices.Sort(u.RemovedPolicies)
}

// Synced implements source.Sink.
func (r *Registry) Synced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out.Synced()
}

func (r *Registry) put(k source.Key, obj metav1.Object) {
	n := Name{k.Namespace, k.Name}
	switch k.Kind {
	case source.KindNamespace:
		set(r.in.namespaces, k.Name, obj)
	case source.KindNode:
		set(r.in.nodes, k.Name, obj)
	case source.KindServiceAccount:
		set(r.in.accounts, n, obj)
	case source.KindPod:
		set(r.in.pods, n, obj)
	case source.KindService:
		set(r.in.services, n, obj)
	case source.KindEndpointSlice:
		set(r.in.slices, n, obj)
	case source.KindWorkloadEntry:
		set(r.in.workloads, n, obj)
	case source.KindServiceEntry:
		set(r.in.entries, n, obj)
	case source.KindAuthorizationPolicy:
		set(r.in.policies, n, obj)
	case source.KindPeerAuthentication:
		set(r.in.peers, n, obj)
	case source.KindGateway:
		set(r.in.gateways, n, obj)
	}
}

// set puts an object of the input's type; nil or another type deletes.
func set[K comparable, V any](in collection.Input[K, *V], k K, obj metav1.Object) {
	if v, ok := any(obj).(*V); ok && v != nil {
		in.Set(k, v)
		return
	}
	in.Delete(k)
}

// Resources returns everything published, by name: for dumps.
func (r *Registry) Resources() (addresses, policies []*xds.Resource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var u Update
	for _, c := range []*collection.Collection[string, *xds.Resource]{r.t.services, r.t.podWorkloads, r.t.entryWorkloads, r.t.inlineWorkloads, r.t.sliceWorkloads} {
		u.Addresses = slices.AppendSeq(u.Addresses, values(c))
	}
	for _, c := range []*collection.Collection[string, *xds.Resource]{r.t.authorizations, r.t.converted} {
		u.Policies = slices.AppendSeq(u.Policies, values(c))
	}
	strict := policy.StrictPolicy(r.opts.RootNamespace)
	u.Policies = append(u.Policies, encode(wellknown.TypeAuthorization, policyName(strict), nil, strict))
	u.sort()
	return u.Addresses, u.Policies
}

func values(c *collection.Collection[string, *xds.Resource]) func(func(*xds.Resource) bool) {
	return maps.Values(maps.Collect(c.All()))
}

// encode marshals a resource, once, the same bytes for the same content.
func encode(typeURL, name string, aliases []string, m proto.Message) *xds.Resource {
	// Messages made here marshal: their strings come from decoded JSON.
	body, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return xds.NewResource(typeURL, name, aliases, body)
}

func sameResource(a, b *xds.Resource) bool {
	return a.Name == b.Name && bytes.Equal(a.Body, b.Body) && slices.Equal(a.Aliases, b.Aliases) && slices.Equal(a.With, b.With) && a.Late == b.Late
}
