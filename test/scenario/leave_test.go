package scenario

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestLeavingIsNotHeldUp: what keeps a pod in the mesh after it was told to
// leave are connections in use, and not the tunnels that were left over; and
// nobody's request fails over it. The time for draining is far longer than the
// test waits.
func TestLeavingIsNotHeldUp(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop, Args: map[string][]string{"ambit-cni": {"--drain", "10m"}}})
	to := netip.AddrPortFrom(w.Service("shop", "web", false), 80)
	for _, from := range []lab.Where{near, far} {
		w.MustGet(from, to)
	}
	load := w.StartLoad(far, to, 300)
	off := map[string]*string{"istio.io/dataplane-mode": nil}
	if err := w.Label(t.Context(), "namespace", "", "shop", off); err != nil {
		t.Fatal(err)
	}
	w.Eventually("all pods are out", func() error {
		s, err := w.Status(t.Context())
		if err != nil {
			return err
		}
		for _, p := range s.Pods {
			if p.Captured {
				return fmt.Errorf("%s/%s is still in the mesh", p.Namespace, p.Name)
			}
		}
		return nil
	})
	w.Settled()
	w.MustGet(far, to)
	load.Clean()
	if n := len(w.AccessLines("node1", `dst.hbone_addr`)); n == 0 {
		t.Error("nothing went through a tunnel before")
	}
}
