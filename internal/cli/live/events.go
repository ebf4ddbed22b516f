package live

import (
	"context"
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/internal/analysis"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// Events reads all objects of a cluster that analysis looks at. What cannot
// be read as what it is, is a finding.
func Events(ctx context.Context, c *client.Client) (events []source.Event, problems []analysis.Finding, err error) {
	kinds := analysis.Kinds()
	kinds = append(kinds, source.Kinds()...)
	slices.SortFunc(kinds, (*source.Kind).Compare)
	for _, k := range kinds {
		err := EachOfKind(ctx, c, k, "", func(u *unstructured.Unstructured) {
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
