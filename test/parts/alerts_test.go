package parts

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
)

// sick is a series that is in order with one value, and out of order with another one, or
// when it grows with each scrape.
type sick struct {
	series           string
	good, bad, grows float64
}

const toWeb = `destination_workload="web",destination_workload_namespace="shop",`

// sickly returns what each program serves, by the program.
func sickly(now time.Time) map[string][]sick {
	at := func(d time.Duration) float64 { return float64(now.Add(d).Unix()) }
	return map[string][]sick{
		"ambitd": {
			{"pilot_xds", 2, 1, 0}, {`pilot_total_xds_rejects{type="Address"}`, 0, 0, 1},
			{`pilot_proxy_convergence_time_bucket{le="10"}`, 0, 0, 0}, {`pilot_proxy_convergence_time_bucket{le="20"}`, 0, 0, 1}, {`pilot_proxy_convergence_time_bucket{le="+Inf"}`, 0, 0, 1},
			{"ambit_source_problems", 0, 1, 0}, {`ambit_kube_reachable{cluster="east"}`, 1, 0, 0}, {`galley_validation_config_update_error{reason="forbidden"}`, 0, 0, 1},
			{`ambit_control_refused_total{cause="crowd"}`, 0, 0, 1000}, {`ambit_jwks_fetches_total{result="failed"}`, 0, 0, 1},
			{"citadel_server_root_cert_expiry_timestamp", at(1000 * time.Hour), at(time.Hour), 0}, {"citadel_server_cert_chain_expiry_timestamp", at(1000 * time.Hour), at(time.Hour), 0},
			{"ambit_ca_rotation_due_timestamp", 0, at(-2 * time.Hour), 0}, {`citadel_server_csr_sign_err_count{error="ca_error"}`, 0, 0, 1},
			{"citadel_server_authentication_failure_count", 0, 0, 1000}, {"citadel_server_id_extraction_err_count", 0, 0, 0},
		},
		"ambit-cni": {
			{"ambit_cni_redirection_ready", 1, 0, 0}, {`ambit_cni_reconcile_failures_total{type="enrol"}`, 0, 0, 1}, {`ambit_cni_pods{state="pending"}`, 0, 2, 0},
			{`istio_cni_plugin_requests_total{response_code="503"}`, 0, 0, 1}, {"ztunnel_connected", 1, 0, 0}, {"istio_cni_install_ready", 1, 0, 0},
		},
		"ztunnel": {
			{`istio_xds_connection_terminations_total{reason="ConnectionError"}`, 0, 0, 1}, {"workload_manager_pending_proxy_count", 0, 3, 0},
			{`ztunnel_budget_refused_total{resource="tunnels"}`, 0, 0, 1}, {`ztunnel_budget_used{resource="tunnels"}`, 1, 90, 0}, {`ztunnel_budget_total{resource="tunnels"}`, 100, 100, 0},
			{"ambit_foreign_listeners_total", 0, 0, 1}, {"ztunnel_dns_shed_total", 0, 0, 1},
			{"go_memstats_sys_bytes", 50, 99, 0}, {"go_memstats_heap_released_bytes", 1, 1, 0}, {"go_gc_gomemlimit_bytes", 100, 100, 0}, {"process_open_fds", 10, 90, 0}, {"process_max_fds", 100, 100, 0},
			{`istio_tcp_connections_failed_total{` + toWeb + `reporter="destination",response_flags="DENY"}`, 0, 0, 1000},
			{`istio_tcp_connections_failed_total{` + toWeb + `reporter="source",response_flags="TLS_FAILURE"}`, 0, 0, 1000},
			{`istio_tcp_connections_failed_total{` + toWeb + `reporter="source",response_flags="CONNECT"}`, 0, 0, 1000},
			{`istio_tcp_connections_opened_total{` + toWeb + `reporter="source"}`, 0, 0, 4000},
			{`ambit_egress_connections_total{decision="refused"}`, 0, 0, 1000}, {`ambit_egress_policy_connections_total{decision="refused"}`, 0, 0, 0},
			{`ambit_rate_limit_connections_total{namespace="shop",name="web",decision="unanswered"}`, 0, 0, 1},
		},
		"waypoint": {
			{`istio_requests_total{reporter="waypoint",destination_service="web.shop.svc.cluster.local",response_code="503"}`, 0, 0, 1000},
			{`istio_requests_total{reporter="waypoint",destination_service="web.shop.svc.cluster.local",response_code="200"}`, 0, 0, 9000},
			{`ambit_external_authorizations_total{authorizer="opa",outcome="error"}`, 0, 0, 1}, {"waypoint_requests_uncounted_total", 0, 0, 1},
			{`waypoint_spans_dropped_total{cause="full"}`, 0, 0, 1}, {`waypoint_log_records_dropped_total{cause="full"}`, 0, 0, 0},
		},
	}
}

// program is what of a program of the mesh is scraped.
type program struct {
	name   string
	series []sick
	ill    *atomic.Bool
	n      atomic.Int64 // scrapes since it is ill
}

// ServeHTTP implements http.Handler.
func (p *program) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = fmt.Fprintf(w, "istio_build{component=%q,tag=\"v1\"} 1\n", p.name)
	n := 0.0
	if p.ill.Load() {
		n = float64(p.n.Add(1))
	}
	for _, s := range p.series {
		value := s.good
		if n > 0 {
			value = s.bad + s.grows*n
		}
		_, _ = fmt.Fprintf(w, "%s %v\n", s.series, value)
	}
}

// evaluate runs the Prometheus of the tests on this machine, with the rules of the chart, and
// returns its address.
func evaluate(t *testing.T, bin, rules string, targets ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	_ = l.Close()
	cmd := exec.CommandContext(t.Context(), bin, append([]string{"-interval", "100ms", "-listen", at, "-rules", rules, "-for", "0s"}, targets...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return at
}

// firing returns the alerts that fire, by name, and their annotations.
func firing(ctx context.Context, at string) (map[string]map[string]string, int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/api/v1/alerts", nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, 0, err
	}
	var a struct {
		Data struct {
			Alerts []alert
			Rounds int
			Errors map[string]string
		}
	}
	if err := json.Unmarshal(b, &a); err != nil || len(a.Data.Errors) > 0 {
		return nil, 0, fmt.Errorf("%w: %s", err, b)
	}
	out := map[string]map[string]string{}
	for _, one := range a.Data.Alerts {
		out[one.Labels["alertname"]] = one.Annotations
	}
	return out, a.Data.Rounds, nil
}

// TestEveryAlert: every alert of the chart fires for the values that it is for, and for no
// values that are in order. Its texts have all values that they name.
func TestEveryAlert(t *testing.T) {
	w := start(t, "") // for the program, which it builds
	bin := w.Part("prometheus")
	text, err := charts.FS.ReadFile(charts.Rules)
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct{ Rules []struct{ Alert string } }
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ill := new(atomic.Bool)
	var targets []string
	for name, series := range sickly(time.Now()) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: &program{name: name, series: series, ill: ill}, ReadHeaderTimeout: time.Minute}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close() })
		targets = append(targets, name+"=http://"+l.Addr().String()+"/metrics")
	}
	none, all := evaluate(t, bin, file), evaluate(t, bin, file, targets...)

	const missing = "AmbitControlPlaneMissing"
	w.Eventually("without programs, the control plane is missing", func() error {
		got, _, err := firing(t.Context(), none)
		if err != nil || len(got) != 1 || got[missing] == nil {
			return fmt.Errorf("%v, error %w", got, err)
		}
		return nil
	})
	from := 0
	w.Eventually("values that are in order fire no alert", func() error {
		got, rounds, err := firing(t.Context(), all)
		if from == 0 && err == nil {
			from = rounds
		}
		if err != nil || len(got) > 0 || rounds < from+20 {
			return fmt.Errorf("%v after %d rounds, error %w", got, rounds, err)
		}
		return nil
	})
	ill.Store(true)
	var got map[string]map[string]string
	w.Eventually("every alert fires", func() (err error) {
		if got, _, err = firing(t.Context(), all); err != nil {
			return err
		}
		var quiet []string
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if got[r.Alert] == nil && r.Alert != missing {
					quiet = append(quiet, r.Alert)
				}
			}
		}
		if len(quiet) > 0 {
			slices.Sort(quiet)
			return fmt.Errorf("quiet are %v", quiet)
		}
		return nil
	})
	for name, texts := range got {
		for _, text := range texts {
			if strings.Contains(text, "<no value>") || strings.Contains(text, "()") || strings.Contains(text, "NaN") || strings.Contains(text, "error expanding") {
				t.Errorf("%s: %s", name, text)
			}
		}
	}
}
