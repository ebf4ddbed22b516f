package scenario

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// webTelemetry is a Telemetry of a namespace for the pods with app: web.
func webTelemetry(namespace, name, spec string) string {
	return telemetryIn(namespace, name, "  selector: {matchLabels: {app: web}}\n"+spec)
}

// lineOf makes a connection to web, and returns its trace, once the client's node has the
// line. With no, there is none there.
func lineOf(w *rig.World, from lab.Where, node, workload string, v6 bool) (trace string, err error) {
	src := exchange(w, from, v6)
	namespace := strings.Split(string(from), "/")[1]
	part := "src.addr=" + netip.AddrPortFrom(w.Pod(namespace, workload, v6), src.Port()).String() + " "
	w.Eventually("the line of "+workload, func() error { return w.ExpectLines(node, part, `direction="outbound"`) })
	_, rest, found := strings.Cut(w.AccessLines(node, part, `direction="outbound"`)[0], `trace_id="`)
	if !found {
		return "", fmt.Errorf("no trace in the line of %s", workload)
	}
	trace, _, _ = strings.Cut(rest, `"`)
	return trace, nil
}

// TestTelemetryOfConnections: Telemetry objects decide which connections of which pods have
// lines, and how they are counted. Those of another namespace change nothing here.
func TestTelemetryOfConnections(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: spansYAML()})
	node1, node2 := lab.InZtunnel("node1"), lab.InZtunnel("node2")
	rig.Families(t, func(t *testing.T, v6 bool) {
		t.Run("filter", func(t *testing.T) {
			w := world.For(t)
			w.MustApply(webTelemetry("shop", "lines", "  accessLogging: [{filter: {expression: \"source.workload == 'near'\"}}]\n"))
			defer w.MustDelete("Telemetry", "shop", "lines")
			w.Eventually("lines of near, and none of far", func() error {
				quiet, err := lineOf(w, far, "node2", "far", v6)
				if err != nil {
					return err
				}
				loud, err := lineOf(w, near, "node1", "near", v6)
				if err != nil {
					return err
				}
				if err := w.ExpectLines("node1", `trace_id="`+loud+`"`, `direction="inbound"`); err != nil {
					return err
				}
				if lines := w.AccessLines("node1", `trace_id="`+quiet+`"`, `direction="inbound"`); len(lines) > 0 {
					return fmt.Errorf("%q", lines)
				}
				return nil
			})
		})
		t.Run("another tenant", func(t *testing.T) {
			w := world.For(t)
			const off = "  accessLogging: [{disabled: true}]\n  metrics: [{overrides: [{disabled: true}]}]\n"
			w.MustApply(webTelemetry("thieves", "web", off) + telemetryIn("thieves", "all", off))
			defer w.MustDelete("Telemetry", "thieves", "web")
			defer w.MustDelete("Telemetry", "thieves", "all")
			thief := lab.InPod("thieves", "thief")
			w.Eventually("its own pods have no lines", func() error {
				src := netip.AddrPortFrom(w.Pod("thieves", "thief", v6), exchange(w, thief, v6).Port())
				// A connection of far, behind it, has lines at both ends.
				trace, err := lineOf(w, far, "node2", "far", v6)
				if err != nil {
					return err
				}
				if err := w.ExpectLines("node1", `trace_id="`+trace+`"`, `direction="inbound"`); err != nil {
					return err
				}
				if lines := w.AccessLines("node2", "src.addr="+src.String()+" "); len(lines) > 0 {
					return fmt.Errorf("%q", lines)
				}
				return nil
			})
			if n := counted(w, node1, "istio_tcp_connections_opened_total", "reporter=destination", "destination_workload=web", "source_workload=thief"); n == 0 {
				t.Error("the thief's connections to web are not counted at web")
			}
			if n := counted(w, node2, "istio_tcp_connections_opened_total", "reporter=source", "source_workload=thief"); n > 0 {
				t.Errorf("%v of its own connections are counted, which it has turned off", n)
			}
			// What is for pods of node2 alone is not sent to node1.
			for at, sent := range map[lab.Where]bool{node1: false, node2: true} {
				b, err := w.Lab.Get(t.Context(), at, "http://127.0.0.1:15000/config_dump")
				if err != nil || strings.Contains(string(b), `thieves/all`) != sent {
					t.Errorf("%s: error %v, %s", at, err, b[max(0, len(b)-1000):])
				}
			}
		})
		t.Run("metrics", func(t *testing.T) {
			w := world.For(t)
			w.MustApply(webTelemetry("shop", "counts", `  metrics:
  - overrides:
    - match: {mode: SERVER}
      tagOverrides: {team: {value: "'books'"}, who: {value: source.workload}, source_principal: {operation: REMOVE}}
    - match: {metric: TCP_SENT_BYTES, mode: SERVER}
      disabled: true
`))
			defer w.MustDelete("Telemetry", "shop", "counts")
			const opened, sent = "istio_tcp_connections_opened_total", "istio_tcp_sent_bytes_total"
			w.Eventually("labels of web's own connections", func() error {
				exchange(w, far, v6)
				if counted(w, node1, opened, "reporter=destination", "team=books", "who=far", "source_principal=", "source_workload=far") == 0 {
					return fmt.Errorf("%v", w.Metrics("node1", opened))
				}
				if n := counted(w, node1, sent, "reporter=destination", "destination_workload=web"); n > 0 {
					return fmt.Errorf("%v bytes are counted", n)
				}
				return nil
			})
			if counted(w, node2, opened, "reporter=source", "team=", "source_principal="+farID) == 0 || counted(w, node2, sent, "reporter=source", "destination_workload=web") == 0 {
				t.Errorf("the client's half is changed: %v", w.Metrics("node2", opened))
			}
		})
	})
	t.Run("requests", func(t *testing.T) {
		w := world.For(t)
		w.MustApply(webTelemetry("shop", "requests", "  accessLogging: [{filter: {expression: 'response.code >= 400'}}]\n"))
		defer w.MustDelete("Telemetry", "shop", "requests")
		w.Eventually("the status says what acts on requests alone", func() error {
			text, err := w.Ambit("status")
			if err == nil && !strings.Contains(text, "the filter names response, and node proxies carry connections") {
				err = fmt.Errorf("%s", text)
			}
			return err
		})
		trace, err := lineOf(w, far, "node2", "far", false)
		if err != nil {
			t.Fatal(err)
		}
		w.Logs("node1", `trace_id="`+trace+`"`, `direction="inbound"`)
	})
}
