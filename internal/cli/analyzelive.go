package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/analysis"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// meshConfigMap holds the mesh's settings, in the mesh's namespace.
const meshConfigMap = "istio"

// meshText returns the MeshConfig of a cluster; empty if it cannot be read.
func (k *kube) meshText(ctx context.Context, c *client.Client) []byte {
	m, err := c.Kube.CoreV1().ConfigMaps(k.istioNamespace).Get(ctx, meshConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return []byte(m.Data["mesh"])
}

// meshOptions are the settings of a cluster's mesh, as far as they can be read.
func (k *kube) meshOptions(ctx context.Context, c *client.Client) analysis.Options {
	opts := analysis.Options{RootNamespace: k.istioNamespace}
	if cfg, _, err := meshconfig.Parse(k.meshText(ctx, c)); err == nil {
		opts.TrustDomain, opts.TrustDomainAliases = cfg.TrustDomain, cfg.TrustDomainAliases
		if cfg.RootNamespace != "" {
			opts.RootNamespace = cfg.RootNamespace
		}
		opts.DiscoverySelectors = cfg.Discovery(k.istioNamespace, opts.RootNamespace)
	}
	if agents, err := k.podsOf(ctx, c, partAgent); err == nil && len(agents) > 0 {
		opts.ExcludeNamespaces = agentPolicy(&agents[0]).ExcludeNamespaces
	}
	return opts
}

// agentPolicy is which pods a node agent enrols, by its own pod; the defaults,
// where that does not say.
func agentPolicy(agent *corev1.Pod) node.Policy {
	p := node.Policy{Selectors: node.DefaultSelectors(), ExcludeNamespaces: []string{metav1.NamespaceSystem}}
	if agent == nil {
		return p
	}
	for _, c := range agent.Spec.Containers {
		if c.Name != partAgent.container {
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

// liveEvents reads all objects of a cluster that analysis looks at. What cannot
// be read as what it is, is a finding.
func liveEvents(ctx context.Context, c *client.Client) (events []source.Event, problems []analysis.Finding, err error) {
	kinds := analysis.Kinds()
	kinds = append(kinds, source.Kinds()...)
	slices.SortFunc(kinds, (*source.Kind).Compare)
	for _, k := range kinds {
		err := eachOfKind(ctx, c, k, "", func(u *unstructured.Unstructured) {
			key := source.Key{Kind: k, Namespace: u.GetNamespace(), Name: u.GetName()}
			obj, mistakes := readLive(k, u)
			for _, p := range mistakes {
				if f, ok := analysis.Problem(p); ok {
					f.Object = key
					problems = append(problems, f)
				}
			}
			if obj != nil {
				events = append(events, source.Event{Key: key, Object: obj})
			}
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return events, problems, nil
}

// eachOfKind calls f with every object of a kind, in whichever version the
// cluster serves. A kind that it does not know has none.
func eachOfKind(ctx context.Context, c *client.Client, k *source.Kind, namespace string, f func(*unstructured.Unstructured)) error {
	for _, version := range k.Versions {
		gvr := schema.GroupVersionResource{Group: k.Group, Version: version, Resource: k.Plural}
		err := eachOf(ctx, c, gvr, namespace, f)
		if apierrors.IsNotFound(err) {
			continue // perhaps another version
		}
		if err != nil {
			return explain(fmt.Errorf("listing %s: %w", gvr.GroupResource(), err))
		}
		return nil
	}
	return nil
}

// readLive reads an object as what it is: Kubernetes' own leniently, since the
// API server has checked them and may be newer, the mesh's strictly, as in a
// file.
func readLive(k *source.Kind, u *unstructured.Unstructured) (metav1.Object, []file.Problem) {
	u.SetManagedFields(nil)
	if k.Builtin || k.Shared {
		obj := k.New()
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, obj); err != nil {
			return nil, []file.Problem{{Message: err.Error()}}
		}
		return obj, nil
	}
	b, err := json.Marshal(u.Object)
	if err != nil {
		return nil, []file.Problem{{Message: err.Error()}}
	}
	return file.DecodeJSON(k, b)
}
