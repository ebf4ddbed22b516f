package main

import (
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// TestStatusOfRevisions: two control planes of one namespace both write status,
// each of what is labelled for it; of what is labelled for nobody, also one that
// is alone and not the default one.
func TestStatusOfRevisions(t *testing.T) {
	entry := func(name, revision string) *networkingv1.WorkloadEntry {
		e := &networkingv1.WorkloadEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		e.Spec.Address = "192.0.2.1"
		if revision != "" {
			e.Labels = map[string]string{wellknown.LabelRevision: revision}
		}
		return e
	}
	plain, old, canary, tagged := entry("plain", ""), entry("old", "default"), entry("canary", "canary"), entry("tagged", "prod")
	c := newCluster(t, plain, old, canary, tagged)
	said := func(e *networkingv1.WorkloadEntry) bool {
		c.api.Get(e)
		return len(e.Status.Conditions) > 0
	}
	c.replica("--revision", "canary", "--revision-tag", "prod")
	c.eventually("the canary writes what it looks at", func() bool { return said(canary) && said(tagged) && said(plain) })
	if said(old) {
		t.Error("the canary writes what is labelled for another")
	}
	c.replica("--revision", "default")
	c.eventually("the default one writes what is labelled for it", func() bool { return said(old) })
	late := entry("late", "canary")
	c.api.Add(late)
	c.eventually("the canary goes on", func() bool { return said(late) })
}
