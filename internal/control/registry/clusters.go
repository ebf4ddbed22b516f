package registry

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/source"
)

// ClusterOptions describe a cluster that joins; zero values mean what holds for
// the control plane's own.
type ClusterOptions struct {
	Domain  string // of service names
	Network string // of everything that does not say otherwise
	// TrustDomain of its workloads.
	TrustDomain string
}

// Join admits the objects of another cluster, from a source that delivers them
// with the cluster in their keys. What a cluster is made of is read: its pods,
// Services and so on. Configuration of the mesh is that of the control plane's
// own cluster. Joining again replaces the options.
func (r *Registry) Join(c source.Cluster, o ClusterOptions) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch own := r.opts.ClusterID; {
	case c.Own():
		return errors.New("join a cluster: it has no ID")
	case c.String() == own:
		return fmt.Errorf("join a cluster: %s is the ID of the control plane's own cluster (give each cluster an ID of its own)", own)
	}
	r.in.Clusters.Set(c, tables.ClusterFacts{
		ID: c.String(), Domain: cmp.Or(o.Domain, r.opts.ClusterDomain), Network: cmp.Or(o.Network, r.opts.Network),
		TrustDomain: cmp.Or(o.TrustDomain, r.opts.TrustDomain),
	})
	r.settle()
	return nil
}

// Leave removes the objects of a cluster, all in one update. What its source
// still delivers is ignored. It looks at every object.
func (r *Registry) Leave(c source.Cluster) {
	if c.Own() {
		return // without its own cluster the control plane has no configuration
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.origins {
		if k.Cluster == c {
			delete(r.origins, k)
			r.in.Put(k, nil)
		}
	}
	r.in.Clusters.Delete(c)
	r.settle()
}

// knows reports whether an object's cluster has joined, and the object's kind is
// read of that cluster.
func (r *Registry) knows(k source.Key) bool {
	if k.Cluster.Own() {
		return true
	}
	_, joined := r.in.Clusters.Get(k.Cluster)
	return joined && k.Kind.Builtin
}

// clusterID returns the ID of a cluster, for the wire.
func (r *Registry) clusterID(c source.Cluster) string {
	return cmp.Or(c.String(), r.opts.ClusterID)
}
