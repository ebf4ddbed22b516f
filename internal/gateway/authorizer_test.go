package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// custom is a policy of a service that has an authorizer of the world asked about a path,
// or about everything.
func custom(service, authorizer, path string, edit func(*authzpb.Provider)) *authzpb.Policy {
	m := denied(service, path)
	m.Action = authzpb.Action_CUSTOM
	if path == "" {
		m.Rules = []*authzpb.Rule{{}}
	}
	m.Provider = &authzpb.Provider{
		Name: authorizer, Namespace: "ns", Hostname: authorizer + ".ns.svc.cluster.local", Port: 80, TimeoutMs: 60_000, StatusOnError: 403,
		Protocol: &authzpb.Provider_Http{Http: &authzpb.HTTPCheck{IncludeHeaders: []string{"x-*"}, ToUpstream: []string{"x-user"}}},
	}
	if edit != nil {
		edit(m.Provider)
	}
	return m
}

// stall is a service whose program has both versions of HTTP.
func (w *world) stall() {
	w.t.Helper()
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(rw, "%s %s %s", r.Method, r.URL, b)
	}))
	s.Config.Protocols = both
	s.Start()
	w.t.Cleanup(s.Close)
	w.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	w.endpoint("shop-1", "10.0.1.1", "shop", strings.TrimPrefix(s.URL, "http://"))
}

// authorizer is one by HTTP. Its answers wait until the test gives them.
type authorizer struct {
	t     testing.TB
	asked chan *question
}

type question struct {
	*http.Request
	body   string
	rw     http.ResponseWriter
	answer chan struct{}
}

// say answers with a status.
func (q *question) say(status int, header ...string) {
	for i := 0; i < len(header); i += 2 {
		q.rw.Header().Set(header[i], header[i+1])
	}
	q.rw.WriteHeader(status)
	close(q.answer)
}

// authorizer adds a service with one, whose endpoint has the address 10.0.5.n.
func (w *world) authorizer(name string, n int) *authorizer {
	w.t.Helper()
	a := &authorizer{t: w.t, asked: make(chan *question, 1000)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		q := &question{Request: r, body: string(b), rw: rw, answer: make(chan struct{})}
		a.asked <- q
		select {
		case <-q.answer:
		case <-r.Context().Done():
		}
	})}
	go func() { _ = s.Serve(ln) }()
	w.t.Cleanup(func() { _ = s.Close() })
	w.service(name, fmt.Sprintf("10.1.5.%d", n), func(s *workloadpb.Service) { s.Waypoint = nil })
	w.endpoint(name, fmt.Sprintf("10.0.5.%d", n), name, ln.Addr().String())
	return a
}

func (a *authorizer) next() *question {
	a.t.Helper()
	select {
	case q := <-a.asked:
		return q
	case <-time.After(time.Minute):
		a.t.Fatal("no question comes")
		return nil
	}
}

// answer is what a client got.
type answer struct {
	status int
	body   string
	header http.Header
	err    error
}

// h2client sends requests on one connection of HTTP/2.
func (w *world) h2client() *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p, DialContext: func(context.Context, string, string) (net.Conn, error) { return w.connect("10.1.0.1:80") }}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func send(c *http.Client, method, path, body string, header ...string) chan answer {
	out := make(chan answer, 1)
	go func() {
		r, err := http.NewRequest(method, "http://shop"+path, strings.NewReader(body))
		if err != nil {
			out <- answer{err: err}
			return
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := c.Do(r)
		if err != nil {
			out <- answer{err: err}
			return
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		out <- answer{resp.StatusCode, string(b), resp.Header, err}
	}()
	return out
}

func (w *world) got(c chan answer, status int, body string) {
	w.t.Helper()
	select {
	case a := <-c:
		if a.err != nil || a.status != status || !strings.Contains(a.body, body) {
			w.t.Errorf("%d %q %v, wanted %d %q", a.status, a.body, a.err, status, body)
		}
	case <-time.After(time.Minute):
		w.t.Error("no answer comes")
	}
}

// nothingWaits checks that no question is under way and nothing of one is counted.
func (w *world) nothingWaits() {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		waits := 0
		for i := range w.group.Len() {
			w.on(w.group.Loop(i), func() {
				if s := w.g.shards[i]; s != nil {
					waits += s.engine.Waiting() + s.engine.Active() + s.engine.Held()
				}
			})
		}
		if waits == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d requests or questions are left", waits)
		}
	}
}

// counted collects what came of questions.
func (w *world) counted() func() string {
	var mu sync.Mutex
	got := map[string]int{}
	w.g.opts.Telemetry.Asked = func(name string, o extauthz.Outcome) {
		mu.Lock()
		defer mu.Unlock()
		got[name+" "+o.String()]++
	}
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(got)
	}
}

// TestAuthorizerJudgesItsOwnRequest: requests of one connection wait for their answers at
// the same time, and each goes on as what it is.
func TestAuthorizerJudgesItsOwnRequest(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	w.enforce(custom("shop", "x", "", nil), denied("shop", "/denied"), custom("shop", "x", "/b", nil))
	counted := w.counted()
	c := w.h2client()
	first := send(c, "GET", "/denied", "")
	q1 := a.next()
	second := send(c, "GET", "/b", "", "x-user", "root")
	q2 := a.next()
	third := send(c, "GET", "/c", "")
	q3 := a.next()
	if q1.URL.Path != "/denied" || q2.URL.Path != "/b" || q2.Header.Get("X-User") != "root" {
		t.Errorf("%s, %s", q1.URL, q2.URL)
	}
	q2.say(200, "X-User", "ann")
	w.got(second, 200, "GET /b")
	q1.say(200)
	w.got(first, 403, "RBAC: access denied")
	q3.say(401)
	w.got(third, 401, "")
	w.nothingWaits()
	if got := counted(); got != "map[x allowed:2 x denied:1]" {
		t.Error(got)
	}
}

// TestAuthorizersInTurn: all authorizers that match are asked, each once and by name, and
// one denial is enough.
func TestAuthorizersInTurn(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	x, y := w.authorizer("x", 1), w.authorizer("y", 2)
	w.enforce(custom("shop", "y", "", nil), custom("shop", "x", "", nil), custom("shop", "x", "/", nil))
	c := w.h2client()
	r := send(c, "GET", "/", "")
	q := x.next()
	q.say(200, "x-user", "ann")
	q = y.next()
	if q.Header.Get("X-User") != "ann" {
		t.Errorf("the second authorizer gets %v", q.Header)
	}
	q.say(200)
	w.got(r, 200, "GET /")
	r = send(c, "GET", "/", "")
	x.next().say(200)
	y.next().say(403)
	w.got(r, 403, "")
	w.nothingWaits()
	if len(x.asked)+len(y.asked) != 0 {
		t.Error("more questions")
	}
	var many []*authzpb.Policy
	for i := range 12 {
		many = append(many, custom("shop", fmt.Sprintf("x%02d", i), "", func(p *authzpb.Provider) { p.Hostname = "x.ns.svc.cluster.local" }))
	}
	w.enforce(many...)
	r = send(c, "GET", "/", "")
	for range 8 {
		x.next().say(200)
	}
	w.got(r, 403, "")
	w.nothingWaits()
}

// TestPoliciesChangeDuringACheck: a request that waits is decided by the policies that are
// in force when it goes on, and one that has passed is not asked about again.
func TestPoliciesChangeDuringACheck(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	x, y := w.authorizer("x", 1), w.authorizer("y", 2)
	w.enforce(custom("shop", "x", "", nil))
	c := w.h2client()
	waits := send(c, "GET", "/a", "")
	q := x.next()
	w.enforce(custom("shop", "x", "", nil), denied("shop", "/a"))
	w.g.Recheck()
	q.say(200)
	w.got(waits, 403, "RBAC: access denied")

	waits = send(c, "GET", "/b", "")
	q = x.next()
	w.enforce(custom("shop", "y", "", nil))
	w.g.Recheck()
	q.say(200)
	y.next().say(401)
	w.got(waits, 401, "")

	// The header that the authorizer gave counts when policies change.
	release := make(chan struct{})
	w.service("slow", "10.1.0.9", func(s *workloadpb.Service) { s.Waypoint = nil })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{}, 9)
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: h2, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-release
		_, _ = io.WriteString(rw, "slow")
	})}
	go func() { _ = s.Serve(ln) }()
	defer func() { _ = s.Close() }()
	w.endpoint("slow", "10.0.9.1", "slow", ln.Addr().String())
	w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "slow", Weight: 1}}})
	user := func(name string) *authzpb.Policy {
		p := permitted("client")
		p.Rules[0].Clauses[0].Matches = []*authzpb.Match{{Headers: []*authzpb.HeaderMatch{{Name: "x-user", Values: []*securitypb.StringMatch{exactly(name)}}}}}
		return p
	}
	w.enforce(custom("shop", "x", "", nil), user("ann"))
	passes := send(c, "GET", "/c", "")
	x.next().say(200, "x-user", "ann")
	<-begun
	cut := send(c, "GET", "/d", "")
	x.next().say(200, "x-user", "ann")
	<-begun
	w.enforce(custom("shop", "x", "", nil), user("ann"), denied("shop", "/d"))
	w.g.Recheck()
	w.got(cut, 403, "")
	close(release)
	w.got(passes, 200, "slow")
	if len(x.asked) != 0 {
		t.Error("asked again")
	}
	w.nothingWaits()
}

// TestAuthorizerFails: nothing passes an authorizer that is away, too slow, or broken,
// unless it fails open.
func TestAuthorizerFails(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	counted := w.counted()
	c := w.h2client()
	for _, open := range []bool{false, true} {
		status := map[bool]int{false: 418, true: 200}[open]
		failing := func(edit func(*authzpb.Provider)) {
			w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) {
				p.FailOpen, p.StatusOnError = open, 418
				if edit != nil {
					edit(p)
				}
			}))
		}
		failing(nil)
		r := send(c, "GET", "/", "", "x-user", "root")
		a.next().say(500)
		w.got(r, status, "")
		r = send(c, "GET", "/", "")
		q := a.next()
		conn, _, err := q.rw.(http.Hijacker).Hijack()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "garbage\r\n\r\n")
		_ = conn.Close()
		close(q.answer)
		w.got(r, status, "")
		failing(func(p *authzpb.Provider) { p.TimeoutMs = 20 })
		r = send(c, "GET", "/", "")
		w.got(r, status, "")
		a.next()
		failing(func(p *authzpb.Provider) { p.Hostname = "nowhere.ns.svc.cluster.local" })
		w.got(send(c, "GET", "/", ""), status, "")
		failing(func(p *authzpb.Provider) { p.Namespace, p.Hostname = "", "nowhere.example" })
		w.got(send(c, "GET", "/", ""), status, "")
		failing(func(p *authzpb.Provider) { p.Port = 81 })
		w.got(send(c, "GET", "/", ""), status, "")
		// An authorizer of HTTP/1 does not understand a question by gRPC.
		failing(func(p *authzpb.Provider) { p.Protocol = &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}} })
		r = send(c, "GET", "/", "")
		a.next().say(200)
		w.got(r, status, "")
		// An answer that there is, and that is no allow, is not a failure.
		failing(nil)
		r = send(c, "GET", "/", "")
		a.next().say(302, "location", "/login")
		w.got(r, 302, "")
		w.nothingWaits()
	}
	if got := counted(); got != "map[x denied:2 x error:7 x fail_open:7]" {
		t.Error(got)
	}
	failed := 0
	for _, r := range w.seen(16, func() []Record { return w.requests }) {
		if r.Reason == reason.AuthorizerFailed {
			failed++
		}
	}
	if failed != 7 {
		t.Errorf("%d requests with the reason", failed)
	}
}

// TestCheckedBodies: an authorizer gets the body, a body that is too large is refused or
// cut for it, and the endpoint gets all of it.
func TestCheckedBodies(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	body := func(most uint32, partial bool) {
		w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) {
			p.Body = &authzpb.CheckBody{MaxBytes: most, AllowPartial: partial}
		}))
	}
	big := strings.Repeat("0123456789", 30_000) // larger than a client's credit
	for _, c := range []*http.Client{w.h2client(), w.h1client()} {
		body(400_000, false)
		for _, sent := range []string{"", "abc", big} {
			r := send(c, "POST", "/", sent)
			q := a.next()
			if q.body != sent || q.Header.Get("X-Envoy-Auth-Partial-Body") != "false" {
				t.Errorf("%d bytes of %d, partial %s", len(q.body), len(sent), q.Header.Get("X-Envoy-Auth-Partial-Body"))
			}
			q.say(200)
			w.got(r, 200, "POST / "+sent)
		}
		body(100, true)
		r := send(c, "POST", "/", big)
		q := a.next()
		if q.body != big[:100] || q.Header.Get("X-Envoy-Auth-Partial-Body") != "true" {
			t.Errorf("%d bytes, partial %s", len(q.body), q.Header.Get("X-Envoy-Auth-Partial-Body"))
		}
		q.say(200)
		w.got(r, 200, "POST / "+big)
		r = send(c, "POST", "/", big)
		a.next().say(403)
		w.got(r, 403, "")
		body(100, false)
		w.got(send(c, "POST", "/", strings.Repeat("a", 101)), 413, "")
		r = send(c, "POST", "/", strings.Repeat("a", 100))
		a.next().say(200)
		w.got(r, 200, strings.Repeat("a", 100))
		w.nothingWaits()
	}
	if len(a.asked) != 0 {
		t.Error("asked about a body that is too large")
	}
	for _, record := range w.requests {
		if record.Status == 413 && record.Reason != reason.BodyTooLarge {
			t.Errorf("%v", record.Reason)
		}
	}
}

// TestExpectedBodies: a client that waits for leave to send its body gets it when the
// authorizer is to get the body.
func TestExpectedBodies(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 100} }))
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	leave := make([]byte, len("HTTP/1.1 100"))
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(c, leave); err != nil || string(leave) != "HTTP/1.1 100" {
		t.Fatalf("%q %v", leave, err)
	}
	_, _ = io.WriteString(c, "abc")
	q := a.next()
	if q.body != "abc" {
		t.Errorf("%q", q.body)
	}
	q.say(403)
}

// h1client sends requests by HTTP/1.
func (w *world) h1client() *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return w.connect("10.1.0.1:80") }}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
