package scenario

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// counted returns the sum of the series of a metric that have labels, written as name=value.
func counted(w *rig.World, at lab.Where, metric string, labels ...string) (sum float64) {
	for _, s := range w.MetricsIn(at, metric) {
		if !slices.ContainsFunc(labels, func(l string) bool {
			name, value, _ := strings.Cut(l, "=")
			return s.Labels[name] != value
		}) {
			sum += s.Value
		}
	}
	return sum
}

// TestMadeUpLabels: a client that makes up values of labels gets one series for them, in the
// end, and takes nothing from others.
func TestMadeUpLabels(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: versions() + rig.PodObject("shop", "other", "node1", "")})
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	const requests = "istio_requests_total"
	c, other := w.HTTP(far), w.HTTP(lab.InPod("shop", "other"))
	defer c.CloseIdleConnections()
	defer other.CloseIdleConnections()
	ask := func(c *http.Client, agent string) error {
		status, body, err := request(w, c, false, "/", "X-Agent", agent)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	}
	has := func(what string, c *http.Client, agent string, labels ...string) {
		t.Helper()
		w.Eventually(what, func() error {
			if err := ask(c, agent); err != nil {
				return err
			}
			if counted(w, at, requests, labels...) == 0 {
				return fmt.Errorf("no series has %v: %v", labels, w.MetricsIn(at, requests))
			}
			return nil
		})
	}
	w.MustApply(telemetry("metrics", "  metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {agent: {value: \"request.headers['x-agent']\"}}}]}]\n"))
	has("the label", c, "a1", "agent=a1")
	before := counted(w, at, requests, "destination_service=front.shop.svc.cluster.local")
	const made = 1500
	for i := range made {
		if err := ask(c, fmt.Sprintf("made-up-%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	has("another client", other, "mine", "agent=mine", "source_workload=other")
	w.Eventually("a series of what is beyond", func() error {
		if counted(w, at, requests, "agent=overflow", "source_workload=far") == 0 {
			return errors.New("there is none")
		}
		if sum := counted(w, at, requests, "destination_service=front.shop.svc.cluster.local"); sum < before+made {
			return fmt.Errorf("%v requests are counted, %v before", sum, before)
		}
		return nil
	})
	if n := len(w.MetricsIn(at, requests)); n > 1100 {
		t.Errorf("%d series", n)
	}
}
