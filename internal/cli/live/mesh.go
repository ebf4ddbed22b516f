package live

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/analysis"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/node"
)

// MeshConfigMap holds the mesh's settings, in the mesh's namespace.
const MeshConfigMap = "istio"

// MeshText returns the MeshConfig of a cluster; empty if it cannot be read.
func MeshText(ctx context.Context, k *session.Kube, c *client.Client) []byte {
	m, err := c.Kube.CoreV1().ConfigMaps(k.IstioNamespace).Get(ctx, MeshConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return []byte(m.Data["mesh"])
}

// MeshOptions are the settings of a cluster's mesh, as far as they can be read.
func MeshOptions(ctx context.Context, k *session.Kube, c *client.Client) analysis.Options {
	opts := analysis.Options{RootNamespace: k.IstioNamespace}
	if cfg, _, err := meshconfig.Parse(MeshText(ctx, k, c)); err == nil {
		opts.TrustDomain, opts.TrustDomainAliases = cfg.TrustDomain, cfg.TrustDomainAliases
		if cfg.RootNamespace != "" {
			opts.RootNamespace = cfg.RootNamespace
		}
		opts.Authorizers = func(name string) error {
			_, err := cfg.Providers.Check(name)
			return err
		}
		opts.DiscoverySelectors = cfg.Discovery(k.IstioNamespace, opts.RootNamespace)
	}
	if agents, err := k.PodsOf(ctx, c, session.PartAgent); err == nil && len(agents) > 0 {
		opts.ExcludeNamespaces = AgentPolicy(&agents[0]).ExcludeNamespaces
	}
	return opts
}

// AgentPolicy is which pods a node agent enrols, by its own pod; the defaults,
// where that does not say.
func AgentPolicy(agent *corev1.Pod) node.Policy {
	p := node.Policy{Selectors: node.DefaultSelectors(), ExcludeNamespaces: []string{metav1.NamespaceSystem}}
	if agent == nil {
		return p
	}
	for _, c := range agent.Spec.Containers {
		if c.Name != session.PartAgent.Container {
			continue
		}
		for _, e := range c.Env {
			if e.Name != "AMBIENT_ENABLEMENT_SELECTOR" {
				continue
			}
			if list, err := node.ParseSelectors([]byte(e.Value)); err == nil {
				p.Selectors = list
			}
		}
		for _, arg := range c.Args {
			if v, ok := strings.CutPrefix(arg, "--exclude-namespaces="); ok {
				p.ExcludeNamespaces = slices.DeleteFunc(strings.Split(v, ","), func(s string) bool { return s == "" })
			}
		}
	}
	return p
}
