package gateway

import (
	"fmt"
	"testing"

	"github.com/go-jose/go-jose/v4"

	authnpb "github.com/ambit-mesh/ambit/api/authn"
	authzpb "github.com/ambit-mesh/ambit/api/authz"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// fake is a stream.Conn without IO.
type fake struct {
	loop *poll.Loop
	sink stream.Sink
	info stream.Info
	last **fake // set to the one that was written to last
}

func (f *fake) Loop() *poll.Loop   { return f.loop }
func (f *fake) Bind(s stream.Sink) { f.sink = s }
func (f *fake) Write([]byte) bool {
	if f.last != nil {
		*f.last = f
	}
	return true
}
func (f *fake) CloseWrite()         {}
func (f *fake) Abort(reason.Reason) {}
func (f *fake) Pause()              {}
func (f *fake) Resume()             {}
func (f *fake) Consumed(int)        {}
func (f *fake) Info() *stream.Info  { return &f.info }

// TestRequestsAllocateNothing: token, a hundred policies, route, backend, endpoint, metrics and log line of a
// request cost no memory.
func TestRequestsAllocateNothing(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	// One without a waypoint whose endpoint backs another service too, and one behind
	// another waypoint.
	w.service("open", "10.1.0.8", func(s *workloadpb.Service) { s.Waypoint = nil })
	w.workload("open", "10.0.0.8", func(p *workloadpb.Workload) {
		p.Services = map[string]*workloadpb.PortList{}
		for _, name := range []string{"open", "shop"} {
			p.Services["ns/"+name+".ns.svc.cluster.local"] = &workloadpb.PortList{Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}
		}
	})
	second := w.another("")
	w.service("inner", "10.1.0.9", func(s *workloadpb.Service) { s.Waypoint = second })
	w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "shop", Weight: 1}, {Name: "v1", Weight: 1}}})
	// A hundred policies, of which the one that allows is behind others.
	policies := []*authzpb.Policy{denied("shop", "/x"), denied("", "/y/{*}"), custom("shop", "x", "/z", nil)}
	for i := range 48 {
		policies = append(policies, denied("shop", fmt.Sprintf("/x/%d/{*}", i)), principals(fmt.Sprintf("https://a/user-%d", i)))
	}
	w.enforce(append(policies, principals("https://a/ann"))...)
	issuer := jwttest.New(t, "https://a", "k", jose.EdDSA)
	w.accept(&authnpb.Provider{Issuer: issuer.Name, Jwks: jwttest.Set(issuer), ClaimHeaders: []*authnpb.ClaimHeader{{Header: "x-user", Claim: []string{"sub"}}}})
	set, tokens := w.policies, w.tokens
	w.g.opts.Policies, w.g.opts.Authentications = func() *authz.Set { return set }, func() *authn.Set { return tokens }
	requests, lines := 0, &lineCounter{}
	logs, err := logging.New(lines, logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	rec := telemetry.NewLimited("waypoint", logs.Logger("access"), accesslog.DefaultRates)
	reporting := NewTelemetry(rec, accesslog.NewRequests(logs.Lines(accesslog.Scope)), w.dir.Snapshot)
	w.g.opts.Telemetry = reporting
	w.g.opts.Telemetry.Request = func(r *Record) {
		if r.Status == 200 {
			requests++
		}
		reporting.Request(r)
	}
	cfg := w.config
	w.g.opts.Config = func() *route.Config { return cfg }
	var asked *fake
	w.g.opts.dial = func(l *poll.Loop, _ *pool.Target, done func(stream.Conn, *reason.Error)) func() {
		u := &fake{loop: l, last: &asked}
		l.Post(func() { done(u, nil) })
		return func() {}
	}
	l := w.group.Loop(0)
	down := &fake{loop: l}
	w.on(l, func() {
		w.g.shard(l).serve(&incoming{
			authority: "10.1.0.1:80", peer: clientID, remote: clientAddr, accept: func() stream.Conn { return down }, refuse: func(n int) { t.Error(n) },
			gone: func() bool { return false },
		})
	})
	request := []byte("GET /a HTTP/1.1\r\nHost: h\r\nUser-Agent: curl/8\r\nAccept: */*\r\nAuthorization: Bearer " + issuer.Token(map[string]any{"sub": "ann"}) + "\r\n\r\n")
	response := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	turn := make(chan struct{})
	ask := func() { down.sink.OnData(request, false) }
	var reply func()
	reply = func() {
		u := asked
		if asked = nil; u == nil { // it is being dialled
			l.Post(reply)
			return
		}
		u.sink.OnData(response, false)
		turn <- struct{}{}
	}
	one := func() {
		l.Post(ask)
		l.Post(reply)
		<-turn
	}
	want := 0
	for _, backend := range []string{"shop", "v1", "open", "inner"} {
		w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: backend, Weight: 1}}})
		cfg = w.config
		for range 50 {
			one()
		}
		// All endpoints are connected now.
		if n := testing.AllocsPerRun(100, one); n != 0 && !race {
			t.Errorf("%s: %v allocations a request", backend, n)
		}
		want += 151
	}
	if requests != want || lines.n != requests {
		t.Errorf("%d requests, %d lines", requests, lines.n)
	}
}

// lineCounter counts the lines of a log.
type lineCounter struct{ n int }

func (l *lineCounter) Write(p []byte) (int, error) {
	l.n++
	return len(p), nil
}
