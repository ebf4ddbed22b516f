package ztunnel

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// The peers in this file speak HBONE through golang.org/x/net/http2: what the
// proxy does is judged by somebody else's implementation. Its functions that
// take a connection are deprecated only in favour of newer ones of net/http.

func account(name string) identity.Identity {
	return identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: name}
}

func (w *world) bundle(m *certs.Manager, id identity.Identity) *mtls.Bundle {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), netnstest.Timeout)
	defer cancel()
	b, err := m.Get(ctx, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// tunnel dials the server pod's HBONE port from the client pod, which is not
// captured, as somebody.
func (w *world) tunnel(b *mtls.Bundle) (*http2.ClientConn, error) { //nolint:staticcheck // see above
	w.t.Helper()
	raw, err := netnstest.Dial(w.client.ns, netip.Addr{}, w.at(15008), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = raw.Close() })
	// The server is trusted: it is what is tested.
	conf := &tls.Config{Certificates: []tls.Certificate{b.Cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"}} //nolint:gosec // see above
	c := tls.Client(raw, conf)
	ctx, cancel := context.WithTimeout(context.Background(), netnstest.Timeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	// In TLS 1.3 a server that rejects the client's certificate says so with
	// its first bytes, which an HTTP/2 client reads.
	return (&http2.Transport{}).NewClientConn(c) //nolint:staticcheck // see above
}

// request sends a request with an authority and returns its status.
func (w *world) request(cc *http2.ClientConn, method, authority string, h http.Header) (*http.Response, io.WriteCloser, error) { //nolint:staticcheck // see above
	w.t.Helper()
	pr, pw := io.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), netnstest.Timeout)
	w.t.Cleanup(cancel)
	if h == nil {
		h = http.Header{}
	}
	req := (&http.Request{Method: method, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority, Header: h, Body: pr, ContentLength: -1}).WithContext(ctx)
	if method != http.MethodConnect {
		req.URL.Path, req.Body, req.ContentLength = "/", nil, 0
	}
	resp, err := cc.RoundTrip(req)
	return resp, pw, err
}

// waypoint is a minimal one: it ends tunnels and connects to what they ask for.
type waypoint struct {
	mu       sync.Mutex
	requests []*http.Request
}

func (w *world) waypoint(at netip.AddrPort, id identity.Identity) *waypoint {
	w.t.Helper()
	wp := &waypoint{}
	b := w.bundle(w.certs, id)
	ln := netnstest.Listen(w.t, w.server.ns, at, nil)
	conf := mtls.Server(func() (*mtls.Bundle, error) { return b, nil })
	var wg sync.WaitGroup
	w.t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			w.t.Cleanup(func() { _ = raw.Close() })
			wg.Go(func() {
				c := tls.Server(raw, conf)
				if c.Handshake() != nil {
					return // the other side's log tells
				}
				h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { wp.serve(w, rw, r) })
				(&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: h}) //nolint:staticcheck // see above
			})
		}
	})
	return wp
}

func (wp *waypoint) serve(w *world, rw http.ResponseWriter, r *http.Request) {
	wp.mu.Lock()
	wp.requests = append(wp.requests, r)
	wp.mu.Unlock()
	up, err := netnstest.Dial(w.server.ns, netip.Addr{}, w.at(8080), nil)
	if err != nil {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer func() { _ = up.Close() }()
	rw.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(rw).Flush()
	go func() {
		_, _ = io.Copy(up, r.Body)
		_ = up.CloseWrite()
	}()
	b := make([]byte, 4096)
	for {
		n, err := up.Read(b)
		if n > 0 {
			_, _ = rw.Write(b[:n])
			_ = http.NewResponseController(rw).Flush()
		}
		if err != nil {
			return
		}
	}
}

func (wp *waypoint) seen(t *testing.T) *http.Request {
	t.Helper()
	wp.mu.Lock()
	defer wp.mu.Unlock()
	if len(wp.requests) != 1 {
		t.Fatalf("the waypoint got %d requests", len(wp.requests))
	}
	return wp.requests[0]
}

func TestForeignClient(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", cartService))
		w.enrol(w.server)
		w.serve(8080, echo)
		cc, err := w.tunnel(w.bundle(w.certs, account("web")))
		if err != nil {
			t.Fatal(err)
		}
		resp, body, err := w.request(cc, http.MethodConnect, w.at(8080).String(), http.Header{
			"Forwarded":   {`for="1.2.3.4:5";host=cart.shop.svc.cluster.local`},
			"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"},
		})
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
		const want = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=server,service.name=server,service.version=v1"
		if got := resp.Header.Get("baggage"); got != want {
			t.Errorf("baggage %q", got)
		}
		if _, err := io.WriteString(body, "hi\n"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := resp.Body.Read(b)
		if got := string(b[:n]); got != w.clientIP().String()+" hi\n" {
			t.Errorf("%q %v", got, err)
		}
		_ = body.Close()
		w.server.log.wait(t, "connection complete", `trace_id="0af7651916cd43dd8448eb211c80319c"`, `dst.service="cart.shop.svc.cluster.local"`)
	})
}

func TestMaliciousCalls(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("HBONE", "HBONE", cartService))
		w.enrol(w.server)
		w.serve(8080, echo)
		cc, err := w.tunnel(w.bundle(w.certs, account("web")))
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			method, authority string
			status            int
			reason            string
		}{
			{"CONNECT", w.at(15001).String(), 503, "RECURSIVE_CALL"},
			{"CONNECT", w.at(15006).String(), 503, "RECURSIVE_CALL"},
			{"CONNECT", w.at(15008).String(), 503, "RECURSIVE_CALL"},
			{"CONNECT", "127.0.0.1:8080", 400, "ADDRESS_MISMATCH"},
			{"CONNECT", "127.0.0.1:15000", 400, "ADDRESS_MISMATCH"},
			{"CONNECT", "10.9.9.9:8080", 400, "ADDRESS_MISMATCH"},
			{"CONNECT", "no-port", 400, "BAD_REQUEST"},
			{"CONNECT", "unknown.example:80", 503, "NO_HEALTHY_UPSTREAM"},
			{"GET", w.at(8080).String(), 400, "BAD_REQUEST"},
			{"CONNECT", w.at(9999).String(), 503, "CONNECT_FAILURE"},
			{"CONNECT", "cart.shop.svc.cluster.local:80", 200, ""},
		} {
			resp, body, err := w.request(cc, tc.method, tc.authority, nil)
			if err != nil || resp.StatusCode != tc.status {
				t.Errorf("%s %s: %v %v", tc.method, tc.authority, resp, err)
			}
			_ = body.Close()
			if tc.reason != "" {
				w.server.log.wait(t, `reason="`+tc.reason+`"`)
			}
		}
	})
}

func TestOtherTrustDomainIsRejected(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.server)
	id := account("web")
	id.TrustDomain = "elsewhere.example"
	cc, err := w.tunnel(w.bundle(w.certs, id))
	if err == nil {
		var resp *http.Response
		resp, _, err = w.request(cc, "CONNECT", w.at(8080).String(), nil)
		if err == nil {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	w.server.log.wait(t, "connection failed", `direction="inbound"`, `reason="TRUST_DOMAIN_MISMATCH"`)
}

func TestServiceWaypoint(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		at := netip.MustParseAddrPort("10.9.0.3:15008")
		if w.v6 {
			at = netip.MustParseAddrPort("[fd00:9::3]:15008")
		}
		netnstest.AddAddr(t, w.server.ns, "peer0", at.Addr())
		w.apply(w.mesh("HBONE", "TCP", `
- {uid: wp, name: wp, namespace: shop, serviceAccount: waypoint, workloadIps: ["`+at.Addr().String()+`"], protocol: TCP, services: {shop/wp.shop.svc.cluster.local: {15008: 15008}}}
services:
- {name: wp, namespace: shop, hostname: wp.shop.svc.cluster.local, vips: [/10.96.0.9], ports: {15008: 15008}}
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.96.0.1, "/fd96::1"], ports: {80: 8080}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc.cluster.local}, hboneMtlsPort: 15008}}
`))
		w.enrol(w.client)
		w.serve(8080, func(c *net.TCPConn) { _, _ = io.WriteString(c, "through") })
		wp := w.waypoint(at, account("waypoint"))
		if b, err := io.ReadAll(w.dial(w.vip(80))); err != nil || string(b) != "through" {
			t.Fatalf("%q %v\n%s", b, err, w.client.log.buf.String())
		}
		r := wp.seen(t)
		if r.Method != "CONNECT" || r.Host != w.vip(80).String() {
			t.Errorf("%s %s", r.Method, r.Host)
		}
		if got := r.Header.Get("baggage"); got != "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=client,service.name=client,service.version=v1" {
			t.Errorf("baggage %q", got)
		}
		if _, err := netip.ParseAddrPort(r.Host); err != nil {
			t.Error(err)
		}
		if f := r.Header.Get("forwarded"); len(f) < 20 || f[len(f)-len(";host=cart.shop.svc.cluster.local"):] != ";host=cart.shop.svc.cluster.local" {
			t.Errorf("forwarded %q", f)
		}
		if tp := r.Header.Get("traceparent"); len(tp) != 55 {
			t.Errorf("traceparent %q", tp)
		}
	})
}

// Somebody else listens at the endpoint's address.
func TestIdentityMismatch(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.serve(8080, echo)
	w.waypoint(w.at(15008), account("impostor"))
	w.refused(w.at(8080))
	w.client.log.wait(t, "connection complete", `reason="PEER_IDENTITY_MISMATCH"`)
}

// Nobody listens on 15008 of the first endpoint: the connection takes the
// other one.
func TestRetryToAnotherEndpoint(t *testing.T) {
	w := newWorld(t, false)
	dead := netip.MustParseAddr("10.9.0.4")
	netnstest.AddAddr(t, w.server.ns, "peer0", dead)
	w.apply(w.mesh("HBONE", "TCP", `
- {uid: dead, name: dead, workloadName: dead, namespace: shop, serviceAccount: cart, workloadIps: [10.9.0.4], protocol: HBONE, services: {shop/cart.shop.svc.cluster.local: {80: 8080}}, capacity: 1000}
`+cartService))
	w.enrol(w.client)
	w.serve(8080, echo)
	for range 10 {
		c := w.dial(w.vip(80))
		w.talk(c, "found")
		_ = c.Close()
	}
	// Who asks why some connections are slow is told.
	w.client.log.wait(t, "debug", "the connection takes another one", "endpoint=\"dead\"", "instead=\"server\"", "CONNECT_FAILURE")
	for _, want := range []struct {
		metric, endpoint string
		flag             string
		some             bool
	}{
		{"istio_tcp_connections_failed_total", "dead", "CONNECT", true},
		{"istio_tcp_connections_failed_total", "server", "", false},
		{"istio_tcp_connections_opened_total", "server", "", true},
		{"istio_tcp_connections_opened_total", "dead", "", false},
		{"istio_tcp_connections_closed_total", "dead", "", false},
	} {
		if n := w.client.counted(t, want.metric, want.endpoint, want.flag); n > 0 != want.some {
			t.Errorf("%s of %s: %v", want.metric, want.endpoint, n)
		}
	}
}

// counted sums a metric of the connections to a workload; flag is of the
// response_flags, "" for all.
func (s *side) counted(t *testing.T, metric, workload, flag string) float64 {
	t.Helper()
	want := map[string]string{"destination_workload": workload}
	if flag != "" {
		want["response_flags"] = flag
	}
	return s.sum(t, metric, want)
}

// sum adds up the series of a counter that have some labels.
func (s *side) sum(t *testing.T, metric string, want map[string]string) (n float64) {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(s.node.Recorder)
	fams, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fams {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.Metric {
			found := 0
			for _, l := range m.Label {
				if v, ok := want[l.GetName()]; ok && v == l.GetValue() {
					found++
				}
			}
			if found == len(want) {
				n += m.Counter.GetValue()
			}
		}
	}
	return n
}

func TestDrain(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
	c := w.dial(w.at(8080))
	w.talk(c, "before")
	ctx, cancel := context.WithTimeout(context.Background(), netnstest.Timeout)
	defer cancel()
	done := make(chan struct{})
	go func() { w.client.node.Drain(ctx); close(done) }()
	// New connections find nobody; the old one goes on.
	for {
		n, err := netnstest.Dial(w.client.ns, netip.Addr{}, w.at(8080), nil)
		if err != nil {
			break
		}
		_ = n.Close()
		time.Sleep(time.Millisecond)
	}
	w.talk(c, "after")
	select {
	case <-done:
		t.Fatal("the drain ended before the connection")
	default:
	}
	_ = c.Close()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("the drain does not end")
	}
}

func TestDrainDeadline(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
	c := w.dial(w.at(8080))
	w.talk(c, "before")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.server.node.Drain(ctx)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection lives on")
	}
	w.server.log.wait(t, "connection complete", `reason="DRAINING"`)
}
