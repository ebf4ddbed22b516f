package parts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/internal/boards"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// empty are the metrics whose queries give nothing in this test, and why. Every other query
// of a board gives a series with a value.
var empty = map[string]string{
	"istio_cni_install_ready":                     "a lab has no container runtime",
	"istio_cni_installs_total":                    "a lab has no container runtime",
	"ambit_kube_reachable":                        "a lab has no Kubernetes API",
	"ambit_kube_watch_failures_total":             "a lab has no Kubernetes API",
	"ambit_kube_events_total":                     "a lab has no Kubernetes API",
	"ambit_kube_objects":                          "a lab has no Kubernetes API",
	"galley_validation_passed":                    "a lab has no webhook",
	"galley_validation_failed":                    "a lab has no webhook",
	"galley_validation_http_error":                "a lab has no webhook",
	"galley_validation_config_updates":            "a lab has no webhook",
	"galley_validation_config_update_error":       "a lab has no webhook",
	"ambit_validation_duration_seconds":           "a lab has no webhook",
	"ambit_cni_reconcile_failures_total":          "nothing fails at the agent",
	"istio_crl_policy_rejections_total":           "no certificate is revoked",
	"ambit_jwks_fetches_total":                    "no issuer of tokens",
	"ambit_external_authorizations_total":         "no external authorizer",
	"ambit_policy_verdicts_total":                 "no dry run",
	"ambit_rate_limit_connections_total":          "no RateLimit",
	"istio_xds_connection_terminations_total":     "no connection to the control plane ends",
	"istio_dns_requests_total":                    "look-ups are not captured",
	"istio_dns_upstream_failures_total":           "look-ups are not captured",
	"istio_dns_upstream_request_duration_seconds": "look-ups are not captured",
}

// panelQuery is a query of a board.
type panelQuery struct{ board, panel, expr string }

// boardQueries returns the queries of the boards as the chart has them, with their variables
// replaced, and the metrics that their variables list.
func boardQueries(t *testing.T) (all []panelQuery, lists []string) {
	t.Helper()
	files, err := fs.Glob(charts.FS, path.Join(charts.Boards, "*.json"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%d boards: %v", len(files), err)
	}
	for _, file := range files {
		text, err := charts.FS.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var b struct {
			Title  string
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
			Templating struct {
				List []struct{ Type, Definition string }
			}
		}
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatal(file, err)
		}
		set := strings.NewReplacer("$__rate_interval", "1m", "$namespace", ".*", "$service", ".*", "$instance", ".*")
		for _, p := range b.Panels {
			for _, q := range p.Targets {
				all = append(all, panelQuery{b.Title, p.Title, set.Replace(q.Expr)})
			}
		}
		for _, v := range b.Templating.List {
			if v.Type == "query" {
				inside, _ := strings.CutPrefix(v.Definition, "label_values(")
				lists = append(lists, set.Replace(inside[:strings.LastIndex(inside, ",")]))
			}
		}
	}
	return all, lists
}

// monitored is a world with a Prometheus that scrapes all its programs and evaluates the
// alert rules of the chart.
type monitored struct{ *world }

func startMonitored(t *testing.T) *monitored {
	w := &monitored{start(t, "")}
	text, err := charts.FS.ReadFile(charts.Rules)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	targets := []string{"istiod=http://10.88.0.1:15014/metrics"}
	for _, node := range []string{"10.88.0.11", "10.88.0.12"} {
		targets = append(targets, "istio-cni-node=http://"+node+":15014/metrics")
	}
	for _, node := range []string{"10.88.1.2", "10.88.2.2"} {
		targets = append(targets, "ztunnel=http://"+node+":15020/metrics")
	}
	for _, p := range s.Pods {
		if strings.HasPrefix(p.Name, "waypoint-") {
			targets = append(targets, "waypoint=http://"+p.IPs[0]+":15020/metrics")
		}
	}
	w.MustApply(rig.PodObject("monitoring", "prometheus", "node1", "app: prometheus", append([]string{w.Part("prometheus"), "-listen", ":9090", "-interval", "250ms", "-rules", file, "-for", "1s"}, targets...)...) +
		"    readinessProbe: {tcpSocket: {port: 9090}}\n" + routes)
	w.Eventually("Prometheus answers", func() error {
		_, err := w.values("vector(1)")
		return err
	})
	return w
}

func (w *monitored) ask(path string, into any) error {
	b, err := w.Lab.Get(w.T().Context(), lab.InPod("monitoring", "prometheus"), "http://127.0.0.1:9090"+path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: %s", err, b)
	}
	return nil
}

// values returns how many series with a value a query gives.
func (w *monitored) values(query string) (int, error) {
	var a struct {
		Status, Error string
		Data          struct{ Result []struct{ Value [2]any } }
	}
	if err := w.ask("/api/v1/query?query="+url.QueryEscape(query), &a); err != nil {
		return 0, fmt.Errorf("%s: %w", query, err)
	}
	n := 0
	for _, r := range a.Data.Result {
		if v, err := strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64); err == nil && v == v {
			n++
		}
	}
	return n, nil
}

// names returns the metrics that a query names, by Prometheus' parser.
func (w *monitored) names(query string) []string {
	w.T().Helper()
	var a struct{ Data []string }
	if err := w.ask("/names?query="+url.QueryEscape(query), &a); err != nil {
		w.T().Errorf("%s: %v", query, err)
	}
	return a.Data
}

// alert is one that Prometheus has.
type alert struct {
	Labels, Annotations map[string]string
	State               string
}

// alerts returns those that are active, and how often the rules were evaluated.
func (w *monitored) alerts() (all []alert, rounds int, err error) {
	var a struct {
		Data struct {
			Alerts        []alert
			Rules, Rounds int
			Errors        map[string]string
		}
	}
	if err := w.ask("/api/v1/alerts", &a); err != nil {
		return nil, 0, err
	}
	if len(a.Data.Errors) > 0 || a.Data.Rules == 0 {
		w.T().Errorf("%d rules, of which fail: %v", a.Data.Rules, a.Data.Errors)
	}
	return a.Data.Alerts, a.Data.Rounds, nil
}

// traffic makes connections and requests that succeed.
func (w *monitored) traffic() error {
	for _, service := range []string{"api", "plain"} {
		if resp, body, err := w.get(service, "/"); err != nil || resp.StatusCode != 200 {
			return fmt.Errorf("%s: %v %s, error %w", service, resp, body, err)
		}
	}
	// What counts as gRPC is the type of the request.
	if resp, body, err := w.get("api", "/", "Content-Type", "application/grpc"); err != nil || resp.StatusCode != 200 {
		return fmt.Errorf("gRPC: %v %s, error %w", resp, body, err)
	}
	return nil
}

// TestShippedBoards: every query of every board of the chart and of every alert is read by
// Prometheus, names metrics that are listed, and gives values in a mesh with traffic, but for
// a closed list. Alerts are quiet in a mesh that is in order, and fire when connections and
// requests are refused.
func TestShippedBoards(t *testing.T) {
	w := startMonitored(t)
	queries, lists := boardQueries(t)
	w.namesAreListed(queries, lists)
	w.metricsAreListed()

	w.Eventually("no alert is active while everything is in order", func() error {
		if err := w.traffic(); err != nil {
			return err
		}
		active, rounds, err := w.alerts()
		if err != nil {
			return err
		}
		if n, err := w.values(`istio_requests_total{reporter="waypoint"}`); err != nil || n == 0 || rounds < 10 {
			return fmt.Errorf("%d series of requests after %d rounds, error %w", n, rounds, err)
		}
		if len(active) > 0 {
			return fmt.Errorf("%d alerts: %+v", len(active), active)
		}
		return nil
	})

	// Refusals by a policy, at the node proxy of the destination.
	w.MustApply(rig.PolicyObject("shop", "closed", "DENY", `selector: {matchLabels: {app: plain}}, rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/far"]}}]}]`))
	plain := netip.AddrPortFrom(w.Service("shop", "plain", false), 80)
	w.fires("AmbitPolicyRefusalsRise", map[string]string{"destination_workload": "plain", "destination_workload_namespace": "shop", "severity": "warning"}, "plain in shop", func() error {
		for range 20 {
			if _, err := w.Get(far, plain); err == nil {
				return errors.New("a connection that a policy denies was answered")
			}
		}
		return nil
	})
	w.MustDelete("AuthorizationPolicy", "shop", "closed")
	// Requests that no endpoint answers, at the waypoint.
	w.fires("AmbitRequestsFail", map[string]string{"destination_service": "api.shop.svc.cluster.local", "severity": "critical"}, "api.shop.svc.cluster.local", func() error {
		for range 20 {
			if resp, body, err := w.get("api", "/broken"); err != nil || resp.StatusCode != 503 {
				return fmt.Errorf("%v %s, error %w", resp, body, err)
			}
		}
		return nil
	})

	w.Eventually("queries of boards give values", func() error {
		if err := w.traffic(); err != nil {
			return err
		}
		if err := w.datagram(); err != nil {
			return err
		}
		if _, err := w.Get(lab.InPod("monitoring", "prometheus"), plain); err != nil { // in plaintext
			return err
		}
		var missing []string
		for _, q := range queries {
			n, err := w.values(q.expr)
			if err != nil {
				return err
			}
			if n == 0 && !w.mayBeEmpty(q.expr) {
				missing = append(missing, q.board+", "+q.panel+": "+q.expr)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("no value:\n%s", strings.Join(missing, "\n"))
		}
		return nil
	})
	// An endpoint on which no program listens costs requests another try, and is left out.
	w.MustApply(rig.PodObject("shop", "dead", "node2", "app: api"))
	w.Eventually("retries and outliers are counted", func() error {
		for range 5 {
			if err := w.traffic(); err != nil {
				return err
			}
		}
		for _, name := range []string{"waypoint_request_retries_total", "waypoint_endpoints_left_out_total"} {
			if n, err := w.values(name + " > 0"); err != nil || n == 0 {
				return fmt.Errorf("%s is 0, error %w", name, err)
			}
		}
		return nil
	})
	// What is excused is without a value indeed.
	for name, why := range empty {
		if n, err := w.values(name); err != nil || n > 0 {
			t.Errorf("%s has %d series (%s): take it from the list; %v", name, n, why, err)
		}
	}
}

// mayBeEmpty reports whether a query names a metric that has no series here.
func (w *monitored) mayBeEmpty(query string) bool {
	return slices.ContainsFunc(w.names(query), func(name string) bool {
		_, ok := empty[family(name)]
		return ok
	})
}

// family returns the metric of a series of a histogram.
func family(name string) string {
	for _, end := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, end); ok && (strings.HasSuffix(base, "_seconds") || strings.HasSuffix(base, "_milliseconds") || strings.HasSuffix(base, "_bytes") || strings.HasSuffix(base, "_time")) {
			return base
		}
	}
	return name
}

// datagram sends one datagram from a pod of the mesh.
func (w *monitored) datagram() error {
	c, err := w.Dial(w.T().Context(), far, "udp", netip.AddrPortFrom(w.Pod("shop", "plain", false), 9).String())
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("x"))
	return errors.Join(err, c.Close())
}

// fires waits until an alert fires with labels, while what provokes it is repeated.
func (w *monitored) fires(name string, labels map[string]string, summary string, provoke func() error) {
	w.T().Helper()
	w.Eventually(name+" fires", func() error {
		if err := provoke(); err != nil {
			return err
		}
		active, _, err := w.alerts()
		if err != nil {
			return err
		}
		for _, a := range active {
			if a.Labels["alertname"] != name || a.State != "firing" {
				continue
			}
			for k, v := range labels {
				if a.Labels[k] != v {
					return fmt.Errorf("%+v: no label %s=%s", a, k, v)
				}
			}
			if text := a.Annotations["summary"] + a.Annotations["description"]; !strings.Contains(a.Annotations["summary"], summary) || strings.Contains(text, "<no value>") || strings.Contains(text, "error expanding") {
				w.T().Errorf("%+v", a.Annotations)
			}
			return nil
		}
		return fmt.Errorf("%d alerts: %+v", len(active), active)
	})
}

// namesAreListed checks that queries of boards, their variables and alerts name metrics that
// the programs have.
func (w *monitored) namesAreListed(queries []panelQuery, lists []string) {
	w.T().Helper()
	known := map[string]bool{"ALERTS": true}
	list, err := boards.Metrics()
	if err != nil {
		w.T().Fatal(err)
	}
	for _, m := range list {
		known[m.Name] = true
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	text, err := charts.FS.ReadFile(charts.Rules)
	if err != nil {
		w.T().Fatal(err)
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		w.T().Fatal(err)
	}
	all := map[string]string{}
	for _, q := range queries {
		all[q.expr] = q.board + ", " + q.panel
	}
	for _, l := range lists {
		all[l] = "a variable"
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all[r.Expr] = r.Alert
			if _, err := w.values(r.Expr); err != nil {
				w.T().Errorf("%s: %v", r.Alert, err)
			}
		}
	}
	if len(all) < 150 {
		w.T().Errorf("%d queries", len(all))
	}
	for expr, of := range all {
		named := w.names(expr)
		if len(named) == 0 {
			w.T().Errorf("%s names no metric: %s", of, expr)
		}
		for _, name := range named {
			if !known[family(name)] && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
				w.T().Errorf("%s names %q, which no program has: %s", of, name, expr)
			}
		}
	}
}

// metricsAreListed compares what the programs serve with the page of all metrics.
func (w *monitored) metricsAreListed() {
	w.T().Helper()
	list, err := boards.Metrics()
	if err != nil {
		w.T().Fatal(err)
	}
	listed := map[string]boards.Metric{}
	for _, m := range list {
		listed[m.Name] = m
	}
	texts := map[string]string{}
	for program, from := range map[string]struct {
		in  lab.Where
		url string
	}{
		"ambitd": {lab.LAN, "http://127.0.0.1:15014/metrics"}, "ambit-cni": {lab.InNode("node1"), "http://127.0.0.1:15014/metrics"},
		"ztunnel": {lab.InZtunnel("node1"), "http://127.0.0.1:15020/metrics"}, "waypoint": {w.waypoint(), "http://127.0.0.1:15020/metrics"},
	} {
		b, err := w.Lab.Get(w.T().Context(), from.in, from.url)
		if err != nil {
			w.T().Fatal(program, err)
		}
		texts[program] = string(b)
	}
	for _, program := range slices.Sorted(maps.Keys(texts)) {
		n, name := 0, ""
		for line := range strings.Lines(texts[program]) {
			f := strings.SplitN(strings.TrimSpace(line), " ", 4)
			if len(f) < 4 || f[0] != "#" || strings.HasPrefix(f[2], "go_") || strings.HasPrefix(f[2], "process_") {
				continue
			}
			n, name = n+1, f[2]
			m, ok := listed[name]
			switch {
			case !ok || !m.Of(program):
				w.T().Errorf("%s has %s: metrics.txt does not list it", program, name)
			case f[1] == "HELP" && f[3] != m.Help:
				w.T().Errorf("%s: %s: the help is %q, metrics.txt has %q", program, name, f[3], m.Help)
			case f[1] == "TYPE" && f[3] != m.Type:
				w.T().Errorf("%s: %s is a %s, metrics.txt has %q", program, name, f[3], m.Type)
			}
		}
		if n < 10 {
			w.T().Errorf("%s has %d lines of metrics", program, n)
		}
	}
}

// waypoint returns the place of the waypoint's pod.
func (w *monitored) waypoint() lab.Where {
	w.T().Helper()
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	for _, p := range s.Pods {
		if strings.HasPrefix(p.Name, "waypoint-") {
			return lab.InPod("shop", p.Name)
		}
	}
	w.T().Fatal("no waypoint")
	return ""
}
