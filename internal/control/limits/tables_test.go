package limits

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/source"
)

// world is a graph of limits and pods alone.
type world struct {
	graph  *collection.Graph
	limits collection.Input[source.Ref, *ambit.RateLimit]
	pods   collection.Input[source.Ref, *corev1.Pod]
	tables *Tables
}

func newWorld() *world {
	g := collection.NewGraph()
	w := &world{
		graph:  g,
		limits: collection.NewInput[source.Ref, *ambit.RateLimit](g, "limits", func(_, _ *ambit.RateLimit) bool { return false }),
		pods:   collection.NewInput[source.Ref, *corev1.Pod](g, "pods", func(_, _ *corev1.Pod) bool { return false }),
	}
	w.tables = New(Inputs{
		Limits: w.limits.Collection, Pods: w.pods.Collection,
		PodUID: func(_ *collection.Reader, k source.Ref) (string, string) { return k.Cluster.String(), k.Name },
		Host:   func(_ *collection.Reader, k source.Ref) (string, bool) { return k.Name + ".test", true },
	})
	return w
}

func (w *world) pod(cluster, name, node, app string) {
	p := &corev1.Pod{}
	p.Labels, p.Spec.NodeName = map[string]string{"app": app}, node
	w.pods.Set(source.Ref{Cluster: source.ClusterOf(cluster), Namespace: "shop", Name: name}, p)
}

func (w *world) limit(cluster, name string) {
	o := object(func(s *ambit.RateLimitSpec) {
		s.TargetRefs, s.Selector = nil, &ambit.Selector{MatchLabels: map[string]string{"app": "web"}}
	})
	o.Name = name
	w.limits.Set(source.Ref{Cluster: source.ClusterOf(cluster), Namespace: "shop", Name: name}, o)
}

// TestLimitsOfAnotherCluster: a RateLimit of another cluster is ignored, and one of the own
// cluster is for pods of all clusters.
func TestLimitsOfAnotherCluster(t *testing.T) {
	w := newWorld()
	w.pod("", "a", "n1", "web")
	w.pod("far", "b", "n1", "web")
	w.limit("far", "foreign")
	w.graph.Settle()
	if n := w.tables.Resources.Len() + w.tables.Made.Len(); n != 0 {
		t.Fatalf("%d rows of a limit of another cluster", n)
	}
	w.limit("", "own")
	w.graph.Settle()
	for name, uid := range map[string]string{"node//n1/shop/own": "a", "node/far/n1/shop/own": "b"} {
		res, ok := w.tables.Resources.Get(name)
		if !ok || w.tables.Resources.Len() != 2 {
			t.Fatalf("%s is missing of %d", name, w.tables.Resources.Len())
		}
		l, err := ratelimit.Decode(res.Body)
		if err != nil || !slices.Equal(l.Workloads, []string{uid}) {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}

// TestCostOfAPod: what a pod that changes costs does not grow with its namespace.
func TestCostOfAPod(t *testing.T) {
	cost := func(pods int) float64 {
		w := newWorld()
		w.limit("", "web")
		for i := range pods {
			w.pod("", fmt.Sprintf("p%d", i), fmt.Sprintf("n%d", i/10), "web")
		}
		w.graph.Settle()
		app := map[bool]string{true: "web", false: "other"}
		on := true
		return testing.AllocsPerRun(20, func() {
			on = !on
			w.pod("", "p0", "n0", app[on])
			w.graph.Settle()
		})
	}
	small, large := cost(20), cost(4000)
	if large > small*1.5 {
		t.Errorf("a change costs %v allocations among 20 pods, and %v among 4000", small, large)
	}
}
