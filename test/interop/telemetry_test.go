package interop

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
)

// TestTelemetry: the two ends of a connection count it under the same labels,
// whoever they are.
func TestTelemetry(t *testing.T) {
	world := start(t)
	for _, x := range across {
		t.Run(x.String(), func(t *testing.T) {
			w := world.For(t)
			to := x.targets(w, false)
			slices.Reverse(to) // by service first: the other counters are sums
			for _, to := range to {
				w.MustGet(x.client(), to.http)
				for _, name := range []string{
					"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total",
					"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total",
				} {
					w.Eventually(name+" is the same at both ends", func() error {
						from, to := ofClient(w, x.from, name, x, to), ofClient(w, x.to, name, x, to)
						if len(from) == 0 || !maps.Equal(from, to) {
							return fmt.Errorf("%v, and %v", from, to)
						}
						return nil
					})
				}
			}
		})
	}
}

// ofClient are a node's counters of the connections of a way's client, by
// labels, without the one that says which end counted. Of a connection to a
// pod's own address only the server's end names a service.
func ofClient(w *rig.World, node, name string, x way, to target) map[string]float64 {
	w.T().Helper()
	out := map[string]float64{}
	for _, s := range w.Metrics(node, name) {
		if s.Labels["source_workload"] == "client-"+x.from {
			maps.DeleteFunc(s.Labels, func(label, _ string) bool {
				return label == "reporter" || to.name == "pod" && strings.HasPrefix(label, "destination_service")
			})
			out[fmt.Sprint(s.Labels)] += s.Value
		}
	}
	return out
}
