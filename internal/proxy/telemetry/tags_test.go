package telemetry

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

func tagged1(expression, value string) Tags {
	return Tags(AppendTag(nil, expression, value, true))
}

const cartHost = "shop/cart.shop.svc.cluster.local"

// TestTags: a label is made of an expression's value for each request; requests with the
// same value are one series. Where no label is made of it, the value changes nothing.
func TestTags(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web, cart := wl("web"), wl("cart")
	c := &Client{Src: web, Identity: webIdentity}
	ask := func(tags Tags) {
		r.Request(c, Upstream{Workload: cart, Service: cartService, MTLS: true, Tags: tags}, &Request{Status: 200, GRPCStatus: -1}, itself)
	}
	ask("")
	before := scrape(t, NewOverridden(r, changes{}))
	for _, host := range []string{"a", "b", "a", "", "\x00\x01x\x01"} {
		ask(Tags(AppendTag([]byte(tagged1("other", "o")), "request.host", host, true)))
	}
	ask(Tags(AppendTag(nil, "request.host", "", false)))
	of := changes{cartHost: {"REQUEST_COUNT": {From: map[string]string{"host": "request.host", "reporter": "none"}}}}
	got := scrape(t, NewOverridden(r, of))
	for _, want := range []string{`host="a"`, `host="b"`, `host="x"`, `host="unknown"`} {
		n := map[bool]int{true: 2, false: 1}[want == `host="a"` || want == `host="unknown"`]
		found := false
		for line := range strings.SplitSeq(got, "\n") {
			found = found || strings.HasPrefix(line, "istio_requests_total{") && strings.Contains(line, want) && strings.HasSuffix(line, fmt.Sprint(" ", n)) && strings.Contains(line, `reporter="unknown"`)
		}
		if !found {
			t.Errorf("no istio_requests_total with %s is %d:\n%s", want, n, got)
		}
	}
	if n := strings.Count(got, "istio_requests_total{"); n != 5 {
		t.Errorf("%d series of requests:\n%s", n, got)
	}
	if n := strings.Count(got, "istio_request_bytes_count{"); n != 1 {
		t.Errorf("%d series of bytes:\n%s", n, got)
	}
	after := scrape(t, NewOverridden(r, changes{}))
	if strings.Count(after, "istio_requests_total{") != 1 || strings.Contains(before, "} 7") || !strings.Contains(after, "} 7") {
		t.Errorf("without a change:\n%s", after)
	}
	r.WorkloadChanged(web, nil)
	if left := scrape(t, NewOverridden(r, of)); strings.Contains(left, "istio_requests_total{") || r.tagged.all != 0 || len(r.tagged.by) != 0 {
		t.Errorf("after the client: %d %v\n%s", r.tagged.all, r.tagged.by, left)
	}
}

// TestTagsAreBounded: a client that makes up values has a share of the series. The rest of
// its requests are in one with the value overflow, and other clients' have their own.
func TestTagsAreBounded(t *testing.T) {
	r := NewRecorder(logging.Discard())
	web, shop, cart := wl("web"), wl("shop"), wl("cart")
	const many = 3 * maxTaggedShare
	hostile := &Client{Src: web, Identity: webIdentity}
	to := Upstream{Workload: cart, Service: cartService, MTLS: true}
	for i := range many {
		to.Tags = tagged1("request.host", fmt.Sprint("h", i))
		r.Request(hostile, to, &Request{Status: 200, GRPCStatus: -1}, itself)
	}
	other := webIdentity
	other.ServiceAccount = "other"
	to.Tags = tagged1("request.host", "mine")
	r.Request(&Client{Src: shop, Identity: other}, to, &Request{Status: 200, GRPCStatus: -1}, itself)
	got := scrape(t, NewOverridden(r, changes{cartHost: {"REQUEST_COUNT": {From: map[string]string{"host": "request.host"}}}}))
	if n := strings.Count(got, "istio_requests_total{"); n != maxTaggedShare+2 {
		t.Errorf("%d series, want %d", n, maxTaggedShare+2)
	}
	over := 0
	for line := range strings.SplitSeq(got, "\n") {
		if strings.HasPrefix(line, "istio_requests_total{") && strings.Contains(line, `host="overflow"`) {
			over++
			if !strings.HasSuffix(line, fmt.Sprint(" ", many-maxTaggedShare)) {
				t.Error(line)
			}
		}
	}
	if over != 1 || !strings.Contains(got, `host="mine"`) {
		t.Errorf("%d series of what is beyond", over)
	}
	all := tagged{all: maxTagged, by: map[identity.Identity]int{}}
	k := Key{SrcIdentity: other, Tags: "x"}
	if all.admit(&k) != overflow {
		t.Error("the bound of all clients is passed")
	}
	if n := len(hostile.many); n > maxUsedTagged {
		t.Errorf("a client keeps %d series", n)
	}
	// One value of a label has a few outcomes of its own.
	to.Tags = tagged1("request.host", "h0")
	for status := range 500 {
		r.Request(hostile, to, &Request{Status: 100 + status, GRPCStatus: -1}, itself)
	}
	if n := r.cells.Load(); n > maxTaggedShare+2+maxTaggedOutcomes+1 {
		t.Errorf("%d outcomes are kept", n)
	}
}

// TestTagsOfConnections: a connection without HTTP has the labels that were made when it
// began.
func TestTagsOfConnections(t *testing.T) {
	r := NewRecorder(logging.Discard())
	k := Key{Reporter: Waypoint, Src: wl("web"), Dst: wl("cart"), Service: RefTo(cartService), SrcIdentity: webIdentity}
	for i := range maxTaggedShare + 5 {
		k.Tags = tagged1("source.address", fmt.Sprint("10.0.0.", i))
		c := &Conn{}
		r.Begin(c, k, epoch)
	}
	got := scrape(t, NewOverridden(r, changes{cartHost: {"TCP_OPENED_CONNECTIONS": {From: map[string]string{"from": "source.address"}}}}))
	if !strings.Contains(got, `from="10.0.0.0"`) || strings.Count(got, "istio_tcp_connections_opened_total{") != maxTaggedShare+1 || strings.Count(got, "istio_tcp_sent_bytes_total{") != 1 {
		t.Errorf("%s", got)
	}
}
