package analysis

import (
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	networkingk8s "k8s.io/api/networking/v1"

	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// mesh is all objects by kind, each list ordered by key.
type mesh struct {
	opts    Options
	events  []source.Event // with objects, ordered by key
	origins map[source.Key]string

	namespaces map[string]*corev1.Namespace
	accounts   map[string]bool // namespace/name, declared or used
	declared   bool            // there are ServiceAccount objects at all
	pods       []*corev1.Pod   // that have not ended
	services   []*corev1.Service
	entries    []*networkingv1.ServiceEntry
	machines   []*networkingv1.WorkloadEntry
	policies   []*securityv1.AuthorizationPolicy
	peers      []*securityv1.PeerAuthentication
	tokens     []*securityv1.RequestAuthentication
	firewalls  []*networkingk8s.NetworkPolicy

	registry   *registry.Registry // has all objects that it reads
	conditions map[source.Key][]status.Condition
	parts      map[source.Key][]status.Condition // of entries of its status
	findings   []Finding
}

func newMesh(events []source.Event, opts Options) *mesh {
	m := &mesh{
		opts: opts, origins: map[source.Key]string{}, namespaces: map[string]*corev1.Namespace{},
		accounts: map[string]bool{}, conditions: map[source.Key][]status.Condition{}, parts: map[source.Key][]status.Condition{},
	}
	last := map[source.Key]source.Event{} // a later event replaces an earlier one
	for _, e := range events {
		last[e.Key] = e
	}
	var ours []source.Event
	for _, e := range last {
		if e.Object == nil {
			continue
		}
		m.events = append(m.events, e)
		m.origins[e.Key] = e.Origin
		if k, ok := source.KeyOf(e.Object); ok && k == e.Key {
			ours = append(ours, e)
		}
	}
	slices.SortFunc(m.events, func(a, b source.Event) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(ours, func(a, b source.Event) int { return a.Key.Compare(b.Key) })
	for _, e := range m.events {
		m.add(e)
	}
	r := registry.New(tables.Options{
		TrustDomain: opts.TrustDomain, ClusterDomain: opts.ClusterDomain, RootNamespace: opts.RootNamespace,
	}, discard{})
	r.Apply(ours)
	m.registry = r
	for _, o := range r.Status() {
		kind, _ := source.KindOf(o.Group, o.Kind)
		key := source.Key{Kind: kind, Namespace: o.Namespace, Name: o.Name}
		m.conditions[key] = o.Conditions
		for _, e := range o.Entries {
			m.parts[key] = append(m.parts[key], e.Conditions...)
		}
	}
	return m
}

// discard drops the resources that node proxies would receive.
type discard struct{}

func (discard) Publish(registry.Update) {}
func (discard) Synced()                 {}

func (m *mesh) add(e source.Event) {
	switch o := e.Object.(type) {
	case *corev1.Namespace:
		m.namespaces[o.Name] = o
	case *corev1.ServiceAccount:
		m.accounts[o.Namespace+"/"+o.Name], m.declared = true, true
	case *corev1.Pod:
		if o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed {
			m.pods = append(m.pods, o)
		}
		m.accounts[o.Namespace+"/"+o.Spec.ServiceAccountName] = true
	case *corev1.Service:
		m.services = append(m.services, o)
	case *networkingv1.ServiceEntry:
		m.entries = append(m.entries, o)
	case *networkingv1.WorkloadEntry:
		m.machines = append(m.machines, o)
		m.accounts[o.Namespace+"/"+o.Spec.ServiceAccount] = true
	case *securityv1.AuthorizationPolicy:
		m.policies = append(m.policies, o)
	case *securityv1.PeerAuthentication:
		m.peers = append(m.peers, o)
	case *securityv1.RequestAuthentication:
		m.tokens = append(m.tokens, o)
	case *networkingk8s.NetworkPolicy:
		m.firewalls = append(m.firewalls, o)
	}
}

// mode is what the labels ask for: that of the pod, else of its namespace.
func (m *mesh) mode(p *corev1.Pod) string {
	if v := p.Labels[wellknown.LabelDataplaneMode]; v != "" {
		return v
	}
	if ns := m.namespaces[p.Namespace]; ns != nil {
		return ns.Labels[wellknown.LabelDataplaneMode]
	}
	return ""
}

func (m *mesh) excluded(namespace string) bool {
	return slices.Contains(m.opts.ExcludeNamespaces, namespace)
}

// undiscovered reports whether the control plane leaves a namespace out. A
// namespace whose labels are not here counts as discovered.
func (m *mesh) undiscovered(namespace string) bool {
	ns := m.namespaces[namespace]
	return ns != nil && namespace != m.opts.RootNamespace && !meshconfig.Discovers(m.opts.DiscoverySelectors, ns.Labels)
}

// wanted reports whether a pod is, or is about to be, in the mesh.
func (m *mesh) wanted(p *corev1.Pod) bool {
	return m.mode(p) == wellknown.DataplaneModeAmbient && !p.Spec.HostNetwork && !hasSidecar(p) && !m.excluded(p.Namespace) && !m.undiscovered(p.Namespace)
}

// meshed reports whether connections of a pod have an identity.
func (m *mesh) meshed(p *corev1.Pod) bool {
	return m.wanted(p) || hasSidecar(p) || p.Labels[wellknown.LabelTunnel] == "http"
}

func hasSidecar(p *corev1.Pod) bool { return p.Annotations[wellknown.AnnotationSidecarStatus] != "" }

func keyOf(kind *source.Kind, o interface {
	GetNamespace() string
	GetName() string
}) source.Key {
	return source.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}
