package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	authnpb "github.com/ambit-mesh/ambit/api/authn"
	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
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

// TestClientGoesDuringACheck: the question ends with its request, and nothing reaches the
// endpoint.
func TestClientGoesDuringACheck(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 100} }))
	for i, sent := range []string{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na"} {
		c, err := w.connect("10.1.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, sent)
		_ = c.(*net.TCPConn).SetLinger(0)
		if i == 0 {
			q := a.next()
			_ = c.Close()
			select {
			case <-q.Context().Done():
			case <-time.After(time.Minute):
				t.Error("the question goes on")
			}
		} else {
			_ = c.Close()
		}
		w.nothingWaits()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.dialled {
		if d.App == netip.MustParseAddrPort("10.0.1.1:8080") || d.App == netip.MustParseAddrPort("10.0.1.2:8080") {
			t.Error("an endpoint was connected to")
		}
	}
}

// TestConnectionsAreNotAskedAbout: a connection without HTTP that a CUSTOM policy matches
// is refused.
func TestConnectionsAreNotAskedAbout(t *testing.T) {
	w := newWorld(t, 1)
	w.service("shop", "10.1.0.1", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_TCP })
	w.endpoint("shop-1", "10.0.1.1", "shop", echo(t, "hello"))
	w.authorizer("x", 1)
	w.enforce(custom("shop", "x", "/a", nil))
	if _, err := w.connect("10.1.0.1:80"); err != refusal(403) { //nolint:errorlint // not wrapped
		t.Error(err)
	}
	w.enforce()
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	w.enforce(custom("shop", "x", "", nil))
	w.g.Recheck()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
}

// TestChecksAreBounded: one destination has a part of the questions, and what is beyond it
// is refused, whatever the authorizer says of failures.
func TestChecksAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	w.g.opts.maxChecks = 8
	w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.FailOpen = true }))
	c := w.h2client()
	first, second := send(c, "GET", "/", ""), send(c, "GET", "/", "")
	q1, q2 := a.next(), a.next()
	w.got(send(c, "GET", "/", ""), 503, "")
	q1.say(200)
	q2.say(200)
	w.got(first, 200, "")
	w.got(second, 200, "")
	third := send(c, "GET", "/", "")
	a.next().say(200)
	w.got(third, 200, "")
	w.nothingWaits()
}

// TestMovedDuringACheck: a request whose service uses another waypoint when the answer
// comes does not go on here, where its policies are no longer known.
func TestMovedDuringACheck(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	w.enforce(custom("shop", "x", "", nil))
	r := send(w.h2client(), "GET", "/", "")
	q := a.next()
	w.enforce()
	w.service("shop", "10.1.0.1", func(s *workloadpb.Service) {
		s.Waypoint.Destination = &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: "other.ns.svc.cluster.local"}}
	})
	q.say(200)
	w.got(r, 503, "")
	w.nothingWaits()
}

// TestTokensOfCheckedRequests: the token of each request is still its own when the answer
// comes, though requests of the same connection had others meanwhile.
func TestTokensOfCheckedRequests(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	issuer := jwttest.New(t, "https://a", "k", jose.EdDSA)
	w.accept(&authnpb.Provider{Issuer: issuer.Name, Jwks: jwttest.Set(issuer), ClaimHeaders: []*authnpb.ClaimHeader{{Header: "x-sub", Claim: []string{"sub"}}}})
	users := permitted("client")
	users.Rules[0].Clauses[0].Matches = []*authzpb.Match{{RequestPrincipals: []*securitypb.StringMatch{exactly("https://a/ann")}}}
	w.enforce(custom("shop", "x", "", nil), users)
	c := w.h2client()
	ann := send(c, "GET", "/ann", "", "authorization", "Bearer "+issuer.Token(map[string]any{"sub": "ann"}))
	q1 := a.next()
	bob := send(c, "GET", "/bob", "", "authorization", "Bearer "+issuer.Token(map[string]any{"sub": "bob"}))
	q2 := a.next()
	if q1.Header.Get("X-Sub") != "ann" || q2.Header.Get("X-Sub") != "bob" || q1.Header["Authorization"] != nil {
		t.Errorf("%v, %v", q1.Header, q2.Header)
	}
	q1.say(200)
	w.got(ann, 200, "")
	q2.say(200)
	w.got(bob, 403, "")
	w.got(send(c, "GET", "/", "", "authorization", "Bearer x"), 401, "")
	if len(a.asked) != 0 {
		t.Error("asked about a token that is not accepted")
	}
	ann = send(c, "GET", "/ann", "", "authorization", "Bearer "+issuer.Token(map[string]any{"sub": "ann"}))
	q1 = a.next()
	w.accept(&authnpb.Provider{Issuer: "https://a"}) // no key is known any more
	q1.say(200)
	w.got(ann, 401, "")
}

// TestRouteAfterACheck: a route by a header of the authorizer is taken if the provider sets it, and
// no route is no way around it.
func TestRouteAfterACheck(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	w.routes("shop", route.Rule{Origin: "ann", Matches: []route.Match{{Headers: []route.Value{{Name: "x-user", Kind: route.Exact, Value: "ann"}}}}, Backends: []route.Backend{{Name: "shop", Weight: 1}}})
	c := w.h2client()
	for _, again := range []bool{false, true} {
		w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.RecomputeRoute = again }))
		r := send(c, "GET", "/", "")
		a.next().say(401)
		w.got(r, 401, "")
		r = send(c, "GET", "/", "")
		a.next().say(200, "x-user", "ann")
		w.got(r, map[bool]int{false: 404, true: 200}[again], "")
		r = send(c, "GET", "/", "", "x-user", "ann")
		a.next().say(200)
		w.got(r, map[bool]int{false: 200, true: 404}[again], "")
	}
}

// TestLearnedAuthorizer: a gateway whose directory is filled on demand asks for the
// service of the authorizer first.
func TestLearnedAuthorizer(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	var a *authorizer
	names := make(chan string, 9)
	w.g.opts.Learn = func(l *poll.Loop, all []string, done func()) bool {
		l.Post(func() {
			for _, n := range all {
				names <- n
				if n == "ns/x.ns.svc.cluster.local" {
					a = w.authorizer("x", 1)
				}
			}
			done()
		})
		return true
	}
	w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.Namespace = "" }), custom("shop", "y", "/y", nil))
	c := w.h2client()
	r := send(c, "GET", "/", "")
	for n := range names {
		if n == "ns/x.ns.svc.cluster.local" {
			break
		}
	}
	w.on(w.group.Loop(0), func() {})
	a.next().say(200)
	w.got(r, 200, "")
	r = send(c, "GET", "/y", "")
	a.next().say(200)
	w.got(r, 403, "") // there is no y
	w.nothingWaits()
}

// TestExplainAsks: what is said of external authorizers.
func TestExplainAsks(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	w.authorizer("x", 1)
	w.enforce(custom("shop", "x", "/a", nil), denied("shop", "/d"))
	for path, want := range map[string][]string{
		"/a": {"CUSTOM matches: asks x (HTTP to x.ns.svc.cluster.local:80)", "if each external authorizer that is asked allows it, no policy refuses"},
		"/b": {"CUSTOM does not match: does not ask x (HTTP to x.ns.svc.cluster.local:80)", "no policy refuses"},
		"/d": {"DENY matches"},
	} {
		v, err := w.explain(verdict.Question{Authority: "10.1.0.1:80", Path: path})
		if err != nil {
			t.Fatal(err)
		}
		said := map[string]bool{}
		for _, s := range v.Steps {
			said[s.Says] = true
		}
		for _, s := range want {
			if !said[s] {
				t.Errorf("%s: %q is not said: %v", path, s, said)
			}
		}
	}
	w.service("shop", "10.1.0.1", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_TCP })
	v, err := w.explain(verdict.Question{Authority: "10.1.0.1:80"})
	if err != nil || v.Allowed || v.Reason != reason.PolicyUnsupported.String() {
		t.Errorf("a connection without HTTP: %+v %v", v, err)
	}
}

// TestGatheredBodiesCountUntilTheyAreTaken: what an endpoint does not read counts for its
// service, and no more than that service's part of the bound is held.
func TestGatheredBodiesCountUntilTheyAreTaken(t *testing.T) {
	w := newWorld(t, 1)
	a := w.authorizer("x", 1)
	small := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
		return errors.Join(err, cerr)
	}}
	ln, err := small.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	conns := make(chan net.Conn, 100)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(conns)
				return
			}
			conns <- c // and nothing is read
		}
	}()
	w.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	w.endpoint("shop-1", "10.0.1.1", "shop", ln.Addr().String())
	w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 4 << 20} }))
	c := w.h1client()
	c.Transport.(*http.Transport).DisableKeepAlives = true // each request is seen, or not sent
	body := strings.Repeat("a", 4<<20)
	var all []chan answer
	refused := 0
	for range 6 {
		r := send(c, "POST", "/", body)
		select {
		case q := <-a.asked:
			q.say(200)
			all = append(all, r)
			c := <-conns
			defer func() { _ = c.Close() }()
		case got := <-r:
			if got.err == nil && got.status != 503 { // it may be cut while it still sends
				t.Errorf("%d %q", got.status, got.body)
			}
			refused++
		case <-time.After(time.Minute):
			t.Fatal("neither asked nor refused")
		}
	}
	if refused == 0 || len(all) == 0 {
		t.Errorf("%d go on, %d are refused", len(all), refused)
	}
	for _, r := range w.seen(refused, func() []Record { return w.requests }) {
		if r.Reason != reason.ResourceExhausted {
			t.Errorf("%v", r.Reason)
		}
	}
	w.g.Close()
	for _, r := range all {
		<-r
	}
	w.nothingWaits()
}

// TestUpgradesAreAskedAbout: a request that switches the protocol waits as any other, and
// what its client sends early reaches no endpoint before the answer.
func TestUpgradesAreAskedAbout(t *testing.T) {
	w := newWorld(t, 1)
	w.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	got := make(chan string, 9)
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		c, b, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		early := make([]byte, 5)
		_, _ = io.ReadFull(b, early)
		got <- string(early)
	}))
	defer s.Close()
	w.endpoint("shop-1", "10.0.1.1", "shop", strings.TrimPrefix(s.URL, "http://"))
	a := w.authorizer("x", 1)
	w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 3} }))
	for _, status := range []int{403, 200} {
		c, err := w.connect("10.1.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly")
		q := a.next()
		if q.body != "" || q.Header["Upgrade"] != nil || len(got) != 0 {
			t.Errorf("asked: %q %v", q.body, q.Header)
		}
		q.say(status)
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || r.StatusCode != map[int]int{403: 403, 200: 101}[status] {
			t.Fatalf("%v %v", r, err)
		}
		if status == 200 {
			if early := <-got; early != "early" {
				t.Errorf("the program got %q", early)
			}
		}
		_ = c.Close()
	}
	if len(got) != 0 {
		t.Error("what was denied reached the program")
	}
	w.nothingWaits()
}

// TestMirroredAfterACheck: a copy of a request is made after the authorizer has allowed
// it, and has the whole body, with what came before.
func TestMirroredAfterACheck(t *testing.T) {
	w := newWorld(t, 1)
	w.stall()
	a := w.authorizer("x", 1)
	got := make(chan string, 9)
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- r.URL.Path + " " + r.Header.Get("X-User") + " " + string(b)
	}))
	s.Config.Protocols = both
	s.Start()
	defer s.Close()
	w.service("copy", "10.1.0.4", func(s *workloadpb.Service) { s.Waypoint = nil })
	w.endpoint("copy", "10.0.4.1", "copy", strings.TrimPrefix(s.URL, "http://"))
	w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "shop", Weight: 1}}, Filters: route.Filters{Mirrors: []route.Mirror{{Backend: route.Backend{Name: "copy"}}}}})
	w.config.Upstreams["copy"] = &route.Upstream{Service: key("copy")}
	w.enforce(custom("shop", "x", "", func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 4, AllowPartial: true} }))
	c := w.h2client()
	r := send(c, "POST", "/denied", "0123456789")
	a.next().say(403)
	w.got(r, 403, "")
	r = send(c, "POST", "/allowed", "0123456789", "x-user", "root")
	a.next().say(200, "x-user", "ann")
	w.got(r, 200, "POST /allowed 0123456789")
	select {
	case m := <-got:
		if m != "/allowed ann 0123456789" {
			t.Errorf("the copy is %q", m)
		}
	case <-time.After(time.Minute):
		t.Error("no copy comes")
	}
	w.nothingWaits()
	if len(got) != 0 {
		t.Error("what was denied was copied")
	}
}
