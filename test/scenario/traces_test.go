package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// collectors are providers of the mesh's settings: by gRPC and by HTTP, of one service.
const collectors = `
extensionProviders:
- name: otel
  opentelemetry: {service: otel.shop.svc.cluster.local, port: 4317}
- name: otel-http
  opentelemetry:
    service: otel.shop.svc.cluster.local
    port: 4318
    http: {path: /v1/traces, headers: [{name: x-key, value: abc}]}
defaultProviders: {tracing: [otel]}
`

// traced is a mesh with a collector. env are variables of node proxies.
func traced(t *testing.T, yaml, settings string, env ...string) (*rig.World, string) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	w := rig.Start(t, lab.Config{
		YAML: yaml + rig.PodObject("shop", "otel", "node1", "app: otel") +
			rig.ServiceObject("shop", "otel", "otel", "{name: grpc, port: 4317, appProtocol: grpc}, {name: http, port: 4318, appProtocol: http}"),
		Args: map[string][]string{"ambitd": {"--mesh-config", path}}, Env: map[string][]string{"ztunnel": env},
	})
	return w, path
}

// request makes a request from far to the service front, and returns its answer.
func request(w *rig.World, c *http.Client, v6 bool, path string, headers ...string) (int, string, error) {
	req, err := http.NewRequestWithContext(w.T().Context(), http.MethodGet, "http://"+netip.AddrPortFrom(w.Service("shop", "front", v6), 80).String()+path, nil)
	if err != nil {
		return 0, "", err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func telemetry(name, spec string) string {
	return "\n---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: " + name + ", namespace: shop}\nspec:\n" + spec
}

// TestTraces: a request through a waypoint has the span of a server and that of a client
// in the trace that it came with, which a collector in the mesh receives.
func TestTraces(t *testing.T) {
	world, _ := traced(t, versions()+split, collectors)
	grpc, byHTTP := world.Collector(lab.InPod("shop", "otel"), 4317), world.Collector(lab.InPod("shop", "otel"), 4318)
	world.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100}]\n"))
	seen := map[string]bool{}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		c := w.HTTP(far)
		defer c.CloseIdleConnections()
		n := 0
		// found makes requests until the spans of one are good, and returns them.
		found := func(of *rig.Collector, what string, good func([]rig.Span) error, headers ...string) (out []rig.Span) {
			t.Helper()
			var sent []string
			w.Eventually(what, func() error {
				n++
				trace := fmt.Sprintf("%s4bf92f3577b34da6a3ce929d0e%05x", map[bool]string{false: "4", true: "6"}[v6], n)
				sent = append(sent, trace)
				h := append([]string{"Traceparent", "00-" + trace + "-00f067aa0ba902b7-01", "X-Version", "2"}, headers...)
				if status, body, err := request(w, c, v6, "/a?b=c", h...); err != nil || status != 200 {
					return fmt.Errorf("%d %s, error %w", status, body, err)
				}
				err := errors.New("no spans have come")
				for _, trace := range sent {
					if out = of.Of(trace); len(out) > 0 {
						if err = good(out); err == nil {
							return nil
						}
					}
				}
				return err
			})
			return out
		}
		two := func(s []rig.Span) error {
			if len(s) != 2 {
				return fmt.Errorf("%d spans", len(s))
			}
			return nil
		}
		got := found(grpc, "spans by gRPC", two, "Tracestate", "k=v")
		server, client := got[0], got[1]
		if server.Kind != 2 || client.Kind != 3 || server.Parent != "00f067aa0ba902b7" || client.Parent != server.ID || server.State != "k=v" {
			t.Errorf("%+v", got)
		}
		for k, want := range map[string]string{
			"http.request.method": "GET", "url.path": "/a", "url.query": "b=c", "http.response.status_code": "200", "http.status_code": "200",
			"istio.source_workload": "far", "istio.destination_workload": "v2", "istio.namespace": "shop", "istio.canonical_service": "waypoint",
			"response_flags": "-", "upstream_cluster.name": "inbound-vip|80|http|v2.shop.svc.cluster.local", "ambit.source_principal": farID,
		} {
			if server.Attributes[k] != want {
				t.Errorf("%s is %q, want %q of %v", k, server.Attributes[k], want, server.Attributes)
			}
		}
		if !strings.HasPrefix(server.Attributes["node_id"], "waypoint~") || server.Name != "front.shop.svc.cluster.local:80/*" || client.Name != "GET v2.shop.svc.cluster.local:80" {
			t.Errorf("%+v", got)
		}
		if resource, types, _ := grpc.Resource(); resource["service.name"] != "waypoint.shop" || types[0] != "application/grpc" {
			t.Errorf("%v %v", resource, types)
		}
		t.Run("no context", func(t *testing.T) {
			w := world.For(t)
			// The first request of a connection is in the trace that both node proxies log.
			fresh := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return w.Dial(ctx, far, network, address)
			}}}
			defer fresh.CloseIdleConnections()
			for range 2 {
				if status, body, err := request(w, fresh, v6, "/mine"); err != nil || status != 200 {
					t.Fatalf("%d %s, error %v", status, body, err)
				}
			}
			var spans []rig.Span
			w.Eventually("both traces", func() error {
				spans = slices.DeleteFunc(grpc.Spans(), func(s rig.Span) bool { return s.Kind != 2 || s.Attributes["url.path"] != "/mine" || seen[s.ID] })
				if len(spans) != 2 {
					return fmt.Errorf("%+v", spans)
				}
				return nil
			})
			first, second := spans[0], spans[1]
			seen[first.ID], seen[second.ID] = true, true
			if len(first.Links) != 0 || len(second.Links) != 1 || second.Links[0] != first.Trace || second.Trace == first.Trace || second.Parent != "" || first.Parent == "" {
				t.Errorf("%+v, %+v", first, second)
			}
			fresh.CloseIdleConnections()
			w.Logs("node2", `trace_id="`+first.Trace+`"`)
		})
		t.Run("refused", func(t *testing.T) {
			w := world.For(t)
			w.MustApply(rig.PolicyObject("shop", "never", "DENY", "targetRefs: [{kind: Service, group: '', name: front}], rules: [{to: [{operation: {paths: [/never]}}]}]"))
			defer w.MustDelete("AuthorizationPolicy", "shop", "never")
			trace := "11111111111111111111111111111111"
			if v6 {
				trace = "22222222222222222222222222222222"
			}
			w.Eventually("the span of a refusal", func() error {
				status, body, err := request(w, c, v6, "/never", "B3", trace+"-00f067aa0ba902b7-1")
				if err != nil || status != 403 {
					return fmt.Errorf("%d %s, error %w", status, body, err)
				}
				s := grpc.Of(trace)
				if !slices.ContainsFunc(s, func(s rig.Span) bool {
					return s.Attributes["ambit.reason"] == "POLICY_DENIED" && s.Attributes["http.response.status_code"] == "403"
				}) {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
		})
		t.Run("by HTTP", func(t *testing.T) {
			w := world.For(t)
			w.MustApply(telemetry("front", `  targetRefs: [{kind: Service, group: "", name: front}]
  tracing:
  - providers: [{name: otel-http}]
    customTags:
      color: {literal: {value: blue}}
      who: {header: {name: X-Who, defaultValue: nobody}}
      pod: {environment: {name: POD_NAMESPACE}}
`))
			defer w.MustDelete("Telemetry", "shop", "front")
			s := found(byHTTP, "spans by HTTP", func(s []rig.Span) error {
				if s[0].Attributes["color"] != "blue" {
					return fmt.Errorf("%v", s[0].Attributes)
				}
				return nil
			}, "X-Who", "ann")
			if s[0].Attributes["who"] != "ann" || s[0].Attributes["pod"] != "shop" {
				t.Errorf("%v", s[0].Attributes)
			}
			if _, _, last := byHTTP.Resource(); last.Get("X-Key") != "abc" {
				t.Errorf("%v", last)
			}
		})
	})
}
