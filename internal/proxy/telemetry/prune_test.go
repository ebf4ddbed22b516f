package telemetry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

func named(name, hostname string) *workload.Workload {
	w := wl(name)
	w.Hostname = hostname
	return w
}

// empty fails when the recorder holds anything.
func (r *Recorder) empty(t *testing.T) {
	t.Helper()
	n := r.names
	if left := len(r.series) + len(r.byWl) + len(r.pairs) + len(r.byService) + len(n.series) + len(n.bySource) + len(n.of); left != 0 {
		t.Errorf("left behind: %d series, %d workloads, %d pairs, %d services; names: %d series, %d sources, %d workloads",
			len(r.series), len(r.byWl), len(r.pairs), len(r.byService), len(n.series), len(n.bySource), len(n.of))
	}
}

// TestNamesGoWithTheirWorkload: the series of a resolved name ends with the
// endpoint that had it, or with the source.
func TestNamesGoWithTheirWorkload(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web, twin := wl("web"), wl("web")
	for i := range 500 {
		host := fmt.Sprintf("host-%d.test", i)
		dst := named(host, host)
		r.Resolved(web, dst, host)
		r.Resolved(twin, dst, host)
		if got := scrape(t, r); !strings.Contains(got, `hostname="`+host+`",source_app="web"`) || !strings.Contains(got, "} 2\n") {
			t.Fatalf("%s is not counted:\n%s", host, got)
		}
		r.WorkloadChanged(dst, nil)
	}
	r.empty(t)
	db := named("db", "db.test")
	r.Resolved(web, db, "db.test")
	r.Resolved(twin, db, "db.test")
	r.WorkloadChanged(web, nil)
	if got := scrape(t, r); !strings.Contains(got, `hostname="db.test"`) || !strings.Contains(got, "} 2\n") {
		t.Errorf("the other pod of the source counts no more:\n%s", got)
	}
	// A change that the labels do not show keeps the count; another one does not.
	same, moved := named("db", "db.test"), named("db", "other.test")
	r.WorkloadChanged(db, same)
	if !strings.Contains(scrape(t, r), `hostname="db.test"`) {
		t.Error("an update of the endpoint took its count")
	}
	r.WorkloadChanged(same, moved)
	r.empty(t)
}

// TestNamesAreBounded: one source does not use up the names of the others.
func TestNamesAreBounded(t *testing.T) {
	r := NewRecorder(logging.Discard())
	for s := range maxNames/maxNamesOfSource + 4 {
		for i := range 2 * maxNamesOfSource {
			host := fmt.Sprintf("host-%d-%d.test", s, i)
			r.Resolved(wl(fmt.Sprint("source", s)), named(host, host), host)
		}
		if s == 0 {
			if n := len(r.names.series); n != maxNamesOfSource+1 {
				t.Errorf("%d series of one source", n)
			}
			if !strings.Contains(scrape(t, r), `hostname="unknown"`) {
				t.Error("names beyond the bound are not counted")
			}
		}
	}
	if n := len(r.names.series); n > maxNames+100 {
		t.Errorf("%d series", n)
	}
}

// TestSeriesGoWithTheirService: series of a service end with it, whether or not its
// endpoints are known, and go on.
func TestSeriesGoWithTheirService(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web := wl("web")
	cart := wl("cart")
	for i := range 500 {
		svc := &workload.Service{Hostname: fmt.Sprintf("host-%d.test", i), Namespace: "shop", Name: "host"}
		k := key(web, []*workload.Workload{nil, cart}[i%2])
		k.Service = RefTo(svc)
		c := &Conn{}
		r.Begin(c, k, time.Now())
		r.End(c, relay.Result{}, "")
		if !strings.Contains(scrape(t, r), svc.Hostname) {
			t.Fatal("the connection is not counted")
		}
		r.ServiceGone(svc)
	}
	r.empty(t)
}

// TestLateConnections: a connection that was decided about before its workload
// or service went leaves nothing behind.
func TestLateConnections(t *testing.T) {
	r := NewRecorder(logging.Discard())
	gone := true
	r.Follow(Live{
		Workload: func(*workload.Workload) bool { return !gone },
		Service:  func(ServiceRef) bool { return !gone },
	})
	for _, k := range []Key{key(wl("web"), wl("cart")), key(nil, nil)} {
		c := &Conn{}
		r.Begin(c, k, time.Now())
		if !strings.Contains(scrape(t, r), "opened_total{") {
			t.Error("an open connection is not counted")
		}
		r.End(c, relay.Result{}, "")
		r.Attempted(k, &reason.Error{Reason: reason.ConnectFailure})
		r.empty(t)
	}
	r.Resolved(wl("web"), named("db", "db.test"), "db.test")
	r.empty(t)
	gone = false
	c := &Conn{}
	r.Begin(c, key(wl("web"), wl("cart")), time.Now())
	r.End(c, relay.Result{}, "")
	if len(r.pairs) != 1 {
		t.Error("a pair in the directory is not kept")
	}
}
