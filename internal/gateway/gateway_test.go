package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// shop adds service shop with two endpoints, and services v1 and v2 with one each.
func (w *world) shop() {
	w.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	w.endpoint("shop-1", "10.0.1.1", "shop", program(w.t, "shop-1"))
	w.endpoint("shop-2", "10.0.1.2", "shop", program(w.t, "shop-2"))
	for i, v := range []string{"v1", "v2"} {
		w.service(v, []string{"10.1.0.2", "10.1.0.3"}[i], func(s *workloadpb.Service) { s.Waypoint = nil })
		w.endpoint(v, []string{"10.0.2.1", "10.0.2.2"}[i], v, program(w.t, v))
	}
}

func TestServiceWithoutRoutes(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	got := map[string]int{}
	for range 40 {
		status, b := get(t, c, "/x?y")
		if status != 200 || b != "shop-1 GET /x?y " && b != "shop-2 GET /x?y " {
			t.Fatalf("%d %q", status, b)
		}
		got[b]++
	}
	if len(got) != 2 {
		t.Errorf("endpoints: %v", got)
	}
	r := w.seen(40, func() []Record { return w.requests })[0]
	if r.Status != 200 || r.Reason != reason.OK || r.Client.Name != "client" || r.ClientIdentity != clientID || r.Service.Name != "shop" ||
		r.Backend.Name != "shop" || r.Endpoint == nil || r.Upstream.Port() != 8080 || r.Tries != 1 || r.Version != "HTTP/1.1" {
		t.Errorf("%+v", r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dialled[0]
	if d.Tunnel.Port() != 15008 || d.Tunnel.Addr() != d.App.Addr() || d.Identities != "spiffe://cluster.local/ns/ns/sa/"+d.UID[len("c//Pod/ns/"):] ||
		d.Client.Forwarded != `for="10.0.0.1";host=shop.ns.svc.cluster.local` || d.Client.Baggage != "k8s.namespace.name=ns" {
		t.Errorf("%+v", d)
	}
}

func TestRoutes(t *testing.T) {
	w := newWorld(t, 2)
	w.shop()
	w.routes("shop",
		route.Rule{Origin: "split", Matches: segments("/split"), Backends: []route.Backend{{Name: "v1", Weight: 1}, {Name: "v2", Weight: 1}}},
		route.Rule{Origin: "self", Matches: segments("/self"), Backends: []route.Backend{{Name: "shop", Weight: 1}}},
		route.Rule{Origin: "empty", Matches: segments("/empty")},
	)
	c, err := w.connect("shop.ns.svc.cluster.local:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	got := map[string]int{}
	for range 100 {
		_, b := get(t, c, "/split")
		got[b[:2]]++
	}
	if got["v1"] < 25 || got["v2"] < 25 {
		t.Errorf("shares: %v", got)
	}
	if status, b := get(t, c, "/self"); status != 200 || b[:5] != "shop-" {
		t.Errorf("%d %q", status, b)
	}
	if status, b := get(t, c, "/other"); status != 404 || b != "" {
		t.Errorf("%d %q", status, b)
	}
	if status, b := get(t, c, "/empty"); status != 500 || b != "the rule has no usable backend" {
		t.Errorf("%d %q", status, b)
	}
	all := w.seen(103, func() []Record { return w.requests })
	if r := all[0]; r.Route != "split" || r.Backend.Name != r.Endpoint.Name {
		t.Errorf("%+v", r)
	}
	if r := all[101]; r.Reason != reason.NoRoute || r.Status != 404 {
		t.Errorf("%+v", r)
	}
	if r := all[102]; r.Reason != reason.NoBackend || r.Route != "empty" {
		t.Errorf("%+v", r)
	}
}

func segments(p string) []route.Match {
	return []route.Match{{Path: route.Path{Kind: route.Segments, Value: p}}}
}

// TestStrangersAreRefused: a gateway opens nothing that does not use it.
func TestStrangersAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	w.workload("alone", "10.0.3.1", func(*workloadpb.Workload) {})
	for authority, want := range map[string]refusal{
		"10.1.0.2:80": 404, "v1.ns.svc.cluster.local:80": 404, "10.9.9.9:80": 404, "nobody.ns.svc.cluster.local:80": 404,
		"10.1.0.1:81": 503, "10.0.3.1:80": 404, "10.0.1.1:8080": 404, "nonsense": 400, "": 400,
	} {
		_, err := w.connect(authority)
		var got refusal
		if !errors.As(err, &got) || got != want {
			t.Errorf("%s: %v, want %d", authority, err, int(want))
		}
	}
	if all := w.seen(9, func() []Record { return w.conns }); all[0].ClientIdentity != clientID || all[0].Reason == reason.OK {
		t.Errorf("%+v", all[0])
	}
}

// echo is a program that speaks first, and then sends back what it gets.
func echo(t testing.TB, banner string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.WriteString(c, banner)
				_, _ = io.Copy(c, c)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	return ln.Addr().String()
}

// TestTCP: what is no HTTP passes as it is, also when the server speaks first.
func TestTCP(t *testing.T) {
	for name, app := range map[string]workloadpb.AppProtocol{"declared": workloadpb.AppProtocol_TCP, "sniffed": workloadpb.AppProtocol_UNKNOWN} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.service("db", "10.1.0.9", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = app })
			w.endpoint("db", "10.0.9.1", "db", echo(t, "ready\n"))
			c, err := w.connect("10.1.0.9:80")
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 6)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "ready\n" {
				t.Fatal(string(b), err)
			}
			_, _ = io.WriteString(c, "SET a b\r\n")
			_ = c.(*net.TCPConn).CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != "SET a b\r\n" {
				t.Fatalf("%q %v", b, err)
			}
			_ = c.Close()
			r := w.seen(1, func() []Record { return w.conns })[0]
			if r.Reason != reason.OK || r.Sent != 15 || r.Received != 9 || r.Endpoint.Name != "db" {
				t.Errorf("%+v", r)
			}
			if d := w.dialled[0]; d.Client.Forwarded != `for="10.0.0.1:40000";host=db.ns.svc.cluster.local` {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestSniffed: a port that declares nothing carries HTTP if it looks like it.
func TestSniffed(t *testing.T) {
	w := newWorld(t, 1)
	w.service("any", "10.1.0.8", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_UNKNOWN })
	w.endpoint("any", "10.0.8.1", "any", program(t, "any"))
	c, err := w.connect("10.1.0.8:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, b := get(t, c, "/"); status != 200 || b != "any GET / " {
		t.Errorf("%d %q", status, b)
	}
	w.seen(1, func() []Record { return w.requests })
}

// TestWithoutRoutesYet: before the first configuration nothing passes.
func TestWithoutRoutesYet(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	w.config = nil
	var r refusal
	if _, err := w.connect("10.1.0.1:80"); !errors.As(err, &r) || r != 503 {
		t.Error(err)
	}
}

// TestLearn: a directory that is filled on demand is asked for what a request needs,
// before it is decided.
func TestLearn(t *testing.T) {
	w := newWorld(t, 1)
	var asked []string
	known := map[string]func(){
		"/10.1.0.1": func() { w.service("shop", "10.1.0.1", func(*workloadpb.Service) {}) },
		"ns/v1.ns.svc.cluster.local": func() {
			w.service("v1", "10.1.0.2", func(*workloadpb.Service) {})
			w.endpoint("v1", "10.0.2.1", "v1", program(t, "v1"))
		},
	}
	w.g.opts.Learn = func(l *poll.Loop, names []string, done func()) bool {
		l.Post(func() {
			for _, n := range names {
				asked = append(asked, n)
				if f := known[n]; f != nil {
					f()
				}
			}
			done()
		})
		return true
	}
	w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "v1", Weight: 1}}})
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, b := get(t, c, "/"); status != 200 || b != "v1 GET / " {
		t.Errorf("%d %q", status, b)
	}
	if got := fmt.Sprint(asked); got != "[/10.1.0.1 ns/v1.ns.svc.cluster.local]" {
		t.Errorf("asked for %s", got)
	}
	asked = nil
	if _, err := w.connect("10.1.0.77:80"); err != refusal(404) { //nolint:errorlint // not wrapped
		t.Error(err)
	}
	if len(asked) != 1 {
		t.Errorf("asked %d times for what is nowhere", len(asked))
	}
}

// TestLearnHosts: of a name that a client has chosen, the addresses are learnt, and then what
// stands there. Requests and connections without HTTP wait for both.
func TestLearnHosts(t *testing.T) {
	w := newWorld(t, 1)
	w.service("pod", "10.1.0.9", func(*workloadpb.Service) {})
	var table hosts.Table
	w.g.opts.Hosts = &table
	w.service("out", "10.1.0.8", func(s *workloadpb.Service) {
		s.Hostname, s.Addresses, s.IpFamilies = "*.out.test", nil, workloadpb.IPFamilies_AUTOMATIC
		s.LoadBalancing = &workloadpb.LoadBalancing{Mode: workloadpb.LoadBalancing_PASSTHROUGH}
		s.Ports = append(s.Ports, &workloadpb.Port{ServicePort: 443, TargetPort: 8080, AppProtocol: workloadpb.AppProtocol_TCP})
		body, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if bad := table.Apply(xds.Delta{Updated: []xds.Resource{{Name: "ns/*.out.test", Body: body}}}); len(bad) > 0 {
			t.Fatal(bad)
		}
	})
	w.programs[netip.MustParseAddrPort("192.0.2.1:8080")] = program(t, "outside")
	w.programs[netip.MustParseAddrPort("10.0.9.1:8080")] = program(t, "pod")
	all := map[string][]netip.Addr{
		"a.out.test": {netip.MustParseAddr("192.0.2.1")},
		"b.out.test": {netip.MustParseAddr("10.0.9.1"), netip.MustParseAddr("192.0.2.1")},
		"c.out.test": {netip.MustParseAddr("10.0.9.1")},
	}
	var asked []string
	known := map[string]bool{}
	w.g.opts.Names = func(host string) ([]netip.Addr, error, bool) { return all[host], nil, known[host] } //nolint:revive // the answer is a pair
	w.g.opts.Answered = func(name string) bool { return known[name] }
	w.g.opts.Learn = func(l *poll.Loop, names []string, done func()) bool {
		l.Post(func() {
			for _, n := range names {
				asked, known[n] = append(asked, n), true
				if n == "/10.0.9.1" {
					w.workload("well", "10.0.9.1", func(*workloadpb.Workload) {})
				}
			}
			done()
		})
		return true
	}
	w.config = &route.Config{}
	for _, tt := range []struct{ host, port, want, asked string }{
		{"a.out.test", "443", "outside GET / ", "[a.out.test /192.0.2.1]"},
		{"a.out.test", "80", "outside GET / ", "[]"},
		{"b.out.test", "80", "outside GET / ", "[b.out.test"},
		{"b.out.test", "443", "outside GET / ", "["},
		{"c.out.test", "80", "no healthy upstream", "[c.out.test"},
		{"c.out.test", "443", "", "[]"},
	} {
		w.on(w.group.Loop(0), func() { asked = nil })
		c, err := w.connect(tt.host + ":" + tt.port)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", tt.host)
		b, _ := io.ReadAll(c)
		_ = c.Close()
		if _, body, _ := strings.Cut(string(b), "\r\n\r\n"); body != tt.want {
			t.Errorf("%s:%s: %q", tt.host, tt.port, b)
		}
		got := ""
		w.on(w.group.Loop(0), func() { got = fmt.Sprint(asked) })
		if !strings.HasPrefix(got, tt.asked) {
			t.Errorf("%s:%s: asked for %s", tt.host, tt.port, got)
		}
	}
}

// TestLimits: requests beyond the bound of an upstream are answered at once.
func TestLimits(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	hold := make(chan struct{})
	begun := make(chan struct{}, 10)
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-hold
	}))
	defer s.Close()
	w.endpoint("v1", "10.0.2.1", "v1", s.Listener.Addr().String())
	w.routes("shop", route.Rule{Origin: "all", Backends: []route.Backend{{Name: "v1", Weight: 1}}})
	w.config.Upstreams["v1"].Limits.Requests = 2
	status := make(chan int, 2)
	for range 2 {
		go func() {
			c, err := w.connect("10.1.0.1:80")
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			n, _ := get(t, c, "/")
			status <- n
		}()
		<-begun
	}
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if n, _ := get(t, c, "/"); n != 503 {
		t.Errorf("%d", n)
	}
	if r := w.seen(1, func() []Record { return w.requests })[0]; r.Reason != reason.ResourceExhausted {
		t.Errorf("%+v", r)
	}
	close(hold)
	if a, b := <-status, <-status; a != 200 || b != 200 {
		t.Errorf("%d %d", a, b)
	}
	if n, _ := get(t, c, "/"); n != 200 {
		t.Errorf("afterwards: %d", n)
	}
}

// TestWorkload: a workload whose waypoint the gateway is is reached at its own port,
// without routes of its services.
func TestWorkload(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	w.routes("shop", route.Rule{Origin: "none"})
	w.workload("pod", "10.0.4.1", func(p *workloadpb.Workload) {
		p.Waypoint = &workloadpb.GatewayAddress{
			Destination: &workloadpb.GatewayAddress_Address{Address: &workloadpb.NetworkAddress{Address: gatewayAddr.AsSlice()}}, HboneMtlsPort: 15008,
		}
		p.Services = map[string]*workloadpb.PortList{"ns/shop.ns.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}}
	})
	w.programs[netip.MustParseAddrPort("10.0.4.1:8080")] = program(t, "pod")
	w.programs[netip.MustParseAddrPort("10.0.4.1:9090")] = echo(t, "hi")
	c, err := w.connect("10.0.4.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, b := get(t, c, "/"); status != 200 || b != "pod GET / " {
		t.Errorf("%d %q", status, b)
	}
	if r := w.seen(1, func() []Record { return w.requests })[0]; r.Service != nil || r.Endpoint.Name != "pod" || r.Route != "" {
		t.Errorf("%+v", r)
	}
	raw, err := w.connect("10.0.4.1:9090") // a port that no service has
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	b := make([]byte, 2)
	if _, err := io.ReadFull(raw, b); err != nil || string(b) != "hi" {
		t.Errorf("%q %v", b, err)
	}
}

// TestVersions: the endpoint gets the version of HTTP that its port declares, else that
// of the client.
func TestVersions(t *testing.T) {
	w := newWorld(t, 1)
	vips := map[workloadpb.AppProtocol]string{
		workloadpb.AppProtocol_HTTP11: "10.1.1.1", workloadpb.AppProtocol_HTTP2: "10.1.1.2", workloadpb.AppProtocol_GRPC: "10.1.1.3", workloadpb.AppProtocol_UNKNOWN: "10.1.1.4",
	}
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: both, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.Proto) })}
	go func() { _ = s.Serve(ln) }()
	defer func() { _ = s.Close() }()
	for app, vip := range vips {
		name := fmt.Sprint("s", int(app))
		w.service(name, vip, func(s *workloadpb.Service) { s.Ports[0].AppProtocol = app })
		w.endpoint(name, "10.0.7."+fmt.Sprint(int(app)+1), name, ln.Addr().String())
	}
	for _, h2 := range []bool{false, true} {
		p := new(http.Protocols)
		p.SetHTTP1(!h2)
		p.SetUnencryptedHTTP2(h2)
		tr := &http.Transport{Protocols: p, DialContext: func(_ context.Context, _, addr string) (net.Conn, error) { return w.connect(addr) }}
		for app, vip := range vips {
			r, err := (&http.Client{Transport: tr}).Get("http://" + vip + ":80/")
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(r.Body)
			_ = r.Body.Close()
			want := "HTTP/1.1"
			if h2 || app == workloadpb.AppProtocol_HTTP2 || app == workloadpb.AppProtocol_GRPC {
				want = "HTTP/2.0"
			}
			if string(b) != want || r.StatusCode != 200 {
				t.Errorf("client HTTP/2 %t, port %s: %d %s, want %s", h2, app, r.StatusCode, b, want)
			}
		}
		tr.CloseIdleConnections()
	}
}

// TestOtherNetworks: endpoints that cannot be reached yet get nothing as long as there
// is another one.
func TestOtherNetworks(t *testing.T) {
	w := newWorld(t, 1)
	w.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	for i := range 3 {
		w.workload(fmt.Sprint("far", i), "10.0.5."+fmt.Sprint(i+1), func(p *workloadpb.Workload) {
			p.Network = "other"
			p.Services = map[string]*workloadpb.PortList{"ns/shop.ns.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}}
		})
	}
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, b := get(t, c, "/"); status != 503 || b != "no gateway to the destination's network" {
		t.Errorf("%d %q", status, b)
	}
	w.endpoint("shop-1", "10.0.1.1", "shop", program(t, "near"))
	for range 20 {
		if status, b := get(t, c, "/"); status != 200 || b != "near GET / " {
			t.Errorf("%d %q", status, b)
		}
	}
}

// A client that names targets which do not exist has so many requested from the control
// plane; another client's are requested as before.
func TestStrangeTargetsAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	asked := 0
	w.g.opts.Learn = func(l *poll.Loop, names []string, done func()) bool {
		asked += len(names)
		return l.Post(done)
	}
	serve := func(client identity.Identity, n int) (got int) {
		asked = 0
		for i := range n {
			answered := make(chan int, 1)
			w.on(w.group.Loop(0), func() {
				w.g.shard(w.group.Loop(0)).serve(&incoming{
					authority: fmt.Sprintf("10.77.%d.%d:80", i/256, i%256), peer: client, remote: clientAddr,
					refuse: func(status int) { answered <- status }, gone: func() bool { return false },
				})
			})
			if status := <-answered; status != 404 {
				t.Fatalf("status %d", status)
			}
		}
		w.on(w.group.Loop(0), func() { got = asked })
		return got
	}
	if got := serve(clientID, maxStrange+100); got != maxStrange {
		t.Errorf("%d targets of one client were requested, want %d", got, maxStrange)
	}
	if got := serve(identity.Identity{TrustDomain: domain, Namespace: "ns", ServiceAccount: "other"}, 10); got != 10 {
		t.Errorf("%d of 10 targets of another client were requested", got)
	}
}

// TestEndpointsOfItsServices: a gateway carries what is for the own address of an
// endpoint of its services, if the service says so, at the ports of that service alone,
// and no longer when the service uses another gateway. Routes are not for it.
func TestEndpointsOfItsServices(t *testing.T) {
	w := newWorld(t, 1)
	service := func(edit func(*workloadpb.Service)) {
		w.service("app", "10.1.0.1", func(s *workloadpb.Service) {
			s.Extensions = []*workloadpb.Extension{{Name: wellknown.ExtensionEndpointsTaken}, {Name: wellknown.ExtensionEndpoints}}
			edit(s)
		})
	}
	service(func(*workloadpb.Service) {})
	w.endpoint("app-1", "10.0.1.1", "app", program(t, "app-1"))
	w.routes("app", route.Rule{Matches: segments("/routed"), Backends: []route.Backend{{Name: "app", Weight: 1}}})
	c, err := w.connect("10.0.1.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, b := get(t, c, "/x"); status != 200 || b != "app-1 GET /x " {
		t.Errorf("%d %q", status, b)
	}
	for _, authority := range []string{"10.0.1.1:9000", "10.0.1.1:80"} {
		var got refusal
		if _, err := w.connect(authority); !errors.As(err, &got) || got != 404 {
			t.Errorf("%s: %v", authority, err)
		}
	}
	service(func(s *workloadpb.Service) { s.Waypoint.GetHostname().Hostname = "other.ns.svc.cluster.local" })
	if status, b := get(t, c, "/x"); status != 503 {
		t.Errorf("after the service has moved: %d %q", status, b)
	}
	var got refusal
	if _, err := w.connect("10.0.1.1:8080"); !errors.As(err, &got) || got != 404 {
		t.Errorf("after the service has moved: %v", err)
	}
}
