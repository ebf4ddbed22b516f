package main

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	egresspb "github.com/ambit-mesh/ambit/api/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// agent is the part of node.Agent that configuration goes to.
type agent interface {
	Set(node.Pod)
	Delete(uid string)
	SetNamespace(name string, labels map[string]string)
	SetUDP(refuses func(node.Pod) bool)
	Synced()
}

// pods passes the pods of one node, and all namespaces, on to the agent.
type pods struct {
	agent agent
	node  string
	root  string                // namespace whose policies are for the mesh
	uids  map[source.Key]string // of the pods that were passed on
	udp   map[source.Key]*ambit.EgressPolicy
}

func newPods(a agent, node, root string) *pods {
	return &pods{agent: a, node: node, root: root, uids: map[source.Key]string{}, udp: map[source.Key]*ambit.EgressPolicy{}}
}

// Apply is a source.Sink's. Namespaces go first, so that a pod of a new
// namespace is decided on once.
func (p *pods) Apply(events []source.Event) {
	p.policies(events)
	for _, e := range events {
		if e.Key.Kind == source.Namespace.Kind {
			p.namespace(e)
		}
	}
	for _, e := range events {
		if e.Key.Kind == source.Pod.Kind {
			p.pod(e)
		}
	}
}

// policies passes on which pods' UDP the EgressPolicies refuse.
func (p *pods) policies(events []source.Event) {
	changed := false
	for _, e := range events {
		if e.Key.Kind != source.EgressPolicy.Kind {
			continue
		}
		policy, ok := e.Object.(*ambit.EgressPolicy)
		if ok && policy != nil && policy.Spec.GetUdp() == egresspb.EgressPolicySpec_Refuse && policy.Spec.GetMode() != egresspb.EgressPolicySpec_DryRun {
			p.udp[e.Key], changed = policy, true
		} else if p.udp[e.Key] != nil {
			delete(p.udp, e.Key)
			changed = true
		}
	}
	if !changed {
		return
	}
	all := slices.Collect(maps.Values(p.udp))
	p.agent.SetUDP(func(pod node.Pod) bool {
		return slices.ContainsFunc(all, func(policy *ambit.EgressPolicy) bool {
			if policy.Namespace != p.root && policy.Namespace != pod.Namespace {
				return false
			}
			for k, v := range policy.Spec.GetSelector().GetMatchLabels() {
				if have, ok := pod.Labels[k]; !ok || have != v {
					return false
				}
			}
			return true
		})
	})
}

// Synced is a source.Sink's.
func (p *pods) Synced() { p.agent.Synced() }

func (p *pods) namespace(e source.Event) {
	ns, ok := e.Object.(*corev1.Namespace)
	if !ok || ns == nil {
		p.agent.SetNamespace(e.Key.Name, nil)
		return
	}
	labels := ns.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	p.agent.SetNamespace(ns.Name, labels)
}

func (p *pods) pod(e source.Event) {
	pod, ok := e.Object.(*corev1.Pod)
	here := ok && pod != nil && pod.UID != "" && pod.Spec.NodeName == p.node
	if old := p.uids[e.Key]; old != "" && (!here || old != string(pod.UID)) {
		delete(p.uids, e.Key)
		p.agent.Delete(old)
	}
	if here {
		p.uids[e.Key] = string(pod.UID)
		p.agent.Set(podOf(pod))
	}
}

func podOf(pod *corev1.Pod) node.Pod {
	account, ok := source.Account(pod)
	if !ok {
		account = wellknown.NoServiceAccount
	}
	n := node.Pod{
		UID: string(pod.UID), Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: account,
		Labels: pod.Labels, Annotations: pod.Annotations, HostNetwork: pod.Spec.HostNetwork,
		Terminal:   source.Ended(pod),
		ProbePorts: source.KubeletPorts(pod),
	}
	if _, mirror := pod.Annotations[source.AnnotationMirror]; mirror {
		n.StaticUID = pod.Annotations[source.AnnotationConfigHash]
	}
	ips := []string{pod.Status.PodIP}
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	seen := map[netip.Addr]bool{}
	for _, s := range ips {
		if ip, err := netip.ParseAddr(s); err == nil && !seen[ip] {
			seen[ip] = true
			n.IPs = append(n.IPs, ip)
		}
	}
	return n
}

// writer names the agent's overlays in the status directory.
const writer = "ambit-cni"

// annotator announces redirection by overlays, for there is no API server.
type annotator struct {
	dir string

	mu    sync.Mutex
	owner map[source.Key]string // UID of the pod that an overlay was written for
}

func newAnnotator(dir string) *annotator {
	return &annotator{dir: dir, owner: map[source.Key]string{}}
}

// Annotate is a node.Annotator's.
func (a *annotator) Annotate(_ context.Context, pod node.Pod, value string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := source.Key{Kind: source.Pod.Kind, Namespace: pod.Namespace, Name: pod.Name}
	if value == "" {
		// The overlay goes by name, and the name may be another pod's meanwhile.
		if owner := a.owner[key]; owner != "" && owner != pod.UID {
			return nil
		}
		if err := file.RemoveOverlay(a.dir, writer, key); err != nil {
			return err
		}
		delete(a.owner, key)
		return nil
	}
	err := file.WriteOverlay(a.dir, writer, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: pod.Name, Namespace: pod.Namespace,
		Annotations: map[string]string{wellknown.AnnotationRedirection: value},
	}})
	if err == nil {
		a.owner[key] = pod.UID
	}
	return err
}
