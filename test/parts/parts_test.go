package parts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

const (
	far   = lab.Where("pod/shop/far")
	farID = "spiffe://cluster.local/ns/shop/sa/far"
)

// shop is a service with a waypoint, a client of it, and a service without a waypoint.
func shop() string {
	return rig.NamespaceObject("shop", true) + rig.NamespaceObject("parts", true) + rig.NamespaceObject("monitoring", false) +
		rig.PodObject("shop", "far", "node2", "app: far") + rig.PodObject("shop", "api", "node1", "app: api") +
		rig.ServerObject("shop", "plain", "node1", "app: plain") +
		rig.ServiceObject("shop", "plain", "plain", "{name: tcp, port: 80, targetPort: 8080}") + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`
}

const settings = `
extensionProviders:
- name: opa
  envoyExtAuthzGrpc: {service: opa.parts.svc.cluster.local, port: 9191}
- name: otel
  opentelemetry: {service: collector.parts.svc.cluster.local, port: 4317}
- name: otel-http
  opentelemetry: {service: collector.parts.svc.cluster.local, port: 4318, http: {path: /v1/traces}}
- name: otel-logs
  envoyOtelAls:
    service: collector.parts.svc.cluster.local
    port: 4317
    logFormat: {text: "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%", labels: {client: "%DOWNSTREAM_PEER_URI_SAN%"}}
`

// world is a mesh with a program behind the service api, which keeps the heads of requests.
type world struct {
	*rig.World
	mu   sync.Mutex
	last http.Header
}

func start(t *testing.T, more string) *world {
	m := rig.NewMeshFile(t, settings)
	w := &world{World: rig.Start(t, lab.Config{YAML: shop() + more, Args: map[string][]string{lab.Ambitd: {"--mesh-config", m.Path}}})}
	s := &http.Server{Handler: w, ReadHeaderTimeout: time.Minute}
	l := w.Listen("pod/shop/api", ":8080")
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return w
}

// ServeHTTP implements http.Handler.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = r.Header.Clone()
	_, _ = rw.Write([]byte("hello"))
}

// get makes a request from far to a service, on a connection of its own.
func (w *world) get(service, path string, headers ...string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(w.T().Context(), http.MethodGet, "http://"+netip.AddrPortFrom(w.Service("shop", service, false), 80).String()+path, nil)
	if err != nil {
		return nil, "", err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := w.HTTP(far).Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// becomes waits until a request is answered with a status.
func (w *world) becomes(status int, path string, headers ...string) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("%s: %d", path, status), func() error {
		resp, body, err := w.get("api", path, headers...)
		if err == nil && resp.StatusCode != status {
			err = fmt.Errorf("%d %s", resp.StatusCode, body)
		}
		return err
	})
}

// must makes a request that has to be answered.
func (w *world) must(path string, headers ...string) (*http.Response, string) {
	w.T().Helper()
	resp, body, err := w.get("api", path, headers...)
	if err != nil {
		w.T().Fatal(err)
	}
	return resp, body
}

const rego = `package envoy.authz

default allow := {"allowed": false, "http_status": 401, "body": "opa denies", "headers": {"x-why": "no rule allows"}}

http := input.attributes.request.http

allow := {"allowed": true, "headers": {"x-user": http.headers["x-token"]}, "request_headers_to_remove": ["x-token"], "response_headers_to_add": {"x-decided-by": "opa"}} if {
	input.parsed_path[0] == "accounts"
	http.headers["x-token"] == input.parsed_path[1]
	input.attributes.source.principal == "` + farID + `"
}

allow if http.method == "OPTIONS"
`

// TestOPA: OPA decides about requests to a service, by the policy that it was given; the
// changes that it asks for are made; and requests are refused when it is gone.
func TestOPA(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.rego")
	if err := os.WriteFile(file, []byte(rego), 0o600); err != nil {
		t.Fatal(err)
	}
	w := start(t, "")
	w.MustApply(rig.PodObject("parts", "opa", "node1", "app: opa", w.Part("opa"), "-policy", file) + "    readinessProbe: {tcpSocket: {port: 9191}}\n" +
		rig.ServiceObject("parts", "opa", "opa", "{name: grpc, port: 9191}") +
		rig.PolicyObject("shop", "ask", "CUSTOM", `provider: {name: opa}, targetRefs: [{group: "", kind: Service, name: api}], rules: [{to: [{operation: {notPaths: ["/open"]}}]}]`))
	w.becomes(200, "/accounts/ann?x=1", "X-Token", "ann")
	w.becomes(401, "/accounts/ann")
	for _, path := range []string{"/accounts/ann", "/accounts/bob", "/", "/accounts", "/open/x"} {
		resp, body := w.must(path, "X-Token", "eve", "X-User", "ann")
		if resp.StatusCode != 401 || body != "opa denies" || resp.Header.Get("X-Why") != "no rule allows" {
			t.Errorf("%s: %d %q %v", path, resp.StatusCode, body, resp.Header)
		}
	}
	resp, _ := w.must("/accounts/bob", "X-Token", "bob", "X-User", "root")
	w.mu.Lock()
	got := w.last
	w.mu.Unlock()
	if resp.StatusCode != 200 || resp.Header.Get("X-Decided-By") != "opa" || !slices.Equal(got["X-User"], []string{"bob"}) || got["X-Token"] != nil {
		t.Errorf("%d %v, the program got %v", resp.StatusCode, resp.Header, got)
	}
	if resp, _ = w.must("/open"); resp.StatusCode != 200 {
		t.Errorf("what no rule matches: %d", resp.StatusCode)
	}
	// Without it, requests are refused.
	w.MustDelete("Pod", "parts", "opa")
	w.becomes(403, "/accounts/ann", "X-Token", "ann")
}

// batch is what a line of the collector has, of the fields that a test reads.
type batch struct {
	ResourceSpans []struct {
		Resource   struct{ Attributes attributes }
		ScopeSpans []struct{ Spans []span }
	}
	ResourceLogs []struct {
		ScopeLogs []struct{ LogRecords []record }
	}
}

type (
	span struct {
		TraceID, SpanID, ParentSpanID, Name string
		Kind                                int
		Attributes                          attributes
	}
	record struct {
		TraceID    string
		Body       struct{ StringValue string }
		Attributes attributes
	}
	attributes []struct {
		Key   string
		Value struct{ StringValue, IntValue any }
	}
)

func (a attributes) get(key string) string {
	for _, one := range a {
		if one.Key == key && one.Value.IntValue != nil {
			return fmt.Sprint(one.Value.IntValue)
		} else if one.Key == key {
			return fmt.Sprint(one.Value.StringValue)
		}
	}
	return ""
}

// collected returns what the collector has accepted.
func (w *world) collected() (spans []span, records []record) {
	for line := range strings.Lines(w.Log("pod/parts/collector/main")) {
		var b batch
		if !strings.HasSuffix(line, "\n") || json.Unmarshal([]byte(line), &b) != nil {
			continue // it is being written, or is the collector's own log
		}
		for _, r := range b.ResourceSpans {
			for _, s := range r.ScopeSpans {
				if from := r.Resource.Attributes.get("service.name"); from == "waypoint.shop" || from == "ztunnel" {
					spans = append(spans, s.Spans...)
				}
			}
		}
		for _, r := range b.ResourceLogs {
			for _, s := range r.ScopeLogs {
				records = append(records, s.LogRecords...)
			}
		}
	}
	return spans, records
}

func telemetry(spec string) string {
	return "\n---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: all, namespace: shop}\nspec:\n" + spec
}

// TestCollector: the OpenTelemetry collector accepts the spans and the log records of a
// waypoint, by gRPC and by HTTP, and those of node proxies. A request is in the trace of the
// client's node proxy, below its span.
func TestCollector(t *testing.T) {
	w := start(t, "")
	w.MustApply(rig.PodObject("parts", "collector", "node1", "app: collector", w.Part("collector")) + "    readinessProbe: {tcpSocket: {port: 4317}}\n" +
		rig.ServiceObject("parts", "collector", "collector", "{name: grpc, port: 4317}, {name: http, port: 4318}"))
	for _, provider := range []string{"otel", "otel-http"} {
		w.MustApply(telemetry("  tracing: [{randomSamplingPercentage: 100, providers: [{name: " + provider + "}]}]\n  accessLogging: [{providers: [{name: otel-logs}]}]\n"))
		var trace string
		w.Eventually("spans by "+provider, func() error {
			if resp, body, err := w.get("api", "/by/"+provider+"?a=b"); err != nil || resp.StatusCode != 200 {
				return fmt.Errorf("%v %s, error %w", resp, body, err)
			}
			spans, records := w.collected()
			for _, s := range spans {
				if s.Kind != 2 || s.Attributes.get("url.path") != "/by/"+provider {
					continue
				}
				if n := slices.IndexFunc(spans, func(c span) bool { return c.Kind == 3 && c.ParentSpanID == s.SpanID && c.TraceID == s.TraceID }); n < 0 {
					return errors.New("a span of a server is without that of a client")
				}
				if s.Attributes.get("http.response.status_code") != "200" || s.Attributes.get("istio.source_workload") != "far" {
					t.Errorf("%+v", s)
				}
				if n := slices.IndexFunc(records, func(r record) bool {
					return r.TraceID == s.TraceID && r.Body.StringValue == "GET /by/"+provider+"?a=b 200" && r.Attributes.get("client") == farID
				}); n < 0 {
					return fmt.Errorf("no log record is in the trace %s: %+v", s.TraceID, records)
				}
				if n := slices.IndexFunc(spans, func(c span) bool {
					return c.Kind == 3 && c.Name == "tcp api.shop.svc.cluster.local:80" && c.TraceID == s.TraceID && c.SpanID == s.ParentSpanID && c.Attributes.get("ambit.source_principal") == farID
				}); n < 0 {
					continue // the connection goes on, or the request is not its first one
				}
				trace = s.TraceID
				return nil
			}
			return fmt.Errorf("none of %d spans", len(spans))
		})
		w.Logs("node2", `trace_id="`+trace+`"`, `src.workload="far"`)
	}
}
