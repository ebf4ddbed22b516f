package attack

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// TestSeriesOfManyNames: an author of ServiceEntries makes names, has one of
// its pods call each, and takes them back. Metrics of the node proxy do not grow.
func TestSeriesOfManyNames(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	const entries = 30
	series := func(part string) (n int) {
		b, err := w.Lab.Get(context.WithoutCancel(t.Context()), lab.InZtunnel("node2"), "http://127.0.0.1:15020/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, part) {
				n++
			}
		}
		return n
	}
	var y strings.Builder
	for i := range entries {
		resolution := []string{"DNS", "NONE", "STATIC"}[i%3]
		fmt.Fprintf(&y, `---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: host-%d, namespace: market}
spec: {hosts: [host-%d.invalid], addresses: [240.1.0.%d], ports: [{number: 80, name: tcp, protocol: TCP}], resolution: %s}
`, i, i, i+1, resolution)
	}
	w.MustApply(y.String())
	w.Eventually("the proxy has the entries", func() error {
		d, err := w.Dump("node2")
		if err != nil {
			return err
		}
		have := 0
		for _, s := range d.Services {
			if strings.HasPrefix(s.Name, "host-") {
				have++
			}
		}
		if have < entries {
			return fmt.Errorf("it has %d of %d", have, entries)
		}
		return nil
	})
	var calls sync.WaitGroup
	for i := range entries {
		calls.Go(func() {
			// Nothing answers there: that is counted as well.
			_, _ = w.Get(thief2, netip.AddrPortFrom(netip.AddrFrom4([4]byte{240, 1, 0, byte(i + 1)}), 80))
		})
	}
	calls.Wait()
	if n := series("istio_on_demand_dns_total{"); n == 0 {
		t.Error("no name was resolved")
	}
	for i := range entries {
		w.MustDelete("ServiceEntry", "market", fmt.Sprint("host-", i))
	}
	w.Eventually("the series go with the entries", func() error {
		if n := series("host-"); n > 0 {
			return fmt.Errorf("%d series are left", n)
		}
		return nil
	})
}
