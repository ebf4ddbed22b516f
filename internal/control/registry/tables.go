package registry

import (
	"maps"
	"net/netip"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// tables are the derived collections, in the order they read each other.
type tables struct {
	opts Options

	clusters   *collection.Collection[source.Cluster, clusterFacts]
	localities *collection.Collection[Space, locality]
	namespaces *collection.Collection[Space, namespaceInfo]
	nsLabels   *collection.Collection[Space, map[string]string]
	waypoints  *collection.Collection[Ref, *waypoint]
	classes    *collection.Collection[Ref, string] // of Gateways
	visibility *collection.Collection[struct{}, *meshconfig.Visibility]
	domains    *collection.Collection[struct{}, policy.TrustDomains]
	// What the mesh's settings say of telemetry.
	meshTelemetry *collection.Collection[struct{}, *telemetry.Mesh]
	scopes        *collection.Collection[Space, meshconfig.Scope] // of entries, by namespace
	bound         bindings

	// Services, without what only their own resource depends on.
	cores   *collection.Collection[coreKey, *core]
	kube    *collection.Collection[Ref, *corev1.Service]
	pods    *collection.Collection[Ref, *corev1.Pod]
	entries *collection.Collection[Ref, *networkingv1.ServiceEntry]
	byHost  *collection.Index[Host, Ref, *networkingv1.ServiceEntry]
	// Of each host, the oldest entry that the whole mesh sees.
	owners *collection.Collection[string, Ref]
	owned  ownership

	// Policies.
	translated *collection.Collection[Ref, *policy.Authorization]
	peers      *collection.Collection[Ref, *policy.PeerAuthentication]
	peersOf    *collection.Index[string, Ref, *policy.PeerAuthentication]

	// What selects workloads by labels, and by one label of each selector.
	attachments *collection.Collection[attachKey, attachment]
	attached    *collection.Index[labelKey, attachKey, attachment]

	// Endpoint slices of services without a selector.
	manual      *collection.Collection[Ref, *discoveryv1.EndpointSlice]
	manualByPod *collection.Index[Ref, Ref, *discoveryv1.EndpointSlice]
	manualOf    *collection.Index[Ref, Ref, *discoveryv1.EndpointSlice] // by Service
	readiness   *collection.Index[Ref, Ref, sliceReadiness]             // by Service

	// Results.
	services        *collection.Collection[string, *xds.Resource]
	podWorkloads    *collection.Collection[string, *xds.Resource]
	entryWorkloads  *collection.Collection[string, *xds.Resource]
	inlineWorkloads *collection.Collection[string, *xds.Resource]
	sliceWorkloads  *collection.Collection[string, *xds.Resource]
	authorizations  *collection.Collection[string, *xds.Resource]
	converted       *collection.Collection[string, *xds.Resource]
	closed          *collection.Collection[string, *xds.Resource]
	placements      *collection.Collection[Ref, access.Placement]
	gatewayAccounts *collection.Collection[Ref, string]
	routes          *routes.Tables
	targets         *targets.Tables
	defaults        *collection.Index[defaultsOf, Ref, *corev1.ConfigMap] // of the objects of Gateways, by class
	proxies         *collection.Index[Ref, Ref, Ref]                      // ready pods, by the Gateway whose proxies they are
}

func newTables(opts Options, in *inputs) *tables {
	t := &tables{opts: opts}
	t.facts(in)
	t.attach(in)
	t.results(in)
	t.routing(in)
	return t
}

// clusterFacts are what objects of a cluster have in common.
type clusterFacts struct {
	id          string
	domain      string // of the names of its Services
	network     string // of everything that does not say otherwise
	trustDomain string
}

// cluster returns the facts about a cluster. They are there as long as objects
// of the cluster are.
func (t *tables) cluster(r *collection.Reader, c source.Cluster) clusterFacts {
	f, _ := collection.Fetch(r, t.clusters, c)
	return f
}

// same is the equality of values that compare.
func same[V comparable](a, b V) bool { return a == b }

// never is the equality of values that are only remade when something changed.
func never[V any](V, V) bool { return false }

// facts are small tables that keep what is read of an object apart from what
// changes in it all the time: a node's heartbeat recomputes no workload.
func (t *tables) facts(in *inputs) {
	t.clusters = in.clusters.Collection
	t.localities = collection.Map(in.nodes.Collection, "localities", same[locality],
		func(_ *collection.Reader, _ Space, n *corev1.Node) (locality, bool) {
			l := n.Labels
			return locality{l[wellknown.LabelRegion], l[wellknown.LabelZone], l[wellknown.LabelSubzone]}, true
		})
	t.namespaces = collection.Map(in.namespaces.Collection, "namespace settings", same[namespaceInfo],
		func(_ *collection.Reader, _ Space, n *corev1.Namespace) (namespaceInfo, bool) {
			return namespaceInfo{
				use:                 useWaypoint(n.Labels),
				bypass:              useBypass(n.Annotations),
				ingressUse:          ingressUse(n.Labels),
				canary:              useCanary(n.Labels, n.Annotations),
				network:             n.Labels[wellknown.LabelNetwork],
				trafficDistribution: n.Annotations[wellknown.AnnotationTrafficDistribution],
			}, true
		})
	t.nsLabels = collection.Map(in.namespaces.Collection, "namespace labels", maps.Equal[map[string]string, map[string]string],
		func(_ *collection.Reader, _ Space, n *corev1.Namespace) (map[string]string, bool) {
			return n.Labels, true
		})
	t.visibility, t.domains, t.meshTelemetry = in.visibility.Collection, in.domains.Collection, in.mesh.Collection
	t.scopes = collection.Map(in.namespaces.Collection, "visibility of a namespace's entries", same[meshconfig.Scope],
		func(r *collection.Reader, _ Space, n *corev1.Namespace) (meshconfig.Scope, bool) {
			v, ok := collection.Fetch(r, t.visibility, struct{}{})
			return v.Of(n.Labels), ok
		})
	t.waypoints = collection.Map(in.gateways.Collection, "waypoints", sameWaypoint,
		func(r *collection.Reader, k Ref, g *gatewayv1.Gateway) (*waypoint, bool) {
			return t.readWaypoint(r, k, g)
		})
	t.classes = collection.Map(in.gateways.Collection, "classes of gateways", same[string],
		func(_ *collection.Reader, _ Ref, g *gatewayv1.Gateway) (string, bool) {
			return string(g.Spec.GatewayClassName), true
		})
	t.translated = collection.Map(in.policies.Collection, "translated policies", never[*policy.Authorization],
		func(r *collection.Reader, _ Ref, p *securityv1.AuthorizationPolicy) (*policy.Authorization, bool) {
			d, _ := collection.Fetch(r, t.domains, struct{}{})
			return d.Translate(p, t.opts.RootNamespace), true
		})
	t.peers = collection.Map(in.peers.Collection, "peer authentication settings", never[*policy.PeerAuthentication],
		func(_ *collection.Reader, _ Ref, p *securityv1.PeerAuthentication) (*policy.PeerAuthentication, bool) {
			pa := policy.ReadPeerAuthentication(p)
			return &pa, true
		})
	t.peersOf = collection.NewIndex(t.peers, func(_ Ref, p *policy.PeerAuthentication) []string {
		if p.Selector != nil {
			return nil
		}
		return []string{p.Namespace}
	})
	t.bind(in)
	t.serviceFacts(in)
}

// serviceFacts are the parts of services, and who has which host and address.
func (t *tables) serviceFacts(in *inputs) {
	t.kube, t.pods, t.entries = in.services.Collection, in.pods.Collection, in.entries.Collection
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
	fromServices := collection.FlatMap(in.services.Collection, "service cores", sameCore, Ref.Compare, t.serviceCore)
	fromEntries := collection.FlatMap(in.entries.Collection, "service entry cores", sameCore, Ref.Compare, t.entryCores)
	t.cores = collection.Merge("cores", sameCore, fromServices, fromEntries)
	byAge := collection.FlatMap(in.entries.Collection, "service entries by age", sameClaims, Ref.Compare,
		func(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(seniority, claims)) {
			if t.scope(r, k, e) == meshconfig.Public {
				emit(seniority{e.CreationTimestamp.Unix(), k}, claims{e.Spec.Hosts, allBlocks(e)})
			}
		})
	t.owners = collection.FlatMap(byAge, "owners of hosts", same[Ref], seniority.Compare,
		func(_ *collection.Reader, s seniority, c claims, emit func(string, Ref)) {
			for _, h := range c.hosts {
				emit(h, s.name)
			}
		})
	t.owned.claims = collection.FlatMap(byAge, "first claims of addresses", same[Ref], seniority.Compare,
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
	for k, v := range selector {
		if l, ok := labels[k]; !ok || l != v {
			return false
		}
	}
	return len(selector) > 0
}

func (t *tables) attach(in *inputs) {
	services := collection.FlatMap(t.cores, "service selectors", sameAttachment, coreKey.Compare,
		func(_ *collection.Reader, k coreKey, c *core, emit func(attachKey, attachment)) {
			if len(c.selector) > 0 {
				emit(attachKey{attachService, k.cluster, k.host.Namespace, k.host.Hostname, k.entry}, attachment{Space{Cluster: k.cluster, Name: k.host.Namespace}, c.selector})
			}
		})
	policies := collection.FlatMap(t.translated, "policy selectors", sameAttachment, Ref.Compare,
		func(_ *collection.Reader, k Ref, p *policy.Authorization, emit func(attachKey, attachment)) {
			if p.Policy == nil || len(p.Selector) == 0 {
				return
			}
			scope := k.Home()
			if k.Namespace == t.opts.RootNamespace {
				scope = Space{}
			}
			emit(attachObject(attachPolicy, k), attachment{scope, p.Selector})
		})
	peers := collection.FlatMap(t.peers, "peer authentication selectors", sameAttachment, Ref.Compare,
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
			c, ok := collection.Fetch(r, t.cores, t.kubeKey(r, serviceOf(k, s)))
			return s, ok && len(c.selector) == 0
		})
	t.manualOf = collection.NewIndex(t.manual, func(k Ref, s *discoveryv1.EndpointSlice) []Ref { return []Ref{serviceOf(k, s)} })
	t.readiness = collection.NewIndex(collection.Map(t.manual, "readiness of slices", same[sliceReadiness],
		func(_ *collection.Reader, k Ref, s *discoveryv1.EndpointSlice) (sliceReadiness, bool) {
			return sliceReadiness{serviceOf(k, s), slices.ContainsFunc(s.Endpoints, isReady)}, true
		}), func(_ Ref, s sliceReadiness) []Ref { return []Ref{s.service} })
	t.manualByPod = collection.NewIndex(t.manual, func(k Ref, s *discoveryv1.EndpointSlice) []Ref {
		var pods []Ref
		for i := range s.Endpoints {
			if pod, ok := podOf(&s.Endpoints[i], k); ok && !slices.Contains(pods, pod) {
				pods = append(pods, pod)
			}
		}
		return pods
	})
}

func (t *tables) results(in *inputs) {
	kube := collection.FlatMap(in.services.Collection, "kubernetes services", sameResource, Ref.Compare, t.serviceResource)
	hosts := collection.FlatMap(in.entries.Collection, "hosts of service entries", same[struct{}], Ref.Compare,
		func(_ *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(Host, struct{})) {
			for _, h := range e.Spec.Hosts {
				emit(Host{k.Namespace, h}, struct{}{})
			}
		})
	entries := collection.FlatMap(hosts, "service entries", sameResource, Host.Compare, t.entryService)
	t.services = collection.Merge("services", sameResource, kube, entries)

	t.podWorkloads = collection.FlatMap(in.pods.Collection, "pod workloads", sameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, p *corev1.Pod, emit func(string, *xds.Resource)) {
			emitWorkload(t.podWorkload(r, k, p), emit)
		})
	t.entryWorkloads = collection.FlatMap(in.workloads.Collection, "entry workloads", sameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, e *networkingv1.WorkloadEntry, emit func(string, *xds.Resource)) {
			emitWorkload(t.entryWorkload(r, k, e), emit)
		})
	t.inlineWorkloads = collection.FlatMap(in.entries.Collection, "inline workloads", sameResource, Ref.Compare, t.inlineEndpoints)
	t.sliceWorkloads = collection.FlatMap(t.manual, "slice workloads", sameResource, Ref.Compare, t.sliceEndpoints)

	t.authorizations = collection.FlatMap(t.translated, "authorizations", sameResource, Ref.Compare,
		func(_ *collection.Reader, _ Ref, p *policy.Authorization, emit func(string, *xds.Resource)) {
			if p.Policy != nil {
				emitPolicy(p.Policy, emit)
			}
		})
	t.converted = collection.FlatMap(t.peers, "converted peer authentications", sameResource, Ref.Compare,
		func(r *collection.Reader, k Ref, p *policy.PeerAuthentication, emit func(string, *xds.Resource)) {
			if p.Selector == nil {
				return
			}
			if pb, _ := policy.Convert(p, t.outerMode(r, k.Namespace)); pb != nil {
				emitPolicy(pb, emit)
			}
		})
	t.closed = t.closings(in)
	t.placements = collection.Map(in.pods.Collection, "placements", same[access.Placement], t.placement)
	t.gatewayAccounts = collection.Map(in.gateways.Collection, "accounts of gateways", same[string], gatewayAccount)
}

func policyName(p *securitypb.Authorization) string { return p.Namespace + "/" + p.Name }

func emitPolicy(p *securitypb.Authorization, emit func(string, *xds.Resource)) {
	r := encode(wellknown.TypeAuthorization, policyName(p), nil, p)
	// Workloads name it: where it held for a whole namespace before, they have
	// to name it first.
	r.Late = p.Scope == securitypb.Scope_WORKLOAD_SELECTOR
	emit(r.Name, r)
}

// emitWorkload publishes a workload under its uid, and under each of its
// addresses that clients may ask for.
func emitWorkload(w *workloadpb.Workload, emit func(string, *xds.Resource)) {
	if w == nil {
		return
	}
	var aliases []string
	if w.NetworkMode != workloadpb.NetworkMode_HOST_NETWORK {
		for _, a := range w.Addresses {
			aliases = append(aliases, addressAlias(w.Network, a))
		}
	}
	r := encode(wellknown.TypeAddress, w.Uid, aliases, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}})
	// A proxy that asks for a service needs its endpoints, and for what is on
	// its own node it does not ask.
	r.With = slices.Sorted(maps.Keys(w.Services))
	if w.Node != "" {
		r.Groups = []xds.Group{access.NodeGroup(access.Node{Cluster: w.ClusterId, Name: w.Node})}
	}
	emit(w.Uid, r)
}

// outerMode is the PeerAuthentication mode that holds in a namespace for what
// does not say otherwise.
func (t *tables) outerMode(r *collection.Reader, namespace string) policy.Mode {
	mesh := t.oldestMode(r, t.opts.RootNamespace)
	if namespace == t.opts.RootNamespace {
		return mesh
	}
	return policy.Inherit(t.oldestMode(r, namespace), mesh)
}

func (t *tables) oldestMode(r *collection.Reader, namespace string) policy.Mode {
	var oldest *policy.PeerAuthentication
	for _, p := range collection.Lookup(r, t.peersOf, namespace) {
		if oldest == nil || policy.Older(p, oldest) {
			oldest = p
		}
	}
	if oldest == nil {
		return policy.Unset
	}
	return oldest.Mode
}
