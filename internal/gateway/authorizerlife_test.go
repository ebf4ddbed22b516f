package gateway

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	authnpb "github.com/ambit-mesh/ambit/api/authn"
	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

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
