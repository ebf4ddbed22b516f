package describe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/next"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/source"
)

// clusterInformant asks the API server, and through it the mesh's own pods.
type clusterInformant struct {
	*session.Kube
	c *client.Client
}

func (i *clusterInformant) home() string { return i.c.Namespace }

func (i *clusterInformant) pod(ctx context.Context, namespace, name string) (f podFacts, err error) {
	c := i.c
	pod, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return f, fmt.Errorf("no pod %q in namespace %q: `kubectl get pods -n %s` lists them; another namespace is named with -n", name, namespace, namespace)
	}
	if err != nil {
		return f, session.Explain(err)
	}
	f = podFacts{Pod: pod, RootNamespace: i.IstioNamespace, Type: next.Kubectl{Root: i.IstioNamespace}}
	if f.Namespace, err = c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		return f, session.Explain(err)
	}
	if node, err := c.Kube.CoreV1().Nodes().Get(ctx, pod.Spec.NodeName, metav1.GetOptions{}); err == nil {
		f.Node = node
	}
	if f.Policies, err = i.policies(ctx, namespace); err != nil {
		return f, err
	}
	services, err := c.Kube.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, session.Explain(err)
	}
	f.Services = services.Items
	if list, err := c.Kube.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{}); err == nil {
		f.NetworkPolicies = list.Items
	}
	if f.Gateways, err = live.Typed(ctx, c, source.Gateway, ""); err != nil {
		return f, err
	}
	f.Agent = i.agentOf(ctx, pod)
	i.discovery(ctx, &f)
	f.Proxy = i.proxyOf(ctx, pod.Spec.NodeName)
	return f, nil
}

// agentOf asks the agent of a pod's node about it.
func (i *clusterInformant) agentOf(ctx context.Context, pod *corev1.Pod) agentFacts {
	f := agentFacts{Policy: live.AgentPolicy(nil)}
	agents, err := i.PodsOf(ctx, i.c, session.PartAgent)
	if err != nil {
		f.Err = err
		return f
	}
	agent, err := session.PickZtunnel(agents, "", cmp.Or(pod.Spec.NodeName, "?"))
	if err != nil || agent == nil {
		f.Err = fmt.Errorf("no ambit-cni runs on node %s", pod.Spec.NodeName)
		return f
	}
	f.Policy = live.AgentPolicy(agent)
	return f.answered(agent.Name, pod, func() ([]byte, error) {
		return session.AskPod(ctx, i.c, agent, session.PartAgent.Admin, http.MethodGet, admin.PathPods)
	})
}

// discovery adds which namespaces control plane and agent look at.
func (i *clusterInformant) discovery(ctx context.Context, f *podFacts) {
	text := live.MeshText(ctx, i.Kube, i.c)
	cfg, _, err := meshconfig.Parse(text)
	if err != nil {
		return
	}
	f.Discovery = cfg.Discovery(i.IstioNamespace, cfg.RootNamespace)
	if d, err := node.ParseDiscovery(text); err == nil {
		d.Always = append(d.Always, i.IstioNamespace)
		f.Agent.Policy.Discovery = d
	}
}

// proxyOf asks the ztunnel of a node what it knows.
func (i *clusterInformant) proxyOf(ctx context.Context, node string) proxyFacts {
	var f proxyFacts
	pods, err := i.PodsOf(ctx, i.c, session.PartZtunnel)
	if err != nil {
		f.Err = err
		return f
	}
	pod, err := session.PickZtunnel(pods, "", node)
	if err != nil || pod == nil {
		f.Err = errors.New("no ztunnel runs")
		if node != "" {
			f.Err = fmt.Errorf("no ztunnel runs on node %s", node)
		}
		return f
	}
	return f.answered(pod.Name, func() ([]byte, error) {
		return session.AskPod(ctx, i.c, pod, session.PartZtunnel.Admin, http.MethodGet, admin.PathDump)
	})
}

// policies are the AuthorizationPolicies of a namespace and of the mesh's.
func (i *clusterInformant) policies(ctx context.Context, namespace string) ([]*securityv1.AuthorizationPolicy, error) {
	out, err := live.Typed(ctx, i.c, source.AuthorizationPolicy, namespace)
	if err != nil || namespace == i.IstioNamespace {
		return out, err
	}
	root, err := live.Typed(ctx, i.c, source.AuthorizationPolicy, i.IstioNamespace)
	return append(out, root...), err
}

func (i *clusterInformant) service(ctx context.Context, namespace, name string) (f serviceFacts, err error) {
	c := i.c
	s, err := c.Kube.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return f, fmt.Errorf("no service %q in namespace %q: `kubectl get services -n %s` lists them; another namespace is named with -n", name, namespace, namespace)
	}
	if err != nil {
		return f, session.Explain(err)
	}
	f = serviceFacts{Service: s, RootNamespace: i.IstioNamespace, Type: next.Kubectl{Root: i.IstioNamespace}, Policy: live.AgentPolicy(nil)}
	if f.Namespace, err = c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		return f, session.Explain(err)
	}
	if f.Policies, err = i.policies(ctx, namespace); err != nil {
		return f, err
	}
	if f.Gateways, err = live.Typed(ctx, c, source.Gateway, ""); err != nil {
		return f, err
	}
	slices, err := c.Kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
	if err != nil {
		return f, session.Explain(err)
	}
	f.Slices = slices.Items
	pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, session.Explain(err)
	}
	f.Pods = pods.Items
	if agents, err := i.PodsOf(ctx, c, session.PartAgent); err == nil && len(agents) > 0 {
		f.Policy = live.AgentPolicy(&agents[0])
	}
	f.Proxy = i.proxyOf(ctx, "")
	return f, nil
}

func (i *clusterInformant) pods(ctx context.Context, namespace string) (out []string, err error) {
	list, err := i.c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, p := range list.Items {
		out = append(out, p.Name)
	}
	return out, nil
}

func (i *clusterInformant) services(ctx context.Context, namespace string) (out []string, err error) {
	list, err := i.c.Kube.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, s := range list.Items {
		out = append(out, s.Name)
	}
	return out, nil
}
