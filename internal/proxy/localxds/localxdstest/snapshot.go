// Package localxdstest makes directories of text, for tests.
package localxdstest

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds"
)

// Snapshot returns the directory of a text in the format of package localxds.
func Snapshot(t testing.TB, text string) *workload.Snapshot {
	t.Helper()
	c, err := localxds.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	d := workload.NewDirectory(workload.Options{})
	if _, bad := d.Apply(c.Addresses, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	return d.Snapshot()
}
