package describe

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/next"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// labInformant reads the objects that a lab's mesh reads, and asks its agents
// and proxies. A lab has no NetworkPolicies, and the mesh's settings are the
// defaults.
type labInformant struct {
	lab    *lab.Lab
	status *lab.Status
	events []source.Event
	typing next.Lab
}

func (d *describe) labInformant(ctx context.Context) (informant, error) {
	l, err := d.Attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster)", err)
	}
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &labInformant{l, st, l.Objects(), next.Lab{Name: d.NameArg("name"), Flag: d.NameArg("lab")}}, nil
}

func (*labInformant) home() string { return metav1.NamespaceDefault }

func (i *labInformant) pod(ctx context.Context, namespace, name string) (f podFacts, err error) {
	pod := live.One(i.events, source.Pod, namespace, name)
	if pod == nil {
		return f, fmt.Errorf("no pod %q in namespace %q of this lab: `ambit lab status%s` lists them; another namespace is named with -n", name, namespace, i.typing.Name)
	}
	f = podFacts{
		Pod: pod, Namespace: i.namespace(namespace), Node: live.One(i.events, source.Node, "", pod.Spec.NodeName),
		RootNamespace: wellknown.SystemNamespace, Type: i.typing,
		Policies: i.policies(namespace), Services: live.Values(live.Objects(i.events, source.Service, namespace)),
		Gateways: live.Objects(i.events, source.Gateway, ""),
	}
	f.Agent = i.agentOf(ctx, pod)
	f.Proxy = i.proxyOf(ctx, pod.Spec.NodeName)
	return f, nil
}

func (i *labInformant) service(ctx context.Context, namespace, name string) (f serviceFacts, err error) {
	s := live.One(i.events, source.Service, namespace, name)
	if s == nil {
		return f, fmt.Errorf("no service %q in namespace %q of this lab: `ambit lab status%s` lists them; another namespace is named with -n", name, namespace, i.typing.Name)
	}
	f = serviceFacts{
		Service: s, Namespace: i.namespace(namespace), RootNamespace: wellknown.SystemNamespace, Type: i.typing,
		Policies: i.policies(namespace), Policy: live.AgentPolicy(nil),
		Gateways: live.Objects(i.events, source.Gateway, ""),
		Pods:     live.Values(live.Objects(i.events, source.Pod, namespace)),
	}
	for _, slice := range live.Objects(i.events, source.EndpointSlice, namespace) {
		if slice.Labels[discoveryv1.LabelServiceName] == name {
			f.Slices = append(f.Slices, *slice)
		}
	}
	f.Slices = append(f.Slices, selected(s, f.Pods))
	node := ""
	if len(i.status.Nodes) > 0 {
		node = i.status.Nodes[0].Name
	}
	f.Proxy = i.proxyOf(ctx, node)
	return f, nil
}

// selected stands in for the EndpointSlice that a cluster's controller would
// make of the pods that a service selects.
func selected(s *corev1.Service, pods []corev1.Pod) discoveryv1.EndpointSlice {
	var out discoveryv1.EndpointSlice
	if len(s.Spec.Selector) == 0 {
		return out
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	for _, p := range pods {
		if len(p.Status.PodIPs) == 0 || source.Ended(&p) || !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.Status.PodIPs[0].IP}, NodeName: &p.Spec.NodeName,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef:  &corev1.ObjectReference{Kind: source.Pod.Name, Name: p.Name},
		})
	}
	return out
}

// namespace is one that need not have been written down.
func (i *labInformant) namespace(name string) *corev1.Namespace {
	return cmp.Or(live.One(i.events, source.Namespace, "", name),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

func (i *labInformant) policies(namespace string) []*securityv1.AuthorizationPolicy {
	out := live.Objects(i.events, source.AuthorizationPolicy, namespace)
	if namespace != wellknown.SystemNamespace {
		out = append(out, live.Objects(i.events, source.AuthorizationPolicy, wellknown.SystemNamespace)...)
	}
	return out
}

func (i *labInformant) agentOf(ctx context.Context, pod *corev1.Pod) agentFacts {
	f := agentFacts{Policy: live.AgentPolicy(nil)}
	name := session.PartAgent.Name + "/" + pod.Spec.NodeName
	if f.Err = i.runs(name); f.Err != nil {
		return f
	}
	return f.answered(name, pod, func() ([]byte, error) {
		return session.FetchIn(ctx, i.lab, lab.InNode(pod.Spec.NodeName), session.PartAgent.Admin, http.MethodGet, admin.PathPods)
	})
}

func (i *labInformant) proxyOf(ctx context.Context, node string) proxyFacts {
	var f proxyFacts
	name := session.PartZtunnel.Name + "/" + node
	if f.Err = i.runs(name); f.Err != nil {
		return f
	}
	return f.answered(name, func() ([]byte, error) {
		return session.FetchIn(ctx, i.lab, lab.InZtunnel(node), session.PartZtunnel.Admin, http.MethodGet, admin.PathDump)
	})
}

// runs tells why a component cannot be asked.
func (i *labInformant) runs(component string) error {
	switch c, ok := i.status.Component(component); {
	case !i.status.Mesh:
		return fmt.Errorf("this lab was started with --plaintext: it has no %s", component)
	case !ok || c.PID == 0:
		return fmt.Errorf("%s does not run", component)
	}
	return nil
}

func (i *labInformant) pods(_ context.Context, namespace string) ([]string, error) {
	return live.NamesOf(live.Objects(i.events, source.Pod, namespace)), nil
}

func (i *labInformant) services(_ context.Context, namespace string) ([]string, error) {
	return live.NamesOf(live.Objects(i.events, source.Service, namespace)), nil
}
