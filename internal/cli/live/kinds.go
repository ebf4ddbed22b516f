package live

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
)

// EachOfKind calls f with every object of a kind, in whichever version the
// cluster serves. A kind that it does not know has none.
func EachOfKind(ctx context.Context, c *client.Client, k *source.Kind, namespace string, f func(*unstructured.Unstructured)) error {
	for _, version := range k.Versions {
		gvr := schema.GroupVersionResource{Group: k.Group, Version: version, Resource: k.Plural}
		err := EachOf(ctx, c, gvr, namespace, f)
		if apierrors.IsNotFound(err) {
			continue // perhaps another version
		}
		if err != nil {
			return session.Explain(fmt.Errorf("listing %s: %w", gvr.GroupResource(), err))
		}
		return nil
	}
	return nil
}

// EachOf calls f with every object of a resource, page by page.
func EachOf(ctx context.Context, c *client.Client, gvr schema.GroupVersionResource, namespace string, f func(*unstructured.Unstructured)) error {
	opts := metav1.ListOptions{Limit: pageSize}
	for {
		list, err := c.Dynamic.Resource(gvr).Namespace(namespace).List(ctx, opts)
		if err != nil {
			return err
		}
		for i := range list.Items {
			f(&list.Items[i])
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			return nil
		}
	}
}

// entryLists are the lists of a status whose entries have conditions, by the
// field that tells entries apart.
var entryLists = []struct{ list, key string }{{"parents", "parentRef"}, {"ancestors", "ancestorRef"}, {"listeners", "name"}}
