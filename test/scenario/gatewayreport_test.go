package scenario

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// reported is what a waypoint reports about: a service with a route, a port without
// HTTP, and a service without endpoints.
func reported() string {
	return versions() + split + `
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: v1}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 9000, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: nobody}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: strict, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: v1}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: strict, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: strict}]
  rules: [{matches: [{path: {value: /ok}}], backendRefs: [{name: v1, port: 80}]}]
`
}

// gatewayLabels are the labels of traffic from far to an endpoint, or to none, at the
// waypoint.
func gatewayLabels(service, endpoint string, more map[string]string) map[string]string {
	m := map[string]string{
		"reporter": "waypoint", "source_workload": "far", "source_canonical_service": "far", "source_canonical_revision": "latest",
		"source_workload_namespace": "shop", "source_principal": farID, "source_app": "far", "source_version": "latest", "source_cluster": "Kubernetes",
		"destination_service": service + ".shop.svc.cluster.local", "destination_service_namespace": "shop", "destination_service_name": service,
	}
	dst := map[string]string{"workload": endpoint, "canonical_service": endpoint, "app": endpoint, "canonical_revision": "latest", "version": "latest",
		"workload_namespace": "shop", "cluster": "Kubernetes", "principal": "spiffe://cluster.local/ns/shop/sa/" + endpoint}
	for k, v := range dst {
		if endpoint == "" {
			v = "unknown"
		}
		m["destination_"+k] = v
	}
	maps.Copy(m, more)
	return m
}

// sum adds the values of all series with these labels, whatever localities they have.
func sum(w *rig.World, at lab.Where, name string, labels map[string]string) (total float64) {
	for _, s := range w.MetricsIn(at, name) {
		maps.DeleteFunc(s.Labels, func(k, _ string) bool { return strings.HasSuffix(k, "_region") || strings.HasSuffix(k, "_zone") })
		if maps.Equal(s.Labels, labels) {
			total += s.Value
		}
	}
	return total
}

// TestGatewayReports: each request and each connection through a waypoint is in its
// metrics, with both ends, and has one line in its access log, with the reason of what
// failed.
func TestGatewayReports(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: reported()})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at, err := gatewayPod(w)
		if err != nil {
			t.Fatal(err)
		}
		name := path.Base(string(at))
		client := w.HTTP(far)
		defer client.CloseIdleConnections()
		for _, c := range []struct {
			service, host, path, version  string // host is where the request goes
			status                        int
			destination, endpoint, labels string
			line                          string
		}{
			{"front", "front", "/items?a=b", "2", 200, "v2", "v2", `200 - mutual_tls`,
				`"GET /items\?a=b HTTP/1.1" 200 - via_upstream - "-" 0 \d+ \d+ \d+ "[^"]*" "probe/1" "[0-9a-f-]{36}" "[^"]*" "[^"]*:8080" ` +
					`inbound-vip\|80\|http\|v2.shop.svc.cluster.local - \S+:80 \S+ - "HTTPRoute shop/split, rule 0" ` +
					`src.workload="far" src.namespace="shop" src.identity="` + farID + `" dst.workload="v2" dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/v2" ` +
					`trace_id="4bf92f3577b34da6a3ce929d0e0e4736"`},
			{"strict", "strict", "/no", "", 404, "strict", "", `404 NR unknown`,
				`"GET /no HTTP/1.1" 404 NR route_not_found .* - - reason="NO_ROUTE" .*src.workload="far".*`},
			{"empty", "empty", "/", "", 503, "empty", "", `503 UH unknown`,
				`"GET / HTTP/1.1" 503 UH no_healthy_upstream .* - - reason="NO_HEALTHY_UPSTREAM" .*error="no healthy upstream: .* hint=".*"`},
		} {
			t.Run(c.service, func(t *testing.T) {
				w := world.For(t)
				f := strings.Fields(c.labels)
				labels := gatewayLabels(c.destination, c.endpoint, map[string]string{
					"request_protocol": "http", "response_code": f[0], "response_flags": f[1], "connection_security_policy": f[2],
				})
				before := sum(w, at, "istio_requests_total", labels)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+netip.AddrPortFrom(w.Service("shop", c.host, v6), 80).String()+c.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("User-Agent", "probe/1")
				req.Header.Set("X-Version", c.version)
				req.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
				w.Eventually("the answer is "+fmt.Sprint(c.status), func() error {
					resp, err := client.Do(req)
					if err != nil {
						return err
					}
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					if err != nil || resp.StatusCode != c.status {
						return fmt.Errorf("%s, %w", resp.Status, err)
					}
					return nil
				})
				w.Eventually("the metrics of the waypoint", func() error {
					for _, m := range []string{"istio_requests_total", "istio_request_duration_milliseconds_count", "istio_request_bytes_count", "istio_response_bytes_count"} {
						if n := sum(w, at, m, labels); n < before+1 {
							return fmt.Errorf("%s is %v\nwanted %v\nof %v", m, n, labels, w.MetricsIn(at, m))
						}
					}
					return nil
				})
				gatewayLogs(w, name, c.line)
			})
		}
		t.Run("connection", func(t *testing.T) {
			w := world.For(t)
			labels := gatewayLabels("plain", "v1", map[string]string{"request_protocol": "tcp", "response_flags": "-", "connection_security_policy": "mutual_tls"})
			before := map[string]float64{}
			for _, m := range tcpNames {
				before[m] = sum(w, at, m, labels)
			}
			c := w.MustDial(far, netip.AddrPortFrom(w.Service("shop", "plain", v6), 9000))
			if _, err := c.Write(make([]byte, asked)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, asked)); err != nil {
				t.Fatal(err)
			}
			w.Eventually("an open connection is counted", func() error {
				if n := sum(w, at, "istio_tcp_received_bytes_total", labels); n != before["istio_tcp_received_bytes_total"]+asked {
					return fmt.Errorf("%v bytes", n)
				}
				return nil
			})
			_ = c.Close()
			w.Eventually("the metrics of the waypoint", func() error {
				for m, want := range map[string]float64{"opened": 1, "closed": 1} {
					m = "istio_tcp_connections_" + m + "_total"
					if n := sum(w, at, m, labels); n != before[m]+want {
						return fmt.Errorf("%s went from %v to %v\nwanted %v\nof %v", m, before[m], n, labels, w.MetricsIn(at, m))
					}
				}
				return nil
			})
			gatewayLogs(w, name, fmt.Sprintf(`"- - -" 0 - - - "-" %d %d \d+ - "-" "-" "-" "-" "[^"]*:9000" inbound-vip\|9000\|tcp\|plain.shop.svc.cluster.local - \S+:9000 \S+ - - `+
				`src.workload="far" .* dst.workload="v1" .*`, asked, asked))
		})
	})
	// The series of a workload end with it.
	at, err := gatewayPod(world)
	if err != nil {
		t.Fatal(err)
	}
	world.MustDelete("Pod", "shop", "v2")
	world.Eventually("series go with their workload", func() error {
		b, err := world.Lab.Get(context.WithoutCancel(t.Context()), at, "http://127.0.0.1:15020/stats/prometheus")
		if err != nil {
			return err
		}
		if strings.Contains(string(b), `destination_workload="v2"`) {
			return fmt.Errorf("they are left")
		}
		return nil
	})
}

var tcpNames = []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"}

// gatewayLogs waits for a line of the waypoint's access log, of which pattern is what
// follows the time.
func gatewayLogs(w *rig.World, pod, pattern string) {
	w.T().Helper()
	p, err := regexp.Compile(`^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] ` + pattern + `$`)
	if err != nil {
		w.T().Fatal(err)
	}
	w.Eventually("the access log of the waypoint", func() error {
		var lines []string
		for line := range strings.Lines(w.Log("pod/shop/" + pod + "/" + deploy.Container)) {
			if line = strings.TrimSuffix(line, "\n"); strings.HasPrefix(line, "[") {
				if lines = append(lines, line); p.MatchString(line) {
					return nil
				}
			}
		}
		return fmt.Errorf("no line is like\n%s\nof\n%s", pattern, strings.Join(lines, "\n"))
	})
}
