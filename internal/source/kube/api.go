package kube

import (
	"context"
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// api is how a kind is read, in all namespaces.
type api struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
	// builtin kinds are always there.
	builtin bool
}

// custom reports whether the kind can be missing; it can as long as it was not
// found.
func (a *api) custom() bool { return a == nil || !a.builtin }

// opener finds out how kinds are read.
type opener struct {
	client   *client.Client
	metadata metadata.Interface
	node     string
}

func apiOf[L runtime.Object](c client.Lister[L], builtin bool) *api {
	return &api{
		list:    func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		watch:   c.Watch,
		builtin: builtin,
	}
}

func (o opener) open(ctx context.Context, kind *source.Kind) (*api, error) {
	switch {
	case kind == source.Pod.Kind:
		return o.pods(), nil
	case kind == source.Service.Kind:
		return apiOf(o.client.Kube.CoreV1().Services(""), true), nil
	case kind == source.EndpointSlice.Kind:
		return apiOf(o.client.Kube.DiscoveryV1().EndpointSlices(""), true), nil
	case kind == source.ConfigMap.Kind:
		return o.configMaps(), nil
	case kind.MetadataOnly:
		gvr := schema.GroupVersionResource{Group: kind.Group, Version: kind.Versions[0], Resource: kind.Plural}
		return apiOf(o.metadata.Resource(gvr), kind.Builtin), nil
	}
	gvr, err := o.served(ctx, kind)
	if err != nil {
		return nil, err
	}
	return apiOf(o.client.Dynamic.Resource(gvr), false), nil
}

// pods are those of the node, if one was named.
func (o opener) pods() *api {
	a := apiOf(o.client.Kube.CoreV1().Pods(""), true)
	if o.node == "" {
		return a
	}
	return a.selecting(fields.OneTermEqualSelector("spec.nodeName", o.node).String())
}

// everywhere are the names of ConfigMaps that each namespace has, and that are not
// read here.
var everywhere = []string{"kube-root-ca.crt", wellknown.RootsConfigMap}

// configMaps are all but those of every namespace.
func (o opener) configMaps() *api {
	a := apiOf(o.client.Kube.CoreV1().ConfigMaps(""), true)
	var others []fields.Selector
	for _, name := range everywhere {
		others = append(others, fields.OneTermNotEqualSelector("metadata.name", name))
	}
	return a.selecting(fields.AndSelectors(others...).String())
}

// selecting narrows down an api by fields of its objects.
func (a *api) selecting(fields string) *api {
	list, watches := a.list, a.watch
	a.list = func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
		opts.FieldSelector = fields
		return list(ctx, opts)
	}
	a.watch = func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
		opts.FieldSelector = fields
		return watches(ctx, opts)
	}
	return a
}

// served finds the version of a custom kind that the cluster serves and we
// know, and its name in paths.
func (o opener) served(ctx context.Context, kind *source.Kind) (schema.GroupVersionResource, error) {
	gvr, err := o.found(ctx, kind)
	if !errors.Is(err, errAbsent) {
		return gvr, err
	}
	// An API server that starts does not know custom kinds from the first
	// moment. To believe it would be to forget every policy, so what it does not
	// know counts only when it was ready before it was asked.
	if err := o.client.Ready(ctx); err != nil && !answered(err) {
		return schema.GroupVersionResource{}, err
	}
	return o.found(ctx, kind)
}

func (o opener) found(ctx context.Context, kind *source.Kind) (schema.GroupVersionResource, error) {
	for _, version := range kind.Versions {
		gv := schema.GroupVersion{Group: kind.Group, Version: version}
		list, err := o.client.Served(ctx, gv.Group, gv.Version)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return schema.GroupVersionResource{}, err
		}
		for _, r := range list.APIResources {
			if r.Kind == kind.Name && !strings.Contains(r.Name, "/") {
				return gv.WithResource(r.Name), nil
			}
		}
	}
	return schema.GroupVersionResource{}, errAbsent
}
