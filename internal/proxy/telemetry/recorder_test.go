package telemetry

import (
	"bytes"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

func wl(name string) *workload.Workload {
	return &workload.Workload{UID: "uid-" + name, Name: name + "-abc", Traits: &workload.Traits{
		Namespace: "shop", TrustDomain: "cluster.local", ServiceAccount: name, ClusterID: "Kubernetes",
		WorkloadName: name, WorkloadType: "deployment", CanonicalName: name, CanonicalRevision: "v1",
	}}
}

func scrape(t *testing.T, r prometheus.Collector) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(r)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(InOrder(reg), promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

const tail = `destination_service="cart.shop.svc.cluster.local",destination_service_namespace="shop",destination_service_name="cart",` +
	`destination_workload="cart",destination_canonical_service="cart",destination_canonical_revision="v1",destination_workload_namespace="shop",` +
	`destination_principal="spiffe://cluster.local/ns/shop/sa/cart",destination_app="cart",destination_version="v1",destination_cluster="Kubernetes",` +
	`request_protocol="tcp",response_flags="-",connection_security_policy="mutual_tls",` +
	`source_region="unknown",source_zone="unknown",destination_region="unknown",destination_zone="unknown"}`

const known = `{reporter="source",source_workload="web",source_canonical_service="web",source_canonical_revision="v1",source_workload_namespace="shop",` +
	`source_principal="spiffe://cluster.local/ns/shop/sa/web",source_app="web",source_version="v1",source_cluster="Kubernetes",` + tail

func key(src, dst *workload.Workload) Key {
	return Key{Reporter: Source, MTLS: true, Src: src, Dst: dst,
		Service:     ServiceRef{Hostname: "cart.shop.svc.cluster.local", Namespace: "shop", Name: "cart"},
		SrcIdentity: identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}}
}

func TestSeries(t *testing.T) {
	var out bytes.Buffer
	l, err := logging.New(&out, logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	r := NewRecorder(l.Logger("access"))
	web, cart := wl("web"), wl("cart")
	c := &Conn{Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.MustParseAddrPort("10.0.0.2:15008"),
		Target: connect.AddrTarget(netip.MustParseAddrPort("10.0.0.2:80"))}
	r.Begin(c, key(web, cart), time.Now())
	if got := scrape(t, r); !strings.Contains(got, "istio_tcp_connections_opened_total"+known+" 1\n") || strings.Contains(got, "closed_total{") {
		t.Fatal(got)
	}
	r.End(c, relay.Result{Sent: 7, Received: 9}, "")
	r.End(c, relay.Result{Sent: 7, Received: 9}, "")
	got := scrape(t, r)
	for _, want := range []string{"istio_tcp_connections_closed_total" + known + " 1\n", "istio_tcp_received_bytes_total" + known + " 7\n", "istio_tcp_sent_bytes_total" + known + " 9\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "failed_total{") {
		t.Error("a good connection counts as failed")
	}
	if line := out.String(); !strings.Contains(line, `bytes_sent=7 bytes_recv=9`) || !strings.Contains(line, `dst.hbone_addr=10.0.0.2:80`) ||
		!strings.Contains(line, `src.workload="web-abc"`) || !strings.Contains(line, `dst.identity="spiffe://cluster.local/ns/shop/sa/cart"`) {
		t.Error(line)
	}

	// A changed workload with the same labels keeps its series; a removed one
	// takes it along.
	cart2 := wl("cart")
	r.WorkloadChanged(cart, cart2)
	if got := scrape(t, r); !strings.Contains(got, "istio_tcp_connections_opened_total"+known+" 1\n") {
		t.Errorf("a change reset the series:\n%s", got)
	}
	r.WorkloadChanged(cart2, nil)
	if got := scrape(t, r); strings.Contains(got, "opened_total{") {
		t.Errorf("the series outlives its workload:\n%s", got)
	}
}

func TestSeriesOfOpenConnectionOutlivesWorkload(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web, cart := wl("web"), wl("cart")
	c := &Conn{}
	r.Begin(c, key(web, cart), time.Now())
	r.WorkloadChanged(cart, nil)
	if got := scrape(t, r); !strings.Contains(got, "opened_total{") {
		t.Error("the series of an open connection is gone")
	}
	r.End(c, relay.Result{Reason: reason.WorkloadRemoved}, "")
	if len(r.series)+len(r.byWl)+len(r.pairs) != 0 {
		t.Errorf("left behind: %d series, %d workloads, %d pairs", len(r.series), len(r.byWl), len(r.pairs))
	}
}

func TestFlagsAndUnknown(t *testing.T) {
	var out bytes.Buffer
	l, _ := logging.New(&out, logging.Plain, "info")
	r := NewRecorder(l.Logger("access"))
	c := &Conn{}
	r.Begin(c, Key{Reporter: Destination}, time.Now())
	r.End(c, relay.Result{Sent: 1, Received: 2, Reason: reason.PolicyDenied}, "shop/deny")
	got := scrape(t, r)
	for _, name := range []string{"closed", "failed"} {
		if !strings.Contains(got, `istio_tcp_connections_`+name+`_total{reporter="destination",source_workload="unknown",`) {
			t.Errorf("no %s:\n%s", name, got)
		}
	}
	if !strings.Contains(got, `response_flags="DENY",connection_security_policy="unknown"} 1`) {
		t.Errorf("%s", got)
	}
	if !strings.Contains(out.String(), `direction="inbound" bytes_sent=2 bytes_recv=1`) || !strings.Contains(out.String(), `policy="shop/deny"`) {
		t.Errorf("%s", out.String())
	}
	for _, rs := range reason.All() {
		if i := Source.flagIndex(rs); Source.flags()[i] != rs.Flag() {
			t.Errorf("%s: flag %s is not counted", rs, rs.Flag())
		}
		if i := Waypoint.flagIndex(rs); Waypoint.flags()[i] != rs.HTTP().Flag {
			t.Errorf("%s: flag %s of waypoints is not counted", rs, rs.HTTP().Flag)
		}
	}
}

func TestPairsAreBounded(t *testing.T) {
	r := NewRecorder(logging.Discard())
	for i := range maxPairs + 100 {
		c := &Conn{}
		r.Begin(c, Key{Baggage: connect.Baggage{Service: string(rune('a'+i%26)) + strings.Repeat("x", i%50) + time.Duration(i).String()}}, time.Now())
		r.End(c, relay.Result{}, "")
	}
	if len(r.pairs) > maxPairs || len(r.series) > maxPairs {
		t.Errorf("%d pairs, %d series", len(r.pairs), len(r.series))
	}
}

func BenchmarkConnection(b *testing.B) {
	r := NewRecorder(logging.Discard())
	k := key(wl("web"), wl("cart"))
	start := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		c := &Conn{}
		r.Begin(c, k, start)
		r.End(c, relay.Result{}, "")
	}
}

// One identity makes a few hundred pairs by what it says of itself; another one
// still gets its own.
func TestBaggageOfOnePeerIsBounded(t *testing.T) {
	r := NewRecorder(slog.New(slog.DiscardHandler))
	count := func(account string, n int) {
		for i := range n {
			r.pair(Key{
				Reporter: Destination, MTLS: true, SrcIdentity: identity.Identity{TrustDomain: "t", Namespace: "n", ServiceAccount: account},
				Baggage: connect.Baggage{Workload: account + time.Duration(i).String()},
			})
		}
	}
	count("thief", 5000)
	if n := len(r.pairs); n != maxTold+1 {
		t.Errorf("5,000 stories of one peer make %d pairs, not %d and one for the rest", n, maxTold)
	}
	count("other", 10)
	if n := len(r.pairs); n != maxTold+1+10 {
		t.Errorf("after 10 of another peer, %d pairs", n)
	}
	for _, p := range r.pairs {
		r.drop(p)
	}
	if len(r.told) != 0 || len(r.pairs) != 0 {
		t.Errorf("%d peers are still counted, %d pairs kept", len(r.told), len(r.pairs))
	}
}
