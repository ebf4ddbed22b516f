package kit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// installTime bounds the installation of the mesh on a slow machine.
const installTime = 5 * time.Minute

// settings are the values that say where images come from.
func settings() []string {
	set := []string{"--set", "profile=ambient"}
	if hub := os.Getenv("AMBIT_HUB"); hub != "" {
		set = append(set, "--set", "global.hub="+hub)
		TestImage = hub + "/ambit-test:" + os.Getenv("AMBIT_TAG")
	}
	if tag := os.Getenv("AMBIT_TAG"); tag != "" {
		set = append(set, "--set", "global.tag="+tag)
	}
	return set
}

// LoadImages brings the archives that `make images` made to the nodes of the
// project's own cluster. Elsewhere a registry has to have them.
func (c *Cluster) LoadImages(ctx context.Context) error {
	if c.Own == nil {
		return nil
	}
	archives, err := filepath.Glob(filepath.Join(c.Bin, "images", "*.tar"))
	if err == nil && len(archives) == 0 {
		err = errors.New("there are none: run make images")
	}
	if err != nil {
		return fmt.Errorf("images in %s: %w", filepath.Join(c.Bin, "images"), err)
	}
	return c.Own.Load(ctx, archives)
}

// Install installs the mesh by the command line, as a user does, and waits
// until it is ready. more are further arguments.
func (c *Cluster) Install(ctx context.Context, more ...string) error {
	ctx, cancel := context.WithTimeout(ctx, installTime)
	defer cancel()
	out, err := c.Ambit(ctx, append(append([]string{"install", "-y"}, settings()...), more...)...)
	fmt.Print(out)
	return err
}

// Upgrade changes what is installed by the command line, and waits until it is
// ready. more are the arguments that differ.
func (c *Cluster) Upgrade(ctx context.Context, more ...string) error {
	ctx, cancel := context.WithTimeout(ctx, installTime)
	defer cancel()
	_, err := c.Ambit(ctx, append(append([]string{"upgrade", "-y"}, settings()...), more...)...)
	return err
}

// Experimental has the cluster have the kinds of Gateway API's experimental channel, until the
// test ends.
func (c *Cluster) Experimental(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		if err := c.Upgrade(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := c.Upgrade(t.Context(), "--gateway-api-channel", "experimental"); err != nil {
		t.Fatal(err)
	}
}

// WithSOCKS5 has node proxies serve SOCKS5, until the test ends.
func (c *Cluster) WithSOCKS5(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		if err := c.Upgrade(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := c.Upgrade(t.Context(), "--set", "values.ztunnel.env.UNSTABLE_ENABLE_SOCKS5=true"); err != nil {
		t.Fatal(err)
	}
	c.RolledOut(t, "ztunnel")
}

// Uninstall takes everything away again.
func (c *Cluster) Uninstall(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, installTime)
	defer cancel()
	_, err := c.Ambit(ctx, "uninstall", "--purge", "-y")
	return err
}
