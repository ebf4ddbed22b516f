package nft

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

func TestKernelHoldsWhatWasApplied(t *testing.T) {
	for name, cfg := range configs() {
		t.Run(name, func(t *testing.T) {
			ns := netnstest.New(t)
			before := dump(t, ns)
			if differs := check(t, ns, cfg); len(differs) == 0 {
				t.Error("an empty namespace passes the check")
			}
			for range 2 {
				apply(t, ns, cfg)
				if differs := check(t, ns, cfg); len(differs) > 0 {
					t.Errorf("after Apply: %q", differs)
				}
			}
			if err := Remove(ns); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, dump(t, ns)); diff != "" {
				t.Errorf("not restored:\n%s", diff)
			}
			if err := Remove(ns); err != nil {
				t.Errorf("removing from a clean namespace: %v", err)
			}
		})
	}
}

func TestEveryConfigBecomesEveryOther(t *testing.T) {
	ns := netnstest.New(t)
	before := dump(t, ns)
	for from, a := range configs() {
		for to, b := range configs() {
			apply(t, ns, a)
			apply(t, ns, b)
			if differs := check(t, ns, b); len(differs) > 0 {
				t.Errorf("from %s to %s: %q", from, to, differs)
			}
		}
	}
	if err := Remove(ns); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, dump(t, ns)); diff != "" {
		t.Errorf("not restored:\n%s", diff)
	}
}

func apply(t *testing.T, ns *netns.NS, cfg Config) {
	t.Helper()
	if err := Apply(ns, cfg); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, ns *netns.NS, cfg Config) []string {
	t.Helper()
	differs, err := Check(ns, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return differs
}

func dump(t *testing.T, ns *netns.NS) string {
	t.Helper()
	s, err := Dump(ns)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
