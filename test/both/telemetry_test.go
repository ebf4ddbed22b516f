package both

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/otlp"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
	"github.com/ambit-mesh/ambit/test/world"
)

// collectors are providers of one service: by gRPC and by HTTP, with and without the fields
// that not every collector takes.
const collectors = `
extensionProviders:
- name: $shop-otel
  opentelemetry: {service: otel.$shop.svc.cluster.local, port: 4317}
- name: $shop-http
  opentelemetry:
    service: otel.$shop.svc.cluster.local
    port: 4318
    http: {path: /v1/traces, headers: [{name: x-key, value: abc}]}
- name: $shop-meta
  opentelemetry: {service: otel.$shop.svc.cluster.local, port: 4317, grpc: {timeout: 3s, initialMetadata: [{name: x-tenant, value: books}]}}
- name: $shop-brief
  envoyFileAccessLog: {path: /dev/stdout, omitEmptyValues: true, logFormat: {labels: {brief: "%REQ(:PATH)%", agent: "%REQ(X-AGENT)%"}}}
- name: $shop-json
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat: {labels: {p: "%REQ(:PATH)%", code: "%RESPONSE_CODE%", who: "%DOWNSTREAM_PEER_URI_SAN%", agent: "%REQ(X-AGENT)%"}}
- name: $shop-records
  envoyOtelAls: {service: otel.$shop.svc.cluster.local, port: 4317, logFormat: {text: "%REQ(:METHOD)% %REQ(:PATH)%", labels: {code: "%RESPONSE_CODE%", who: "%DOWNSTREAM_PEER_URI_SAN%"}}}
- name: $shop-elsewhere
  envoyFileAccessLog: {path: /var/log/x}
- name: $shop-prom
  prometheus: {}
`

// identity of the client far.
const farID = "spiffe://cluster.local/ns/$shop/sa/far"

// observed is a world with a collector, and the service front of two versions, of which
// requests with x-version: 2 go to the second one.
type observed struct {
	*world.World
	front netip.AddrPort
	n     int // of the last request
}

var otelPod = world.Place{Namespace: "shop", Pod: "otel"}

func startObserved(t *testing.T, settings string) *observed {
	t.Helper()
	w := start(t, world.Options{})
	w.MeshConfig(collectors + settings)
	w.Apply(versions() + rig.PodObject("$shop", "otel", "node1", "app: otel", "ECHO", "collector") + "    readinessProbe: {tcpSocket: {port: 4317}}\n" +
		rig.ServiceObject("$shop", "otel", "otel", "{name: grpc, port: 4317, appProtocol: grpc}, {name: http, port: 4318, appProtocol: http}") + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front, port: 80}]
  rules:
  - matches: [{headers: [{name: x-version, value: "2"}]}]
    backendRefs: [{name: v2, port: 80}]
  - backendRefs: [{name: v1, port: 80}]
`)
	w.ProxiesBecome("shop", 1)
	return &observed{World: w}
}

// in is the same world for a subtest, by a family of addresses.
func (o *observed) in(w *world.World, v6 bool) *observed {
	o.Helper()
	front := w.Service("shop", "front", 80, v6)
	w.Becomes(200, far, front, "/")
	return &observed{World: w, front: front, n: o.n + 1000*map[bool]int{true: 1}[v6]}
}

// must makes a request that is answered with 200.
func (o *observed) must(path string, headers ...string) traffic.Response {
	o.Helper()
	r := o.Request(far, o.front, path, headers...)
	if r.Status != 200 {
		o.Fatalf("%+v", r)
	}
	return r
}

// messages returns what the collector has received.
func (o *observed) messages() []otlp.Message { return otlp.Messages(o.PodLog(otelPod)) }

func spansOf(messages []otlp.Message) (all []otlp.Span) {
	for _, m := range messages {
		all = append(all, m.Spans...)
	}
	return all
}

const senderSpan = "00f067aa0ba902b7"

// trace returns the name of a trace that no request has had, and its context in headers.
func (o *observed) trace() (trace string, headers []string) {
	o.n++
	trace = fmt.Sprintf("44bf92f3577b34da6a3ce929d0e%05x", o.n)
	return trace, []string{"Traceparent: 00-" + trace + "-" + senderSpan + "-01", "Tracestate: k=v", "B3: " + trace + "-" + senderSpan + "-1"}
}

// reported makes requests until the spans of one, and what the program got, are good.
func (o *observed) reported(what string, good func([]otlp.Span, traffic.Response) error, headers ...string) {
	o.Helper()
	sent := map[string]traffic.Response{}
	o.Eventually(what, func() error {
		trace, context := o.trace()
		sent[trace] = o.must("/a/headers?b=c", append(context, headers...)...)
		err := errors.New("no spans have come")
		all := spansOf(o.messages())
		for trace, r := range sent {
			if spans := otlp.Of(all, trace); len(spans) == 2 {
				if err = good(spans, r); err == nil {
					return nil
				}
			}
		}
		return err
	})
}

// tracing is a Telemetry object of the shop, about traces.
func tracing(more string) string {
	return telemetry("all", "  tracing: [{randomSamplingPercentage: 100"+more+"}]\n")
}

// TestTraces: a request through a waypoint has the span of a server and that of a client in
// the trace that it came with, which a collector in the mesh receives by gRPC and by HTTP.
func TestTraces(t *testing.T) {
	all := startObserved(t, "defaultProviders: {tracing: [$shop-otel]}\n")
	all.Apply(tracing(""))
	all.Families(func(w *world.World, v6 bool) {
		o := all.in(w, v6)
		o.reported("spans by gRPC", func(s []otlp.Span, _ traffic.Response) error {
			server, client := s[0], s[1]
			if server.Kind != otlp.Server || client.Kind != otlp.Client || server.Parent != senderSpan || client.Parent != server.ID || server.State != "k=v" {
				return fmt.Errorf("%+v", s)
			}
			for k, want := range map[string]string{
				"http.request.method": "GET", "url.path": "/a/headers", "url.query": "b=c", "http.response.status_code": "200", "http.status_code": "200",
				"istio.source_workload": "far", "istio.destination_workload": "v2", "istio.namespace": "$shop", "istio.canonical_service": "waypoint",
				"response_flags": "-", "upstream_cluster.name": "inbound-vip|80|http|v2.$shop.svc.cluster.local", "ambit.source_principal": farID,
			} {
				if server.Attributes[k] != w.Text(want) {
					return fmt.Errorf("%s is %q, want %q of %v", k, server.Attributes[k], want, server.Attributes)
				}
			}
			if !strings.HasPrefix(server.Attributes["node_id"], "waypoint~") || server.Name != w.Text("front.$shop.svc.cluster.local:80/*") || client.Name != w.Text("GET v2.$shop.svc.cluster.local:80") {
				return fmt.Errorf("%+v", s)
			}
			return nil
		}, "X-Version: 2")
		if !slices.ContainsFunc(o.messages(), func(m otlp.Message) bool {
			return m.Resource["service.name"] == w.Text("waypoint.$shop") && m.Header.Get("Content-Type") == "application/grpc"
		}) {
			w.Error("no message names the waypoint as its sender")
		}
		o.ownTrace()
		o.refusal(v6)
		w.Apply(telemetry("front", `  targetRef: {kind: Service, group: "", name: front}
  tracing:
  - providers: [{name: $shop-http}]
    customTags:
      color: {literal: {value: blue}}
      who: {header: {name: X-Who, defaultValue: none}}
      pod: {environment: {name: POD_NAMESPACE}}
`))
		o.reported("spans by HTTP", func(s []otlp.Span, _ traffic.Response) error {
			if a := s[0].Attributes; a["color"] != "blue" || a["who"] != "ann" || a["pod"] != w.Text("$shop") {
				return fmt.Errorf("%v", a)
			}
			return nil
		}, "X-Who: ann")
		if !slices.ContainsFunc(o.messages(), func(m otlp.Message) bool { return m.Header.Get("X-Key") == "abc" }) {
			w.Error("no message has the header of its provider")
		}
		w.Delete(telemetry("front", "  {}"))
	})
}

// ownTrace checks requests without a context: the first one of a connection is in the trace
// that both node proxies log, the next one has a trace of its own.
func (o *observed) ownTrace() {
	o.Helper()
	path := fmt.Sprintf("/mine/%d", o.n)
	head := "GET " + path + " HTTP/1.1\nHost: front"
	if all, err := o.Kept(far, o.front, head, head); err != nil || all[0].Status != 200 || all[1].Status != 200 {
		o.Fatalf("%+v, error %v", all, err)
	}
	var spans []otlp.Span
	o.Eventually("both traces", func() error {
		spans = slices.DeleteFunc(otlp.Servers(spansOf(o.messages())), func(s otlp.Span) bool { return s.Attributes["url.path"] != path })
		if len(spans) != 2 {
			return fmt.Errorf("%+v", spans)
		}
		return nil
	})
	first, second := spans[0], spans[1]
	if len(first.Links) != 0 || len(second.Links) != 1 || second.Links[0] != first.Trace || second.Trace == first.Trace || second.Parent != "" || first.Parent == "" {
		o.Errorf("%+v, %+v", first, second)
	}
	o.ProxyLogs(far, `trace_id="`+first.Trace+`"`)
}

// refusal checks the span of a request that a policy refuses, in the trace of a B3 header.
func (o *observed) refusal(v6 bool) {
	o.Helper()
	never := rig.PolicyObject("$shop", "never", "DENY", toFront+`[{to: [{operation: {paths: [/never]}}]}]`)
	o.Apply(never)
	defer o.Delete(never)
	trace := strings.Repeat(map[bool]string{false: "1", true: "2"}[v6], 32)
	o.Eventually("the span of a refusal", func() error {
		if r := o.Request(far, o.front, "/never", "B3: "+trace+"-"+senderSpan+"-1"); r.Status != 403 {
			return fmt.Errorf("%+v", r)
		}
		s := otlp.Of(spansOf(o.messages()), trace)
		if !slices.ContainsFunc(s, func(s otlp.Span) bool {
			return s.Attributes["ambit.reason"] == reason.PolicyDenied.String() && s.Attributes["http.response.status_code"] == "403"
		}) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// TestTraceSwitches: spans without Istio's attributes, contexts that are not passed on, and
// contexts that are passed on without spans.
func TestTraceSwitches(t *testing.T) {
	all := startObserved(t, "defaultProviders: {tracing: [$shop-otel]}\n")
	all.Families(func(w *world.World, v6 bool) {
		o := all.in(w, v6)
		passed := func(spans []otlp.Span, r traffic.Response) error {
			h, err := r.Request()
			if got := h.Get("Traceparent"); err != nil || got != "00-"+spans[0].Trace+"-"+spans[1].ID+"-01" || h.Get("Tracestate") != "k=v" {
				return fmt.Errorf("the program got %v, error %w", h, err)
			}
			return nil
		}
		istio := func(s []otlp.Span) (n int) {
			for name := range s[0].Attributes {
				if strings.HasPrefix(name, "istio.") || name == "node_id" || name == "guid:x-request-id" {
					n++
				}
			}
			return n
		}
		w.Apply(tracing(""))
		o.reported("spans with Istio's attributes", func(spans []otlp.Span, r traffic.Response) error {
			if istio(spans) < 5 {
				return fmt.Errorf("%v", spans[0].Attributes)
			}
			return passed(spans, r)
		})
		w.Apply(tracing(", enableIstioTags: false"))
		o.reported("spans without them", func(spans []otlp.Span, r traffic.Response) error {
			if a := spans[0].Attributes; a["istio.source_workload"] != "" || a["http.request.method"] != "GET" {
				return fmt.Errorf("%v", a)
			}
			return passed(spans, r)
		})
		w.Apply(tracing(", disableContextPropagation: true"))
		o.reported("spans of a context that is not passed on", func(_ []otlp.Span, r traffic.Response) error {
			h, err := r.Request()
			for _, name := range []string{"Traceparent", "Tracestate", "B3", "X-B3-Traceid"} {
				if err != nil || h.Get(name) != "" {
					return fmt.Errorf("the program got %v, error %w", h, err)
				}
			}
			return nil
		})
		w.Apply(tracing(", disableSpanReporting: true"))
		var quiet string
		w.Eventually("a context that is passed on as it came", func() error {
			trace, context := o.trace()
			h, err := o.must("/a/headers", context...).Request()
			if got := h.Get("Traceparent"); err != nil || got != "00-"+trace+"-"+senderSpan+"-01" {
				return fmt.Errorf("the program got %q, error %w", got, err)
			}
			quiet = trace
			return nil
		})
		w.Apply(tracing(""))
		o.reported("spans again", passed)
		if spans := otlp.Of(spansOf(o.messages()), quiet); len(spans) > 0 {
			w.Errorf("spans were sent: %+v", spans)
		}
	})
}

// lines makes requests until the lines of one in the waypoint's log are good. Lines that
// must be absent have to be absent ten times.
func (o *observed) lines(what string, good func(lines []string, path string) error, absent bool, headers ...string) {
	o.Helper()
	var paths []string
	quiet := 0
	o.Eventually(what, func() error {
		o.n++
		paths = append(paths, fmt.Sprintf("/at/%d", o.n))
		o.must(paths[len(paths)-1], headers...)
		text := o.WaypointLog("shop")
		err := errors.New("no request has them")
		for i, path := range paths {
			var lines []string
			for line := range strings.Lines(text) {
				if strings.Contains(line, path+" ") || strings.Contains(line, path+`"`) {
					lines = append(lines, line)
				}
			}
			if err = good(lines, path); err == nil && !absent {
				return nil
			}
			if err != nil && absent { // the next ones may be without
				quiet, paths = 0, paths[i+1:]
				return err
			}
		}
		if quiet++; absent && quiet >= 10 {
			return nil
		}
		return fmt.Errorf("%d requests, error %w", len(paths), err)
	})
}

func none(lines []string, _ string) error {
	if len(lines) > 0 {
		return fmt.Errorf("%q", lines)
	}
	return nil
}

// TestAccessLogging: lines have the format of the mesh's settings, and Telemetry objects
// decide which requests have which lines. What is not honoured is in their status.
func TestAccessLogging(t *testing.T) {
	all := startObserved(t, "accessLogFile: /dev/stdout\ndefaultConfig: {tracing: {sampling: 100}}\ndefaultProviders: {tracing: [$shop-otel]}\n")
	all.Families(func(w *world.World, v6 bool) {
		o := all.in(w, v6)
		inDefault := func(lines []string, path string) error {
			if len(lines) != 1 || !strings.Contains(lines[0], `] "GET `+path+` HTTP/1.1" 200 - via_upstream - "-" 0 `) || !strings.HasSuffix(lines[0], w.Text(`"HTTPRoute $shop/split, rule 1"`)+"\n") {
				return fmt.Errorf("%q", lines)
			}
			return nil
		}
		o.lines("Istio's default format", inDefault, false)
		w.Apply(telemetry("logs", `  accessLogging:
  - providers: [{name: $shop-json}]
    filter: {expression: "response.code >= 400 || request.headers['x-log'] == 'yes'"}
`))
		o.lines("JSON with its own keys", func(lines []string, path string) error {
			if want := `{"agent":"probe","code":200,"p":"` + path + `","who":"` + w.Text(farID) + `"}` + "\n"; len(lines) != 1 || lines[0] != want {
				return fmt.Errorf("%q, want %q", lines, want)
			}
			return nil
		}, false, "X-Log: yes", "X-Agent: probe")
		o.lines("a request that the filter leaves out", none, true, "X-Log: no")
		w.Apply(telemetry("logs", "  accessLogging: [{providers: [{name: $shop-brief}]}]\n"))
		for agent, want := range map[string]string{"": `{"brief":"PATH"}`, "me": `{"agent":"me","brief":"PATH"}`} {
			headers := []string{"X-Agent: " + agent}
			if agent == "" {
				headers = nil
			}
			o.lines("a line without keys that have no value: "+want, func(lines []string, path string) error {
				if len(lines) != 1 || lines[0] != strings.Replace(want, "PATH", path, 1)+"\n" {
					return fmt.Errorf("%q", lines)
				}
				return nil
			}, false, headers...)
		}
		w.Apply(telemetry("logs", "  accessLogging: [{providers: [{name: $shop-records}]}]\n"))
		o.lines("log records at a collector", func(_ []string, path string) error {
			for _, m := range o.messages() {
				for _, r := range m.Records {
					if r.Body == "GET "+path && r.Severity == 9 && len(r.Trace) == 32 && r.Attributes["code"] == "200" && r.Attributes["who"] == w.Text(farID) {
						return nil
					}
				}
			}
			return errors.New("none")
		}, false)
		o.lines("no lines of what a collector gets", none, true)
		w.Apply(telemetry("quiet", "  targetRefs: [{kind: Service, group: \"\", name: front}]\n  accessLogging: [{disabled: true}]\n"))
		o.lines("no lines of the service", none, true, "X-Log: yes")
		w.Delete(telemetry("quiet", "  {}"))
		w.Apply(telemetry("logs", `  accessLogging:
  - providers: [{name: $shop-elsewhere}]
  - match: {mode: CLIENT}
    disabled: true
`))
		w.Says([]string{"/var/log/x", "spec.accessLogging[1].match.mode"}, "status", "-n", "$shop")
		w.Mistaken("shop", telemetry("mistake", "  accessLogging: [{filter: {expression: \"response.kode == 1\"}}]\n"), "response.kode")
		o.lines("the format of the mesh is back", inDefault, false)
		w.Delete(telemetry("logs", "  {}"))
		w.Delete(telemetry("mistake", "  {}"))
	})
}

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

// TestMetricOverrides: a scrape of the waypoint has the labels that a Telemetry object makes
// of each request and connection, without those that it removes. A mistake in one label
// has the object not applied at all, and is in its status.
func TestMetricOverrides(t *testing.T) {
	all := startObserved(t, "")
	all.Apply(frontOf("raw", "app: v1", "{name: tcp, port: 90, targetPort: 8080, appProtocol: tcp}"))
	all.Families(func(w *world.World, v6 bool) {
		o := all.in(w, v6)
		raw := w.Service("shop", "raw", 90, v6)
		// has makes requests until a series has labels.
		has := func(what string, do func(), metric string, labels ...string) {
			w.Helper()
			w.Eventually(what, func() error {
				do()
				if w.Counted("shop", metric, labels...) == 0 {
					return fmt.Errorf("no %s has %v: %v", metric, labels, w.Samples("shop", metric))
				}
				return nil
			})
		}
		const requests = "istio_requests_total"
		host := o.front.String()
		agent := "a-" + fmt.Sprint(v6)
		w.Apply(telemetry("metrics", overrides))
		one := func() { o.must("/api/x", "X-Agent: "+agent) }
		has("labels of a request", one, requests, "host", host, "area", "api", "agent", agent, "failed", "false", "team", "books", "reporter", "us", "source_principal", "", "response_code", "200")
		has("an expression without a value", func() { o.must("/x") }, requests, "host", host, "area", "other", "agent", "unknown", "response_code", "200")
		if list := w.Samples("shop", "istio_request_duration_milliseconds_count"); len(list) > 0 {
			w.Errorf("a metric that is disabled: %v", list)
		}
		// A rule for clients has no effect.
		if w.Counted("shop", "istio_response_bytes_count", "reporter", "waypoint", "source_principal", farID, "host", "", "area", "") == 0 {
			w.Errorf("%v", w.Samples("shop", "istio_response_bytes_count"))
		}
		has("labels of a connection", func() { _ = w.Request(far, raw, "/") },
			"istio_tcp_connections_opened_total", "port", "90", "who", farID, "host", "unknown", "destination_service", "raw.$shop.svc.cluster.local")
		if w.Counted("shop", "istio_tcp_sent_bytes_total", "port", "", "destination_service", "raw.$shop.svc.cluster.local") == 0 {
			w.Error("a label of one metric is at another")
		}
		w.Says([]string{"spec.metrics[0].overrides[2].match.mode"}, "status", "-n", "$shop")

		// One label of two has a mistake.
		mistake := telemetry("metrics", "  metrics:\n  - overrides:\n    - tagOverrides: {team: {value: \"'maps'\"}, bad: {value: request.hots}}\n    - match: {metric: REQUEST_COUNT}\n      disabled: true\n")
		if w.Mistaken("shop", mistake, "tagOverrides[bad]", "request.hots") {
			w.Delete(telemetry("metrics", "  {}")) // what it would have replaced
		} else {
			w.Says([]string{"no override of the object is in effect"}, "status", "-n", "$shop")
		}
		has("the labels of the mesh are back", one, requests, "reporter", "waypoint", "team", "", "source_principal", farID)
		for _, s := range w.Samples("shop", requests) {
			for _, name := range []string{"team", "bad", "host"} {
				if v, is := s.Labels[name]; is {
					w.Errorf("%s=%s", name, v)
				}
			}
		}
		w.Delete(telemetry("metrics", "  {}"))
	})
}

// TestFieldsOfProviders: metadata of messages to a collector, and metrics of providers.
func TestFieldsOfProviders(t *testing.T) {
	all := startObserved(t, "")
	all.Families(func(w *world.World, v6 bool) {
		o := all.in(w, v6)
		w.Apply(tracing(", providers: [{name: $shop-meta}]"))
		w.Eventually("metadata of a message", func() error {
			_, context := o.trace()
			o.must("/", context...)
			if !slices.ContainsFunc(o.messages(), func(m otlp.Message) bool {
				return m.Header.Get("X-Tenant") == "books" && m.Header.Get("Content-Type") == "application/grpc"
			}) {
				return errors.New("no message has it")
			}
			return nil
		})
		const drop = "overrides: [{match: {metric: REQUEST_SIZE}, disabled: true}]"
		sizes := func() int {
			o.must("/")
			return len(w.Samples("shop", "istio_request_bytes_count"))
		}
		w.Apply(telemetry("all", "  metrics: [{providers: [{name: $shop-prom}], "+drop+"}]\n"))
		w.Eventually("an override of a provider", func() error {
			if n := sizes(); n > 0 {
				return fmt.Errorf("%d series", n)
			}
			return nil
		})
		w.Apply(telemetry("all", "  metrics: [{providers: [{name: $shop-otel}], "+drop+"}]\n"))
		w.Eventually("an override of another provider has no effect", func() error {
			if sizes() == 0 {
				return errors.New("it has")
			}
			return nil
		})
		w.Says([]string{"spec.metrics[0].providers[0]"}, "status", "-n", "$shop")
	})
}
