package main

import (
	"io"
	"strings"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// TestStatusOfRevisions: two control planes of one namespace both write status,
// each of what is labelled for it; one that is not the default one writes no
// other.
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
	c.eventually("the canary writes what is labelled for it", func() bool { return said(canary) && said(tagged) })
	if said(plain) || said(old) {
		t.Error("the canary writes what is not labelled for it")
	}
	c.replica("--revision", "default")
	c.eventually("the default one writes the rest", func() bool { return said(plain) && said(old) })
	late := entry("late", "canary")
	c.api.Add(late)
	c.eventually("the canary goes on", func() bool { return said(late) })
}

// TestLeasesOfRevisions: who is elected for status of what, by the flags.
func TestLeasesOfRevisions(t *testing.T) {
	for args, want := range map[string][2]bool{
		"":                                       {true, false},
		"--revision default":                     {true, false},
		"--revision default --revision-tag prod": {true, true},
		"--revision canary":                      {false, true},
		"--revision canary --revision-tag prod":  {false, true},
		"--revision canary --revision-tag default": {true, true},
	} {
		cfg, err := parseFlags(strings.Fields("--kubernetes "+args), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]bool{cfg.isDefault(), cfg.isNamed()}; got != want {
			t.Errorf("%q: default, named %v", args, got)
		}
	}
}
