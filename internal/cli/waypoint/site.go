package waypoint

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/source"
)

// waypointSite is where waypoints are: a cluster or a lab.
type waypointSite interface {
	// home is the namespace that the command is about.
	home() string
	// gateways lists those of a namespace, or of all.
	gateways(ctx context.Context, namespace string) ([]*gatewayv1.Gateway, error)
	namespaceLabels(ctx context.Context, namespace string) (map[string]string, error)
	apply(ctx context.Context, g *gatewayv1.Gateway) error
	remove(ctx context.Context, namespace, name string) error
	// label changes labels of a namespace; nil removes one.
	label(ctx context.Context, namespace string, labels map[string]*string) error
}

func (w *waypointCommands) site() (waypointSite, error) {
	if w.Cluster() {
		c, err := w.Client()
		if err != nil {
			return nil, err
		}
		return clusterSite{c, w.Ns(c)}, nil
	}
	l, err := w.Attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster)", err)
	}
	return labSite{l, cmp.Or(w.Namespace, metav1.NamespaceDefault)}, nil
}

type clusterSite struct {
	c         *client.Client
	namespace string
}

// fieldManager names the command line to the API server.
const fieldManager = "ambit"

var gatewayResource = schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: gatewayv1.GroupVersion.Version, Resource: "gateways"}

func (s clusterSite) home() string { return s.namespace }

func (s clusterSite) gateways(ctx context.Context, namespace string) ([]*gatewayv1.Gateway, error) {
	list, err := live.Typed(ctx, s.c, source.Gateway, namespace)
	return list, session.Explain(err)
}

func (s clusterSite) namespaceLabels(ctx context.Context, namespace string) (map[string]string, error) {
	ns, err := s.c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return nil, session.Explain(err)
	}
	return ns.Labels, nil
}

func (s clusterSite) apply(ctx context.Context, g *gatewayv1.Gateway) error {
	b, err := json.Marshal(plain(g))
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(b); err != nil {
		return err
	}
	_, err = s.c.Dynamic.Resource(gatewayResource).Namespace(g.Namespace).Apply(ctx, g.Name, u, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%w (is Gateway API installed? `ambit check` tells, `ambit install` installs it)", err)
	}
	return session.Explain(err)
}

func (s clusterSite) remove(ctx context.Context, namespace, name string) error {
	return session.Explain(s.c.Dynamic.Resource(gatewayResource).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{}))
}

func (s clusterSite) label(ctx context.Context, namespace string, labels map[string]*string) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	_, err = s.c.Kube.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	return session.Explain(err)
}

type labSite struct {
	lab       *lab.Lab
	namespace string
}

func (s labSite) home() string { return s.namespace }

func (s labSite) gateways(_ context.Context, namespace string) ([]*gatewayv1.Gateway, error) {
	return live.Objects(s.lab.Objects(), source.Gateway, namespace), nil
}

func (s labSite) namespaceLabels(_ context.Context, namespace string) (map[string]string, error) {
	if ns := live.One(s.lab.Objects(), source.Namespace, "", namespace); ns != nil {
		return ns.Labels, nil
	}
	return nil, fmt.Errorf("this lab has no namespace %q (create it with `ambit lab apply`)", namespace)
}

func (s labSite) apply(ctx context.Context, g *gatewayv1.Gateway) error {
	b, err := yaml.Marshal(plain(g))
	if err != nil {
		return err
	}
	return s.lab.Apply(ctx, string(b))
}

func (s labSite) remove(ctx context.Context, namespace, name string) error {
	return s.lab.Delete(ctx, "Gateway", namespace, name)
}

func (s labSite) label(ctx context.Context, namespace string, labels map[string]*string) error {
	return s.lab.Label(ctx, "namespace", "", namespace, labels)
}
