package cli

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
	typing labCommands
}

func (d *describe) labInformant(ctx context.Context) (informant, error) {
	l, err := d.attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster)", err)
	}
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &labInformant{l, st, l.Objects(), labCommands{d.nameArg("name"), d.nameArg("lab")}}, nil
}

func (*labInformant) home() string { return metav1.NamespaceDefault }

func (i *labInformant) pod(ctx context.Context, namespace, name string) (f podFacts, err error) {
	pod := one(i.events, source.Pod, namespace, name)
	if pod == nil {
		return f, fmt.Errorf("no pod %q in namespace %q of this lab: `ambit lab status%s` lists them; another namespace is named with -n", name, namespace, i.typing.name)
	}
	f = podFacts{
		Pod: pod, Namespace: i.namespace(namespace), Node: one(i.events, source.Node, "", pod.Spec.NodeName),
		RootNamespace: wellknown.SystemNamespace, Type: i.typing,
		Policies: i.policies(namespace), Services: values(objects(i.events, source.Service, namespace)),
		Gateways: objects(i.events, source.Gateway, ""),
	}
	f.Agent = i.agentOf(ctx, pod)
	f.Proxy = i.proxyOf(ctx, pod.Spec.NodeName)
	return f, nil
}

func (i *labInformant) service(ctx context.Context, namespace, name string) (f serviceFacts, err error) {
	s := one(i.events, source.Service, namespace, name)
	if s == nil {
		return f, fmt.Errorf("no service %q in namespace %q of this lab: `ambit lab status%s` lists them; another namespace is named with -n", name, namespace, i.typing.name)
	}
	f = serviceFacts{
		Service: s, Namespace: i.namespace(namespace), RootNamespace: wellknown.SystemNamespace, Type: i.typing,
		Policies: i.policies(namespace), Policy: agentPolicy(nil),
		Gateways: objects(i.events, source.Gateway, ""),
		Pods:     values(objects(i.events, source.Pod, namespace)),
	}
	for _, slice := range objects(i.events, source.EndpointSlice, namespace) {
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
	return cmp.Or(one(i.events, source.Namespace, "", name),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

func (i *labInformant) policies(namespace string) []*securityv1.AuthorizationPolicy {
	out := objects(i.events, source.AuthorizationPolicy, namespace)
	if namespace != wellknown.SystemNamespace {
		out = append(out, objects(i.events, source.AuthorizationPolicy, wellknown.SystemNamespace)...)
	}
	return out
}

func (i *labInformant) agentOf(ctx context.Context, pod *corev1.Pod) agentFacts {
	f := agentFacts{Policy: agentPolicy(nil)}
	name := partAgent.name + "/" + pod.Spec.NodeName
	if f.Err = i.runs(name); f.Err != nil {
		return f
	}
	return f.answered(name, pod, func() ([]byte, error) {
		return fetchIn(ctx, i.lab, lab.InNode(pod.Spec.NodeName), partAgent.admin, http.MethodGet, agentPods)
	})
}

func (i *labInformant) proxyOf(ctx context.Context, node string) proxyFacts {
	var f proxyFacts
	name := partZtunnel.name + "/" + node
	if f.Err = i.runs(name); f.Err != nil {
		return f
	}
	return f.answered(name, func() ([]byte, error) {
		return fetchIn(ctx, i.lab, lab.InZtunnel(node), partZtunnel.admin, http.MethodGet, proxyDump)
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
	return namesOf(objects(i.events, source.Pod, namespace)), nil
}

func (i *labInformant) services(_ context.Context, namespace string) ([]string, error) {
	return namesOf(objects(i.events, source.Service, namespace)), nil
}

// objects are those of a kind, of one namespace or of all.
func objects[P metav1.Object](events []source.Event, kind source.Of[P], namespace string) []P {
	var out []P
	for _, e := range events {
		if o, ok := e.Object.(P); ok && e.Key.Kind == kind.Kind && (namespace == "" || e.Key.Namespace == namespace) {
			out = append(out, o)
		}
	}
	return out
}

// one is the object of a name, nil if there is none.
func one[P metav1.Object](events []source.Event, kind source.Of[P], namespace, name string) (none P) {
	for _, e := range events {
		if o, ok := e.Object.(P); ok && e.Key == kind.Key(namespace, name) {
			return o
		}
	}
	return none
}

func values[T any](list []*T) []T {
	out := make([]T, 0, len(list))
	for _, p := range list {
		out = append(out, *p)
	}
	return out
}

func namesOf[T metav1.Object](list []T) []string {
	out := make([]string, 0, len(list))
	for _, o := range list {
		out = append(out, o.GetName())
	}
	return out
}
