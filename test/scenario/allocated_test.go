package scenario

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestAllocatedAddresses: hosts of a ServiceEntry without addresses have virtual ones, which
// lead to its endpoints. They stay the same when ambitd is killed, and when entries come and go.
// An entry that wants none has none.
func TestAllocatedAddresses(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: shop + captured("looker", "")})
	entry := func(name, labels string) string {
		return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s, namespace: shop, labels: {%[2]s}}
spec:
  hosts: [%[1]s.example]
  resolution: STATIC
  ports: [{number: 80, targetPort: 8080, name: http}]
  workloadSelector: {labels: {app: web}}
`, name, labels)
	}
	w.MustApply(entry("vault", ""))
	vips := map[bool]netip.Addr{}
	for _, v6 := range []bool{false, true} {
		vips[v6] = allocated(w, looker, "vault.example", v6)
		w.MustGet(looker, netip.AddrPortFrom(vips[v6], 80))
	}
	if err := w.Restart(t.Context(), lab.Ambitd, lab.RestartKill); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		w.MustApply(entry(fmt.Sprint("other", i), ""))
	}
	w.MustApply(entry("off", "networking.istio.io/enable-autoallocate-ip: \"false\""))
	seen := map[netip.Addr]bool{}
	for i := range 20 {
		a := allocated(w, looker, fmt.Sprintf("other%d.example", i), false)
		if seen[a] || a == vips[false] {
			t.Errorf("%s is given twice", a)
		}
		seen[a] = true
	}
	w.MustDelete("ServiceEntry", "shop", "other0")
	for _, v6 := range []bool{false, true} {
		if a := allocated(w, looker, "vault.example", v6); a != vips[v6] {
			t.Errorf("the address was %s, and is %s", vips[v6], a)
		}
		w.MustGet(looker, netip.AddrPortFrom(vips[v6], 80))
	}
	if m, err := look(w, looker, lanAddr(false), "udp", ask("off.example", 1)); err == nil && len(found(m)) > 0 {
		t.Errorf("an entry that wants none has %q", found(m))
	}
}

// allocated waits until a pod's look-up of a host leads to an address that the mesh has
// allocated, and returns it.
func allocated(w *rig.World, from lab.Where, host string, v6 bool) (a netip.Addr) {
	w.T().Helper()
	pool := map[bool]netip.Prefix{false: netip.MustParsePrefix("240.240.0.0/16"), true: netip.MustParsePrefix("2001:2::/48")}[v6]
	w.Eventually(host+" has an allocated address", func() error {
		m, err := look(w, from, lanAddr(v6), "udp", ask(host, map[bool]uint16{false: 1, true: 28}[v6]))
		if err != nil {
			return err
		}
		if all := found(m); len(all) != 1 {
			return fmt.Errorf("the answer has %q", all)
		} else if a, err = netip.ParseAddr(all[0]); err != nil || !pool.Contains(a) {
			return fmt.Errorf("the answer is %s: %w", all[0], err)
		}
		return nil
	})
	return a
}
