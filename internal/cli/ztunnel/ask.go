package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// proxy is a ztunnel that can be asked.
type proxy struct {
	name string // POD.NAMESPACE in a cluster, ztunnel/NODE in a lab
	ask  func(ctx context.Context, method, path string) ([]byte, error)
}

// ask asks the ztunnel that the command line means, or else the first.
func (z *ztunnelConfig) ask(cmd *cobra.Command, name, method, path string) ([]byte, error) {
	proxies, err := z.proxies(cmd, name)
	if err != nil {
		return nil, err
	}
	return proxies[0].ask(cmd.Context(), method, path)
}

// proxies are the ztunnels that the command line means: the pod that is named,
// that of --node, or else all. There is at least one.
func (z *ztunnelConfig) proxies(cmd *cobra.Command, name string) ([]proxy, error) {
	if name == "" && !z.InCluster(cmd, &z.Kube) {
		return z.labProxies(cmd.Context())
	}
	if name != "" && z.node != "" {
		return nil, errors.New("a pod and --node were given: one of them says which ztunnel")
	}
	c, err := z.Client()
	if err != nil {
		return nil, err
	}
	name, ns := podName(name)
	if ns != "" {
		z.IstioNamespace = ns
	}
	pods, err := z.PodsOf(cmd.Context(), c, session.PartZtunnel)
	if err != nil {
		return nil, err
	}
	if name != "" || z.node != "" {
		pod, err := session.PickZtunnel(pods, name, z.node)
		if err != nil {
			return nil, err
		}
		pods = []corev1.Pod{*pod}
	} else if pods = session.Running(pods); len(pods) == 0 {
		return nil, z.Missing(session.PartZtunnel)
	}
	var out []proxy
	for _, pod := range pods {
		out = append(out, proxy{pod.Name + "." + pod.Namespace, func(ctx context.Context, method, path string) ([]byte, error) {
			return session.AskPod(ctx, c, &pod, z.port, method, path)
		}})
	}
	return out, nil
}

func (z *ztunnelConfig) labProxies(ctx context.Context) ([]proxy, error) {
	l, err := z.Attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster)", err)
	}
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	nodes := session.NodeNames(st)
	if z.node != "" {
		if !slices.Contains(nodes, z.node) {
			return nil, fmt.Errorf("no node %q in this lab: there are %s", z.node, strings.Join(nodes, ", "))
		}
		nodes = []string{z.node}
	}
	var out []proxy
	for _, node := range nodes {
		where := lab.InZtunnel(node)
		out = append(out, proxy{string(where), func(ctx context.Context, method, path string) ([]byte, error) {
			b, err := session.FetchIn(ctx, l, where, wellknown.PortAdmin, method, path)
			if err != nil {
				err = fmt.Errorf("asking %s: %w", where, err)
			}
			return b, err
		}})
	}
	return out, nil
}

// podName reads [pod/]NAME[.NAMESPACE].
func podName(s string) (name, namespace string) {
	name, namespace, _ = strings.Cut(strings.TrimPrefix(s, "pod/"), ".")
	return name, namespace
}

// ztunnels lists what can be given as an argument.
func (z *ztunnelConfig) ztunnels(ctx context.Context, c *client.Client) ([]string, error) {
	pods, err := z.PodsOf(ctx, c, session.PartZtunnel)
	var out []string
	for _, p := range pods {
		out = append(out, p.Name+"\ton "+p.Spec.NodeName)
	}
	return out, err
}

// completeNodes completes --node with nodes that have a ztunnel.
func (z *ztunnelConfig) completeNodes(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	if st, err := z.LabStatus(cmd.Context()); err == nil && !z.Named(cmd) {
		return session.NodeNames(st), cobra.ShellCompDirectiveNoFileComp
	}
	return z.CompleteKube(func(ctx context.Context, c *client.Client) ([]string, error) {
		pods, err := z.PodsOf(ctx, c, session.PartZtunnel)
		var out []string
		for _, p := range pods {
			out = append(out, p.Spec.NodeName)
		}
		return out, err
	})(cmd, nil, word)
}
