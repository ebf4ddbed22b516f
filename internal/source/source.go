// Package source is what configuration looks like on its way in: typed
// objects under a key, delivered as events to one sink. Where they come from
// (a directory of files, the Kubernetes API) is the business of the packages
// below it.
package source

import (
	"cmp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Key names one object. Namespace is empty for kinds of cluster scope.
type Key struct {
	Kind            *Kind
	Cluster         Cluster
	Namespace, Name string
}

// Ref returns the key without the kind.
func (k Key) Ref() Ref { return Ref{k.Cluster, k.Namespace, k.Name} }

// String renders Kind/namespace/name, without the namespace for cluster scope,
// and with the ID of a cluster that is not the control plane's own.
func (k Key) String() string {
	s := k.Kind.String() + "/"
	if k.Namespace != "" {
		s += k.Namespace + "/"
	}
	if !k.Cluster.Own() {
		return k.Cluster.String() + ":" + s + k.Name
	}
	return s + k.Name
}

// Compare orders keys by kind, namespace, name and cluster.
func (k Key) Compare(o Key) int { return cmp.Or(k.Kind.Compare(o.Kind), k.Ref().Compare(o.Ref())) }

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
