package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// tunnels are the node proxies around a gateway: one at the client, and one at each
// endpoint.
type tunnels struct {
	*world
	signer  *certs.FakeSigner
	client  *hbone.Pool
	server  *hbone.Server
	gateway netip.AddrPort // where the gateway's tunnels end

	mu     sync.Mutex // guards what follows
	nodes  map[netip.AddrPort]netip.AddrPort
	heard  []hbone.Header // by endpoints
	peers  []identity.Identity
	closes []func()
}

func bundle(t testing.TB, s *certs.FakeSigner, id identity.Identity) *mtls.Bundle {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.Sign(t.Context(), id, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := mtls.NewBundle(id, key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newTunnels(t testing.TB) *tunnels {
	t.Helper()
	signer, err := certs.NewFakeSigner()
	if err != nil {
		t.Fatal(err)
	}
	n := &tunnels{world: newWorld(t, 1), signer: signer, nodes: map[netip.AddrPort]netip.AddrPort{}}
	own := bundle(t, signer, gatewayID)
	n.g.opts.dial = nil
	n.g.opts.Tunnels = hbone.NewPool(hbone.PoolConfig{Loops: n.group, Dial: n.dialer(own)})
	n.server = hbone.NewServer(hbone.ServerConfig{Loops: n.group, OnRequest: n.g.Serve, TLS: configOf(own)})
	n.gateway = n.listen(n.server)
	client := bundle(t, signer, clientID)
	n.client = hbone.NewPool(hbone.PoolConfig{Loops: n.group, Dial: n.dialer(client)})
	t.Cleanup(func() {
		n.g.Close()
		n.client.Close(reason.Draining)
		n.server.Close(reason.Draining)
		n.g.opts.Tunnels.Close(reason.Draining)
		for _, f := range n.closes {
			f()
		}
		for deadline := time.Now().Add(time.Minute); n.g.Active() > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	})
	return n
}

func configOf(b *mtls.Bundle) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return mtls.Server(func() (*mtls.Bundle, error) { return b, nil }).GetConfigForClient
}

// dialer makes tunnels that prove an identity, to nodes on loopback.
func (n *tunnels) dialer(b *mtls.Bundle) hbone.Dialer {
	return func(_ context.Context, k hbone.Key) (int, *tls.Config, error) {
		n.mu.Lock()
		to := n.nodes[k.Dst]
		n.mu.Unlock()
		if k.Dst == n.gateway {
			to = n.gateway
		}
		fd, err := dialTCP(to.String())
		if err != nil {
			return -1, nil, reason.Errorf(reason.ConnectFailure, "%w", err)
		}
		id, err := identity.Parse(k.DstIdentities)
		return fd, mtls.Client(b, []identity.Identity{id}), err
	}
}

func (n *tunnels) listen(s *hbone.Server) netip.AddrPort {
	n.t.Helper()
	fd, err := sockopt.Listen(netip.MustParseAddrPort("127.0.0.1:0"), sockopt.ListenOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	addr, err := sockopt.LocalAddr(fd)
	if err != nil {
		n.t.Fatal(err)
	}
	ln, err := poll.Listen(n.group, fd, func(l *poll.Loop, fd int, remote netip.AddrPort) {
		// The client's node proxy dials from within the pod.
		s.Serve(l, fd, netip.AddrPortFrom(clientAddr.Addr(), remote.Port()), addr)
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.closes = append(n.closes, func() { ln.Close(); <-ln.Done() })
	return addr
}

// node makes the node proxy of an endpoint.
func (n *tunnels) node(name, addr, program string) {
	n.t.Helper()
	id := identity.Identity{TrustDomain: domain, Namespace: "ns", ServiceAccount: name}
	s := hbone.NewServer(hbone.ServerConfig{
		Loops: n.group, TLS: configOf(bundle(n.t, n.signer, id)),
		OnRequest: func(r *hbone.Request) {
			n.mu.Lock()
			n.heard, n.peers = append(n.heard, r.Header), append(n.peers, r.PeerIdentity)
			n.mu.Unlock()
			r.Loop.Go(func() {
				fd, err := dialTCP(program)
				r.Loop.Post(func() {
					if err != nil {
						r.Refuse(503, hbone.ResponseHeader{})
						return
					}
					r.Accept(fd, nil, hbone.ResponseHeader{}, nil)
				})
			})
		},
	})
	n.closes = append(n.closes, func() { s.Close(reason.Draining) })
	at := n.listen(s)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[netip.AddrPortFrom(netip.MustParseAddr(addr), wellknown.PortHBONE)] = at
}

// call opens a connection of the client's program to what it calls.
func (n *tunnels) call(authority string) (net.Conn, error) {
	n.t.Helper()
	near, far, err := sockets()
	if err != nil {
		n.t.Fatal(err)
	}
	answer := make(chan error, 1)
	n.client.Open(&hbone.Open{
		Key:    hbone.Key{SrcIdentity: clientID, Dst: n.gateway, DstIdentities: gatewayID.String(), DstUID: "waypoint"},
		Header: hbone.Header{Authority: authority, Baggage: "k8s.namespace.name=ns"}, App: far,
		OnUp: func(*relay.Flow, hbone.ResponseHeader) { answer <- nil },
		OnFail: func(err *reason.Error, status int) {
			poll.CloseFD(far)
			if status != 0 {
				answer <- refusal(status)
				return
			}
			answer <- err
		},
		OnClose: func(*relay.Flow, relay.Result) {},
	})
	if err := <-answer; err != nil {
		_ = near.Close()
		return nil, err
	}
	return near, nil
}

// TestThroughTunnels: client → tunnel → gateway → tunnel → program.
func TestThroughTunnels(t *testing.T) {
	n := newTunnels(t)
	n.shop()
	for name, addr := range map[string]string{"shop-1": "10.0.1.1", "shop-2": "10.0.1.2", "v1": "10.0.2.1", "v2": "10.0.2.2"} {
		n.node(name, addr, program(t, name))
	}
	n.routes("shop", route.Rule{Origin: "split", Backends: []route.Backend{{Name: "v1", Weight: 1}, {Name: "v2", Weight: 1}}})
	c, err := n.call("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	got := map[string]int{}
	for range 60 {
		status, b := get(t, c, "/x")
		if status != 200 {
			t.Fatalf("%d %q", status, b)
		}
		got[b]++
	}
	if got["v1 GET /x "] < 10 || got["v2 GET /x "] < 10 {
		t.Errorf("shares: %v", got)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.heard) != 2 {
		t.Fatalf("%d connections to two endpoints", len(n.heard))
	}
	for i, h := range n.heard {
		if h.Forwarded != `for="10.0.0.1";host=shop.ns.svc.cluster.local` || h.Baggage != "k8s.namespace.name=ns" || n.peers[i] != gatewayID {
			t.Errorf("an endpoint got %+v from %s", h, n.peers[i])
		}
	}
	if _, err := n.call("10.1.0.2:80"); err != refusal(404) { //nolint:errorlint // not wrapped
		t.Errorf("a service that does not use the gateway: %v", err)
	}
}

// TestWrongIdentity: an endpoint that is somebody else gets nothing.
func TestWrongIdentity(t *testing.T) {
	n := newTunnels(t)
	n.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	n.endpoint("shop-1", "10.0.1.1", "shop", "")
	n.node("thief", "10.0.1.1", program(t, "thief"))
	c, err := n.call("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if status, b := get(t, c, "/"); status != 503 || b != "peer has another identity than expected" {
		t.Errorf("%d %q", status, b)
	}
	if r := n.seen(1, func() []Record { return n.requests })[0]; r.Reason != reason.PeerIdentityMismatch || r.Tries != 3 {
		t.Errorf("%+v", r)
	}
}

// TestBulkThroughTunnels: megabytes pass both ways at once, as HTTP and as bytes.
func TestBulkThroughTunnels(t *testing.T) {
	n := newTunnels(t)
	n.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	n.endpoint("shop-1", "10.0.1.1", "shop", "")
	n.node("shop-1", "10.0.1.1", mirrorProgram(t))
	n.service("db", "10.1.0.2", func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_TCP })
	n.endpoint("db-1", "10.0.2.1", "db", "")
	n.node("db-1", "10.0.2.1", echo(t, ""))
	want := make([]byte, 16<<20)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return n.call("10.1.0.1:80") }}
	defer tr.CloseIdleConnections()
	for range 3 {
		r, err := (&http.Client{Transport: tr}).Post("http://shop/", "x/y", io.MultiReader(bytes.NewReader(want)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		if _ = r.Body.Close(); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d, or others: %v", len(got), len(want), err)
		}
	}
	c, err := n.call("10.1.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	go func() {
		_, _ = c.Write(want)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, or others: %v", len(got), len(want), err)
	}
	if r := n.seen(1, func() []Record { return n.conns })[0]; r.Reason != reason.OK || r.Sent != int64(len(want)) || r.Received != int64(len(want)) {
		t.Errorf("%+v", r)
	}
}

// mirrorProgram sends a request's body back while it comes.
func mirrorProgram(t testing.TB) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		_, _ = io.Copy(rw, r.Body)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}
