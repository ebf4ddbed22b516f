// Package source is what configuration looks like on its way in: typed
// objects under a key, delivered as events to one sink. Where they come from
// (a directory of files, the Kubernetes API) is the business of the packages
// below it.
package source

import (
	"cmp"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Key names one object. Namespace is empty for kinds of cluster scope.
type Key struct {
	Kind, Namespace, Name string
}

// String renders Kind/namespace/name, without the namespace for cluster scope.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + "/" + k.Name
	}
	return k.Kind + "/" + k.Namespace + "/" + k.Name
}

// Compare orders keys by kind, namespace, name.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		strings.Compare(k.Kind, o.Kind),
		strings.Compare(k.Namespace, o.Namespace),
		strings.Compare(k.Name, o.Name))
}

// Event says that an object is now this, or is gone.
type Event struct {
	Key Key
	// Object is one of the pointer types of Kinds and belongs to nobody any
	// more: it must not be changed. Nil when the object is gone.
	Object metav1.Object
	// Origin is where the object was written, for people: file:line.
	Origin string
}

// Sink receives what a source sees. Sources call it from one goroutine of
// their own; a sink that serves several sources synchronises itself.
type Sink interface {
	// Apply takes events that belong together, at most one per key.
	Apply([]Event)
	// Synced is called once, after the events of everything that existed when
	// the source started.
	Synced()
}

// Kind describes a kind of object that the mesh reads.
type Kind struct {
	Name       string
	Group      string
	Versions   []string // the first is the one we write
	Namespaced bool
	// New makes an empty object.
	New func() metav1.Object
}

// Kinds returns the closed set of kinds, by name.
func Kinds() map[string]Kind { return kinds }

// Names of the kinds.
const (
	KindNamespace           = "Namespace"
	KindNode                = "Node"
	KindServiceAccount      = "ServiceAccount"
	KindPod                 = "Pod"
	KindService             = "Service"
	KindEndpointSlice       = "EndpointSlice"
	KindWorkloadEntry       = "WorkloadEntry"
	KindServiceEntry        = "ServiceEntry"
	KindAuthorizationPolicy = "AuthorizationPolicy"
	KindPeerAuthentication  = "PeerAuthentication"
	KindGateway             = "Gateway"
)

var (
	networkingVersions = []string{"v1", "v1beta1", "v1alpha3"}
	securityVersions   = []string{"v1", "v1beta1"}
)

var kinds = table(
	Kind{KindNamespace, "", []string{"v1"}, false, func() metav1.Object { return &corev1.Namespace{} }},
	Kind{KindNode, "", []string{"v1"}, false, func() metav1.Object { return &corev1.Node{} }},
	Kind{KindServiceAccount, "", []string{"v1"}, true, func() metav1.Object { return &corev1.ServiceAccount{} }},
	Kind{KindPod, "", []string{"v1"}, true, func() metav1.Object { return &corev1.Pod{} }},
	Kind{KindService, "", []string{"v1"}, true, func() metav1.Object { return &corev1.Service{} }},
	Kind{KindEndpointSlice, "discovery.k8s.io", []string{"v1"}, true, func() metav1.Object { return &discoveryv1.EndpointSlice{} }},
	Kind{KindWorkloadEntry, "networking.istio.io", networkingVersions, true, func() metav1.Object { return &networkingv1.WorkloadEntry{} }},
	Kind{KindServiceEntry, "networking.istio.io", networkingVersions, true, func() metav1.Object { return &networkingv1.ServiceEntry{} }},
	Kind{KindAuthorizationPolicy, "security.istio.io", securityVersions, true, func() metav1.Object { return &securityv1.AuthorizationPolicy{} }},
	Kind{KindPeerAuthentication, "security.istio.io", securityVersions, true, func() metav1.Object { return &securityv1.PeerAuthentication{} }},
	Kind{KindGateway, "gateway.networking.k8s.io", []string{"v1", "v1beta1"}, true, func() metav1.Object { return &Gateway{} }},
)

func table(list ...Kind) map[string]Kind {
	m := make(map[string]Kind, len(list))
	for _, k := range list {
		m[k.Name] = k
	}
	return m
}

// APIVersion returns group/version as manifests write it.
func (k Kind) APIVersion() string {
	if k.Group == "" {
		return k.Versions[0]
	}
	return k.Group + "/" + k.Versions[0]
}

// KeyOf returns the key of an object by its Go type; ok is false for a type
// that is not one of Kinds.
func KeyOf(obj metav1.Object) (key Key, ok bool) {
	var kind string
	switch obj.(type) {
	case *corev1.Namespace:
		kind = KindNamespace
	case *corev1.Node:
		kind = KindNode
	case *corev1.ServiceAccount:
		kind = KindServiceAccount
	case *corev1.Pod:
		kind = KindPod
	case *corev1.Service:
		kind = KindService
	case *discoveryv1.EndpointSlice:
		kind = KindEndpointSlice
	case *networkingv1.WorkloadEntry:
		kind = KindWorkloadEntry
	case *networkingv1.ServiceEntry:
		kind = KindServiceEntry
	case *securityv1.AuthorizationPolicy:
		kind = KindAuthorizationPolicy
	case *securityv1.PeerAuthentication:
		kind = KindPeerAuthentication
	case *Gateway:
		kind = KindGateway
	default:
		return Key{}, false
	}
	key = Key{Kind: kind, Name: obj.GetName()}
	if kinds[kind].Namespaced {
		key.Namespace = obj.GetNamespace()
	}
	return key, true
}
