package traffic

import (
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/source"
)

// TestRulesOfAnotherCluster: a DestinationRule of another cluster is ignored.
func TestRulesOfAnotherCluster(t *testing.T) {
	g := collection.NewGraph()
	rules := collection.NewInput[source.Ref, *networkingv1.DestinationRule](g, "rules", func(_, _ *networkingv1.DestinationRule) bool { return false })
	pods := collection.NewInput[source.Ref, *corev1.Pod](g, "pods", func(_, _ *corev1.Pod) bool { return false })
	tables := New(Inputs{
		Rules: rules.Collection, Pods: pods.Collection,
		ID:    func(_ *collection.Reader, c source.Cluster) string { return c.String() },
		Place: func(*collection.Reader) Place { return Place{Domain: "cluster.local", RootNamespace: "root"} },
	})
	pod := &corev1.Pod{}
	pod.Spec.NodeName = "n1"
	pods.Set(source.Ref{Namespace: "shop", Name: "a"}, pod)
	for _, c := range []struct {
		cluster string
		want    int
	}{{"far", 0}, {"", 1}} {
		d := &networkingv1.DestinationRule{}
		d.Namespace, d.Name = "shop", "web"
		d.Spec.Host = "web.shop.svc.cluster.local"
		rules.Set(source.Ref{Cluster: source.ClusterOf(c.cluster), Namespace: "shop", Name: "web"}, d)
		g.Settle()
		if n := tables.Made.Len(); n != c.want {
			t.Errorf("%d rules once there is one of cluster %q", n, c.cluster)
		}
	}
}
