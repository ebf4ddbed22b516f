package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var telemetries = schema.GroupVersionResource{Group: "telemetry.istio.io", Version: "v1", Resource: "telemetries"}

// TestConnectionTelemetry: a Telemetry object with a selector changes how a node proxy counts
// the connections of these pods, and of no others. Its status names what acts on requests.
func TestConnectionTelemetry(t *testing.T) {
	n := mesh.Namespace(t, "connections", kit.Ambient())
	v1, _ := versioned(t, n)
	apply := func(more string) {
		n.MustApply(`
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: v1}
spec:
  selector: {matchLabels: {app: v1}}
  metrics: [{overrides: [{match: {metric: TCP_OPENED_CONNECTIONS, mode: SERVER}, tagOverrides: {team: {value: "'books'"}}}]}]
` + more)
	}
	apply("")
	of := written{n, t, telemetries, "v1"}
	of.says("ZtunnelAccepted", "True Accepted", "honoured by node proxies, for pods of namespace "+n.Name+" that the selector matches")
	of.says("WaypointAccepted", "")
	kit.Eventually(t, "a label of the pod's connections", func(ctx context.Context) error {
		for _, to := range []string{"v1", "v2"} {
			if out, err := n.Exec(ctx, n.Name, "client", "/echo", "get", "-url", n.URL(to)); err != nil {
				return fmt.Errorf("%s: %w", out, err)
			}
		}
		zt, err := mesh.ZtunnelOn(ctx, v1.Spec.NodeName)
		if err != nil {
			return err
		}
		text, err := mesh.Scrape(ctx, kit.SystemNamespace, zt)
		if err != nil {
			return err
		}
		labelled := map[string]bool{}
		for line := range strings.Lines(text) {
			for _, pod := range []string{"v1", "v2"} {
				if strings.HasPrefix(line, "istio_tcp_connections_opened_total{") && strings.Contains(line, `reporter="destination"`) &&
					strings.Contains(line, `destination_workload="`+pod+`"`) && strings.Contains(line, `destination_workload_namespace="`+n.Name+`"`) {
					labelled[pod] = labelled[pod] || strings.Contains(line, `team="books"`)
				}
			}
		}
		if other, there := labelled["v2"]; !labelled["v1"] || other || !there {
			return fmt.Errorf("series with the label: %v", labelled)
		}
		return nil
	})
	apply("  accessLogging: [{filter: {expression: \"response.code >= 400\"}}]\n")
	of.says("ZtunnelAccepted", "False UnsupportedValue", "spec.accessLogging[0]: the filter names response")
}
