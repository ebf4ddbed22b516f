package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/source"
)

// describe is `ambit describe`: it gathers facts; what they mean is decided in
// describepod.go and describeservice.go.
type describe struct {
	*app
	kube
	output string
}

func (a *app) describeCommand() *cobra.Command {
	d := &describe{app: a}
	cmd := &cobra.Command{
		Use:   "describe",
		Short: "Explain what the mesh does with a pod or a service",
		Long: `Explains what the mesh does with a pod or a service: whether it is in the mesh and
how that is known, under which identity, which policies apply and where each is
enforced, who is let in and who is refused, and what to do about what is wrong.`,
		Example: `  ambit describe pod web-5d9c7f -n shop
  ambit describe service web -n shop -o yaml`,
	}
	f := cmd.PersistentFlags()
	d.addFlags(f)
	d.completeFlags(cmd)
	f.StringVarP(&d.output, "output", "o", formatTable, "output format: table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{formatTable, formatJSON, formatYAML}, cobra.ShellCompDirectiveNoFileComp))
	cmd.AddCommand(
		&cobra.Command{
			Use: "pod NAME", Aliases: []string{"pods", "po"}, Args: cobra.ExactArgs(1),
			Short: "Explain what the mesh does with a pod", Example: "  ambit describe pod web-5d9c7f -n shop",
			ValidArgsFunction: d.completeKube(d.podNames),
			RunE: func(cmd *cobra.Command, args []string) error {
				return d.run(cmd.Context(), args[0], d.pod)
			},
		},
		&cobra.Command{
			Use: "service NAME", Aliases: []string{"services", "svc"}, Args: cobra.ExactArgs(1),
			Short: "Explain what the mesh does with a service", Example: "  ambit describe service web -n shop",
			ValidArgsFunction: d.completeKube(d.serviceNames),
			RunE: func(cmd *cobra.Command, args []string) error {
				return d.run(cmd.Context(), args[0], d.service)
			},
		})
	return cmd
}

// experimentalCommand keeps the names under which Istio's users know commands.
func (a *app) experimentalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "x", Aliases: []string{"experimental", "exp"}, Hidden: true,
		Short: "Commands under the names that users of istioctl know",
	}
	cmd.AddCommand(a.describeCommand())
	return cmd
}

// report is what a description comes to.
type report interface{ text() string }

func (d *describe) run(ctx context.Context, name string, gather func(context.Context, *client.Client, string, string) (report, error)) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	ns := d.ns(c)
	if before, after, ok := strings.Cut(name, "."); ok && d.namespace == "" { // NAME.NAMESPACE, as istioctl has it
		name, ns = before, after
	}
	r, err := gather(ctx, c, ns, name)
	if err != nil {
		return err
	}
	if d.output != formatTable {
		return d.encode(d.output, r)
	}
	return d.printf("%s", r.text())
}

func (d *describe) pod(ctx context.Context, c *client.Client, namespace, name string) (report, error) {
	pod, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("no pod %q in namespace %q: `kubectl get pods -n %s` lists them; another namespace is named with -n", name, namespace, namespace)
	}
	if err != nil {
		return nil, explain(err)
	}
	f := podFacts{Pod: pod}
	if f.Namespace, err = c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		return nil, explain(err)
	}
	if node, err := c.Kube.CoreV1().Nodes().Get(ctx, pod.Spec.NodeName, metav1.GetOptions{}); err == nil {
		f.Node = node
	}
	if f.Policies, err = d.policies(ctx, c, namespace); err != nil {
		return nil, err
	}
	if f.Services, err = d.services(ctx, c, namespace); err != nil {
		return nil, err
	}
	if list, err := c.Kube.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{}); err == nil {
		f.NetworkPolicies = list.Items
	}
	if f.Gateways, err = typed[source.Gateway](ctx, c, source.KindGateway, ""); err != nil {
		return nil, err
	}
	f.RootNamespace = d.istioNamespace
	f.Agent = d.agentOf(ctx, c, pod)
	f.Proxy = d.proxyOf(ctx, c, pod.Spec.NodeName)
	return describePod(f), nil
}

// agentOf asks the agent of a pod's node about it.
func (d *describe) agentOf(ctx context.Context, c *client.Client, pod *corev1.Pod) agentFacts {
	f := agentFacts{Policy: agentPolicy(nil)}
	agents, err := d.podsOf(ctx, c, partAgent)
	if err != nil {
		f.Err = err
		return f
	}
	agent, err := pickZtunnel(agents, "", cmp.Or(pod.Spec.NodeName, "?"))
	if err != nil || agent == nil {
		f.Err = fmt.Errorf("no ambit-cni runs on node %s", pod.Spec.NodeName)
		return f
	}
	f.Pod, f.Policy = agent.Name, agentPolicy(agent)
	b, err := askPod(ctx, c, agent, partAgent.admin, http.MethodGet, "/debug/pods")
	var all []node.Status
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if f.Err = err; err != nil {
		return f
	}
	for _, s := range all {
		if s.UID == string(pod.UID) {
			f.Status = &s
		}
	}
	return f
}

// proxyOf asks the ztunnel of a node what it knows.
func (d *describe) proxyOf(ctx context.Context, c *client.Client, node string) proxyFacts {
	var f proxyFacts
	pods, err := d.podsOf(ctx, c, partZtunnel)
	if err != nil {
		f.Err = err
		return f
	}
	pod, err := pickZtunnel(pods, "", node)
	if err != nil || pod == nil {
		f.Err = errors.New("no ztunnel runs")
		if node != "" {
			f.Err = fmt.Errorf("no ztunnel runs on node %s", node)
		}
		return f
	}
	f.Pod = pod.Name
	b, err := askPod(ctx, c, pod, partZtunnel.admin, http.MethodGet, "/config_dump")
	if err == nil {
		f.Dump, err = parseDump(b)
	}
	f.Err = err
	return f
}

// policies are the AuthorizationPolicies of a namespace and of the mesh's.
func (d *describe) policies(ctx context.Context, c *client.Client, namespace string) ([]securityv1.AuthorizationPolicy, error) {
	out, err := typed[securityv1.AuthorizationPolicy](ctx, c, source.KindAuthorizationPolicy, namespace)
	if err != nil || namespace == d.istioNamespace {
		return out, err
	}
	root, err := typed[securityv1.AuthorizationPolicy](ctx, c, source.KindAuthorizationPolicy, d.istioNamespace)
	return append(out, root...), err
}

func (d *describe) services(ctx context.Context, c *client.Client, namespace string) ([]corev1.Service, error) {
	list, err := c.Kube.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explain(err)
	}
	return list.Items, nil
}

func (d *describe) service(ctx context.Context, c *client.Client, namespace, name string) (report, error) {
	s, err := c.Kube.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("no service %q in namespace %q: `kubectl get services -n %s` lists them; another namespace is named with -n", name, namespace, namespace)
	}
	if err != nil {
		return nil, explain(err)
	}
	f := serviceFacts{Service: s}
	if f.Namespace, err = c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		return nil, explain(err)
	}
	if f.Policies, err = d.policies(ctx, c, namespace); err != nil {
		return nil, err
	}
	if f.Gateways, err = typed[source.Gateway](ctx, c, source.KindGateway, ""); err != nil {
		return nil, err
	}
	slices, err := c.Kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + name})
	if err != nil {
		return nil, explain(err)
	}
	f.Slices = slices.Items
	pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, explain(err)
	}
	f.Pods = pods.Items
	f.RootNamespace = d.istioNamespace
	f.Policy = agentPolicy(nil)
	if agents, err := d.podsOf(ctx, c, partAgent); err == nil && len(agents) > 0 {
		f.Policy = agentPolicy(&agents[0])
	}
	f.Proxy = d.proxyOf(ctx, c, "")
	return describeService(f), nil
}

// typed lists the objects of a kind as what they are; none, if the cluster does
// not know the kind.
func typed[T any](ctx context.Context, c *client.Client, kind, namespace string) ([]T, error) {
	var out []T
	var broken error
	err := eachObject(ctx, c, kind, namespace, func(u *unstructured.Unstructured) {
		var v T
		b, err := json.Marshal(u.Object)
		if err == nil {
			err = json.Unmarshal(b, &v)
		}
		if err != nil {
			broken = errors.Join(broken, fmt.Errorf("%s %s/%s: %w", kind, u.GetNamespace(), u.GetName(), err))
			return
		}
		out = append(out, v)
	})
	return out, errors.Join(err, broken)
}

func (d *describe) podNames(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := c.Kube.CoreV1().Pods(d.ns(c)).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range list.Items {
		out = append(out, p.Name)
	}
	return out, nil
}

func (d *describe) serviceNames(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := d.services(ctx, c, d.ns(c))
	var out []string
	for _, s := range list {
		out = append(out, s.Name)
	}
	return out, err
}
