package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
)

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// contains fails unless one line of a text has all parts.
func contains(text string, parts ...string) error {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return nil
		}
	}
	return fmt.Errorf("no line has all of %q", parts)
}

// certificates are the accounts of the shop for which a node's proxy has a
// certificate, sorted.
func certificates(w *rig.World, node string) []string {
	w.T().Helper()
	d, err := w.Dump(node)
	if err != nil {
		w.T().Fatal(err)
	}
	var out []string
	for _, c := range d.Certificates {
		if c.State == "Available" && len(c.CertChain) > 0 {
			out = append(out, strings.TrimPrefix(c.Identity, "spiffe://cluster.local/ns/shop/sa/"))
		}
	}
	slices.Sort(out)
	return out
}
