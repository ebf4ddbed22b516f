package telemetry

import (
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

type changes map[string]map[string]Override // by service

func (c changes) Any() bool { return len(c) > 0 }

func (c changes) For(t Traffic) map[string]Override {
	return c[t.Service.Namespace+"/"+t.Service.Hostname]
}

// TestOverrides: metrics are left out, and labels removed and set, of one service; series
// that become one are added up. Other metrics are as they were.
func TestOverrides(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web, cart, shop := wl("web"), wl("cart"), wl("shop")
	for i, src := range []string{"web", "shop"} {
		c := &Client{Src: web, Identity: webIdentity}
		if src == "shop" {
			c.Src = shop
		}
		for range i + 1 {
			r.Request(c, Upstream{Workload: cart, Service: cartService, MTLS: true}, &Request{Status: 200, GRPCStatus: -1, Duration: 3 * time.Millisecond}, itself)
		}
	}
	plain := scrape(t, r)
	if got := scrape(t, NewOverridden(r, changes{})); got != plain {
		t.Errorf("without a change: %s", got)
	}
	if got := scrape(t, NewOverridden(r, changes{"other/x": {"REQUEST_COUNT": {Disabled: true}}})); got != plain {
		t.Errorf("with a change of another service:\n%s\nwas\n%s", got, plain)
	}
	all := []string{}
	for _, n := range labelNames {
		if strings.HasPrefix(n, "source_") || strings.HasPrefix(n, "destination_") {
			all = append(all, n)
		}
	}
	got := scrape(t, NewOverridden(r, changes{"shop/cart.shop.svc.cluster.local": {
		"REQUEST_COUNT": {Remove: all, Set: map[string]string{"team": "a", "reporter": "us"}}, "REQUEST_DURATION": {Remove: all}, "REQUEST_SIZE": {Disabled: true},
	}}))
	for _, want := range []string{
		`istio_requests_total{reporter="us",team="a",request_protocol="http",response_code="200",response_flags="-",connection_security_policy="mutual_tls"} 3`,
		`istio_request_duration_milliseconds_count{reporter="waypoint",request_protocol="http",response_code="200",response_flags="-",connection_security_policy="mutual_tls"} 3`,
		`connection_security_policy="mutual_tls",le="5"} 3`, `istio_request_duration_milliseconds_sum{reporter="waypoint",request_protocol="http",response_code="200",response_flags="-",connection_security_policy="mutual_tls"} 9`,
		"istio_response_bytes_count",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "istio_request_bytes") || strings.Count(got, "istio_requests_total{") != 1 {
		t.Errorf("%s", got)
	}
	if again := scrape(t, r); again != plain {
		t.Errorf("a scrape has changed what was counted: %s", again)
	}
}
