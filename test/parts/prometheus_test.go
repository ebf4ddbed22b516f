package parts

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// Requests to the service of the test, as boards select them.
const (
	toAPI    = `reporter=~"source|waypoint",destination_service=~"api.shop.svc.cluster.local"`
	fromFar  = `reporter=~"source|waypoint",source_workload=~"far",source_workload_namespace=~"shop"`
	byKiali  = `source_cluster,source_workload_namespace,source_workload,source_canonical_service,source_canonical_revision,destination_cluster,destination_service_namespace,destination_service,destination_service_name,destination_workload_namespace,destination_workload,destination_canonical_service,destination_canonical_revision`
	edgeHTTP = "source_workload=far source_workload_namespace=shop source_canonical_service=far source_cluster=Kubernetes destination_workload=api destination_workload_namespace=shop " +
		"destination_service=api.shop.svc.cluster.local destination_service_name=api destination_service_namespace=shop destination_canonical_service=api destination_cluster=Kubernetes"
	edgeTCP = "source_workload=far source_workload_namespace=shop destination_workload=plain destination_service=plain.shop.svc.cluster.local destination_service_name=plain destination_service_namespace=shop"
)

// istioBoards are queries of the kinds that Istio's boards for Grafana and Kiali make, and the
// labels of a series that each must give with a value above zero.
var istioBoards = []struct{ name, query, want string }{
	{"mesh: global request volume", `round(sum(irate(istio_requests_total{reporter=~"source|waypoint"}[1m])), 0.001)`, ""},
	{"mesh: global success rate", `sum(rate(istio_requests_total{reporter=~"source|waypoint", response_code!~"5.*"}[1m])) / sum(rate(istio_requests_total{reporter=~"source|waypoint"}[1m]))`, ""},
	{"mesh: 4xx", `round(sum(irate(istio_requests_total{reporter=~"source|waypoint", response_code=~"4.*"}[1m])), 0.001)`, ""},
	{"mesh: 5xx", `round(sum(irate(istio_requests_total{reporter=~"source|waypoint", response_code=~"5.*"}[1m])), 0.001)`, ""},
	{"mesh: requests of workloads", `label_join(sum(rate(istio_requests_total{reporter=~"source|waypoint", response_code="200"}[1m])) by (destination_workload, destination_workload_namespace, destination_service), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")`,
		"destination_workload_var=api.shop destination_service=api.shop.svc.cluster.local"},
	{"mesh: median of workloads", `label_join(histogram_quantile(0.50, sum(rate(istio_request_duration_milliseconds_bucket{reporter=~"source|waypoint"}[1m])) by (le, destination_workload, destination_workload_namespace)), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")`,
		"destination_workload_var=api.shop"},
	{"mesh: bytes of TCP", `label_join(sum(rate(istio_tcp_received_bytes_total{reporter=~"source|waypoint"}[1m])) by (destination_workload, destination_workload_namespace, destination_service), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")`,
		"destination_workload_var=plain.shop destination_service=plain.shop.svc.cluster.local"},
	{"mesh: versions", `sum(istio_build) by (component, tag)`, "component=waypoint"},
	{"mesh: versions of node proxies", `sum(istio_build) by (component, tag)`, "component=ztunnel"},

	{"service: client request volume", `round(sum(irate(istio_requests_total{` + toAPI + `}[5m])) by (source_workload, source_workload_namespace, response_code), 0.001)`,
		"source_workload=far source_workload_namespace=shop response_code=200"},
	{"service: with mutual TLS", `round(sum(irate(istio_requests_total{` + toAPI + `,connection_security_policy="mutual_tls"}[5m])) by (source_workload, source_workload_namespace, response_code), 0.001)`,
		"source_workload=far response_code=200"},
	{"service: without mutual TLS", `round(sum(irate(istio_requests_total{` + toAPI + `,connection_security_policy!="mutual_tls"}[5m])) by (source_workload, source_workload_namespace, response_code), 0.001)`,
		"source_workload=far response_code=503"},
	{"service: success rate", `sum(irate(istio_requests_total{` + toAPI + `,response_code!~"5.*"}[5m])) by (destination_workload, destination_workload_namespace) / sum(irate(istio_requests_total{` + toAPI + `}[5m])) by (destination_workload, destination_workload_namespace)`,
		"destination_workload=api destination_workload_namespace=shop"},
	{"service: 95th percentile of durations", `(histogram_quantile(0.95, sum(irate(istio_request_duration_milliseconds_bucket{` + toAPI + `}[1m])) by (source_workload, source_workload_namespace, le)) / 1000)`,
		"source_workload=far"},
	{"service: sizes of requests", `histogram_quantile(0.90, sum(irate(istio_request_bytes_bucket{` + toAPI + `}[1m])) by (source_workload, source_workload_namespace, le))`, "source_workload=far"},
	{"service: sizes of responses", `histogram_quantile(0.90, sum(irate(istio_response_bytes_bucket{` + toAPI + `}[1m])) by (destination_workload, destination_workload_namespace, le))`, "destination_workload=api"},
	{"service: bytes of TCP", `round(sum(irate(istio_tcp_sent_bytes_total{reporter=~"source|waypoint",connection_security_policy="mutual_tls",destination_service=~"plain.shop.svc.cluster.local"}[1m])) by (source_workload, source_workload_namespace), 0.001)`,
		"source_workload=far source_workload_namespace=shop"},

	{"workload: incoming", `round(sum(irate(istio_requests_total{reporter=~"source|waypoint",destination_workload_namespace=~"shop",destination_workload=~"api",response_code!~"5.*"}[5m])) by (source_workload, source_workload_namespace), 0.001)`,
		"source_workload=far"},
	{"workload: outgoing", `round(sum(irate(istio_requests_total{` + fromFar + `}[5m])) by (destination_service, response_code), 0.001)`,
		"destination_service=api.shop.svc.cluster.local response_code=200"},
	{"workload: outgoing durations", `histogram_quantile(0.99, sum(irate(istio_request_duration_milliseconds_bucket{` + fromFar + `}[1m])) by (destination_service, le))`,
		"destination_service=api.shop.svc.cluster.local"},
	{"workload: opened connections", `sum(irate(istio_tcp_connections_opened_total{` + fromFar + `}[1m])) by (destination_service)`, "destination_service=plain.shop.svc.cluster.local"},

	{"kiali: edges of HTTP", `sum(rate(istio_requests_total{reporter=~"source|waypoint",source_workload_namespace="shop"}[60s])) by (` + byKiali + `,request_protocol,response_code,grpc_response_status,response_flags) > 0`,
		edgeHTTP + " request_protocol=http response_code=200 response_flags=-"},
	{"kiali: edges that fail", `sum(rate(istio_requests_total{reporter=~"source|waypoint",destination_service_namespace="shop"}[60s])) by (` + byKiali + `,request_protocol,response_code,grpc_response_status,response_flags) > 0`,
		"source_workload=far destination_service_name=api response_code=503"},
	{"kiali: edges of TCP", `sum(rate(istio_tcp_sent_bytes_total{reporter=~"source|waypoint",app=~"ztunnel|waypoint",source_workload_namespace="shop"}[60s])) by (` + byKiali + `,response_flags) > 0`, edgeTCP},
	{"kiali: opened connections", `sum(rate(istio_tcp_connections_opened_total{reporter="source",app="ztunnel",destination_service_namespace="shop"}[60s])) by (` + byKiali + `,response_flags) > 0`, edgeTCP},
	{"kiali: health", `rate(istio_requests_total{reporter=~"destination|waypoint",destination_service_namespace="shop"}[60s])`, "reporter=waypoint destination_service_name=api response_code=200"},
	{"kiali: mean of durations", `sum(rate(istio_request_duration_milliseconds_sum{reporter="waypoint",destination_service_namespace="shop"}[60s])) by (` + byKiali + `,request_protocol) / sum(rate(istio_request_duration_milliseconds_count{reporter="waypoint",destination_service_namespace="shop"}[60s])) by (` + byKiali + `,request_protocol)`,
		edgeHTTP},
	{"kiali: mutual TLS", `sum(rate(istio_requests_total{reporter=~"destination|waypoint",destination_service_namespace="shop"}[60s])) by (` + byKiali + `,source_principal,destination_principal,connection_security_policy)`,
		"source_principal=" + farID + " destination_principal=spiffe://cluster.local/ns/shop/sa/api connection_security_policy=mutual_tls"},
}

// TestBoards: the queries of Istio's boards and of Kiali give the traffic of node proxies
// and of a waypoint.
func TestBoards(t *testing.T) {
	w := start(t, "")
	s, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	targets := []string{"ztunnel=http://10.88.1.2:15020/metrics", "ztunnel=http://10.88.2.2:15020/metrics"}
	for _, p := range s.Pods {
		if strings.HasPrefix(p.Name, "waypoint-") {
			targets = append(targets, "waypoint=http://"+p.IPs[0]+":15020/metrics")
		}
	}
	if len(targets) != 3 {
		t.Fatalf("the proxies are %q", targets)
	}
	w.MustApply(rig.PodObject("monitoring", "prometheus", "node1", "app: prometheus", append([]string{w.Part("prometheus"), "-listen", ":9090", "-interval", "250ms"}, targets...)...) +
		"    readinessProbe: {tcpSocket: {port: 9090}}\n" + routes)
	for _, b := range istioBoards {
		w.Eventually(b.name, func() error {
			for service, status := range map[string]int{"api": 200, "plain": 200} {
				if resp, body, err := w.get(service, "/"); err != nil || resp.StatusCode != status {
					return fmt.Errorf("%s: %v %s, error %w", service, resp, body, err)
				}
			}
			for path, status := range map[string]int{"/absent": 404, "/broken": 503} {
				if resp, body, err := w.get("api", path); err != nil || resp.StatusCode != status {
					return fmt.Errorf("%s: %v %s, error %w", path, resp, body, err)
				}
			}
			return gives(w, b.query, b.want)
		})
	}
}

// routes has api answer some requests with an error.
const routes = `
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {selector: {app: away}, ports: [{name: http, port: 80, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  rules:
  - matches: [{path: {type: Exact, value: /}}]
    backendRefs: [{name: api, port: 80}]
  - matches: [{path: {value: /broken}}]
    backendRefs: [{name: away, port: 80}]
`

// gives reports why a query has no series with labels and a value above zero.
func gives(w *world, query, want string) error {
	b, err := w.Lab.Get(w.T().Context(), lab.InPod("monitoring", "prometheus"), "http://127.0.0.1:9090/api/v1/query?query="+url.QueryEscape(query))
	if err != nil {
		return err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return fmt.Errorf("%w: %s", err, b)
	}
	for _, r := range answer.Data.Result {
		fits := true
		for pair := range strings.FieldsSeq(want) {
			name, value, _ := strings.Cut(pair, "=")
			fits = fits && r.Metric[name] == value
		}
		v, err := strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64)
		if fits && err == nil && v > 0 {
			return nil
		}
	}
	return fmt.Errorf("no series with %s and a value above zero: %s", want, b)
}
