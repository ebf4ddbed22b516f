// Package e2e drives the mesh on a real Kubernetes, installed by the real
// command line. KUBECONFIG says which cluster; on the project's own (test/
// cluster) the images are loaded first, elsewhere AMBIT_HUB and AMBIT_TAG say
// where they are. helm is built, or AMBIT_HELM names it. The mesh is uninstalled
// at the end, unless AMBIT_KEEP is set.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// mesh is the cluster that all tests share.
var mesh *kit.Cluster

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, m)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M) int {
	c, err := kit.Connect()
	if err == nil {
		mesh = c
		if err = c.LoadImages(ctx); err == nil {
			err = c.Install(ctx)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	kit.EndWith(ctx)
	code := m.Run()
	if os.Getenv("AMBIT_KEEP") == "" {
		if err := c.Uninstall(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
	}
	return code
}
