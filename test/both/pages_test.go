package both

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/test/otlp"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
	"github.com/ambit-mesh/ambit/test/world"
)

// page is one of docs/ whose examples are tried in the shop of the quick start.
type page struct {
	*world.World
	settings string // the first block, of the mesh configuration; empty for none
	examples []example
	// edit completes texts of the page, such as tokens.
	edit func(string) string
}

// example is a block of YAML, and the rows of the tables behind it.
type example struct {
	yaml, behind string
}

var (
	// ofShop are the names of namespaces in pages, which a world may have changed.
	ofShop = strings.NewReplacer("namespace: shop", "namespace: $shop", "ns/shop/", "ns/$shop/", ".shop.", ".$shop.",
		"namespace: auth", "namespace: $auth", "service: auth/", "service: $auth/", "door.auth.", "door.$auth.", ".observability.", ".$observability.")
	block      = regexp.MustCompile("(?s)```yaml\n(.*?)```\n(.*?)(?:```yaml|$)")
	requestRow = regexp.MustCompile("(?m)^\\| `([A-Z]+) (\\S+)`(?: with `([^`]+)`)? \\| (\\d+) \\|$")
	objectName = regexp.MustCompile(`(?m)^kind: (\w+)\nmetadata: \{name: ([\w-]+), namespace: \$`)
)

// openPage reads a page, and makes the world for it: the shop behind a waypoint, and more.
func openPage(t *testing.T, name string, settings bool, o world.Options, more func(w *world.World)) page {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	shop, err := os.ReadFile("../../examples/shop/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p := page{World: start(t, o), edit: func(s string) string { return s }}
	for rest := ofShop.Replace(string(text)); ; {
		m := block.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		p.examples = append(p.examples, example{rest[m[2]:m[3]], rest[m[4]:m[5]]})
		rest = rest[m[5]:]
	}
	if settings {
		p.settings, p.examples = p.examples[0].yaml, p.examples[1:]
	}
	var objects []string
	for d := range strings.SplitSeq(regexp.MustCompile(`command: \[python3.*\]`).ReplaceAllString(string(shop), "command: [ECHO, server]"), "---\n") {
		if strings.Contains(d, "namespace: shop") {
			objects = append(objects, ofShop.Replace(d))
		}
	}
	p.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: $shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}\n---\n" +
		strings.Join(objects, "---\n") + world.Waypoint("shop", 1, ""))
	p.ProxiesBecome("shop", 1)
	if more != nil {
		more(p.World)
	}
	if p.settings != "" {
		p.MeshConfig(p.settings)
	}
	return p
}

// head returns the head of a request of a row.
func (p page) head(method, path, header string) string {
	head := method + " " + path + " HTTP/1.1\nHost: web\nContent-Length: 0"
	if header != "" {
		head += "\n" + header
	}
	return p.edit(head)
}

// ask makes requests at one moment, and returns an error unless their statuses are these.
func (p page) ask(heads, statuses []string) error {
	all, err := p.Raw(world.Place{Namespace: "shop", Pod: "client"}, p.Service("shop", "web", 80, false), heads...)
	for i := range all {
		if fmt.Sprint(all[i].Status) != statuses[i] {
			return fmt.Errorf("%s: %+v, and not %s", heads[i], all[i], statuses[i])
		}
	}
	return err
}

// requests tries each example: applied, it answers the requests of its table as the table
// has it. Without it, some requests are answered with 200. They show that it has gone.
func (p page) requests(examples, rows int, gone ...string) {
	p.Helper()
	tried := 0
	for _, e := range p.examples {
		table, object := requestRow.FindAllStringSubmatch(e.behind, -1), objectName.FindStringSubmatch(e.yaml)
		if len(table) == 0 || object == nil {
			p.Fatalf("an example of the page has no name or no requests:\n%s", e.yaml)
		}
		tried += len(table)
		yaml := p.edit(e.yaml)
		p.Apply(yaml)
		var heads, statuses []string
		for _, r := range table {
			heads, statuses = append(heads, p.head(r[1], r[2], r[3])), append(statuses, r[4])
		}
		p.Eventually("the answers of "+object[2], func() error { return p.ask(heads, statuses) })
		p.Delete(yaml)
		p.Eventually(object[2]+" is gone", func() error { return p.ask(gone, slices.Repeat([]string{"200"}, len(gone))) })
	}
	if len(p.examples) != examples || tried != rows {
		p.Errorf("%d examples and %d requests of the page were tried", len(p.examples), tried)
	}
}

// TestAuthorizationPage tries docs/authorization.md.
func TestAuthorizationPage(t *testing.T) {
	p := openPage(t, "authorization.md", false, world.Options{}, nil)
	p.requests(5, 19, p.head("PUT", "/", ""))
}

// TestAuthenticationPage tries docs/authentication.md, whose keys ambitd fetches from a pod.
func TestAuthenticationPage(t *testing.T) {
	const name = "https://issuer.example"
	issuer, other := jwttest.New(t, name, "k", jose.RS256), jwttest.New(t, name, "k", jose.RS256)
	p := openPage(t, "authentication.md", false, world.Options{}, func(w *world.World) {
		w.Namespace("keys", false)
		w.Apply(rig.ServerObject("$keys", "issuer", "node1", "", "-keys", strings.ReplaceAll(jwttest.Set(issuer), `"`, `\"`)))
	})
	claims := func(sub string, more ...any) map[string]any {
		all := map[string]any{"sub": sub, "aud": "shop", "exp": time.Now().Add(time.Hour).Unix()}
		for i := 0; i < len(more); i += 2 {
			all[more[i].(string)] = more[i+1]
		}
		return all
	}
	p.edit = strings.NewReplacer(
		name+"/keys", "http://"+p.Pod(world.Place{Namespace: "keys", Pod: "issuer"}, false).String()+":8080/keys",
		"ANN", issuer.Token(claims("ann", "groups", []string{"staff", "admins"}, "scope", "read write")),
		"BOB", issuer.Token(claims("bob")),
		"EXPIRED", issuer.Token(claims("ann", "exp", time.Now().Add(-time.Hour).Unix())),
		"OTHERS", issuer.Token(claims("ann", "aud", "bank")),
		"FORGED", other.Token(claims("ann")),
	).Replace
	p.requests(4, 22, p.head("PUT", "/", ""), p.head("PUT", "/", "Authorization: Bearer FORGED"), p.head("PUT", "/", "X-Token: Token FORGED"))
}

// TestExternalAuthorizationPage tries docs/external-authorization.md.
func TestExternalAuthorizationPage(t *testing.T) {
	p := openPage(t, "external-authorization.md", true, world.Options{Experimental: true}, func(w *world.World) {
		w.Namespace("auth", true)
		w.Apply(rig.ServerObject("$auth", "door", "node2", "app: door", "-authorizer-http", ":8000", "-authorizer-grpc", ":8001") +
			rig.ServiceObject("$auth", "door", "door", "{name: http, port: 8000}, {name: grpc, port: 8001}"))
	})
	p.requests(3, 9, p.head("GET", "/private", ""))
}

var otelElsewhere = world.Place{Namespace: "observability", Pod: "otel"}

// startOtel starts the collector of the pages.
func startOtel(w *world.World) {
	w.Namespace("observability", true)
	w.Apply(rig.PodObject("$observability", "otel", "node1", "app: otel", "ECHO", "collector") + "    readinessProbe: {tcpSocket: {port: 4317}}\n" +
		rig.ServiceObject("$observability", "otel", "otel", "{name: grpc, port: 4317, appProtocol: grpc}"))
}

var observedRow = regexp.MustCompile("(?m)^\\| `GET ([^`]+)`(?: with `([^`]+)`)? \\| (span|log|metric) \\| (?:`([^`]+)`|no `([^`]+)`|nothing) \\|$")

// TestObservabilityPage tries docs/observability.md: what each example has in spans, lines
// of the access log, and metrics.
func TestObservabilityPage(t *testing.T) {
	p := openPage(t, "observability.md", true, world.Options{}, startOtel)
	rows := 0
	for _, e := range p.examples {
		list, object := observedRow.FindAllStringSubmatch(e.behind, -1), objectName.FindStringSubmatch(e.yaml)
		if len(list) == 0 || object == nil {
			t.Fatalf("an example of the page has no name or no rows:\n%s", e.yaml)
		}
		rows += len(list)
		p.Apply(e.yaml)
		for _, r := range list {
			before, quiet := -1, 0 // bytes of the log at the last look; looks without what must not be there
			p.Eventually(object[2]+": "+r[0], func() error {
				lines := p.WaypointLog("shop")
				from := max(before, 0)
				before = len(lines)
				if err := p.ask([]string{p.head("GET", r[1], r[2])}, []string{"200"}); err != nil {
					return err
				}
				if from == 0 {
					return errors.New("it was not tried yet")
				}
				var spans []otlp.Span
				for _, m := range otlp.Messages(p.PodLog(otelElsewhere)) {
					spans = append(spans, m.Spans...)
				}
				err := p.shows(spans, lines[from:], r)
				if err != nil || r[4] != "" {
					quiet = 0
					return err
				}
				if quiet++; quiet < 10 {
					return fmt.Errorf("it was not there %d times", quiet)
				}
				return nil
			})
		}
		p.Delete(e.yaml)
	}
	if len(p.examples) != 4 || rows != 14 {
		t.Errorf("%d examples and %d rows of the page were tried", len(p.examples), rows)
	}
}

// shows returns an error unless what a row has is true of all spans, and of new lines.
func (p page) shows(spans []otlp.Span, lines string, row []string) error {
	what := p.Text(row[4])
	switch row[3] {
	case "span":
		name, value, _ := strings.Cut(what, "=")
		if !slices.ContainsFunc(otlp.Servers(spans), func(s otlp.Span) bool { return s.Attributes[name] == value }) {
			return fmt.Errorf("no span of %d has it", len(spans))
		}
	case "log":
		if what == "" && strings.Contains(lines, row[1]) {
			return fmt.Errorf("there are lines: %s", lines)
		}
		if !strings.Contains(lines, what) {
			return fmt.Errorf("no line has it: %s", lines)
		}
	case "metric":
		if row[5] != "" {
			if list := p.Samples("shop", row[5]); len(list) > 0 {
				return fmt.Errorf("there is %v", list)
			}
			return nil
		}
		metric, pair, _ := strings.Cut(what, " ")
		name, value, _ := strings.Cut(pair, "=")
		list := p.Samples("shop", metric)
		is := func(s traffic.Sample) bool { return s.Labels[name] == value }
		// Requests from before have no value of an expression.
		before := func(s traffic.Sample) bool { return s.Labels[name] == "unknown" }
		if !slices.ContainsFunc(list, is) || slices.ContainsFunc(list, func(s traffic.Sample) bool { return !is(s) && !before(s) }) {
			return fmt.Errorf("not so of %v", list)
		}
	}
	return nil
}

var connectionRow = regexp.MustCompile("(?m)^\\| (span|line|metric) of the (client|server)'s half \\| (?:`([^`]+)`|no `([^`]+)`|nothing) \\|$")

// TestConnectionsPage tries docs/observability-connections.md, where no waypoint is in the
// way.
func TestConnectionsPage(t *testing.T) {
	p := openPage(t, "observability-connections.md", true, world.Options{}, func(w *world.World) {
		w.Apply("apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: $shop, labels: {istio.io/use-waypoint: none}}\n" +
			"spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080}]}\n")
		startOtel(w)
	})
	rows := 0
	for _, e := range p.examples {
		list, object := connectionRow.FindAllStringSubmatch(e.behind, -1), objectName.FindStringSubmatch(e.yaml)
		if len(list) == 0 || object == nil {
			t.Fatalf("an example of the page has no name or no rows:\n%s", e.yaml)
		}
		rows += len(list)
		p.Apply(e.yaml)
		p.Eventually(object[2], func() error { return p.connection(list) })
		p.Delete(e.yaml)
	}
	if len(p.examples) != 3 || rows != 9 {
		t.Errorf("%d examples and %d rows of the page were tried", len(p.examples), rows)
	}
}

// connection makes a connection, and returns an error unless all rows are true of its
// halves.
func (p page) connection(rows [][]string) error {
	client, web := world.Place{Namespace: "shop", Pod: "client"}, world.Place{Namespace: "shop", Pod: "web"}
	ofClient := []string{"connection complete", `src.workload="client"`, `src.namespace="$shop"`, `direction="outbound"`}
	before := len(p.ProxyLines(client, ofClient...))
	if err := p.ask([]string{p.head("GET", "/", "") + "\nConnection: close"}, []string{"200"}); err != nil {
		return err
	}
	var lines []string
	p.Eventually("the line of the client", func() error {
		if lines = p.ProxyLines(client, ofClient...); len(lines) == before {
			return errors.New("there is none")
		}
		return nil
	})
	_, rest, _ := strings.Cut(lines[len(lines)-1], `trace_id="`)
	trace, _, _ := strings.Cut(rest, `"`)
	var spans []otlp.Span
	for _, m := range otlp.Messages(p.PodLog(otelElsewhere)) {
		spans = append(spans, m.Spans...)
	}
	var errs []error
	for _, r := range rows {
		at, reporter, kind := client, "source", otlp.Client
		if r[2] == "server" {
			at, reporter, kind = web, "destination", otlp.Server
		}
		what := p.Text(r[3] + r[4])
		switch r[1] {
		case "span":
			name, value, _ := strings.Cut(what, "=")
			if !slices.ContainsFunc(spans, func(s otlp.Span) bool { return s.Kind == kind && s.Attributes[name] == value }) {
				errs = append(errs, fmt.Errorf("no span of %d is like %s", len(spans), r[0]))
			}
		case "line":
			lines := p.ProxyLines(at, `trace_id="`+trace+`"`)
			if what == "" && len(lines) > 0 || what != "" && !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, what) }) {
				errs = append(errs, fmt.Errorf("%s: %q", r[0], lines))
			}
		case "metric":
			metric, label, _ := strings.Cut(what, " ")
			name, value, _ := strings.Cut(label, "=")
			is := func(s traffic.Sample) bool {
				return s.Labels["reporter"] == reporter && s.Labels["destination_workload"] == "web" && s.Labels["destination_workload_namespace"] == p.Text("$shop") && s.Labels[name] == value
			}
			if all := p.ProxySamples(at, metric); slices.ContainsFunc(all, is) != (r[4] == "") {
				errs = append(errs, fmt.Errorf("%s: %v", r[0], all))
			}
		}
	}
	return errors.Join(errs...)
}
