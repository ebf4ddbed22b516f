package scenario

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

var connectionRow = regexp.MustCompile("(?m)^\\| (span|line|metric) of the (client|server)'s half \\| (?:`([^`]+)`|no `([^`]+)`|nothing) \\|$")

// TestConnectionsPage: every example of docs/observability-connections.md, applied to the
// shop of the quick start, has the effect that its table says.
func TestConnectionsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/observability-connections.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := observedBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) == 0 || !strings.HasPrefix(blocks[0][1], "# MeshConfig\n") {
		t.Fatal("the page does not begin with the settings of the mesh")
	}
	settings := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(settings, []byte(blocks[0][1]), 0o600); err != nil {
		t.Fatal(err)
	}
	w := rig.Start(t, lab.Config{
		YAML: exampleShop(t, "istio.io/dataplane-mode: ambient") + rig.NamespaceObject("observability", true) + rig.PodObject("observability", "otel", "node1", "app: otel") +
			rig.ServiceObject("observability", "otel", "otel", "{name: grpc, port: 4317, appProtocol: grpc}"),
		Args: map[string][]string{"ambitd": {"--mesh-config", settings}},
	})
	c := w.Collector(lab.InPod("observability", "otel"), 4317)
	rows := 0
	for _, b := range blocks[1:] {
		list := connectionRow.FindAllStringSubmatch(b[2], -1)
		object := anyMeta.FindStringSubmatch(b[1])
		if len(list) == 0 || object == nil {
			t.Fatalf("an example of the page has no name or no rows:\n%s", b[1])
		}
		rows += len(list)
		w.MustApply(b[1])
		w.Eventually(object[2], func() error { return shownOf(w, c, list) })
		w.MustDelete(object[1], "shop", object[2])
	}
	if len(blocks) != 4 || rows != 9 {
		t.Errorf("%d examples and %d rows of the page were tried", len(blocks), rows)
	}
}

// shownOf makes a connection, and reports which row of a table is not so.
func shownOf(w *rig.World, c *rig.Collector, rows [][]string) error {
	conn := w.MustDial(lab.InPod("shop", "client"), netip.AddrPortFrom(w.Service("shop", "web", false), 80))
	src := netip.AddrPortFrom(w.Pod("shop", "client", false), netip.MustParseAddrPort(conn.LocalAddr().String()).Port())
	_ = conn.Close()
	own := "src.addr=" + src.String() + " "
	w.Eventually("the line of the client", func() error { return w.ExpectLines("node2", own) })
	line := w.AccessLines("node2", own)[0]
	_, rest, _ := strings.Cut(line, `trace_id="`)
	trace, _, _ := strings.Cut(rest, `"`)
	var errs []error
	for _, r := range rows {
		node, reporter, kind := "node2", "source", 3
		if r[2] == "server" {
			node, reporter, kind = "node1", "destination", 2
		}
		switch r[1] {
		case "span":
			name, value, _ := strings.Cut(r[3], "=")
			if len(spansOf(c, func(s rig.Span) bool { return int(s.Kind) == kind && s.Attributes[name] == value })) == 0 {
				errs = append(errs, fmt.Errorf("no span of %d is like %s", len(c.Spans()), r[0]))
			}
		case "line":
			lines := w.AccessLines(node, `trace_id="`+trace+`"`)
			if r[3] == "" && len(lines) > 0 || r[3] != "" && !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, r[3]) }) {
				errs = append(errs, fmt.Errorf("%s: %q", r[0], lines))
			}
		case "metric":
			metric, labels, _ := strings.Cut(r[3]+r[4], " ")
			want := []string{"reporter=" + reporter, "destination_workload=web"}
			if labels != "" {
				want = append(want, labels)
			}
			if got := seriesWith(w, node, metric, want); (len(got) > 0) != (r[4] == "") {
				errs = append(errs, fmt.Errorf("%s: %v", r[0], w.Metrics(node, metric)))
			}
		}
	}
	return errors.Join(errs...)
}

// seriesWith returns the series of a metric of a node that have labels, written as name=value.
func seriesWith(w *rig.World, node, metric string, labels []string) (out []traffic.Sample) {
	for _, s := range w.Metrics(node, metric) {
		if !slices.ContainsFunc(labels, func(l string) bool { name, value, _ := strings.Cut(l, "="); return s.Labels[name] != value }) {
			out = append(out, s)
		}
	}
	return out
}
