package scenario

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// rawService carries connections without HTTP, by the waypoint.
const rawService = `
---
apiVersion: v1
kind: Service
metadata: {name: raw, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: v1}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 90, targetPort: 8080, appProtocol: tcp}]}
`

const overrides = `  metrics:
  - overrides:
    - match: {metric: REQUEST_COUNT, mode: CLIENT_AND_SERVER}
      tagOverrides:
        host: {value: request.host}
        area: {value: "request.url_path.startsWith('/api/') ? 'api' : 'other'"}
        agent: {value: "request.headers['x-agent']"}
        failed: {value: response.code >= 400}
        team: {value: "'books'"}
        reporter: {value: "'us'"}
        source_principal: {operation: REMOVE}
    - match: {metric: REQUEST_DURATION, mode: SERVER}
      disabled: true
    - match: {metric: RESPONSE_SIZE, mode: CLIENT}
      disabled: true
    - match: {metric: TCP_OPENED_CONNECTIONS}
      tagOverrides: {port: {value: destination.port}, who: {value: source.principal}, host: {value: request.host}}
`

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

// TestMetricOverrides: a scrape of the waypoint has the labels that a Telemetry object makes
// of each request and connection, without those that it removes. A mistake in one label
// has the object not applied at all, and is in its status. A client that makes up values
// gets one series for them, in the end, and takes nothing from others.
func TestMetricOverrides(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: versions() + rawService + rig.PodObject("shop", "other", "node1", "")})
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	c := w.HTTP(far)
	defer c.CloseIdleConnections()
	ask := func(c *http.Client, path string, headers ...string) error {
		status, body, err := request(w, c, false, path, headers...)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	}
	// has makes requests until a series has labels.
	has := func(what string, do func() error, metric string, labels ...string) {
		t.Helper()
		w.Eventually(what, func() error {
			if err := do(); err != nil {
				return err
			}
			if counted(w, at, metric, labels...) == 0 {
				return fmt.Errorf("no %s has %v: %v", metric, labels, w.MetricsIn(at, metric))
			}
			return nil
		})
	}
	const requests = "istio_requests_total"
	host := "host=" + netip.AddrPortFrom(w.Service("shop", "front", false), 80).String()
	w.MustApply(telemetry("metrics", overrides))
	one := func() error { return ask(c, "/api/x", "X-Agent", "a1") }
	has("labels of a request", one, requests, host, "area=api", "agent=a1", "failed=false", "team=books", "reporter=us", "source_principal=", "response_code=200")
	has("an expression without a value", func() error { return ask(c, "/x") }, requests, "area=other", "agent=unknown", "response_code=200")
	if list := w.MetricsIn(at, "istio_request_duration_milliseconds_count"); len(list) > 0 {
		t.Errorf("a metric that is disabled: %v", list)
	}
	// A rule for clients has no effect.
	if counted(w, at, "istio_response_bytes_count", "reporter=waypoint", "source_principal="+farID, "host=", "area=") == 0 {
		t.Errorf("%v", w.MetricsIn(at, "istio_response_bytes_count"))
	}
	raw := netip.AddrPortFrom(w.Service("shop", "raw", false), 90)
	has("labels of a connection", func() error { _, err := w.Get(far, raw); return err },
		"istio_tcp_connections_opened_total", "port=90", "who="+farID, "host=unknown", "destination_service=raw.shop.svc.cluster.local")
	if counted(w, at, "istio_tcp_sent_bytes_total", "port=", "destination_service=raw.shop.svc.cluster.local") == 0 {
		t.Error("a label of one metric is at another")
	}
	says := func(texts ...string) {
		t.Helper()
		w.Eventually("the status", func() error {
			out, err := w.Ambit("status")
			for _, text := range texts {
				if err == nil && !strings.Contains(out, text) {
					err = fmt.Errorf("%q is not in %s", text, out)
				}
			}
			return err
		})
	}
	says("spec.metrics[0].overrides[2].match.mode")

	// One label of two has a mistake.
	w.MustApply(telemetry("metrics", "  metrics:\n  - overrides:\n    - tagOverrides: {team: {value: \"'maps'\"}, bad: {value: request.hots}}\n    - match: {metric: REQUEST_COUNT}\n      disabled: true\n"))
	says("tagOverrides[bad]", "request.hots", "no override of the object is in effect")
	has("the labels of the mesh are back", one, requests, "reporter=waypoint", "team=", "source_principal="+farID)
	for _, s := range w.MetricsIn(at, requests) {
		for _, name := range []string{"team", "bad", "host"} {
			if v, is := s.Labels[name]; is {
				t.Errorf("%s=%s", name, v)
			}
		}
	}
	before := counted(w, at, requests, "destination_service=front.shop.svc.cluster.local")

	// What a client makes up.
	w.MustApply(telemetry("metrics", "  metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {agent: {value: \"request.headers['x-agent']\"}}}]}]\n"))
	has("the label", one, requests, "agent=a1")
	const made = 1500
	for i := range made {
		if err := ask(c, "/", "X-Agent", fmt.Sprintf("made-up-%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	other := w.HTTP(lab.InPod("shop", "other"))
	defer other.CloseIdleConnections()
	has("another client", func() error { return ask(other, "/", "X-Agent", "mine") }, requests, "agent=mine", "source_workload=other")
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
