package telemetry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
)

func itself(w *workload.Workload) *workload.Workload { return w }

var (
	webIdentity = identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	cartService = &workload.Service{Hostname: "cart.shop.svc.cluster.local", Namespace: "shop", Name: "cart"}
)

// at returns the labels of a request of web to cart at a waypoint.
func at(labels string) string {
	return `{reporter="waypoint",source_workload="web",source_canonical_service="web",source_canonical_revision="v1",source_workload_namespace="shop",` +
		`source_principal="spiffe://cluster.local/ns/shop/sa/web",source_app="web",source_version="v1",source_cluster="Kubernetes",` +
		`destination_service="cart.shop.svc.cluster.local",destination_service_namespace="shop",destination_service_name="cart",` +
		`destination_workload="cart",destination_canonical_service="cart",destination_canonical_revision="v1",destination_workload_namespace="shop",` +
		`destination_principal="spiffe://cluster.local/ns/shop/sa/cart",destination_app="cart",destination_version="v1",destination_cluster="Kubernetes",` + labels
}

func TestRequests(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web, cart := wl("web"), wl("cart")
	to := Upstream{Workload: cart, Service: cartService, MTLS: true}
	// Two loops count together.
	for loop := range 2 {
		c := &Client{Loop: loop, Src: web, Identity: webIdentity}
		r.Request(c, to, &Request{Status: 200, GRPCStatus: -1, Duration: 3 * time.Millisecond, Received: 70, Sent: 4_000_000}, itself)
	}
	c := &Client{Src: web, Identity: webIdentity}
	r.Request(c, to, &Request{GRPC: true, Status: 200, GRPCStatus: 14, Asked: 2, Responded: 3}, itself)
	r.Request(c, to, &Request{GRPC: true, Status: 200, GRPCStatus: -1, Asked: 5, Partial: true}, itself)
	r.Request(c, Upstream{Service: cartService}, &Request{Status: 404, Reason: reason.NoRoute, GRPCStatus: -1}, itself)
	r.Request(c, Upstream{Workload: cart, Service: cartService}, &Request{GRPCStatus: -1, Reason: reason.DownstreamReset}, itself)
	got := scrape(t, r)
	plain := at(`request_protocol="http",response_code="200",response_flags="-",connection_security_policy="mutual_tls"`)
	grpc := at(`request_protocol="grpc",response_code="200",grpc_response_status="14",response_flags="-",connection_security_policy="mutual_tls"`)
	for _, want := range []string{
		"istio_requests_total" + plain + "} 2\n",
		"istio_request_duration_milliseconds_bucket" + plain + `,le="1"} 0` + "\n",
		"istio_request_duration_milliseconds_bucket" + plain + `,le="5"} 2` + "\n",
		"istio_request_duration_milliseconds_sum" + plain + "} 6\n",
		"istio_request_bytes_sum" + plain + "} 140\n",
		"istio_response_bytes_bucket" + plain + `,le="3.6e+06"} 0` + "\n",
		"istio_response_bytes_bucket" + plain + `,le="+Inf"} 2` + "\n",
		"istio_response_bytes_count" + plain + "} 2\n",
		"istio_requests_total" + grpc + "} 1\n",
		"istio_request_messages_total" + grpc + "} 2\n",
		"istio_response_messages_total" + grpc + "} 3\n",
		`destination_workload="unknown",destination_canonical_service="unknown",destination_canonical_revision="unknown",destination_workload_namespace="unknown",` +
			`destination_principal="unknown",destination_app="unknown",destination_version="unknown",destination_cluster="unknown",` +
			`request_protocol="http",response_code="404",response_flags="NR",connection_security_policy="unknown"} 1` + "\n",
		`destination_principal="unknown",destination_app="cart",destination_version="v1",destination_cluster="Kubernetes",` +
			`request_protocol="http",response_code="0",response_flags="DC",connection_security_policy="none"} 1` + "\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "istio_tcp_connections") {
		t.Error("requests count as connections")
	}
	r.WorkloadChanged(cart, nil)
	r.ServiceGone(cartService)
	r.empty(t)
	if n := r.cells.Load(); n != 0 {
		t.Errorf("%d outcomes are left", n)
	}
}

// TestRequestsOfStrangers: a client that is not in the directory is what it has proven,
// and says of itself within the bound of its identity.
func TestRequestsOfStrangers(t *testing.T) {
	r := NewRecorder(logging.Discard())
	r.Request(&Client{Identity: webIdentity}, Upstream{Service: cartService}, &Request{Status: 200, GRPCStatus: -1}, itself)
	for i := range 2 * maxTold {
		c := &Client{Identity: webIdentity, Baggage: connect.Baggage{Namespace: "shop", Workload: fmt.Sprint("w", i)}}
		r.Request(c, Upstream{Service: cartService}, &Request{Status: 200, GRPCStatus: -1}, itself)
	}
	got := scrape(t, r)
	for _, want := range []string{`source_workload="unknown",source_canonical_service="unknown",source_canonical_revision="unknown",source_workload_namespace="shop",source_principal="spiffe://cluster.local/ns/shop/sa/web"`,
		`source_workload="w0"`, fmt.Sprintf(`source_workload="w%d"`, maxTold-1)} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(got, fmt.Sprintf(`source_workload="w%d"`, maxTold)) {
		t.Error("what one identity says of itself is not bounded")
	}
	if !strings.Contains(got, fmt.Sprintf("} %d\n", maxTold+1)) {
		t.Error("requests beyond the bound are not counted as those of an unknown workload")
	}
}

// TestOutcomesAreBounded: a program that answers with every status there is does not
// make as many series.
func TestOutcomesAreBounded(t *testing.T) {
	r := NewRecorder(logging.Discard())
	c, to := &Client{Src: wl("web"), Identity: webIdentity}, Upstream{Workload: wl("cart"), Service: cartService, MTLS: true}
	for code := range 1200 {
		r.Request(c, to, &Request{Status: code, GRPCStatus: -1}, itself)
	}
	got := scrape(t, r)
	if n := strings.Count(got, "\nistio_requests_total{"); n != maxOutcomes+1 {
		t.Errorf("%d series", n)
	}
	if !strings.Contains(got, fmt.Sprintf(`response_code="unknown",response_flags="-",connection_security_policy="mutual_tls"} %d`, 1200-maxOutcomes)) {
		t.Error("requests beyond the bound are lost")
	}
	r.cells.Store(maxCells)
	other := Upstream{Workload: wl("db"), Service: cartService}
	r.Request(c, other, &Request{Status: 200, GRPCStatus: -1}, itself)
	r.Request(c, to, &Request{Status: 5, GRPCStatus: -1}, itself)
	if got := scrape(t, r); !strings.Contains(got, "waypoint_requests_uncounted_total 1\n") {
		t.Error("requests beyond the bound of the process are not reported")
	}
}

// TestRequestsFollowTheDirectory: a connection outlives a change of its client's labels,
// and what is gone is not counted.
func TestRequestsFollowTheDirectory(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web, cart := wl("web"), wl("cart")
	now := map[string]*workload.Workload{web.UID: web, cart.UID: cart}
	r.Follow(Live{
		Workload: func(w *workload.Workload) bool { return now[w.UID] == w },
		Service:  func(ServiceRef) bool { return true },
	})
	current := func(w *workload.Workload) *workload.Workload {
		if w != nil && now[w.UID] != nil {
			return now[w.UID]
		}
		return w
	}
	c, to := &Client{Src: web, Identity: webIdentity}, Upstream{Workload: cart, Service: cartService, MTLS: true}
	ask := func() { r.Request(c, to, &Request{Status: 200, GRPCStatus: -1}, current) }
	ask()
	same := wl("web")
	now[web.UID] = same
	r.WorkloadChanged(web, same)
	ask()
	if got := scrape(t, r); !strings.Contains(got, "istio_requests_total"+at(`request_protocol="http",response_code="200",response_flags="-",connection_security_policy="mutual_tls"`)+"} 2\n") {
		t.Errorf("an update of the client took its count:\n%s", got)
	}
	delete(now, cart.UID)
	r.WorkloadChanged(cart, nil)
	ask()
	r.empty(t)
	delete(now, web.UID)
	r.WorkloadChanged(same, nil)
	r.Request(c, Upstream{Service: cartService}, &Request{Status: 503, GRPCStatus: -1}, current)
	r.empty(t)
	if n := r.cells.Load(); n != 0 {
		t.Errorf("%d outcomes are left", n)
	}
}

func TestRequestsAllocateNothing(t *testing.T) {
	r := NewRecorder(logging.Discard())
	c := &Client{Src: wl("web"), Identity: webIdentity}
	var carts []*workload.Workload
	for i := range 10 {
		carts = append(carts, wl(fmt.Sprint("cart", i)))
	}
	i := 0
	q := &Request{Status: 200, GRPCStatus: -1, Duration: time.Millisecond}
	ask := func() {
		r.Request(c, Upstream{Workload: carts[i%len(carts)], Service: cartService, MTLS: true}, q, itself)
		i++
	}
	for range carts {
		ask()
	}
	if n := testing.AllocsPerRun(100, ask); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
