package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// addresses returns the addresses in the status of an entry, as host=address.
func (w written) addresses(ctx context.Context) (all []string, err error) {
	u, err := w.get(ctx)
	if err != nil {
		return nil, err
	}
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "addresses")
	for _, a := range list {
		m, _ := a.(map[string]any)
		all = append(all, fmt.Sprint(m["host"], "=", m["value"]))
	}
	return all, nil
}

// TestAllocatedAddresses: the hosts of a ServiceEntry without addresses get one of each family,
// in its status. They stay when ambitd has two replicas, whichever writes, and when entries come and go. What
// somebody has written there stays as well.
func TestAllocatedAddresses(t *testing.T) {
	n := mesh.Namespace(t, "vips", nil)
	entry := func(name, meta, status string) written {
		text := fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s%[2]s}
spec: {hosts: [%[1]s.example.com, other.%[1]s.example.com], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
`, name, meta)
		// Just after ambitd has come back, its webhook is not reached yet.
		kit.Eventually(t, "the entry "+name+" is taken", func(ctx context.Context) error { return mesh.Apply(ctx, n.Name, text) })
		w := written{n, t, serviceEntries, name}
		if status != "" {
			w.patch(status, "status")
		}
		return w
	}
	has := func(w written, want func([]string) bool) (got []string) {
		t.Helper()
		kit.Eventually(t, "the addresses of "+w.String(), func(ctx context.Context) (err error) {
			if got, err = w.addresses(ctx); err == nil && !want(got) {
				err = fmt.Errorf("they are %q", got)
			}
			return err
		})
		return got
	}
	four := func(all []string) bool {
		if len(all) != 4 {
			return false
		}
		for i, a := range all {
			p, err := netip.ParseAddr(after(a))
			if err != nil || p.Is4() != (i%2 == 0) {
				return false
			}
		}
		return true
	}
	first := entry("first", "", "")
	before := has(first, four)
	off := entry("unwanted", ", labels: {networking.istio.io/enable-autoallocate-ip: \"false\"}", "")
	kept := entry("kept", "", `{"status": {"addresses": [{"host": "kept.example.com", "value": "240.240.77.1"}]}}`)
	has(kept, func(all []string) bool { return four(all) && all[0] == "kept.example.com=240.240.77.1" })

	// Two run; each is killed once, so that the other one writes.
	scaleControlPlane(t, 2)
	pods, err := mesh.Ambitds(t.Context())
	if err != nil || len(pods) != 2 {
		t.Fatalf("%d ambitds: %v", len(pods), err)
	}
	for i := range pods {
		mesh.Kill(t, pods[i].Name)
		mesh.ControlPlane(t, 2)
		has(entry(fmt.Sprint("between", i), "", ""), four)
	}
	scaleControlPlane(t, 1)
	second := entry("second", "", "")
	has(second, four)
	if now, err := first.addresses(t.Context()); err != nil || !slices.Equal(now, before) {
		t.Errorf("the addresses were %q, and are %q: %v", before, now, err)
	}
	if all, err := off.addresses(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("an entry that wants none has %q: %v", all, err)
	}
	kept.remove()
	has(first, func(all []string) bool { return slices.Equal(all, before) })
}

// after returns what follows the first =.
func after(s string) string {
	_, rest, _ := strings.Cut(s, "=")
	return rest
}
