// Package access decides what authenticated callers of the control plane may
// have: a certificate of which identity, and which resources of a type.
package access

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Node names a node. Clusters give their nodes names independently: two may
// have a node1 each.
type Node struct{ Cluster, Name string }

// Pod names a pod of a cluster.
type Pod struct{ Cluster, Namespace, Name string }

// Account names a service account of a cluster.
type Account struct{ Cluster, Namespace, Name string }

// Placement is where a pod runs, and as which account of its namespace.
type Placement struct{ Node, Account, UID string }

// PodChange is a pod that began to run, changed or ended.
type PodChange struct {
	Pod      Pod
	Old, New *Placement // nil where it does not run
}

// Nodes holds which identities run on which node. It may be asked from any
// goroutine.
type Nodes struct {
	// Ended, when set, is called for every pod that ended, or is not what it was:
	// credentials that are bound to it are good for nothing. It is set before the
	// first change.
	Ended func(Pod, Placement)

	trustDomain string
	bound       bool // callers must be bound to a pod that is known

	mu   sync.RWMutex
	pods map[Pod]Placement
	ids  map[Node]map[Account]int // how many pods
}

// NewNodes returns Nodes without pods. With bound, callers must have credentials
// that are bound to a pod.
func NewNodes(trustDomain string, bound bool) *Nodes {
	return &Nodes{trustDomain: trustDomain, bound: bound, pods: map[Pod]Placement{}, ids: map[Node]map[Account]int{}}
}

// Apply takes changes in.
func (n *Nodes) Apply(changes []PodChange) {
	n.apply(changes)
	if n.Ended == nil {
		return
	}
	for _, c := range changes {
		if c.Old != nil && (c.New == nil || *c.New != *c.Old) {
			n.Ended(c.Pod, *c.Old)
		}
	}
}

func (n *Nodes) apply(changes []PodChange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range changes {
		if c.Old != nil {
			n.count(c.Pod, *c.Old, -1)
			delete(n.pods, c.Pod)
		}
		if c.New != nil {
			n.count(c.Pod, *c.New, 1)
			n.pods[c.Pod] = *c.New
		}
	}
}

func (n *Nodes) count(pod Pod, p Placement, by int) {
	node := Node{pod.Cluster, p.Node}
	ids := n.ids[node]
	if ids == nil {
		ids = map[Account]int{}
		n.ids[node] = ids
	}
	who := Account{pod.Cluster, pod.Namespace, p.Account}
	if ids[who] += by; ids[who] <= 0 {
		delete(ids, who)
	}
	if len(ids) == 0 {
		delete(n.ids, node)
	}
}

// Identities returns how many pods of which accounts run on each node.
func (n *Nodes) Identities() map[Node]map[Account]int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := make(map[Node]map[Account]int, len(n.ids))
	for node, ids := range n.ids {
		out[node] = maps.Clone(ids)
	}
	return out
}

// Pods counts the pods that run.
func (n *Nodes) Pods() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.pods)
}

// Of returns the node that a caller's credentials are of: the node that they
// name, else that of the pod that they are bound to. It fails when they
// contradict what is known of that pod.
func (n *Nodes) Of(c auth.Caller) (Node, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.of(c)
}

// errNoNode is returned for credentials that are in order, and of no node.
var errNoNode = errors.New("the credentials name no node, and no pod that is known")

func (n *Nodes) of(c auth.Caller) (Node, error) {
	own, known := n.pods[Pod{c.Cluster, c.Namespace, c.PodName}]
	known = known && c.PodName != ""
	if n.bound {
		switch {
		case c.PodName == "" || c.PodUID == "":
			return Node{}, fmt.Errorf("%s: the credentials are not bound to a pod; use a projected service account token", c.Account())
		case !known:
			return Node{}, fmt.Errorf("there is no running pod %s/%s in cluster %q, to which the credentials are bound", c.Namespace, c.PodName, c.Cluster)
		case own.UID == "":
			return Node{}, fmt.Errorf("the UID of pod %s/%s is not known, so that it cannot be told from its predecessor", c.Namespace, c.PodName)
		}
	}
	node := c.Node
	if known {
		switch {
		case c.PodUID != "" && own.UID != "" && c.PodUID != own.UID:
			return Node{}, fmt.Errorf("pod %s/%s has UID %s now, the credentials are for its predecessor %s", c.Namespace, c.PodName, own.UID, c.PodUID)
		case own.Account != c.ServiceAccount:
			return Node{}, fmt.Errorf("pod %s/%s runs as %s, the credentials are for %s", c.Namespace, c.PodName, own.Account, c.ServiceAccount)
		case node == "":
			node = own.Node
		case node != own.Node:
			return Node{}, fmt.Errorf("pod %s/%s runs on node %s, the credentials are for node %s", c.Namespace, c.PodName, own.Node, node)
		}
	}
	if node == "" {
		return Node{}, fmt.Errorf("%s: %w", c.Account(), errNoNode)
	}
	return Node{c.Cluster, node}, nil
}

// MayImpersonate is nil when the caller's node runs a pod that has not ended
// as id. The node is of the cluster that vouches for the caller.
func (n *Nodes) MayImpersonate(c auth.Caller, id identity.Identity) error {
	if id.TrustDomain != n.trustDomain {
		return fmt.Errorf("identity %s is of trust domain %q, this mesh is %q", id, id.TrustDomain, n.trustDomain)
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	node, err := n.of(c)
	if err != nil {
		return err
	}
	if n.ids[node][Account{c.Cluster, id.Namespace, id.ServiceAccount}] == 0 {
		return fmt.Errorf("no pod on node %s of cluster %q runs as %s/%s", node.Name, node.Cluster, id.Namespace, id.ServiceAccount)
	}
	return nil
}
