package cli

import (
	"context"
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
)

// described returns the kinds whose status shows what the mesh made of them.
func described() (out []*source.Kind) {
	for _, k := range source.Kinds() {
		if k.StatusWritten || k == source.Gateway.Kind {
			out = append(out, k)
		}
	}
	return out
}

// pageSize bounds one answer of the API server, in objects.
const pageSize = 500

// liveStatus reads the conditions of objects from the API server.
func (k *kube) liveStatus(ctx context.Context, c *client.Client, namespace string) ([]object, error) {
	out := []object{}
	for _, d := range described() {
		err := eachOfKind(ctx, c, d, namespace, func(u *unstructured.Unstructured) {
			o := objectOf(d, u)
			if len(o.Conditions)+len(o.Entries) == 0 && !d.Builtin && !d.Shared {
				o.Conditions = []condition{{"-", "Unknown", "NotSeen", "ambitd has not written a status: `ambit proxy-status` shows whether it runs, `kubectl get leases -n " + k.istioNamespace + "` who writes"}}
			}
			if len(o.Conditions)+len(o.Entries) > 0 {
				out = append(out, o)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// eachOf calls f with every object of a resource, page by page.
func eachOf(ctx context.Context, c *client.Client, gvr schema.GroupVersionResource, namespace string, f func(*unstructured.Unstructured)) error {
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

// objectOf takes an object's conditions; of what does not look like conditions
// there are none.
func objectOf(kind *source.Kind, u *unstructured.Unstructured) object {
	o := object{Kind: kind.Name, Namespace: u.GetNamespace(), Name: u.GetName(), Conditions: []condition{}}
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	o.Conditions = readConditions(list)
	for _, l := range entryLists {
		entries, _, _ := unstructured.NestedSlice(u.Object, "status", l.list)
		for _, e := range entries {
			fields, _ := e.(map[string]any)
			key, err := json.Marshal(fields[l.key])
			have, _ := fields["conditions"].([]any)
			if conditions := readConditions(have); err == nil && len(conditions) > 0 {
				o.Entries = append(o.Entries, entryRow{List: l.list, Key: key, Conditions: conditions})
			}
		}
	}
	return o
}

func readConditions(list []any) []condition {
	out := []condition{}
	if b, err := json.Marshal(list); err == nil && len(list) > 0 {
		_ = json.Unmarshal(b, &out)
	}
	return out
}
