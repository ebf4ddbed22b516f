package both

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/test/world"
)

// TestConnectionTelemetry: a Telemetry object with a selector changes how a node proxy counts
// the connections of these pods, and of no others. What it cannot do is in the status.
func TestConnectionTelemetry(t *testing.T) {
	all := startShop(t)
	all.Apply(server("plain", "app: plain"))
	plain := world.Place{Namespace: "shop", Pod: "plain"}
	all.Families(func(w *world.World, v6 bool) {
		team := map[bool]string{false: "books", true: "tools"}[v6]
		telemetry := `
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: web, namespace: $shop}
spec:
  selector: {matchLabels: {app: web}}
  metrics: [{overrides: [{match: {metric: TCP_OPENED_CONNECTIONS, mode: SERVER}, tagOverrides: {team: {value: "'` + team + `'"}}}]}]
`
		w.Apply(telemetry)
		w.Condition("Telemetry", "shop", "web", "ZtunnelAccepted", "True Accepted", "for pods of namespace $shop that the selector matches")
		// counted returns the sum of series of a pod, with the label and without.
		counted := func(at world.Place) (with, without float64) {
			for _, s := range w.ProxySamples(at, "istio_tcp_connections_opened_total") {
				if s.Labels["reporter"] != "destination" || s.Labels["destination_workload"] != at.Pod || s.Labels["destination_workload_namespace"] != w.Text("$shop") {
					continue
				}
				if s.Labels["team"] == team {
					with += s.Value
				} else {
					without += s.Value
				}
			}
			return with, without
		}
		w.Eventually("a label of the pod's connections", func() error {
			_, before := counted(plain)
			for _, to := range []world.Place{web, plain} {
				if r := w.Request(far, netip.AddrPortFrom(w.Pod(to, v6), 8080), "/"); r.Status != 200 {
					return fmt.Errorf("%s: %+v", to, r)
				}
			}
			if with, _ := counted(web); with == 0 {
				return errors.New("no series has it")
			}
			if with, without := counted(plain); with != 0 || without <= before {
				return fmt.Errorf("another pod: %v connections have the label, %v have not, and %v before", with, without, before)
			}
			return nil
		})
		w.Apply(telemetry + "  accessLogging: [{filter: {expression: \"response.code >= 400\"}}]\n")
		w.Condition("Telemetry", "shop", "web", "ZtunnelAccepted", "False UnsupportedValue", "spec.accessLogging[0]: the filter names response")
		w.Delete(telemetry)
	})
}
