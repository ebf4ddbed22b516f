package registry

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/source"
)

// placement says where a pod runs and as whom.
type placement struct {
	node    string
	account string
	uid     string
}

// placement leaves out pods without an account of their own: a node can create
// such a pod in any namespace, and gets no identity by it.
func (t *tables) placement(_ *collection.Reader, _ Name, p *corev1.Pod) (placement, bool) {
	account, ok := source.Account(p)
	if !ok || source.Ended(p) || p.Spec.NodeName == "" {
		return placement{}, false
	}
	return placement{p.Spec.NodeName, account, string(p.UID)}, true
}

// Nodes knows which identities run on which node. It may be asked from any
// goroutine.
type Nodes struct {
	trustDomain string
	bound       bool // callers must be bound to a pod that is known

	mu   sync.RWMutex
	pods map[Name]placement
	ids  map[string]map[Name]int // by node: pods per namespace and account
}

func newNodes(trustDomain string, bound bool) *Nodes {
	return &Nodes{trustDomain: trustDomain, bound: bound, pods: map[Name]placement{}, ids: map[string]map[Name]int{}}
}

func (n *Nodes) apply(changes []collection.Change[Name, placement]) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range changes {
		if c.Had {
			n.count(c.Key, c.Old, -1)
			delete(n.pods, c.Key)
		}
		if c.Has {
			n.count(c.Key, c.New, 1)
			n.pods[c.Key] = c.New
		}
	}
}

func (n *Nodes) count(pod Name, p placement, by int) {
	ids := n.ids[p.node]
	if ids == nil {
		ids = map[Name]int{}
		n.ids[p.node] = ids
	}
	who := Name{pod.Namespace, p.account}
	if ids[who] += by; ids[who] <= 0 {
		delete(ids, who)
	}
	if len(ids) == 0 {
		delete(n.ids, p.node)
	}
}

// MayImpersonate is nil when the caller's node runs a pod that has not ended
// as id. The node is that of the caller's credentials, else that of the pod
// they are bound to.
func (n *Nodes) MayImpersonate(c auth.Caller, id identity.Identity) error {
	if id.TrustDomain != n.trustDomain {
		return fmt.Errorf("identity %s is of trust domain %q, this mesh is %q", id, id.TrustDomain, n.trustDomain)
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	node := c.Node
	own, known := n.pods[Name{c.Namespace, c.PodName}]
	known = known && c.PodName != ""
	if n.bound {
		switch {
		case c.PodName == "" || c.PodUID == "":
			return fmt.Errorf("%s: the credentials are not bound to a pod; use a projected service account token", c.Account())
		case !known:
			return fmt.Errorf("there is no running pod %s/%s, to which the credentials are bound", c.Namespace, c.PodName)
		case own.uid == "":
			return fmt.Errorf("the UID of pod %s/%s is not known, so that it cannot be told from its predecessor", c.Namespace, c.PodName)
		}
	}
	if known {
		switch {
		case c.PodUID != "" && own.uid != "" && c.PodUID != own.uid:
			return fmt.Errorf("pod %s/%s has UID %s now, the credentials are for its predecessor %s", c.Namespace, c.PodName, own.uid, c.PodUID)
		case own.account != c.ServiceAccount:
			return fmt.Errorf("pod %s/%s runs as %s, the credentials are for %s", c.Namespace, c.PodName, own.account, c.ServiceAccount)
		case node == "":
			node = own.node
		case node != own.node:
			return fmt.Errorf("pod %s/%s runs on node %s, the credentials are for node %s", c.Namespace, c.PodName, own.node, node)
		}
	}
	if node == "" {
		return fmt.Errorf("%s: the credentials name no node, and no pod that is known", c.Account())
	}
	if n.ids[node][Name{id.Namespace, id.ServiceAccount}] == 0 {
		return fmt.Errorf("no pod on node %s runs as %s/%s", node, id.Namespace, id.ServiceAccount)
	}
	return nil
}
