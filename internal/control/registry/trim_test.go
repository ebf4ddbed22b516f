package registry

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/kube"
)

// sameFromTrimmed checks that what the Kubernetes source leaves of objects is
// all that is read of them: the registry makes the same of both.
func sameFromTrimmed(t testing.TB, whole []source.Event, r *Registry, rec *recorder) {
	t.Helper()
	rec2 := newRecorder()
	r2 := New(r.opts, rec2)
	trimmed := make([]source.Event, 0, len(whole))
	for _, e := range whole {
		if e.Object != nil {
			e.Object = kube.Trim(e.Object)
		}
		trimmed = append(trimmed, e)
	}
	r2.Apply(trimmed)
	if d := cmp.Diff(rec.addresses, rec2.addresses); d != "" {
		t.Errorf("addresses from trimmed objects differ: %s", d)
	}
	if d := cmp.Diff(rec.policies, rec2.policies); d != "" {
		t.Errorf("policies from trimmed objects differ: %s", d)
	}
	if d := cmp.Diff(r.Status(), r2.Status()); d != "" {
		t.Errorf("status from trimmed objects differs: %s", d)
	}
	if d := cmp.Diff(r.Nodes.Identities(), r2.Nodes.Identities()); d != "" {
		t.Errorf("placement of trimmed pods differs: %s", d)
	}
}
