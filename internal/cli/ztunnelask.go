package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// ask asks the admin port of a ztunnel: of the cluster's pod that is named, or
// else of a node's.
func (z *ztunnelConfig) ask(cmd *cobra.Command, name, method, path string) ([]byte, error) {
	ctx := cmd.Context()
	if name == "" && !z.inCluster(cmd, &z.kube) {
		return z.askLab(ctx, method, path)
	}
	if name != "" && z.node != "" {
		return nil, errors.New("a pod and --node were given: one of them says which ztunnel")
	}
	c, err := z.client()
	if err != nil {
		return nil, err
	}
	name, ns := podName(name)
	if ns != "" {
		z.istioNamespace = ns
	}
	pods, err := z.podsOf(ctx, c, partZtunnel)
	if err != nil {
		return nil, err
	}
	pod, err := pickZtunnel(pods, name, z.node)
	if err != nil {
		return nil, err
	}
	if pod == nil {
		return nil, z.missing(partZtunnel)
	}
	return askPod(ctx, c, pod, z.port, method, path)
}

// podName reads [pod/]NAME[.NAMESPACE].
func podName(s string) (name, namespace string) {
	name, namespace, _ = strings.Cut(strings.TrimPrefix(s, "pod/"), ".")
	return name, namespace
}

// pickZtunnel chooses the pod to ask, nil when there is none at all. Of two on
// one node, as while one replaces the other, it is the younger: that serves new
// connections.
func pickZtunnel(pods []corev1.Pod, name, node string) (*corev1.Pod, error) {
	up := running(pods)
	slices.SortStableFunc(up, func(a, b corev1.Pod) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	if name == "" && node == "" {
		if up = running(pods); len(up) == 0 {
			return nil, nil
		}
		return &up[0], nil
	}
	var where []string
	for i, p := range up {
		if name != "" && p.Name == name || name == "" && p.Spec.NodeName == node {
			return &up[i], nil
		}
		where = append(where, p.Name+" on "+p.Spec.NodeName)
	}
	slices.Sort(where)
	what := "pod " + name
	if name == "" {
		what = "ztunnel on node " + node
	}
	if len(where) == 0 {
		return nil, fmt.Errorf("no running %s, and no other ztunnel: `kubectl get pods -A -l %s -o wide` says why", what, partZtunnel.selector)
	}
	return nil, fmt.Errorf("no running %s: there are %s", what, strings.Join(where, ", "))
}

func (z *ztunnelConfig) askLab(ctx context.Context, method, path string) ([]byte, error) {
	l, err := z.attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster)", err)
	}
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	node := z.node
	if node == "" {
		node = st.Nodes[0].Name
	}
	if nodes := nodeNames(st); !slices.Contains(nodes, node) {
		return nil, fmt.Errorf("no node %q in this lab: there are %s", node, strings.Join(nodes, ", "))
	}
	return fetch(ctx, l.HTTP(lab.Where("ztunnel/"+node)), method, net.JoinHostPort("127.0.0.1", strconv.Itoa(wellknown.PortAdmin)), path)
}

// log is `ambit ztunnel-config log`.
func (z *ztunnelConfig) log() *cobra.Command {
	var level string
	var reset bool
	cmd := &cobra.Command{
		Use:   "log [ZTUNNEL]",
		Short: "Show or change the levels of the proxy's log",
		Long: `Shows the levels of the proxy's log, changes them (--level), or goes back to those it
was started with (--reset). A level is off, error, warn, info, debug or trace, for
all, or for one scope as in access=debug. It lasts until the proxy is replaced.`,
		Example: `  ambit ztunnel-config log
  ambit ztunnel-config log ztunnel-x7k2p --level info,access=debug
  ambit ztunnel-config log --node node2 --reset`,
		Aliases:           []string{"logs", "l"},
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: z.completeKube(z.ztunnels),
		RunE: func(cmd *cobra.Command, args []string) error {
			if level != "" && reset {
				return errors.New("--level and --reset: only one of them")
			}
			path := "/logging"
			switch {
			case reset:
				path += "?reset"
			case level != "":
				path += "?level=" + url.QueryEscape(level)
			}
			b, err := z.ask(cmd, strings.Join(args, ""), http.MethodPost, path)
			if err != nil {
				return err
			}
			return z.printf("%s\n", strings.TrimSpace(string(b)))
		},
	}
	cmd.Flags().StringVar(&level, "level", "", "levels, as LEVEL or SCOPE=LEVEL with commas between")
	cmd.Flags().BoolVarP(&reset, "reset", "r", false, "go back to the levels of the start")
	return cmd
}

// ztunnels lists what can be given as an argument.
func (z *ztunnelConfig) ztunnels(ctx context.Context, c *client.Client) ([]string, error) {
	pods, err := z.podsOf(ctx, c, partZtunnel)
	var out []string
	for _, p := range pods {
		out = append(out, p.Name+"\ton "+p.Spec.NodeName)
	}
	return out, err
}

// completeNodes completes --node with nodes that have a ztunnel.
func (z *ztunnelConfig) completeNodes(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	if st, err := z.status(cmd.Context()); err == nil && !z.named(cmd) {
		return nodeNames(st), cobra.ShellCompDirectiveNoFileComp
	}
	return z.completeKube(func(ctx context.Context, c *client.Client) ([]string, error) {
		pods, err := z.podsOf(ctx, c, partZtunnel)
		var out []string
		for _, p := range pods {
			out = append(out, p.Spec.NodeName)
		}
		return out, err
	})(cmd, nil, word)
}
