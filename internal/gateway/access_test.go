package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// enforce replaces the policies. It does not recheck.
func (w *world) enforce(policies ...*authzpb.Policy) {
	w.t.Helper()
	s := authz.NewStore()
	for i, p := range policies {
		p.Namespace, p.Name = "ns", fmt.Sprint("p", i)
		body, err := authz.Encode(p)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := s.Put(p.Name, body); err != nil {
			w.t.Fatal(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policies = s.Set()
}

func exactly(s string) *securitypb.StringMatch {
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: s}}
}

// denied is a DENY policy for a path of a service; of the whole gateway without one.
func denied(service, path string) *authzpb.Policy {
	m := &authzpb.Match{Paths: []*authzpb.PathMatch{{MatchType: &authzpb.PathMatch_Text{Text: exactly(path)}}}}
	p := &authzpb.Policy{Action: authzpb.Action_DENY, Everything: service == "", Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{m}}}}}}
	if service != "" {
		p.Services = []*authzpb.Service{{Namespace: "ns", Hostname: service + ".ns.svc.cluster.local"}}
	}
	return p
}

// permitted is an ALLOW policy of the whole gateway for clients of an account.
func permitted(account string) *authzpb.Policy {
	m := &authzpb.Match{Connection: []*securitypb.Match{{ServiceAccounts: []*securitypb.ServiceAccountMatch{{Namespace: "ns", ServiceAccount: account}}}}}
	return &authzpb.Policy{Action: authzpb.Action_ALLOW, Everything: true, Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{m}}}}}}
}

// ask sends a request as it is written on a connection.
func ask(t testing.TB, c net.Conn, head string) (*http.Response, string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: head[:strings.IndexByte(head, ' ')]})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestPolicies: each request of an open connection is judged by the policies of its
// moment.
func TestPolicies(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	check := func(when, head string, want int, body string) {
		t.Helper()
		resp, b := ask(t, c, head)
		if resp.StatusCode != want || want == 403 && b != body {
			t.Errorf("%s: %d %q", when, resp.StatusCode, b)
		}
	}
	const refusal = "RBAC: access denied"
	check("without policies", "GET /x HTTP/1.1\nHost: shop", 200, "")
	w.enforce(denied("shop", "/x"))
	check("a denied path", "GET /x HTTP/1.1\nHost: shop", 403, refusal)
	check("a denied path, encoded", "GET /%78 HTTP/1.1\nHost: shop", 403, refusal)
	check("another path", "GET /y HTTP/1.1\nHost: shop", 200, "")
	w.enforce(denied("v1", "/x"))
	check("a path of another service", "GET /x HTTP/1.1\nHost: v1", 200, "")
	w.enforce(denied("", "/x"))
	check("denied at the gateway", "GET /x HTTP/1.1\nHost: shop", 403, refusal)
	w.enforce(permitted("client"))
	check("allowed by its identity", "GET /x HTTP/1.1\nHost: shop\nX-Forwarded-Client-Cert: By=x;URI=spiffe://cluster.local/ns/ns/sa/other", 200, "")
	w.enforce(permitted("other"))
	check("not allowed by a header", "GET /x HTTP/1.1\nHost: shop\nX-Forwarded-Client-Cert: By=x;URI=spiffe://cluster.local/ns/ns/sa/other", 403, refusal)
	w.routes("shop", route.Rule{Origin: "r", Matches: segments("/there"), Backends: []route.Backend{{Name: "v1", Weight: 1}}, Filters: route.Filters{CORS: &route.CORS{Origins: []string{"https://a.com"}, Methods: []string{"PUT"}}}})
	check("what has no route, not allowed", "GET /x HTTP/1.1\nHost: shop", 403, refusal)
	check("a preflight request", "OPTIONS /there HTTP/1.1\nHost: shop\nOrigin: https://a.com\nAccess-Control-Request-Method: PUT", 204, "")
	resp, _ := ask(t, c, "PUT /there HTTP/1.1\nHost: shop\nOrigin: https://a.com\nContent-Length: 0")
	if resp.StatusCode != 403 || resp.Header.Get("Access-Control-Allow-Origin") != "https://a.com" {
		t.Errorf("what follows a preflight request: %d %v", resp.StatusCode, resp.Header)
	}
	resp, _ = ask(t, c, "POST /there HTTP/1.1\nHost: shop\nContent-Type: application/grpc\nContent-Length: 0")
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "7" || resp.Header.Get("Grpc-Message") != refusal {
		t.Errorf("a call of gRPC: %d %v", resp.StatusCode, resp.Header)
	}
	w.enforce(permitted("client"))
	check("what has no route, allowed", "GET /x HTTP/1.1\nHost: shop", 404, "")
	all := w.seen(13, func() []Record { return w.requests })
	if r := all[1]; r.Reason != reason.PolicyDenied || r.Err == nil || !strings.Contains(r.Err.Error(), "ns/p0, rule 0") {
		t.Errorf("%v, %v", r.Reason, r.Err)
	}
	if r := all[7]; r.Reason != reason.NotAllowed {
		t.Errorf("%v, %v", r.Reason, r.Err)
	}
}

// TestTrialPolicies: what is under trial is reported once a request.
func TestTrialPolicies(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	trial := denied("shop", "/x")
	trial.DryRun = true
	w.enforce(trial)
	for _, path := range []string{"/x", "/y"} {
		if status, _ := get(t, c, path); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
	w.g.Recheck()
	w.on(w.group.Loop(0), func() {})
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.notes, []authz.Note{{Policy: "ns/p0", Verdict: authz.WouldDeny}}) {
		t.Errorf("%v", w.notes)
	}
}

// TestPoliciesOfConnections: a connection without HTTP is refused before it is accepted,
// and ended when a policy takes the permission away.
func TestPoliciesOfConnections(t *testing.T) {
	w := newWorld(t, 1)
	w.service("db", "10.1.0.9", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_TCP })
	w.endpoint("db-1", "10.0.9.1", "db", echo(t, "hello"))
	for name, p := range map[string]*authzpb.Policy{"of others": permitted("other"), "of a path": denied("db", "/x")} {
		w.enforce(p)
		var r refusal
		if _, err := w.connect("10.1.0.9:80"); !errors.As(err, &r) || r != 403 {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.enforce(permitted("client"))
	c, err := w.connect("10.1.0.9:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(c, make([]byte, len("hello"))); err != nil {
		t.Fatal(err)
	}
	w.g.Recheck()
	w.on(w.group.Loop(0), func() {})
	if w.g.Active() != 1 {
		t.Fatal("the connection was ended without a change")
	}
	w.enforce(permitted("other"))
	w.g.Recheck()
	if n, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %d bytes, %v", n, err)
	}
	if r := w.seen(3, func() []Record { return w.conns })[2]; r.Reason != reason.PolicyChanged {
		t.Errorf("%v", r.Reason)
	}
}

// TestSniffedConnections: what turns out to carry no HTTP is judged then.
func TestSniffedConnections(t *testing.T) {
	w := newWorld(t, 1)
	w.service("any", "10.1.0.8", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_UNKNOWN })
	w.endpoint("any-1", "10.0.8.1", "any", echo(t, ""))
	w.enforce(denied("any", "/x"))
	c, err := w.connect("10.1.0.8:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(c, "\x00\x01not HTTP")
	if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", b, err)
	}
	if r := w.seen(1, func() []Record { return w.conns })[0]; r.Reason != reason.PolicyDenied {
		t.Errorf("%v", r.Reason)
	}
}

// TestPolicyAtPod: at a pod's own address, the policies of every service that it backs
// at the port hold, also of one that it backs since a moment ago.
func TestPolicyAtPod(t *testing.T) {
	w := newWorld(t, 1)
	for i, s := range []string{"one", "two", "elsewhere"} {
		w.service(s, fmt.Sprint("10.1.1.", i+1), func(*workloadpb.Service) {})
	}
	to := program(t, "pod")
	pod := func(services ...string) {
		w.workload("pod", "10.0.3.1", func(p *workloadpb.Workload) {
			p.Waypoint = &workloadpb.GatewayAddress{Destination: &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: "waypoint.ns.svc.cluster.local"}}, HboneMtlsPort: 15008}
			p.Services = map[string]*workloadpb.PortList{}
			for _, s := range services {
				port := uint32(8080)
				if s == "elsewhere" {
					port = 9090
				}
				p.Services["ns/"+s+".ns.svc.cluster.local"] = &workloadpb.PortList{Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: port}}}
			}
		})
	}
	pod("one", "elsewhere")
	w.mu.Lock()
	w.programs[netip.MustParseAddrPort("10.0.3.1:8080")] = to
	w.mu.Unlock()
	w.enforce(denied("one", "/1"), denied("two", "/2"), denied("elsewhere", "/3"))
	c, err := w.connect("10.0.3.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	statuses := func() (got [3]int) {
		for i := range got {
			got[i], _ = get(t, c, fmt.Sprint("/", i+1))
		}
		return got
	}
	if got := statuses(); got != [3]int{403, 200, 200} {
		t.Errorf("%v", got)
	}
	pod("one", "two", "elsewhere")
	if got := statuses(); got != [3]int{403, 403, 200} {
		t.Errorf("%v, as an endpoint of two", got)
	}
}

// TestStreamsAreJudgedAgain: a request that goes on is cut when policies do not allow it
// any more, as it came: whatever a route has made of it.
func TestStreamsAreJudgedAgain(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	stop := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, r.URL.Path)
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(stop)
	w.endpoint("v1", "10.0.2.1", "v1", srv.Listener.Addr().String())
	w.routes("shop", route.Rule{Origin: "r", Backends: []route.Backend{{Name: "v1", Weight: 1}}, Filters: route.Filters{Rewrite: &route.Rewrite{Path: &route.PathEdit{Value: "/new"}}}})
	open := func(path string) (net.Conn, *bufio.Reader) {
		c, err := w.connect("10.1.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: shop\r\n\r\n")
		b := bufio.NewReader(c)
		for {
			line, err := b.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(line, "/new") {
				return c, b
			}
		}
	}
	x, rest := open("/x")
	defer func() { _ = x.Close() }()
	y, _ := open("/y")
	defer func() { _ = y.Close() }()
	w.enforce(denied("shop", "/new"), denied("shop", "/x"))
	w.g.Recheck()
	if _, err := io.Copy(io.Discard, rest); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the denied stream goes on")
	}
	if r := w.seen(1, func() []Record { return w.requests })[0]; r.Reason != reason.PolicyChanged || string(r.Path) != "/x" {
		t.Errorf("%v %s", r.Reason, r.Path)
	}
	if w.g.Active() != 1 {
		t.Errorf("%d streams are left", w.g.Active())
	}
}

// TestMovedService: an open connection to a service that uses another waypoint now
// carries no further request, since this gateway no longer gets its policies.
func TestMovedService(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, _ := get(t, c, "/"); status != 200 {
		t.Fatalf("status %d", status)
	}
	w.service("shop", "10.1.0.1", func(s *workloadpb.Service) { s.Waypoint = nil })
	if status, _ := get(t, c, "/"); status != 200 {
		t.Errorf("without a waypoint: %d", status)
	}
	w.service("shop", "10.1.0.1", func(s *workloadpb.Service) {
		s.Waypoint.Destination = &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: "other.ns.svc.cluster.local"}}
	})
	if status, _ := get(t, c, "/"); status != 503 {
		t.Errorf("at another waypoint: %d", status)
	}
	w.seen(3, func() []Record { return w.requests })
}
