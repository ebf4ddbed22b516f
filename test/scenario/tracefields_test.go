package scenario

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// moreCollectors are providers with the fields that collectors does not have.
const moreCollectors = `
- name: otel-meta
  opentelemetry: {service: otel.shop.svc.cluster.local, port: 4317, grpc: {timeout: 0.3s, initialMetadata: [{name: x-tenant, value: books}]}}
- name: otel-quick
  opentelemetry: {service: otel.shop.svc.cluster.local, port: 4318, http: {path: /v1/traces, timeout: 0.3s}}
- name: brief
  envoyFileAccessLog: {path: /dev/stdout, omitEmptyValues: true, logFormat: {labels: {brief: "%REQ(:PATH)%", agent: "%REQ(USER-AGENT)%"}}}
- name: prom
  prometheus: {}
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

const senderSpan = "00f067aa0ba902b7"

// next returns a trace that no request has had, and the head of a request that is in it.
func (n *traceparents) next() (trace, head string) {
	*n++
	trace = fmt.Sprintf("44bf92f3577b34da6a3ce929d0e%05x", int(*n))
	return trace, "GET /a HTTP/1.1\nHost: api\nTraceparent: 00-" + trace + "-" + senderSpan + "-01\nTracestate: k=v\nB3: " + trace + "-" + senderSpan + "-1"
}

// TestTraceSwitches: spans without Istio's attributes, contexts that are not passed on, and
// contexts that are passed on without spans.
func TestTraceSwitches(t *testing.T) {
	w, c := tracedAPI(t)
	collector := w.Collector(lab.InPod("shop", "otel"), 4317)
	var n traceparents
	sent := map[string]seen{} // by trace: what the program got
	// becomes makes requests until one that the program got is good.
	becomes := func(what string, good func(trace string, s seen) error) (trace string) {
		t.Helper()
		w.Eventually(what, func() error {
			var head string
			trace, head = n.next()
			resp, _, err := c.do(head)
			if err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%v %w", resp, err)
			}
			trace, head = n.next()
			sent[trace] = c.got(head)
			return good(trace, sent[trace])
		})
		return trace
	}
	// reported makes requests until the spans of one are good.
	reported := func(what string, good func([]rig.Span, seen) error) {
		t.Helper()
		becomes(what, func(string, seen) error {
			err := errors.New("no spans have come")
			for trace, s := range sent {
				if spans := collector.Of(trace); len(spans) == 2 {
					if err = good(spans, s); err == nil {
						return nil
					}
				}
			}
			return err
		})
	}
	reset := func(tracing string) {
		w.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100"+tracing+"}]\n"))
		clear(sent)
	}
	passed := func(spans []rig.Span, s seen) error {
		if got := s.Header.Get("Traceparent"); got != "00-"+spans[0].Trace+"-"+spans[1].ID+"-01" || s.Header.Get("Tracestate") != "k=v" {
			return fmt.Errorf("the program got %v", s.Header)
		}
		return nil
	}
	istio := func(s []rig.Span) (n int) {
		for name := range s[0].Attributes {
			if strings.HasPrefix(name, "istio.") || name == "node_id" || name == "guid:x-request-id" {
				n++
			}
		}
		return n
	}
	reset("")
	reported("spans with Istio's attributes", func(spans []rig.Span, s seen) error {
		if istio(spans) < 5 {
			return fmt.Errorf("%v", spans[0].Attributes)
		}
		return passed(spans, s)
	})
	reset(", enableIstioTags: false")
	reported("spans without them", func(spans []rig.Span, s seen) error {
		if spans[0].Attributes["istio.source_workload"] != "" || spans[0].Attributes["http.request.method"] != "GET" {
			return fmt.Errorf("%v", spans[0].Attributes)
		}
		return passed(spans, s)
	})
	reset(", disableContextPropagation: true")
	reported("spans of a context that is not passed on", func(_ []rig.Span, s seen) error {
		for _, name := range []string{"Traceparent", "Tracestate", "B3", "X-B3-Traceid"} {
			if s.Header.Get(name) != "" {
				return fmt.Errorf("the program got %v", s.Header)
			}
		}
		return nil
	})
	reset(", disableSpanReporting: true")
	quiet := becomes("a context that is passed on as it came", func(trace string, s seen) error {
		if got := s.Header.Get("Traceparent"); got != "00-"+trace+"-"+senderSpan+"-01" {
			return fmt.Errorf("the program got %q", got)
		}
		return nil
	})
	reset("")
	reported("spans again", passed)
	if spans := collector.Of(quiet); len(spans) > 0 {
		t.Errorf("spans were sent: %+v", spans)
	}
}

// TestFieldsOfProviders: metadata and time-outs of collectors, keys of a line without a
// value, and metrics of providers.
func TestFieldsOfProviders(t *testing.T) {
	w, c := tracedAPI(t)
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	var n traceparents
	ask := func() {
		t.Helper()
		_, head := n.next()
		if resp, body := c.must(head); resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	grpc, byHTTP := w.Collector(lab.InPod("shop", "otel"), 4317), w.Collector(lab.InPod("shop", "otel"), 4318)
	w.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100, providers: [{name: otel-meta}]}]\n"))
	w.Eventually("metadata of an export", func() error {
		ask()
		if _, types, last := grpc.Resource(); last.Get("X-Tenant") != "books" || types[len(types)-1] != "application/grpc" {
			return fmt.Errorf("%v", last)
		}
		return nil
	})
	// A collector that does not answer is given up, and the spans in the end. The default of 10
	// seconds for each of four tries would be longer than the wait for it.
	for provider, of := range map[string]*rig.Collector{"otel-meta": grpc, "otel-quick": byHTTP} {
		w.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100, providers: [{name: "+provider+"}]}]\n"))
		hang := make(chan struct{})
		var hung atomic.Int64
		of.Answer(func() int { hung.Add(1); <-hang; return http.StatusServiceUnavailable })
		before := countOf(w.MetricsIn(at, "waypoint_spans_dropped_total"), "cause", "failed")
		w.Eventually(provider+" gives up", func() error {
			ask()
			if dropped := countOf(w.MetricsIn(at, "waypoint_spans_dropped_total"), "cause", "failed"); hung.Load() < 2 || dropped == before {
				return fmt.Errorf("%d exports wait, %v spans were dropped", hung.Load(), dropped)
			}
			return nil
		})
		close(hang)
		of.Answer(func() int { return http.StatusOK })
	}
	log := func() string { return w.Log("pod/shop/" + path.Base(string(at)) + "/" + deploy.Container) }
	w.MustApply(telemetry("all", "  accessLogging: [{providers: [{name: brief}]}]\n"))
	w.Eventually("a line without the key that has no value", func() error {
		if _, _, err := c.do("GET /brief HTTP/1.1\nHost: api"); err != nil {
			return err
		}
		if _, _, err := c.do("GET /full HTTP/1.1\nHost: api\nUser-Agent: me"); err != nil {
			return err
		}
		if lines := log(); !strings.Contains(lines, `{"brief":"/brief"}`+"\n") || !strings.Contains(lines, `{"agent":"me","brief":"/full"}`+"\n") {
			return fmt.Errorf("%.2000s", lines)
		}
		return nil
	})
	const drop = "overrides: [{match: {metric: REQUEST_SIZE}, disabled: true}]"
	w.MustApply(telemetry("all", "  metrics: [{providers: [{name: prom}], "+drop+"}]\n"))
	w.Eventually("an override of a provider", func() error {
		ask()
		if list := w.MetricsIn(at, "istio_request_bytes_count"); len(list) > 0 {
			return fmt.Errorf("%v", list)
		}
		return nil
	})
	w.MustApply(telemetry("all", "  metrics: [{providers: [{name: otel}], "+drop+"}]\n"))
	w.Eventually("an override of another provider is reported, and has no effect", func() error {
		ask()
		out, err := w.Ambit("status")
		if err != nil || !strings.Contains(out, "spec.metrics[0].providers[0]") || len(w.MetricsIn(at, "istio_request_bytes_count")) == 0 {
			return fmt.Errorf("%s, error %w", out, err)
		}
		return nil
	})
}
