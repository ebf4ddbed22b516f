package cli

import (
	"context"
	"encoding/json"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
)

// described are the kinds whose status tells what the mesh made of them. Of
// those that are not mine alone, objects without a condition are not listed.
var described = []struct {
	kind string
	ours bool
}{
	{source.KindAuthorizationPolicy, true},
	{source.KindGateway, false},
	{source.KindPeerAuthentication, true},
	{source.KindService, false},
	{source.KindServiceEntry, true},
	{source.KindWorkloadEntry, true},
}

// pageSize bounds one answer of the API server, in objects.
const pageSize = 500

// liveStatus reads the conditions of objects from the API server.
func (k *kube) liveStatus(ctx context.Context, c *client.Client, namespace string) ([]object, error) {
	out := []object{}
	for _, d := range described {
		err := eachObject(ctx, c, d.kind, namespace, func(u *unstructured.Unstructured) {
			o := objectOf(d.kind, u)
			if len(o.Conditions) == 0 && d.ours {
				o.Conditions = []condition{{"-", "Unknown", "NotSeen", "ambitd has not written a status: `ambit proxy-status` shows whether it runs, `kubectl get leases -n " + k.istioNamespace + "` who writes"}}
			}
			if len(o.Conditions) > 0 {
				out = append(out, o)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// eachObject calls f with every object of a kind. A kind that the cluster does
// not know has none.
func eachObject(ctx context.Context, c *client.Client, kind, namespace string, f func(*unstructured.Unstructured)) error {
	return eachOfKind(ctx, c, source.Kinds()[kind], namespace, f)
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

// plural is the name of a kind of ours in URLs.
func plural(kind string) string {
	s := strings.ToLower(kind)
	if strings.HasSuffix(s, "y") && !strings.HasSuffix(s, "ay") {
		return strings.TrimSuffix(s, "y") + "ies"
	}
	return s + "s"
}

// objectOf takes an object's conditions; of what does not look like conditions
// there are none.
func objectOf(kind string, u *unstructured.Unstructured) object {
	o := object{Kind: kind, Namespace: u.GetNamespace(), Name: u.GetName(), Conditions: []condition{}}
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	if b, err := json.Marshal(list); err == nil {
		_ = json.Unmarshal(b, &o.Conditions)
	}
	return o
}
