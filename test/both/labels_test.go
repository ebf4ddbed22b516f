package both

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/traffic"
	"github.com/ambit-mesh/ambit/test/world"
)

// labelsOf are those of a request or connection from far to a service, with an endpoint or
// none, as Istio names them. more has what else is expected.
func labelsOf(w *world.World, service, endpoint string, more map[string]string) map[string]string {
	shop := w.Text("$shop")
	all := map[string]string{
		"reporter": "waypoint", "source_workload": "far", "source_workload_namespace": shop, "source_principal": w.Text(farID), "source_cluster": "Kubernetes",
		"source_app": "far", "source_version": "latest", "source_canonical_service": "far", "source_canonical_revision": "latest",
		"destination_service": w.Text(service + ".$shop.svc.cluster.local"), "destination_service_name": service, "destination_service_namespace": shop,
		"destination_workload": endpoint, "destination_workload_namespace": shop, "destination_principal": w.Text("spiffe://cluster.local/ns/$shop/sa/" + endpoint),
		"destination_cluster": "Kubernetes", "destination_app": endpoint, "destination_version": "latest", "destination_canonical_service": endpoint, "destination_canonical_revision": "latest",
		"response_flags": "-", "connection_security_policy": "mutual_tls",
	}
	if endpoint == "" {
		for name := range all {
			if strings.HasPrefix(name, "destination_") && !strings.HasPrefix(name, "destination_service") {
				all[name] = "unknown"
			}
		}
		all["connection_security_policy"] = "unknown"
	}
	maps.Copy(all, more)
	return all
}

// TestLabels: what a waypoint counts of requests by HTTP and gRPC and of connections has all
// labels that Istio has, and no others.
func TestLabels(t *testing.T) {
	all := startObserved(t, "")
	all.Apply(server("calls", "app: calls", "-grpc", ":9200") + frontOf("calls", "app: calls", "{name: grpc, port: 9200, appProtocol: grpc}") +
		frontOf("raw", "app: v1", "{name: tcp, port: 90, targetPort: 8080, appProtocol: tcp}") +
		frontOf("empty", "app: absent", "{name: http, port: 80, targetPort: 8080, appProtocol: http}"))
	histograms := []string{"istio_requests_total", "istio_request_duration_milliseconds_count", "istio_request_bytes_count", "istio_response_bytes_count"}
	all.Families(func(w *world.World, v6 bool) {
		o := all.in(w, v6)
		at := func(service string, port uint16) string { return w.Service("shop", service, port, v6).String() }
		for _, tt := range []struct {
			what    string
			do      func() error
			metrics []string
			labels  map[string]string
		}{
			{"a request", func() error { o.must("/", "X-Version: 2"); return nil }, histograms,
				labelsOf(w, "v2", "v2", map[string]string{"request_protocol": "http", "response_code": "200"})},
			{"a request without an endpoint", func() error {
				if r := w.Request(far, w.Service("shop", "empty", 80, v6), "/"); r.Status != 503 {
					return fmt.Errorf("%+v", r)
				}
				return nil
			}, histograms, labelsOf(w, "empty", "", map[string]string{"request_protocol": "http", "response_code": "503", "response_flags": "UH"})},
			{"a call", func() error {
				_, err := w.Exec(far, "ECHO", "load", "-protocol", "grpc", "-url", "http://"+at("calls", 9200)+"/", "-rate", "5", "-duration", "1s", "-workers", "1")
				return err
			}, append(slices.Clone(histograms), "istio_request_messages_total", "istio_response_messages_total"),
				labelsOf(w, "calls", "calls", map[string]string{"request_protocol": "grpc", "response_code": "200", "grpc_response_status": "0"})},
			{"a connection", func() error {
				if r := w.Request(far, w.Service("shop", "raw", 90, v6), "/"); r.Status != 200 {
					return fmt.Errorf("%+v", r)
				}
				return nil
			}, []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"},
				labelsOf(w, "raw", "v1", map[string]string{"request_protocol": "tcp"})},
		} {
			w.Eventually("the labels of "+tt.what, func() error {
				if err := tt.do(); err != nil {
					return err
				}
				var errs []error
				for _, metric := range tt.metrics {
					list := w.Samples("shop", metric)
					for _, s := range list { // where nodes have a topology
						maps.DeleteFunc(s.Labels, func(name, _ string) bool {
							return strings.HasSuffix(name, "_region") || strings.HasSuffix(name, "_zone")
						})
					}
					if !slices.ContainsFunc(list, func(s traffic.Sample) bool { return s.Value > 0 && maps.Equal(s.Labels, tt.labels) }) {
						errs = append(errs, fmt.Errorf("no series of %s has %v: %v", metric, tt.labels, list))
					}
				}
				return errors.Join(errs...)
			})
		}
	})
}
