package telemetry

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// watcher keeps the last end.
type watcher struct {
	line bool
	ends []End
}

// Ended implements Watcher.
func (w *watcher) Ended(e *End) bool {
	w.ends = append(w.ends, *e)
	return w.line
}

type noBytes struct{}

// Bytes implements Flow.
func (noBytes) Bytes() (sent, received uint64) { return 0, 0 }

// TestWatched: a watcher gets the end of its connection once, with what the line has, and
// decides about the line.
func TestWatched(t *testing.T) {
	var out strings.Builder
	logs, err := logging.New(&out, logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	r := NewRecorder(logs.Logger("access"))
	for _, line := range []bool{false, true} {
		out.Reset()
		w := &watcher{line: line}
		c := &Conn{Src: netip.MustParseAddrPort("10.0.0.1:1"), Trace: connect.NewTrace(), More: &More{Watch: w, Tags: func(e *accesslog.Entry) Tags {
			return Tags(AppendTag(nil, "x", e.Src.Workload, true))
		}}}
		r.Begin(c, key(wl("web"), wl("cart")), time.Now())
		if line {
			c.Count(noBytes{})
		}
		c.More.DryRun = "shop/p=would_deny"
		r.End(c, relay.Result{Sent: 3, Received: 5, Reason: reason.PolicyDenied}, "shop/q")
		r.End(c, relay.Result{}, "")
		if len(w.ends) != 1 {
			t.Fatalf("%d ends", len(w.ends))
		}
		e := w.ends[0]
		if e.Key.Src.WorkloadName != "web" || e.Key.Tags.value("x") != "web-abc" || e.Policy != "shop/q" || e.DryRun != "shop/p=would_deny" || e.Trace != c.Trace || e.Flag() != "DENY" ||
			e.Up.IsZero() == line || e.Over.Before(e.Start) || e.Result.Sent != 3 {
			t.Errorf("%+v", e)
		}
		if got := strings.Contains(out.String(), `dry_run="shop/p=would_deny"`); got != line {
			t.Errorf("line %v: %s", line, out.String())
		}
	}
}
