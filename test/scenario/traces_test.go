package scenario

import (
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
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
