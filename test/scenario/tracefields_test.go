package scenario

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// moreCollectors are providers with the fields that collectors does not have.
const moreCollectors = `
- name: otel-meta
  opentelemetry: {service: otel.shop.svc.cluster.local, port: 4317, grpc: {timeout: 0.3s, initialMetadata: [{name: x-tenant, value: books}]}}
- name: otel-quick
  opentelemetry: {service: otel.shop.svc.cluster.local, port: 4318, http: {path: /v1/traces, timeout: 0.3s}}
`

// tracedAPI is a mesh whose program answers with what it got, and a collector in it.
func tracedAPI(t *testing.T) (*rig.World, userAgent) {
	settings := strings.Replace(collectors, "defaultProviders:", strings.TrimPrefix(moreCollectors, "\n")+"defaultProviders:", 1)
	w, _ := traced(t, api(), settings)
	serveAPI(w)
	return w, userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
}

// traceparents numbers traces.
type traceparents int

// next returns the head of a request in a trace that no request has had.
func (n *traceparents) next() string {
	*n++
	return fmt.Sprintf("GET /a HTTP/1.1\nHost: api\nTraceparent: 00-44bf92f3577b34da6a3ce929d0e%05x-00f067aa0ba902b7-01", int(*n))
}

// TestCollectorsThatHang: a collector that does not answer within its time-out is given up,
// and the spans in the end. The default of 10 seconds for each of four tries would be longer
// than the wait for it.
func TestCollectorsThatHang(t *testing.T) {
	w, c := tracedAPI(t)
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	var n traceparents
	for provider, of := range map[string]*rig.Collector{"otel-meta": w.Collector(lab.InPod("shop", "otel"), 4317), "otel-quick": w.Collector(lab.InPod("shop", "otel"), 4318)} {
		w.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100, providers: [{name: "+provider+"}]}]\n"))
		hang := make(chan struct{})
		var hung atomic.Int64
		of.Answer(func() int { hung.Add(1); <-hang; return http.StatusServiceUnavailable })
		before := countOf(w.MetricsIn(at, "waypoint_spans_dropped_total"), "cause", "failed")
		w.Eventually(provider+" gives up", func() error {
			if resp, body := c.must(n.next()); resp.StatusCode != http.StatusOK {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			if dropped := countOf(w.MetricsIn(at, "waypoint_spans_dropped_total"), "cause", "failed"); hung.Load() < 2 || dropped == before {
				return fmt.Errorf("%d exports wait, %v spans were dropped", hung.Load(), dropped)
			}
			return nil
		})
		close(hang)
		of.Answer(func() int { return http.StatusOK })
	}
}
