package source

import (
	"cmp"
	"strings"
	"unique"
)

// Cluster is the cluster that an object is of. The zero value is the cluster of
// the control plane itself: the only one, unless sources of others join. It is
// as small as a pointer, because every key has one.
type Cluster struct{ id unique.Handle[string] }

// ClusterOf returns the cluster with an ID; that of an empty ID is the control
// plane's own.
func ClusterOf(id string) Cluster {
	if id == "" {
		return Cluster{}
	}
	return Cluster{unique.Make(id)}
}

// Own reports whether the cluster is the control plane's own.
func (c Cluster) Own() bool { return c == Cluster{} }

// String returns the ID of a cluster; it is empty for the control plane's own.
func (c Cluster) String() string {
	if c.Own() {
		return ""
	}
	return c.id.Value()
}

// Compare orders the control plane's own cluster before all others, and those
// by their ID.
func (c Cluster) Compare(o Cluster) int {
	if c == o {
		return 0
	}
	return strings.Compare(c.String(), o.String())
}

// MarshalText makes a cluster its ID in JSON.
func (c Cluster) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Ref names an object among those of its kind. Namespace is empty for objects
// of cluster scope.
type Ref struct {
	Cluster         Cluster
	Namespace, Name string
}

// String renders namespace/name, with the ID of a cluster that is not the
// control plane's own before it.
func (r Ref) String() string {
	s := r.Namespace + "/" + r.Name
	if r.Namespace == "" {
		s = r.Name
	}
	if !r.Cluster.Own() {
		return r.Cluster.String() + ":" + s
	}
	return s
}

// Compare orders by namespace, name and cluster.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(strings.Compare(r.Namespace, o.Namespace), strings.Compare(r.Name, o.Name), r.Cluster.Compare(o.Cluster))
}

// Home returns the namespace that an object is in.
func (r Ref) Home() Space { return Space{r.Cluster, r.Namespace} }

// At returns the name of another object of the same cluster.
func (r Ref) At(namespace, name string) Ref {
	return Ref{Cluster: r.Cluster, Namespace: namespace, Name: name}
}

// Space names an object of cluster scope, such as a namespace.
type Space struct {
	Cluster Cluster
	Name    string
}

// At returns the name of an object in a namespace.
func (s Space) At(name string) Ref {
	return Ref{Cluster: s.Cluster, Namespace: s.Name, Name: name}
}
