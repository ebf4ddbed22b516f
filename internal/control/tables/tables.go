// Package tables derives what the mesh consists of from its objects: each table is a
// collection that is computed from others, row by row, again only when a row that it was
// made from changed.
package tables

import (
	"maps"
	"net/netip"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/egress"
	"github.com/ambit-mesh/ambit/internal/control/limits"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/control/traffic"
	"github.com/ambit-mesh/ambit/internal/control/vips"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Tables are the derived collections, in the order they read each other.
type Tables struct {
	Opts Options

	clusters   *collection.Collection[source.Cluster, ClusterFacts]
	localities *collection.Collection[Space, locality]
	Namespaces *collection.Collection[Space, namespaceInfo]
	nsLabels   *collection.Collection[Space, map[string]string]
	waypoints  *collection.Collection[Ref, *Waypoint]
	classes    *collection.Collection[Ref, string] // of Gateways
	visibility *collection.Collection[struct{}, *meshconfig.Visibility]
	domains    *collection.Collection[struct{}, policy.TrustDomains]
	// What the mesh's settings say of telemetry.
	meshTelemetry *collection.Collection[struct{}, *telemetry.Mesh]
	scopes        *collection.Collection[Space, meshconfig.Scope] // of entries, by namespace
	Bound         bindings

	// Services, without what only their own resource depends on.
	cores   *collection.Collection[coreKey, *core]
	kube    *collection.Collection[Ref, *corev1.Service]
	pods    *collection.Collection[Ref, *corev1.Pod]
	entries *collection.Collection[Ref, *networkingv1.ServiceEntry]
	byHost  *collection.Index[Host, Ref, *networkingv1.ServiceEntry]
	// Of each host, the oldest entry that the whole mesh sees.
	owners *collection.Collection[string, Ref]
	Owned  ownership

	// Policies.
	Translated *collection.Collection[Ref, *policy.Authorization]
	Peers      *collection.Collection[Ref, *policy.PeerAuthentication]
	PeersOf    *collection.Index[string, Ref, *policy.PeerAuthentication]

	// What selects workloads by labels, and by one label of each selector.
	attachments *collection.Collection[attachKey, attachment]
	attached    *collection.Index[labelKey, attachKey, attachment]

	// Endpoint slices of services without a selector.
	manual      *collection.Collection[Ref, *discoveryv1.EndpointSlice]
	manualByPod *collection.Index[Ref, Ref, *discoveryv1.EndpointSlice]
	manualOf    *collection.Index[Ref, Ref, *discoveryv1.EndpointSlice] // by Service
	readiness   *collection.Index[Ref, Ref, sliceReadiness]             // by Service

	// Results.
	Services        *collection.Collection[string, *xds.Resource]
	Hosts           *collection.Collection[string, *xds.Resource]
	PodWorkloads    *collection.Collection[string, *xds.Resource]
	EntryWorkloads  *collection.Collection[string, *xds.Resource]
	InlineWorkloads *collection.Collection[string, *xds.Resource]
	SliceWorkloads  *collection.Collection[string, *xds.Resource]
	Authorizations  *collection.Collection[string, *xds.Resource]
	Converted       *collection.Collection[string, *xds.Resource]
	Closed          *collection.Collection[string, *xds.Resource]
	Placements      *collection.Collection[Ref, access.Placement]
	GatewayAccounts *collection.Collection[Ref, string]
	Traffic         *traffic.Tables
	Limits          *limits.Tables
	Egress          *egress.Tables
	Routes          *routes.Tables
	Targets         *targets.Tables
	defaults        *collection.Index[defaultsOf, Ref, *corev1.ConfigMap] // of the objects of Gateways, by class
	Proxies         *collection.Index[Ref, Ref, Ref]                      // ready pods, by the Gateway whose proxies they are
}

// New derives the tables of the inputs.
func New(opts Options, in *Inputs) *Tables {
	t := &Tables{Opts: opts}
	t.facts(in)
	t.attach(in)
	t.results(in)
	t.routing(in)
	return t
}

// ClusterFacts are what objects of a cluster have in common.
type ClusterFacts struct {
	ID          string
	Domain      string // of the names of its Services
	Network     string // of everything that does not say otherwise
	TrustDomain string
}

// Cluster returns the facts about a cluster. They are there as long as objects
// of the cluster are.
func (t *Tables) Cluster(r *collection.Reader, c source.Cluster) ClusterFacts {
	f, _ := collection.Fetch(r, t.clusters, c)
	return f
}

// facts are small tables that keep what is read of an object apart from what
// changes in it all the time: a node's heartbeat recomputes no workload.
func (t *Tables) facts(in *Inputs) {
	t.clusters = in.Clusters.Collection
	t.localities = collection.Map(in.nodes.Collection, "localities", Same[locality],
		func(_ *collection.Reader, _ Space, n *corev1.Node) (locality, bool) {
			l := n.Labels
			return locality{l[wellknown.LabelRegion], l[wellknown.LabelZone], l[wellknown.LabelSubzone]}, true
		})
	t.Namespaces = collection.Map(in.Namespaces.Collection, "namespace settings", Same[namespaceInfo],
		func(_ *collection.Reader, _ Space, n *corev1.Namespace) (namespaceInfo, bool) {
			return namespaceInfo{
				use:                 useWaypoint(n.Labels),
				bypass:              useBypass(n.Annotations),
				ingressUse:          ingressUse(n.Labels),
				Canary:              UseCanary(n.Labels, n.Annotations),
				network:             n.Labels[wellknown.LabelNetwork],
				trafficDistribution: n.Annotations[wellknown.AnnotationTrafficDistribution],
			}, true
		})
	t.nsLabels = collection.Map(in.Namespaces.Collection, "namespace labels", maps.Equal[map[string]string, map[string]string],
		func(_ *collection.Reader, _ Space, n *corev1.Namespace) (map[string]string, bool) {
			return n.Labels, true
		})
	t.visibility, t.domains, t.meshTelemetry = in.Visibility.Collection, in.Domains.Collection, in.Mesh.Collection
	t.Egress = egress.New(egress.Inputs{Policies: in.Egress.Collection, Namespaces: in.Namespaces.Collection, Mode: in.Outbound.Collection, RootNamespace: t.Opts.RootNamespace})
	t.scopes = collection.Map(in.Namespaces.Collection, "visibility of a namespace's entries", Same[meshconfig.Scope],
		func(r *collection.Reader, _ Space, n *corev1.Namespace) (meshconfig.Scope, bool) {
			v, ok := collection.Fetch(r, t.visibility, struct{}{})
			return v.Of(n.Labels), ok
		})
	t.waypoints = collection.Map(in.Gateways.Collection, "waypoints", sameWaypoint,
		func(r *collection.Reader, k Ref, g *gatewayv1.Gateway) (*Waypoint, bool) {
			return t.readWaypoint(r, k, g)
		})
	t.classes = collection.Map(in.Gateways.Collection, "classes of gateways", Same[string],
		func(_ *collection.Reader, _ Ref, g *gatewayv1.Gateway) (string, bool) {
			return string(g.Spec.GatewayClassName), true
		})
	t.Translated = collection.Map(in.Policies.Collection, "translated policies", Never[*policy.Authorization],
		func(r *collection.Reader, _ Ref, p *securityv1.AuthorizationPolicy) (*policy.Authorization, bool) {
			d, _ := collection.Fetch(r, t.domains, struct{}{})
			return d.Translate(p, t.Opts.RootNamespace), true
		})
	t.Peers = collection.Map(in.Peers.Collection, "peer authentication settings", Never[*policy.PeerAuthentication],
		func(_ *collection.Reader, _ Ref, p *securityv1.PeerAuthentication) (*policy.PeerAuthentication, bool) {
			pa := policy.ReadPeerAuthentication(p)
			return &pa, true
		})
	t.PeersOf = collection.NewIndex(t.Peers, func(_ Ref, p *policy.PeerAuthentication) []string {
		if p.Selector != nil {
			return nil
		}
		return []string{p.Namespace}
	})
	t.bind(in)
	t.serviceFacts(in)
}

// serviceFacts are the parts of services, and who has which host and address.
func (t *Tables) serviceFacts(in *Inputs) {
	t.kube, t.pods, t.entries = in.Services.Collection, in.Pods.Collection, vips.Entries(in.Entries.Collection)
	t.byHost = collection.NewIndex(t.entries, func(k Ref, e *networkingv1.ServiceEntry) []Host {
		var hosts []Host
		for _, h := range e.Spec.Hosts {
			if n := (Host{k.Namespace, h}); !slices.Contains(hosts, n) {
				hosts = append(hosts, n)
			}
		}
		return hosts
	})
	t.own(in)
	fromServices := collection.FlatMap(in.Services.Collection, "service cores", sameCore, Ref.Compare, t.serviceCore)
	fromEntries := collection.FlatMap(in.Entries.Collection, "service entry cores", sameCore, Ref.Compare, t.entryCores)
	t.cores = collection.Merge("cores", sameCore, fromServices, fromEntries)
	byAge := collection.FlatMap(t.entries, "service entries by age", sameClaims, Ref.Compare,
		func(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(seniority, claims)) {
			if t.Scope(r, k, e) == meshconfig.Public {
				emit(seniority{e.CreationTimestamp.Unix(), k}, claims{e.Spec.Hosts, AllBlocks(e)})
			}
		})
	t.owners = collection.FlatMap(byAge, "owners of hosts", Same[Ref], seniority.Compare,
		func(_ *collection.Reader, s seniority, c claims, emit func(string, Ref)) {
			for _, h := range c.hosts {
				emit(h, s.name)
			}
		})
	t.Owned.claims = collection.FlatMap(byAge, "first claims of addresses", Same[Ref], seniority.Compare,
		func(_ *collection.Reader, s seniority, c claims, emit func(netip.Prefix, Ref)) {
			for _, p := range c.blocks {
				emit(p, s.name)
			}
		})
}

// claims are what an entry asks for.
type claims struct {
	hosts  []string
	blocks []netip.Prefix
}

func sameClaims(a, b claims) bool {
	return slices.Equal(a.hosts, b.hosts) && slices.Equal(a.blocks, b.blocks)
}

// attachKey names something that selects workloads.
type attachKey struct {
	kind            attachKind
	cluster         source.Cluster
	namespace, name string // name: of an object, or a host name
	entry           string // of a coreKey
}

// service returns the part of a service that selects, for attachService.
func (k attachKey) service() coreKey {
	return coreKey{Host{k.namespace, k.name}, k.entry, k.cluster}
}

// object returns the policy that selects, for the other kinds.
func (k attachKey) object() Ref {
	return Ref{Cluster: k.cluster, Namespace: k.namespace, Name: k.name}
}

func attachObject(kind attachKind, k Ref) attachKey {
	return attachKey{kind: kind, cluster: k.Cluster, namespace: k.Namespace, name: k.Name}
}

type attachKind uint8

const (
	attachService attachKind = iota
	attachPolicy
	attachPeer
)

// attachment is a selector. scope is the namespace it looks at; zero for all.
type attachment struct {
	scope    Space
	selector map[string]string
}

func sameAttachment(a, b attachment) bool {
	return a.scope == b.scope && maps.Equal(a.selector, b.selector)
}

// labelKey is one label within a scope.
type labelKey struct {
	scope      Space // a namespace; zero for all
	key, value string
}

// pivot is the one label of a selector that it is found by: a workload that
// matches has it.
func (a attachment) pivot() labelKey {
	k := slices.Min(slices.Collect(maps.Keys(a.selector)))
	return labelKey{a.scope, k, a.selector[k]}
}

func matches(selector, labels map[string]string) bool {
	return len(selector) > 0 && source.HasAll(labels, selector)
}

func (t *Tables) attach(in *Inputs) {
	services := collection.FlatMap(t.cores, "service selectors", sameAttachment, coreKey.Compare,
		func(_ *collection.Reader, k coreKey, c *core, emit func(attachKey, attachment)) {
			if len(c.selector) > 0 {
				emit(attachKey{attachService, k.cluster, k.host.Namespace, k.host.Hostname, k.entry}, attachment{Space{Cluster: k.cluster, Name: k.host.Namespace}, c.selector})
			}
		})
	policies := collection.FlatMap(t.Translated, "policy selectors", sameAttachment, Ref.Compare,
		func(_ *collection.Reader, k Ref, p *policy.Authorization, emit func(attachKey, attachment)) {
			if p.Policy == nil || len(p.Selector) == 0 {
				return
			}
			scope := k.Home()
			if k.Namespace == t.Opts.RootNamespace {
				scope = Space{}
			}
			emit(attachObject(attachPolicy, k), attachment{scope, p.Selector})
		})
	peers := collection.FlatMap(t.Peers, "peer authentication selectors", sameAttachment, Ref.Compare,
		func(_ *collection.Reader, k Ref, p *policy.PeerAuthentication, emit func(attachKey, attachment)) {
			// From the root namespace, too, it selects workloads of its own namespace only.
			if p.Selector != nil {
				emit(attachObject(attachPeer, k), attachment{k.Home(), p.Selector})
			}
		})
	t.attachments = collection.Merge("attachments", sameAttachment, services, policies, peers)
	t.attached = collection.NewIndex(t.attachments, func(_ attachKey, a attachment) []labelKey { return []labelKey{a.pivot()} })

	t.manual = collection.Map(in.slices.Collection, "manual endpoint slices", samePointer[discoveryv1.EndpointSlice],
		func(r *collection.Reader, k Ref, s *discoveryv1.EndpointSlice) (*discoveryv1.EndpointSlice, bool) {
			c, ok := collection.Fetch(r, t.cores, t.kubeKey(r, service.Of(k, s)))
			return s, ok && len(c.selector) == 0
		})
	t.manualOf = collection.NewIndex(t.manual, func(k Ref, s *discoveryv1.EndpointSlice) []Ref { return []Ref{service.Of(k, s)} })
	t.readiness = collection.NewIndex(collection.Map(t.manual, "readiness of slices", Same[sliceReadiness],
		func(_ *collection.Reader, k Ref, s *discoveryv1.EndpointSlice) (sliceReadiness, bool) {
			return sliceReadiness{service.Of(k, s), slices.ContainsFunc(s.Endpoints, service.IsReady)}, true
		}), func(_ Ref, s sliceReadiness) []Ref { return []Ref{s.service} })
	t.manualByPod = collection.NewIndex(t.manual, func(k Ref, s *discoveryv1.EndpointSlice) []Ref {
		var pods []Ref
		for i := range s.Endpoints {
			if pod, ok := service.PodOf(&s.Endpoints[i], k); ok && !slices.Contains(pods, pod) {
				pods = append(pods, pod)
			}
		}
		return pods
	})
}

func (t *Tables) results(in *Inputs) {
	kube := collection.FlatMap(in.Services.Collection, "kubernetes services", SameResource, Ref.Compare, t.serviceResource)
	hosts := collection.FlatMap(in.Entries.Collection, "hosts of service entries", Same[struct{}], Ref.Compare,
		func(_ *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(Host, struct{})) {
			for _, h := range e.Spec.Hosts {
				emit(Host{k.Namespace, h}, struct{}{})
			}
		})
	entries := collection.FlatMap(hosts, "service entries", SameResource, Host.Compare, t.entryService)
	t.Services = collection.Merge("services", SameResource, kube, entries)
	t.Hosts = collection.FlatMap(hosts, "hosts that look-ups lead from", SameResource, Host.Compare, t.lookedUp)

	t.PodWorkloads = collection.FlatMap(in.Pods.Collection, "pod workloads", SameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, p *corev1.Pod, emit func(string, *xds.Resource)) {
			emitWorkload(t.podWorkload(r, k, p), emit)
		})
	t.EntryWorkloads = collection.FlatMap(in.Workloads.Collection, "entry workloads", SameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, e *networkingv1.WorkloadEntry, emit func(string, *xds.Resource)) {
			emitWorkload(t.entryWorkload(r, k, e), emit)
		})
	t.InlineWorkloads = collection.FlatMap(in.Entries.Collection, "inline workloads", SameResource, Ref.Compare, t.inlineEndpoints)
	t.SliceWorkloads = collection.FlatMap(t.manual, "slice workloads", SameResource, Ref.Compare, t.sliceEndpoints)

	t.Authorizations = collection.FlatMap(t.Translated, "authorizations", SameResource, Ref.Compare,
		func(_ *collection.Reader, _ Ref, p *policy.Authorization, emit func(string, *xds.Resource)) {
			if p.Policy != nil {
				emitPolicy(p.Policy, emit)
			}
		})
	t.Converted = collection.FlatMap(t.Peers, "converted peer authentications", SameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, p *policy.PeerAuthentication, emit func(string, *xds.Resource)) {
			if p.Selector == nil {
				return
			}
			if pb, _ := policy.Convert(p, t.outerMode(r, k.Namespace)); pb != nil {
				emitPolicy(pb, emit)
			}
		})
	t.Closed = t.closings(in)
	t.Placements = collection.Map(in.Pods.Collection, "placements", Same[access.Placement], t.placement)
	t.GatewayAccounts = collection.Map(in.Gateways.Collection, "accounts of gateways", Same[string], gatewayAccount)
}

// outerMode is the PeerAuthentication mode that holds in a namespace for what
// does not say otherwise.
func (t *Tables) outerMode(r *collection.Reader, namespace string) policy.Mode {
	mesh := t.oldestMode(r, t.Opts.RootNamespace)
	if namespace == t.Opts.RootNamespace {
		return mesh
	}
	return policy.Inherit(t.oldestMode(r, namespace), mesh)
}

func (t *Tables) oldestMode(r *collection.Reader, namespace string) policy.Mode {
	var oldest *policy.PeerAuthentication
	for _, p := range collection.Lookup(r, t.PeersOf, namespace) {
		if oldest == nil || policy.Older(p, oldest) {
			oldest = p
		}
	}
	if oldest == nil {
		return policy.Unset
	}
	return oldest.Mode
}
