package kit

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// Main runs a package's tests on the cluster of KUBECONFIG, or else the project's own, with
// the mesh installed by the command line. Images are loaded into the project's own cluster;
// elsewhere AMBIT_HUB and AMBIT_TAG say where they are. The mesh is uninstalled at the end,
// unless AMBIT_KEEP is set. It is all that TestMain does.
func Main(m *testing.M, use func(*Cluster)) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, m, use)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M, use func(*Cluster)) (int, error) {
	c, err := Connect()
	if err != nil {
		return 0, err
	}
	if err := c.LoadImages(ctx); err != nil {
		return 0, err
	}
	if err := c.Install(ctx); err != nil {
		return 0, err
	}
	EndWith(ctx)
	use(c)
	code := m.Run()
	if os.Getenv("AMBIT_KEEP") == "" {
		err = c.Uninstall(context.Background())
	}
	return code, err
}
