package kit

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"
)

// MeshConfig has the mesh configuration have these settings, until the test ends.
func (c *Cluster) MeshConfig(t testing.TB, settings map[string]any) {
	t.Helper()
	write := func(ctx context.Context, change func(map[string]any)) error {
		configs := c.Kube.CoreV1().ConfigMaps(SystemNamespace)
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			m, err := configs.Get(ctx, "istio", metav1.GetOptions{})
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
			_, err = configs.Update(ctx, m, metav1.UpdateOptions{})
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
	before := map[string]any{} // of the settings that it had
	if err := write(t.Context(), func(all map[string]any) {
		for name, value := range settings {
			if old, had := all[name]; had {
				before[name] = old
			}
			all[name] = value
		}
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := write(ctx, func(all map[string]any) {
			for name := range settings {
				delete(all, name)
			}
			maps.Copy(all, before)
		}); err != nil {
			t.Error(err)
		}
	})
}
