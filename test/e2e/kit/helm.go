package kit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Releases are the charts and the names of their releases, in the order in
// which the documentation installs them.
var Releases = []struct{ Name, Chart string }{
	{"ambit-base", "base"}, {"ambitd", "ambitd"}, {"ambit-cni", "cni"}, {"ztunnel", "ztunnel"},
}

// Helm is the program of that name.
type Helm struct {
	*Cluster
	program, charts string
}

// Helm returns the program of AMBIT_HELM, or else builds it, of its module in
// test/e2e/helm.
func (c *Cluster) Helm(t testing.TB) *Helm {
	t.Helper()
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	h := &Helm{Cluster: c, program: os.Getenv("AMBIT_HELM"), charts: filepath.Join(root, "charts")}
	if h.program != "" {
		return h
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	h.program = filepath.Join(cache, "ambit-e2e", "helm")
	// Built as the project's programs are: most of it is compiled already.
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", h.program, "helm.sh/helm/v4/cmd/helm")
	cmd.Dir = filepath.Join(root, "test", "e2e", "helm")
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building helm: %v\n%s", err, out)
	}
	return h
}

// Run runs helm in the mesh's namespace and returns what it prints. An error
// carries the rest.
func (h *Helm) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, h.program, append(args, "--namespace", SystemNamespace)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+h.Kubeconfig)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("helm %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// Chart runs a command of helm with a release and its chart, and the settings
// that say where images come from.
func (h *Helm) Chart(ctx context.Context, command, release, chart string, more ...string) error {
	args := []string{command, release, filepath.Join(h.charts, chart)}
	if hub := os.Getenv("AMBIT_HUB"); hub != "" {
		args = append(args, "--set", "global.hub="+hub)
	}
	if tag := os.Getenv("AMBIT_TAG"); tag != "" {
		args = append(args, "--set", "global.tag="+tag)
	}
	_, err := h.Run(ctx, append(args, more...)...)
	return err
}
