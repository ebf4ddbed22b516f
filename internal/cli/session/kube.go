package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// CompletionTimeout bounds what a completion asks the cluster: somebody waits
// with a finger on a key.
const CompletionTimeout = 3 * time.Second

// Kube is the cluster that a command is about, by kubectl's own flags.
type Kube struct {
	kubeconfig, context, Namespace, IstioNamespace string
}

// AddFlags adds the flags that choose a cluster and a namespace.
func (k *Kube) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, then ~/.kube/config)")
	f.StringVar(&k.context, "context", "", "context of the kubeconfig")
	f.StringVarP(&k.Namespace, "namespace", "n", "", "namespace (default: that of the context)")
	f.StringVarP(&k.IstioNamespace, "istioNamespace", "i", wellknown.SystemNamespace, "namespace of the mesh's own pods")
	f.StringVar(&k.IstioNamespace, "istio-namespace", wellknown.SystemNamespace, "the same as --istioNamespace")
	_ = f.MarkHidden("istio-namespace")
}

// Client connects to the cluster; nothing is sent yet.
func (k *Kube) Client() (*client.Client, error) {
	// What the API server warns of is for the user, once.
	rest.SetDefaultWarningHandler(rest.NewWarningWriter(os.Stderr, rest.WarningWriterOptions{Deduplicate: true}))
	c, err := client.New(client.Options{Kubeconfig: k.kubeconfig, Context: k.context, UserAgent: "ambit", QPS: 50, Burst: 100})
	if err != nil {
		return nil, fmt.Errorf("no cluster to ask: %w (say which with --kubeconfig or --context; `kubectl config get-contexts` lists them)", err)
	}
	return c, nil
}

// Ns is the namespace that a command is about.
func (k *Kube) Ns(c *client.Client) string { return cmp.Or(k.Namespace, c.Namespace) }

// Named reports whether the command line chose a cluster.
func (k *Kube) Named(cmd *cobra.Command) bool {
	return slices.ContainsFunc([]string{"kubeconfig", "context", "istioNamespace", "istio-namespace"}, func(name string) bool {
		f := cmd.Flag(name)
		return f != nil && f.Changed
	})
}

// Configured reports whether there is a kubeconfig at all, or a cluster around us.
func (k *Kube) Configured() bool {
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return true
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.kubeconfig
	cfg, err := rules.Load()
	return err == nil && len(cfg.Contexts) > 0
}

// PodsOf lists pods of the mesh itself, by name.
func (k *Kube) PodsOf(ctx context.Context, c *client.Client, p Part) ([]corev1.Pod, error) {
	list, err := c.Kube.CoreV1().Pods(k.IstioNamespace).List(ctx, metav1.ListOptions{LabelSelector: p.Selector})
	if err != nil {
		return nil, Explain(fmt.Errorf("listing the pods of %s in namespace %s: %w", p.Name, k.IstioNamespace, err))
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// Part is one of the programs that make up a mesh on Kubernetes.
type Part struct {
	Name, Selector, Container string
	Admin                     int // port of its debug endpoints, 0 for none
}

// The parts of the mesh that run in a cluster.
var (
	PartAmbitd  = Part{"ambitd", "app=istiod", "discovery", wellknown.PortControlDebug}
	PartAgent   = Part{"ambit-cni", "k8s-app=istio-cni-node", "install-cni", wellknown.PortControlMonitor}
	PartZtunnel = Part{"ztunnel", "app=ztunnel", "istio-proxy", wellknown.PortAdmin}
)

// Running keeps pods that can be asked.
func Running(pods []corev1.Pod) []corev1.Pod {
	var out []corev1.Pod
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning {
			out = append(out, p)
		}
	}
	return out
}

// Missing is the error for a part of the mesh that has no running pod.
func (k *Kube) Missing(p Part) error {
	return fmt.Errorf("no running pod of %s (%s) in namespace %s: `ambit check` says what is installed, `ambit install` installs it; another namespace is named with -i", p.Name, p.Selector, k.IstioNamespace)
}

// Explain adds what to do next to an error of the API server.
func Explain(err error) error {
	var refused *net.OpError
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w (`kubectl auth can-i --list` shows what you may do)", err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w (the credentials of this context are not accepted: log in again, or choose another with --context)", err)
	case errors.As(err, &refused):
		return fmt.Errorf("%w (is the cluster up? `kubectl cluster-info` with the same --context tells)", err)
	}
	return err
}

// CompleteKube completes with names from the cluster; it is silent when there
// is none.
func (k *Kube) CompleteKube(list func(context.Context, *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := k.Client()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), CompletionTimeout)
		defer cancel()
		names, _ := list(ctx, c)
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// CompleteFlags completes --context, --namespace and --istioNamespace.
func (k *Kube) CompleteFlags(cmd *cobra.Command) {
	namespaces := func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return k.CompleteKube(namespacesIn)(cmd, nil, word)
	}
	_ = cmd.RegisterFlagCompletionFunc("namespace", namespaces)
	_ = cmd.RegisterFlagCompletionFunc("istioNamespace", namespaces)
	_ = cmd.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = k.kubeconfig
		cfg, err := rules.Load()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for name := range cfg.Contexts {
			out = append(out, name)
		}
		slices.Sort(out)
		return out, cobra.ShellCompDirectiveNoFileComp
	})
}

func namespacesIn(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range list.Items {
		out = append(out, n.Name)
	}
	return out, nil
}
