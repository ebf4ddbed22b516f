package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
)

// authority issues server certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t *testing.T, names []string, ips ...net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: names, IPAddresses: ips,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// secured is a TLS server that wants a token and can change both.
type secured struct {
	addr  string
	cert  atomic.Pointer[tls.Certificate]
	token atomic.Pointer[string]
	seen  atomic.Pointer[metadata.MD]
	// tokens that were accepted; full is fine.
	accepted chan string
	*Server
}

func serveTLS(t *testing.T, cache *Cache, cert tls.Certificate, token string) *secured {
	t.Helper()
	s := &secured{Server: NewServer(cache, ServerOptions{}), accepted: make(chan string, 16)}
	s.cert.Store(&cert)
	s.token.Store(&token)
	check := func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		md, _ := metadata.FromIncomingContext(ss.Context())
		s.seen.Store(&md)
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+*s.token.Load() {
			return status.Error(codes.Unauthenticated, "token is not valid")
		}
		select {
		case s.accepted <- *s.token.Load():
		default:
		}
		return h(srv, ss)
	}
	conf := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cert.Load(), nil }}
	g := grpc.NewServer(append(GRPCOptions(), grpc.Creds(credentials.NewTLS(conf)), grpc.StreamInterceptor(check))...)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s.Server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return s
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTLSAndToken(t *testing.T) {
	localhost := net.IPv4(127, 0, 0, 1)
	for _, tc := range []struct {
		name  string
		names []string
		ips   []net.IP
		alt   string
		other bool // roots of somebody else
		ok    bool
	}{
		{name: "address", ips: []net.IP{localhost}, ok: true},
		{name: "other address", ips: []net.IP{net.IPv4(127, 0, 0, 2)}},
		{name: "alternate name", names: []string{"istiod.istio-system.svc"}, alt: "istiod.istio-system.svc", ok: true},
		{name: "address beside the alternate", ips: []net.IP{localhost}, alt: "istiod.istio-system.svc", ok: true},
		{name: "neither name", names: []string{"evil"}, alt: "istiod.istio-system.svc"},
		{name: "other root", ips: []net.IP{localhost}, other: true},
		{name: "other root with alternate", names: []string{"istiod.istio-system.svc"}, alt: "istiod.istio-system.svc", other: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ca := newAuthority(t)
			cache := NewCache()
			cache.Update(typeA, []*Resource{{Name: "x", Body: []byte("1")}}, nil)
			cache.MarkSynced(typeA)
			s := serveTLS(t, cache, ca.issue(t, tc.names, tc.ips...), "secret")
			roots := ca.pem
			if tc.other {
				roots = newAuthority(t).pem
			}
			dir := t.TempDir()
			write(t, filepath.Join(dir, "root.pem"), roots)
			write(t, filepath.Join(dir, "token"), []byte("secret\n"))
			m := newMirror()
			failed := make(chan Termination, 64)
			c := follow(t, ClientConfig{
				Server: controlplane.Server{Address: "https://" + s.addr, RootCAFile: filepath.Join(dir, "root.pem"), TokenFile: filepath.Join(dir, "token"), AltHostname: tc.alt, ClusterID: "c1", Headers: map[string]string{"x-extra": "y"}},
				Types:  []TypeConfig{{TypeURL: typeA, Apply: m.apply}},
				Metrics: ClientMetrics{Terminated: func(how Termination) {
					select {
					case failed <- how:
					default:
					}
				}},
			})
			if !tc.ok {
				if how := <-failed; how != ConnectionError {
					t.Errorf("ended as %s", how)
				}
				return
			}
			awaitClosed(t, "sync", c.Synced())
			md := *s.seen.Load()
			if md.Get("clusterid")[0] != "c1" || md.Get("x-extra")[0] != "y" {
				t.Errorf("headers: %v", md)
			}
		})
	}
}

// TestRotation: the root and the token change on disk while connected; the
// next connection uses the new ones.
func TestRotation(t *testing.T) {
	localhost := net.IPv4(127, 0, 0, 1)
	old := newAuthority(t)
	cache := NewCache()
	cache.Update(typeA, []*Resource{{Name: "x", Body: []byte("1")}}, nil)
	cache.MarkSynced(typeA)
	s := serveTLS(t, cache, old.issue(t, nil, localhost), "first")
	dir := t.TempDir()
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	write(t, root, old.pem)
	write(t, token, []byte("first"))
	m := newMirror()
	c := follow(t, ClientConfig{Server: controlplane.Server{Address: "https://" + s.addr, RootCAFile: root, TokenFile: token}, Types: []TypeConfig{{TypeURL: typeA, Apply: m.apply}}})
	awaitClosed(t, "sync", c.Synced())

	fresh := newAuthority(t)
	write(t, root, fresh.pem)
	write(t, token, []byte("second"))
	cert, second := fresh.issue(t, nil, localhost), "second"
	s.cert.Store(&cert)
	s.token.Store(&second)
	s.Close() // ends the stream, and every new one; the test is that one is authenticated
	for {
		select {
		case token := <-s.accepted:
			if token == second {
				return
			}
		case <-time.After(patience):
			t.Fatal("the new root or token was not used")
		}
	}
}

func TestConfiguration(t *testing.T) {
	apply := func(Delta) []Rejection { return nil }
	server := controlplane.Server{Address: "https://h:1"}
	for name, cfg := range map[string]ClientConfig{
		"no types":   {Server: server},
		"no apply":   {Server: server, Types: []TypeConfig{{TypeURL: typeA}}},
		"no address": {Types: []TypeConfig{{TypeURL: typeA, Apply: apply}}},
	} {
		if _, err := NewClient(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestSlowClient: a client that does not read holds nobody else up, and is
// owed only names.
func TestSlowClient(t *testing.T) {
	cache := NewCache()
	cache.MarkSynced(typeA)
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{})
	stuck, release := make(chan struct{}), make(chan struct{})
	slow := newMirror()
	first := true
	follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, Apply: func(d Delta) []Rejection {
		if first {
			first = false
			close(stuck)
			<-release
		}
		return slow.apply(d)
	}}},
	})
	awaitClosed(t, "the slow client's first response", stuck)
	quick := newMirror()
	follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, Apply: quick.apply}}})
	const rounds = 300
	body := strings.Repeat("x", 1000)
	for i := range rounds {
		b := body + string(rune('a'+i%26))
		cache.Update(typeA, []*Resource{{Name: "x", Body: []byte(b)}}, nil)
		quick.await(t, "the quick client's change", func() bool { return quick.held["x"] == b })
	}
	for _, c := range s.Clients() {
		if n := c.Types[0].Pending; n > 1 {
			t.Errorf("a client is owed %d resources", n)
		}
	}
	close(release)
	slow.await(t, "the slow client's catching up", func() bool { return slow.held["x"] == quick.held["x"] })
	slow.mu.Lock()
	defer slow.mu.Unlock()
	if slow.updated > 2 {
		t.Errorf("the slow client got %d versions of one resource", slow.updated)
	}
}

// TestServerCloses: clients are told to go, and are back at once.
func TestServerCloses(t *testing.T) {
	cache := NewCache()
	cache.MarkSynced(typeA)
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{})
	ends := make(chan Termination, 64)
	c := follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, Apply: newMirror().apply}},
		Metrics: ClientMetrics{Terminated: func(how Termination) {
			select {
			case ends <- how:
			default:
			}
		}},
	})
	awaitClosed(t, "sync", c.Synced())
	s.Close()
	if how := <-ends; how != Reconnect {
		t.Errorf("ended as %s", how)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Demand(ctx, typeA, "x"); err == nil {
		t.Error("demand of a type that is followed whole")
	}
}
