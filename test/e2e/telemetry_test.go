package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

var telemetries = schema.GroupVersionResource{Group: "telemetry.istio.io", Version: "v1", Resource: "telemetries"}

// TestTelemetry: a Telemetry object gives the requests of a service lines in Istio's
// default format, of some requests alone. Its status names what is not honoured.
func TestTelemetry(t *testing.T) {
	n := mesh.Namespace(t, "telemetry", kit.Ambient())
	versioned(t, n)
	if out := ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	n.MustApply(`
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: front}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  accessLogging:
  - providers: [{name: envoy}]
    filter: {expression: "request.headers['x-log'] == 'yes'"}
`)
	written{n, t, telemetries, "front"}.says("WaypointAccepted", "True Accepted", "honoured by waypoint "+n.Name+"/waypoint")
	lines := func(ctx context.Context, part string) (out []string, err error) {
		pods, err := mesh.Kube.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{LabelSelector: wellknown.LabelGatewayName + "=waypoint"})
		if err != nil {
			return nil, err
		}
		for i := range pods.Items {
			log, err := mesh.Logs(ctx, n.Name, pods.Items[i].Name, deploy.Container, time.Time{})
			if err != nil {
				return nil, err
			}
			for line := range strings.Lines(log) {
				if strings.Contains(line, part) {
					out = append(out, line)
				}
			}
		}
		return out, nil
	}
	tries := 0
	kit.Eventually(t, "lines of the requests that are chosen", func(ctx context.Context) error {
		tries++
		for _, choice := range []string{"no", "yes"} {
			if out, err := n.Exec(ctx, n.Name, "client", "/echo", "get", "-H", "x-log: "+choice, "-url", fmt.Sprintf("%s/%s/%d", strings.TrimSuffix(n.URL("front"), "/"), choice, tries)); err != nil {
				return fmt.Errorf("%s: %w", out, err)
			}
		}
		chosen, err := lines(ctx, fmt.Sprintf(`"GET /yes/%d HTTP/1.1" 200 - via_upstream - "-" `, tries))
		if err != nil || len(chosen) != 1 || strings.Contains(chosen[0], "src.workload") {
			return fmt.Errorf("%q, error %w", chosen, err)
		}
		if others, err := lines(ctx, fmt.Sprintf(`"GET /no/%d HTTP/1.1"`, tries)); err != nil || len(others) > 0 {
			return errors.Join(fmt.Errorf("%q", others), err)
		}
		return nil
	})
	n.MustApply(`
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: front}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  metrics: [{overrides: [{match: {mode: CLIENT}, disabled: true}]}]
`)
	written{n, t, telemetries, "front"}.says("WaypointAccepted", "False UnsupportedValue", "spec.metrics[0].overrides[0].match.mode")
}

// TestMetricLabels: a waypoint serves metrics with a label that a Telemetry object makes of
// each request, until the object goes.
func TestMetricLabels(t *testing.T) {
	n := mesh.Namespace(t, "metrics", kit.Ambient())
	versioned(t, n)
	if out := ambit(t, "waypoint", "apply", "-n", n.Name, "--enroll-namespace", "--wait"); !strings.Contains(out, "is ready") {
		t.Error(out)
	}
	n.MustApply(`
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: front}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {choice: {value: "request.headers['x-choice']"}}}]}]
`)
	// counts makes requests until a waypoint has a series of front with, or without, a label.
	counts := func(label string, with bool) {
		t.Helper()
		kit.Eventually(t, fmt.Sprintf("a series with %s: %v", label, with), func(ctx context.Context) error {
			if out, err := n.Exec(ctx, n.Name, "client", "/echo", "get", "-H", "x-choice: blue", "-url", n.URL("front")); err != nil {
				return fmt.Errorf("%s: %w", out, err)
			}
			pods, err := waypointPods(ctx, n, waypoint)
			if err != nil {
				return err
			}
			for i := range pods {
				text, err := mesh.Scrape(ctx, n.Name, pods[i].Name)
				if err != nil {
					return err
				}
				for line := range strings.Lines(text) {
					if strings.HasPrefix(line, "istio_requests_total{") && strings.Contains(line, "destination_service_name=\"front\"") && strings.Contains(line, label) == with {
						return nil
					}
				}
			}
			return fmt.Errorf("no series of %d waypoints", len(pods))
		})
	}
	written{n, t, telemetries, "front"}.says("WaypointAccepted", "True Accepted", "honoured by waypoint "+n.Name+"/waypoint")
	counts(`choice="blue"`, true)
	if err := mesh.Dynamic.Resource(telemetries).Namespace(n.Name).Delete(t.Context(), "front", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	counts("choice=", false)
}
