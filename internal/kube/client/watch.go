package client

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// Lister is what every client of a kind has.
type Lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// Informer follows the objects of a kind that a selection lets through. The
// caller adds handlers and runs it.
func Informer[T Object, L runtime.Object](c Lister[L], example T, s Selection) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.List(ctx, s.apply(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Watch(ctx, s.apply(o))
		},
	}, example, 0, cache.Indexers{})
}

// Selection narrows down which objects are followed. Empty fields do not.
type Selection struct {
	Name   string // of the one object
	Labels string // a label selector
}

func (s Selection) apply(o metav1.ListOptions) metav1.ListOptions {
	if s.Name != "" {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, s.Name).String()
	}
	if s.Labels != "" {
		o.LabelSelector = s.Labels
	}
	return o
}

// Served returns what the API server serves of a group and version. The error
// is IsNotFound when it has none of it.
func (c *Client) Served(ctx context.Context, group, version string) (*metav1.APIResourceList, error) {
	list := &metav1.APIResourceList{}
	err := c.Kube.CoreV1().RESTClient().Get().AbsPath("/apis", group, version).
		SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Into(list)
	if err != nil {
		return nil, fmt.Errorf("ask what is served of %s/%s: %w", group, version, err)
	}
	return list, nil
}

// Ready asks whether the API server says of itself that it has started. An
// answer that is an APIStatus below 500 says nothing: not everybody may ask.
func (c *Client) Ready(ctx context.Context) error {
	if err := c.Kube.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return fmt.Errorf("the API server is not ready: %w", err)
	}
	return nil
}
