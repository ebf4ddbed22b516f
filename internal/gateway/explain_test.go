package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

func (w *world) explain(q verdict.Question) (*verdict.Verdict, error) {
	q.Identity, q.Source = clientID, clientAddr.Addr()
	return w.g.Explain(w.t.Context(), q)
}

// TestExplain: what is said of a request is what its answer shows, and nothing of it is
// dialled, counted or kept.
func TestExplain(t *testing.T) {
	yes := true
	w := newWorld(t, 2)
	w.shop()
	w.routes("shop",
		route.Rule{Origin: "HTTPRoute ns/r, rule 0", Matches: segments("/split"), Backends: []route.Backend{{Name: "v1", Weight: 1}, {Name: "v2", Weight: 9}}},
		route.Rule{Origin: "HTTPRoute ns/r, rule 1", Matches: segments("/empty")},
		route.Rule{Origin: "HTTPRoute ns/r, rule 2", Matches: []route.Match{{Path: route.Path{Kind: route.Segments, Value: "/only"}, Method: "PUT"}}, Backends: []route.Backend{{Name: "v1", Weight: 1}}},
		route.Rule{Origin: "HTTPRoute ns/r, rule 3", Matches: segments("/away"), Filters: route.Filters{Redirect: &route.Redirect{Host: "a.com"}}},
		route.Rule{Origin: "HTTPRoute ns/r, rule 4", Matches: segments("/bad"), Backends: []route.Backend{{Name: "v1", Weight: 1, Invalid: "it does not exist"}}},
	)
	trial := denied("shop", "/split")
	trial.DryRun = true
	w.enforce(denied("shop", "/admin"), trial)
	w.service("db", "10.1.0.9", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_TCP })
	w.endpoint("db1", "10.0.9.1", "db", "127.0.0.1:1")
	const shop = "10.1.0.1:80"
	for _, tt := range []struct {
		q       verdict.Question
		why     reason.Reason
		status  int
		decides string
		to      string
	}{
		{verdict.Question{Authority: shop, Path: "/split"}, reason.OK, 0, "policy: no policy refuses", "v2"},
		{verdict.Question{Authority: "shop.ns.svc.cluster.local:80", Path: "/split/x?y"}, reason.OK, 0, "policy: no policy refuses", "v2"},
		{verdict.Question{Authority: shop, Path: "/admin"}, reason.PolicyDenied, 403, "policy: DENY matches AuthorizationPolicy ns/p0 rule 0", ""},
		{verdict.Question{Authority: shop, Path: "/other"}, reason.NoRoute, 404, "route: the request has no route", ""},
		{verdict.Question{Authority: shop, Path: "/only", Method: "PUT"}, reason.OK, 0, "policy: no policy refuses", "v1"},
		{verdict.Question{Authority: shop, Path: "/only"}, reason.NoRoute, 404, "route: the request has no route", ""},
		{verdict.Question{Authority: shop, Path: "/empty"}, reason.NoBackend, 500, "backend: the rule has no backend with a weight HTTPRoute ns/r rule 1", ""},
		{verdict.Question{Authority: shop, Path: "/empty", Headers: []verdict.Header{{Name: "content-type", Value: "application/grpc"}}}, reason.NoBackend, 200, "backend: the rule has no backend with a weight HTTPRoute ns/r rule 1", ""},
		{verdict.Question{Authority: shop, Path: "/bad"}, reason.NoBackend, 500, "backend: v1 gets all (not usable: it does not exist) HTTPRoute ns/r rule 4", ""},
		{verdict.Question{Authority: shop, Path: "/away"}, reason.OK, 302, "filter: redirect: the waypoint answers itself with 302, location http://a.com/away HTTPRoute ns/r rule 3", ""},
		{verdict.Question{Authority: shop, Path: "/a;b"}, reason.MalformedRequest, 400, "protocol: the path can be read in two ways", ""},
		{verdict.Question{Authority: shop, HTTP: new(bool)}, reason.MalformedRequest, 400, "protocol: a connection that carries no HTTP is answered as a malformed request", ""},
		{verdict.Question{Authority: "10.1.0.9:80"}, reason.OK, 0, "policy: no policy is for it at this waypoint", "db1"},
		{verdict.Question{Authority: "10.1.0.9:80", HTTP: &yes, Path: "/admin"}, reason.OK, 0, "policy: no policy is for it at this waypoint", "db1"},
		{verdict.Question{Authority: "10.1.0.2:80"}, reason.AddressMismatch, 0, "destination: the waypoint does not take 10.1.0.2:80", ""},
		{verdict.Question{Authority: "10.9.9.9:80"}, reason.UnknownDestination, 0, "destination: the waypoint does not take 10.9.9.9:80", ""},
		{verdict.Question{Authority: "10.1.0.1:81"}, reason.NoHealthyUpstream, 0, "destination: the waypoint does not take 10.1.0.1:81", ""},
	} {
		v, err := w.explain(tt.q)
		if err != nil {
			t.Errorf("%+v: %v", tt.q, err)
			continue
		}
		to := ""
		if v.Next != nil {
			to = v.Next.Name
		}
		if v.Reason != tt.why.String() || v.Allowed != (tt.why == reason.OK) || v.Status != tt.status || !strings.HasPrefix(to, tt.to) || tt.to == "" && to != "" {
			t.Errorf("%+v: %+v, next %+v", tt.q, v, v.Next)
		}
		if got := decided(v); got != tt.decides {
			t.Errorf("%+v: decided by %q, want %q", tt.q, got, tt.decides)
		}
		if tt.q.Headers != nil && v.GRPC != 14 {
			t.Errorf("gRPC status %d", v.GRPC)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.notes)+len(w.requests)+len(w.conns)+len(w.dialled) > 0 || w.g.Active() != 0 {
		t.Errorf("questions have left notes %v, requests %v, connections %v, dialled %v, %d active", w.notes, w.requests, w.conns, w.dialled, w.g.Active())
	}
}

// TestExplainAgrees: for requests drawn at random, with routes and policies of all kinds,
// what is said is what the client gets.
func TestExplainAgrees(t *testing.T) {
	w := newWorld(t, 2)
	w.shop()
	to := func(name string) []route.Backend { return []route.Backend{{Name: name, Weight: 1}} }
	w.routes("shop",
		route.Rule{Origin: "HTTPRoute ns/r, rule 0", Matches: []route.Match{{Path: route.Path{Kind: route.Exact, Value: "/a"}, Method: "GET"}}, Backends: to("v1")},
		route.Rule{Origin: "HTTPRoute ns/r, rule 1", Matches: []route.Match{{Path: route.Path{Kind: route.Segments, Value: "/a"}, Headers: []route.Value{{Name: "x-a", Kind: route.Exact, Value: "1"}}}}, Backends: to("v2")},
		route.Rule{Origin: "HTTPRoute ns/r, rule 2", Matches: []route.Match{{Path: route.Path{Kind: route.Regex, Value: "/b.*"}, Query: []route.Value{{Name: "q", Kind: route.Present}}}}, Filters: route.Filters{Redirect: &route.Redirect{Status: 301}}},
		route.Rule{Origin: "HTTPRoute ns/r, rule 3", Matches: segments("/c"), Backends: []route.Backend{{Name: "v1", Weight: 1, Invalid: "it does not exist"}}},
		route.Rule{Origin: "HTTPRoute ns/r, rule 4", Hosts: []string{"*.com"}, Backends: to("v1"), Filters: route.Filters{Rewrite: &route.Rewrite{Host: "x", Path: &route.PathEdit{Value: "/admin"}}}},
		route.Rule{Origin: "HTTPRoute ns/r, rule 5", Matches: segments("/d"), Filters: route.Filters{CORS: &route.CORS{Origins: []string{"http://a.com"}, Methods: []string{"GET"}}}, Backends: to("v2")},
	)
	header := &authzpb.Policy{Action: authzpb.Action_DENY, Everything: true, Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{{
		Headers: []*authzpb.HeaderMatch{{Name: "x-b", Values: []*securitypb.StringMatch{exactly("2")}}},
	}}}}}}}
	gets := &authzpb.Policy{Action: authzpb.Action_ALLOW, Everything: true, Rules: []*authzpb.Rule{{Clauses: []*authzpb.Clause{{Matches: []*authzpb.Match{{
		Methods: []*securitypb.StringMatch{exactly("GET"), exactly("OPTIONS"), exactly("PUT")},
	}}}}}}}
	w.enforce(denied("shop", "/a/admin"), header, gets)
	r := rand.New(rand.NewPCG(1, 2))
	of := func(s ...string) string { return s[r.IntN(len(s))] }
	statuses := map[int]int{}
	for n := range 1000 {
		q := verdict.Question{
			Authority: "10.1.0.1:80", Method: of("GET", "GET", "PUT", "POST", "OPTIONS"), Host: of("shop", "a.com", "A.com:80", "b.a.com"),
			Path: of("/a", "/a/b", "/a/admin", "/%61/admin", "/b", "/b?q=1", "/bb?q", "/c", "/c/x", "/d", "/e", "/a//b", "/a/../c", "/a%2Fb", "/"),
		}
		for _, h := range []verdict.Header{{Name: "x-a", Value: "1"}, {Name: "x-a", Value: "2"}, {Name: "x-b", Value: "2"}, {Name: "origin", Value: "http://a.com"}, {Name: "access-control-request-method", Value: "GET"}} {
			if r.IntN(3) == 0 {
				q.Headers = append(q.Headers, h)
			}
		}
		if n%20 == 0 { // preflight
			q.Method, q.Host, q.Path = "OPTIONS", "shop", "/d"
			q.Headers = []verdict.Header{{Name: "origin", Value: of("http://a.com", "http://b.com")}, {Name: "access-control-request-method", Value: "GET"}}
		}
		v, err := w.explain(q)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		c, err := w.connect(q.Authority)
		if err != nil {
			t.Fatal(err)
		}
		head := q.Method + " " + q.Path + " HTTP/1.1\nHost: " + q.Host
		for _, h := range q.Headers {
			head += "\n" + h.Name + ": " + h.Value
		}
		resp, body := ask(t, c, head)
		_ = c.Close()
		want := v.Status
		if v.Allowed && want == 0 {
			want = 200
			if !strings.HasPrefix(body, v.Next.Name) {
				t.Errorf("%q: answered by %q, said %+v", head, body, v.Next)
			}
		}
		if resp.StatusCode != want {
			t.Errorf("%q: status %d, said %+v", head, resp.StatusCode, v)
		}
		statuses[want]++
	}
	for _, status := range []int{200, 204, 301, 400, 403, 404, 500} {
		if statuses[status] < 5 {
			t.Errorf("only %d requests got %d", statuses[status], status)
		}
	}
}

func decided(v *verdict.Verdict) string {
	i := slices.IndexFunc(v.Steps, func(s verdict.Step) bool { return s.Decides })
	if i < 0 {
		return ""
	}
	s := v.Steps[i]
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s %s", s.Step, s.Says, s.Object, s.Rule))
}

// TestExplainBadQuestions: what no request can be is an error, and no verdict.
func TestExplainBadQuestions(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	for _, q := range []verdict.Question{
		{}, {Authority: "nonsense"}, {Authority: "10.1.0.1:80", Method: "G T"}, {Authority: "10.1.0.1:80", Path: "x"}, {Authority: "10.1.0.1:80", Path: "/a b"},
		{Authority: "10.1.0.1:80", Host: "a b"}, {Authority: "10.1.0.1:80", Headers: []verdict.Header{{Name: "x y", Value: "z"}}},
		{Authority: "10.1.0.1:80", Headers: []verdict.Header{{Name: "x", Value: "a\nb"}}}, {Authority: "10.1.0.1:80", Headers: []verdict.Header{{Name: "connection", Value: "x"}}},
		{Authority: "10.1.0.1:80", Headers: []verdict.Header{{Name: ":path", Value: "/y"}}}, {Authority: "10.1.0.1:80", Headers: []verdict.Header{{Name: "host", Value: "x"}}},
	} {
		if v, err := w.explain(q); !errors.Is(err, verdict.ErrQuestion) {
			t.Errorf("%+v: %+v, error %v", q, v, err)
		}
	}
}

// TestExplainLearns: a question requests what its connection would, and each name that
// does not exist only once; their number is bounded.
func TestExplainLearns(t *testing.T) {
	w := newWorld(t, 1)
	var asked []string
	w.g.opts.Learn = func(l *poll.Loop, names []string, done func()) bool {
		asked = append(asked, names...)
		if slices.Contains(names, "/10.1.0.1") {
			w.shop()
		}
		return l.Post(done)
	}
	if v, err := w.explain(verdict.Question{Authority: "10.1.0.1:80"}); err != nil || !v.Allowed {
		t.Errorf("%+v, error %v", v, err)
	}
	for range 3 {
		if v, err := w.explain(verdict.Question{Authority: "10.9.9.9:80"}); err != nil || v.Reason != "UNKNOWN_DESTINATION" {
			t.Errorf("%+v, error %v", v, err)
		}
	}
	if want := []string{"/10.1.0.1", "/10.9.9.9"}; !slices.Equal(asked, want) {
		t.Errorf("requested %v, want %v", asked, want)
	}
	asked = nil
	for i := range maxExplained + 100 {
		_, _ = w.explain(verdict.Question{Authority: fmt.Sprintf("10.77.%d.%d:80", i/256, i%256)})
	}
	if len(asked) != maxExplained-1 {
		t.Errorf("%d names were requested, want %d", len(asked), maxExplained-1)
	}
}

// TestExplainWithoutPolicies: before routes and policies have come nothing is allowed.
func TestExplainWithoutPolicies(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	w.mu.Lock()
	w.policies = nil
	w.mu.Unlock()
	if v, err := w.explain(verdict.Question{Authority: "10.1.0.1:80"}); err != nil || v.Reason != "UNKNOWN_DESTINATION" || v.Status != 503 { // of the request
		t.Errorf("%+v, error %v", v, err)
	}
	w.mu.Lock()
	w.config = nil
	w.mu.Unlock()
	if v, err := w.explain(verdict.Question{Authority: "10.1.0.1:80"}); err != nil || v.Reason != "UNKNOWN_DESTINATION" || v.Status != 0 {
		t.Errorf("%+v, error %v", v, err)
	}
}

// TestState: each open connection is listed while it is open.
func TestState(t *testing.T) {
	w := newWorld(t, 2)
	w.shop()
	c, err := w.connect("shop.ns.svc.cluster.local:80")
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := get(t, c, "/x"); status != 200 {
		t.Fatal(status)
	}
	s := w.g.State(t.Context())
	if len(s.Connections) != 1 || s.Omitted != 0 {
		t.Fatalf("%+v", s)
	}
	x := s.Connections[0]
	if x.Client != "ns/client" || x.Called != "ns/shop.ns.svc.cluster.local" || x.Port != 80 || x.Protocol != "HTTP/1.1" || x.Source != clientAddr.String() || x.Identity != clientID.String() {
		t.Errorf("%+v", x)
	}
	_ = c.Close()
}
