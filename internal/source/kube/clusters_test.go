package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/source"
)

// clusterRecorder is a recorder of several clusters.
type clusterRecorder struct{ *recorder }

func (r clusterRecorder) Leave(c source.Cluster) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.objects {
		if k.Cluster == c {
			delete(r.objects, k)
		}
	}
}

func clustersOf(t *testing.T, reg *prometheus.Registry) (out []string) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "ambit_kube_reachable" && l.GetName() == "cluster" {
					out = append(out, l.GetValue())
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestSourcesOfTwoClusters: a second source joins while the first runs, has
// metrics of its own, and takes its objects and metrics along when it leaves.
func TestSourcesOfTwoClusters(t *testing.T) {
	near, far := kubetest.Start(t, everything()...), kubetest.Start(t, everything()...)
	reg := prometheus.NewRegistry()
	r := clusterRecorder{&recorder{objects: map[source.Key]metav1.Object{}}}
	set := source.NewSet(r)
	run := func(s *kubetest.Server, id string, c source.Cluster) (stop func()) {
		t.Helper()
		src, err := New(Options{Client: s.Client(), Kinds: allKinds, Registerer: reg, ClusterID: id})
		if err != nil {
			t.Fatal(err)
		}
		sink, err := set.Join(c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = src.Run(ctx, sink) })
		return func() { cancel(); wg.Wait() }
	}
	defer run(near, "near", source.Cluster{})()
	eventually(t, "the first source", func() bool { return r.count() == len(allKinds) })
	stop := run(far, "far", source.ClusterOf("far"))
	eventually(t, "the second source", func() bool { return r.count() == 2*len(allKinds) })
	if got := fmt.Sprint(clustersOf(t, reg)); got != "[far near]" {
		t.Errorf("metrics of %s", got)
	}
	if _, err := New(Options{Client: far.Client(), Kinds: allKinds, Registerer: reg, ClusterID: "far"}); err == nil || !strings.Contains(err.Error(), `"far"`) {
		t.Errorf("a second source with the same ID: %v", err)
	}
	if got := fmt.Sprint(clustersOf(t, reg)); got != "[far near]" {
		t.Errorf("a source that was refused has changed the metrics: %s", got)
	}
	stop()
	set.Leave(source.ClusterOf("far"))
	for _, k := range r.keys() {
		if strings.HasPrefix(k, "far:") {
			t.Errorf("%s is left", k)
		}
	}
	if got := fmt.Sprint(clustersOf(t, reg)); got != "[near]" {
		t.Errorf("metrics of %s after one left", got)
	}
	// It may join again.
	defer run(far, "far", source.ClusterOf("far"))()
	eventually(t, "the second source again", func() bool { return len(r.keys()) == 2*len(allKinds) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.synced != 1 {
		t.Errorf("synced %d times", r.synced)
	}
}
