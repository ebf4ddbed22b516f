package kit

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"
)

// Provide has the mesh configuration have these extension providers, until the test ends.
func (c *Cluster) Provide(t testing.TB, providers ...any) {
	t.Helper()
	write := func(ctx context.Context, change func(map[string]any)) error {
		maps := c.Kube.CoreV1().ConfigMaps(SystemNamespace)
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			m, err := maps.Get(ctx, "istio", metav1.GetOptions{})
			if err != nil {
				return err
			}
			all := map[string]any{}
			if err := yaml.Unmarshal([]byte(m.Data["mesh"]), &all); err != nil {
				return err
			}
			change(all)
			text, err := yaml.Marshal(all)
			if err != nil {
				return err
			}
			m.Data["mesh"] = string(text)
			_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			return err
		}
		// Kubelets look at a mounted ConfigMap once a minute, or when the pod changes.
		pods, err := c.Ambitds(ctx)
		if err != nil {
			return err
		}
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"ambit.test/look":"%d"}}}`, time.Now().UnixNano())
		for _, p := range pods {
			if _, err := c.Kube.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				return err
			}
		}
		return nil
	}
	var before any
	had := false
	if err := write(t.Context(), func(all map[string]any) {
		before, had = all["extensionProviders"]
		all["extensionProviders"] = providers
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := write(ctx, func(all map[string]any) {
			if delete(all, "extensionProviders"); had {
				all["extensionProviders"] = before
			}
		}); err != nil {
			t.Error(err)
		}
	})
}
