package cli

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

// completionTimeout bounds what a completion asks the cluster: somebody waits
// with a finger on a key.
const completionTimeout = 3 * time.Second

// kube says which cluster a command is about, with kubectl's own flags.
type kube struct {
	kubeconfig, context, namespace, istioNamespace string
}

func (k *kube) addFlags(f *pflag.FlagSet) {
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, then ~/.kube/config)")
	f.StringVar(&k.context, "context", "", "context of the kubeconfig")
	f.StringVarP(&k.namespace, "namespace", "n", "", "namespace (default: that of the context)")
	f.StringVarP(&k.istioNamespace, "istioNamespace", "i", wellknown.SystemNamespace, "namespace of the mesh's own pods")
	f.StringVar(&k.istioNamespace, "istio-namespace", wellknown.SystemNamespace, "the same as --istioNamespace")
	_ = f.MarkHidden("istio-namespace")
}

// client connects to the cluster; nothing is sent yet.
func (k *kube) client() (*client.Client, error) {
	// What the API server warns of is for the user, once.
	rest.SetDefaultWarningHandler(rest.NewWarningWriter(os.Stderr, rest.WarningWriterOptions{Deduplicate: true}))
	c, err := client.New(client.Options{Kubeconfig: k.kubeconfig, Context: k.context, UserAgent: "ambit", QPS: 50, Burst: 100})
	if err != nil {
		return nil, fmt.Errorf("no cluster to ask: %w (say which with --kubeconfig or --context; `kubectl config get-contexts` lists them)", err)
	}
	return c, nil
}

// ns is the namespace that a command is about.
func (k *kube) ns(c *client.Client) string { return cmp.Or(k.namespace, c.Namespace) }

// named reports whether the command line chose a cluster.
func (k *kube) named(cmd *cobra.Command) bool {
	return slices.ContainsFunc([]string{"kubeconfig", "context", "istioNamespace", "istio-namespace"}, func(name string) bool {
		f := cmd.Flag(name)
		return f != nil && f.Changed
	})
}

// configured reports whether there is a kubeconfig at all, or a cluster around us.
func (k *kube) configured() bool {
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return true
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.kubeconfig
	cfg, err := rules.Load()
	return err == nil && len(cfg.Contexts) > 0
}

// podsOf lists pods of the mesh itself, by name.
func (k *kube) podsOf(ctx context.Context, c *client.Client, p part) ([]corev1.Pod, error) {
	list, err := c.Kube.CoreV1().Pods(k.istioNamespace).List(ctx, metav1.ListOptions{LabelSelector: p.selector})
	if err != nil {
		return nil, explain(fmt.Errorf("listing the pods of %s in namespace %s: %w", p.name, k.istioNamespace, err))
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// part is one of the programs that make up a mesh on Kubernetes.
type part struct {
	name, selector, container string
	admin                     int // port of its debug endpoints, 0 for none
}

var (
	partAmbitd  = part{"ambitd", "app=istiod", "discovery", wellknown.PortControlDebug}
	partAgent   = part{"ambit-cni", "k8s-app=istio-cni-node", "install-cni", wellknown.PortControlMonitor}
	partZtunnel = part{"ztunnel", "app=ztunnel", "istio-proxy", wellknown.PortAdmin}
)

// running keeps pods that can be asked.
func running(pods []corev1.Pod) []corev1.Pod {
	var out []corev1.Pod
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning {
			out = append(out, p)
		}
	}
	return out
}

// missing is the error for a part of the mesh that has no running pod.
func (k *kube) missing(p part) error {
	return fmt.Errorf("no running pod of %s (%s) in namespace %s: `ambit check` says what is installed, `ambit install` installs it; another namespace is named with -i", p.name, p.selector, k.istioNamespace)
}

// explain adds what to do next to an error of the API server.
func explain(err error) error {
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

// completeKube completes with names from the cluster; it is silent when there
// is none.
func (k *kube) completeKube(list func(context.Context, *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := k.client()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		names, _ := list(ctx, c)
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags completes --context, --namespace and --istioNamespace.
func (k *kube) completeFlags(cmd *cobra.Command) {
	namespaces := func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return k.completeKube(namespacesIn)(cmd, nil, word)
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
