package scenario

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

var (
	observedBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```((?:[^`]|`[^`])*)")
	observedRow   = regexp.MustCompile("(?m)^\\| `GET ([^`]+)`(?: with `([^`]+)`)? \\| (span|log|metric) \\| (?:`([^`]+)`|no `([^`]+)`|nothing) \\|$")
)

// TestObservabilityPage: every example of docs/observability.md, applied to the shop of the
// quick start, has the effect that its table says.
func TestObservabilityPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint")
	blocks := observedBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) == 0 || !strings.HasPrefix(blocks[0][1], "# MeshConfig\n") {
		t.Fatal("the page does not begin with the settings of the mesh")
	}
	settings := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(settings, []byte(blocks[0][1]), 0o600); err != nil {
		t.Fatal(err)
	}
	w := rig.Start(t, lab.Config{
		YAML: yaml + managed + rig.NamespaceObject("observability", true) + rig.PodObject("observability", "otel", "node1", "app: otel") +
			rig.ServiceObject("observability", "otel", "otel", "{name: grpc, port: 4317, appProtocol: grpc}"),
		Args: map[string][]string{"ambitd": {"--mesh-config", settings}},
	})
	collector := w.Collector(lab.InPod("observability", "otel"), 4317)
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	log := func() string { return w.Log("pod/shop/" + path.Base(string(at)) + "/" + deploy.Container) }
	web := netip.AddrPortFrom(w.Service("shop", "web", false), 80)
	ask := func(where, header string) error {
		c, err := w.Dial(t.Context(), lab.InPod("shop", "client"), "tcp", web.String())
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // the answer has come
		head := "GET " + where + " HTTP/1.1\nHost: web\nContent-Length: 0"
		if header != "" {
			head += "\n" + header
		}
		status, _, err := send(c, head)
		if err == nil && status != 200 {
			err = fmt.Errorf("status %d", status)
		}
		return err
	}
	rows := 0
	for _, b := range blocks[1:] {
		list := observedRow.FindAllStringSubmatch(b[2], -1)
		object := anyMeta.FindStringSubmatch(b[1])
		if len(list) == 0 || object == nil {
			t.Fatalf("an example of the page has no name or no rows:\n%s", b[1])
		}
		rows += len(list)
		w.MustApply(b[1])
		for _, r := range list {
			before, quiet := -1, 0 // bytes of the log at the last look; looks without what must not be there
			w.Eventually(object[2]+": "+r[0], func() error {
				lines := log()
				from := max(before, 0)
				before = len(lines)
				if err := ask(r[1], r[2]); err != nil {
					return err
				}
				if from == 0 {
					return errors.New("it was not tried yet")
				}
				err := appears(w, at, collector.Spans(), lines[from:], r)
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
		w.MustDelete(object[1], "shop", object[2])
	}
	if len(blocks) != 5 || rows != 14 {
		t.Errorf("%d examples and %d rows of the page were tried", len(blocks), rows)
	}
}

// appears reports why what a row says is not so, by the spans and lines that are new.
func appears(w *rig.World, at lab.Where, spans []rig.Span, lines string, row []string) error {
	switch row[3] {
	case "span":
		name, value, _ := strings.Cut(row[4], "=")
		if !slices.ContainsFunc(servers(spans), func(s rig.Span) bool { return s.Attributes[name] == value }) {
			return fmt.Errorf("no span of %d has it", len(spans))
		}
	case "log":
		if row[4] == "" && strings.Contains(lines, row[1]) {
			return fmt.Errorf("there are lines: %s", lines)
		}
		if !strings.Contains(lines, row[4]) {
			return fmt.Errorf("no line has it: %s", lines)
		}
	case "metric":
		if row[5] != "" {
			if list := w.MetricsIn(at, row[5]); len(list) > 0 {
				return fmt.Errorf("there is %v", list)
			}
			return nil
		}
		metric, pair, _ := strings.Cut(row[4], " ")
		name, value, _ := strings.Cut(pair, "=")
		list := w.MetricsIn(at, metric)
		is := func(s traffic.Sample) bool { return s.Labels[name] == value }
		// Requests from before have no value of an expression.
		before := func(s traffic.Sample) bool { return s.Labels[name] == "unknown" }
		if !slices.ContainsFunc(list, is) || slices.ContainsFunc(list, func(s traffic.Sample) bool { return !is(s) && !before(s) }) {
			return fmt.Errorf("not so of %v", list)
		}
	}
	return nil
}

// servers returns the spans of servers.
func servers(all []rig.Span) []rig.Span {
	return slices.DeleteFunc(slices.Clone(all), func(s rig.Span) bool { return s.Kind != 2 })
}
