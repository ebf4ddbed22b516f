package ca_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

const trustDomain = "cluster.local"

func id(name string) identity.Identity {
	return identity.Identity{TrustDomain: trustDomain, Namespace: "app", ServiceAccount: name}
}

// nodes allows what runs on a node: service accounts by node name.
type nodes map[string][]string

func (n nodes) MayImpersonate(c auth.Caller, id identity.Identity) error {
	for _, sa := range n[c.Node] {
		if sa == id.ServiceAccount {
			return nil
		}
	}
	return errors.New("no such workload on node " + c.Node)
}

// world is a control plane with CA, on loopback.
type world struct {
	dir     string
	ca      *ca.Authority
	issuer  *auth.Issuer
	address string
	log     *bytes.Buffer
	reg     *prometheus.Registry
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), log: new(bytes.Buffer), reg: prometheus.NewRegistry()}
	metrics := ca.NewMetrics(w.reg)
	var err error
	logger := slog.New(slog.NewTextHandler(&lockedWriter{w: w.log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if w.ca, err = ca.Open(ca.Config{StateDir: w.dir, TrustDomain: trustDomain, Logger: logger, Metrics: metrics}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.ca.Close() })
	if w.issuer, err = auth.OpenIssuer(w.dir); err != nil {
		t.Fatal(err)
	}
	conf, err := w.ca.ServingConfig([]string{"127.0.0.1", "istiod.istio-system.svc"})
	if err != nil {
		t.Fatal(err)
	}
	interceptors := auth.Interceptors{
		Authenticator: auth.Chain{w.issuer, auth.ClientCert{TrustDomain: trustDomain, Roots: w.ca.Roots}},
		Logger:        logger, OnFailure: metrics.AuthenticationFailed,
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)), grpc.ChainUnaryInterceptor(interceptors.Unary))
	securityapi.RegisterIstioCertificateServiceServer(s, &ca.Server{
		Authority: w.ca, TrustDomain: trustDomain, TrustedNodeAccounts: []string{"istio-system/ztunnel"},
		Nodes: nodes{"n1": {"web", "db"}}, Logger: logger, Metrics: metrics,
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = "https://" + ln.Addr().String()
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	return w
}

func (w *world) token(t *testing.T, c auth.Caller) string {
	t.Helper()
	token, err := w.issuer.Issue(c, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (w *world) client(t *testing.T, conf certs.CAConfig) *certs.CAClient {
	t.Helper()
	conf.Server.Address, conf.Server.RootCAFile, conf.Server.ClusterID = w.address, filepath.Join(w.dir, "root-cert.pem"), "Kubernetes"
	c, err := certs.NewCAClient(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var ztunnel = auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "n1", PodName: "ztunnel-1", PodUID: "u1"}

func csr(t testing.TB, key any, uris ...string) []byte {
	t.Helper()
	tmpl := &x509.CertificateRequest{}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestNodeProxy goes the whole way: a manager gets certificates for the
// workloads of its node, and for nobody else.
func TestNodeProxy(t *testing.T) {
	w := newWorld(t)
	m := certs.NewManager(certs.Config{Sign: w.client(t, certs.CAConfig{Server: controlplane.Server{TokenFile: w.token(t, ztunnel)}})})
	defer m.Close()
	web, err := m.Get(t.Context(), id("web"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := m.Get(t.Context(), id("db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := shake(web, db); err != nil {
		t.Error(err)
	}
	if life := time.Until(web.NotAfter); life < 23*time.Hour || life > 25*time.Hour {
		t.Errorf("certificate lives %s", life)
	}
	if age := time.Since(web.NotBefore); age < 2*time.Minute {
		t.Errorf("certificate is backdated by %s only", age)
	}
	if _, err := m.Get(t.Context(), id("elsewhere")); err == nil || !strings.Contains(err.Error(), "not authorized") || strings.Contains(err.Error(), "n1") {
		t.Errorf("identity of another node: %v", err)
	}
	if !strings.Contains(w.log.String(), "no such workload on node n1") {
		t.Errorf("the log lacks the reason:\n%s", w.log)
	}
	want := `
# HELP citadel_server_csr_count Certificate requests received.
# TYPE citadel_server_csr_count counter
citadel_server_csr_count 3
# HELP citadel_server_id_extraction_err_count Certificate requests by callers that may not have the identity.
# TYPE citadel_server_id_extraction_err_count counter
citadel_server_id_extraction_err_count 1
# HELP citadel_server_success_cert_issuance_count Certificates issued.
# TYPE citadel_server_success_cert_issuance_count counter
citadel_server_success_cert_issuance_count 2
`
	if err := testutil.GatherAndCompare(w.reg, strings.NewReader(want), "citadel_server_csr_count",
		"citadel_server_id_extraction_err_count", "citadel_server_success_cert_issuance_count"); err != nil {
		t.Error(err)
	}
}

func TestWhoMayHaveWhat(t *testing.T) {
	w := newWorld(t)
	key := ecKey(t, elliptic.P256())
	app := auth.Caller{Namespace: "app", ServiceAccount: "web", Node: "n1"}
	strayed := ztunnel
	strayed.Node = "n2"
	for _, tt := range []struct {
		name   string
		caller auth.Caller
		own    bool
		id     identity.Identity
		want   codes.Code
	}{
		{"node proxy for a workload of its node", ztunnel, false, id("web"), codes.OK},
		{"node proxy of another node", strayed, false, id("web"), codes.Unauthenticated},
		{"node proxy for another trust domain", ztunnel, false, identity.Identity{TrustDomain: "other", Namespace: "app", ServiceAccount: "web"}, codes.Unauthenticated},
		{"workload for itself", app, true, id("web"), codes.OK},
		{"workload as another, by its request", app, true, id("db"), codes.InvalidArgument},
		{"workload impersonating another", app, false, id("db"), codes.Unauthenticated},
		{"workload impersonating itself", app, false, id("web"), codes.Unauthenticated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := w.client(t, certs.CAConfig{Server: controlplane.Server{TokenFile: w.token(t, tt.caller)}, OwnIdentity: tt.own})
			chain, err := c.Sign(t.Context(), tt.id, csr(t, key, tt.id.String()), time.Hour)
			if got := status.Code(errors.Unwrap(err)); err != nil && got != tt.want || err == nil && tt.want != codes.OK {
				t.Fatalf("%v, want %s", err, tt.want)
			}
			if err == nil {
				if b, err := mtls.NewBundle(tt.id, key, chain); err != nil {
					t.Errorf("bundle %v: %v", b, err)
				}
			}
		})
	}
}

func TestNotAuthenticated(t *testing.T) {
	w := newWorld(t)
	key := ecKey(t, elliptic.P256())
	bad := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(bad, []byte("eyJhbGciOiJub25lIn0.e30."), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"no token": "", "bad token": bad} {
		t.Run(name, func(t *testing.T) {
			_, err := w.client(t, certs.CAConfig{Server: controlplane.Server{TokenFile: file}}).Sign(t.Context(), id("web"), csr(t, key), time.Hour)
			if status.Code(errors.Unwrap(err)) != codes.Unauthenticated {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("other roots", func(t *testing.T) {
		other := newWorld(t)
		c, err := certs.NewCAClient(certs.CAConfig{Server: controlplane.Server{Address: w.address, RootCAFile: filepath.Join(other.dir, "root-cert.pem")}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Sign(t.Context(), id("web"), csr(t, key), 0); status.Code(errors.Unwrap(err)) != codes.Unavailable {
			t.Errorf("%v", err)
		}
	})
}

func TestClientFollowsFiles(t *testing.T) {
	w := newWorld(t)
	key := ecKey(t, elliptic.P256())
	dir := t.TempDir()
	token, roots := filepath.Join(dir, "token"), filepath.Join(dir, "roots")
	write := func(path string, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(w.token(t, ztunnel))
	if err != nil {
		t.Fatal(err)
	}
	right, _ := w.ca.Bundle()
	wrong, _ := newWorld(t).ca.Bundle()
	write(token, []byte("nonsense"))
	write(roots, wrong)
	c, err := certs.NewCAClient(certs.CAConfig{Server: controlplane.Server{Address: strings.Replace(w.address, "127.0.0.1", "localhost", 1), RootCAFile: roots, TokenFile: token, AltHostname: "istiod.istio-system.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	sign := func() error {
		_, err := c.Sign(t.Context(), id("web"), csr(t, key), 0)
		return err
	}
	if err := sign(); status.Code(errors.Unwrap(err)) != codes.Unavailable {
		t.Fatalf("with the wrong roots: %v", err)
	}
	write(roots, right)
	deadline := time.Now().Add(30 * time.Second)
	err = sign()
	for status.Code(errors.Unwrap(err)) == codes.Unavailable && time.Now().Before(deadline) {
		err = sign()
	}
	if status.Code(errors.Unwrap(err)) != codes.Unauthenticated {
		t.Fatalf("with the right roots and a bad token: %v", err)
	}
	write(token, good)
	if err := sign(); err != nil {
		t.Fatalf("with a good token: %v", err)
	}
}

func TestSignLimits(t *testing.T) {
	a, err := ca.Open(ca.Config{StateDir: t.TempDir(), TrustDomain: trustDomain, MaxTTL: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	key := ecKey(t, elliptic.P256())
	good := csr(t, key, id("web").String())
	for name, tt := range map[string]struct{ ask, min, max time.Duration }{
		"default":   {0, 23 * time.Hour, 24 * time.Hour},
		"asked":     {time.Hour, 59 * time.Minute, time.Hour},
		"too long":  {1000 * time.Hour, 47 * time.Hour, 48 * time.Hour},
		"too short": {time.Nanosecond, time.Second, 10 * time.Second},
	} {
		chain, err := a.Sign(id("web"), good, tt.ask)
		if err != nil {
			t.Fatal(name, err)
		}
		b, err := mtls.NewBundle(id("web"), key, chain)
		if err != nil {
			t.Fatal(name, err)
		}
		if life := time.Until(b.NotAfter); life < tt.min || life > tt.max {
			t.Errorf("%s: lives %s", name, life)
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	named, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"istiod"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	enc := func(typ string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}) }
	for name, text := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "another block": enc("CERTIFICATE", block.Bytes),
		"two requests": append(bytes.Clone(good), good...), "too long": append(bytes.Clone(good), make([]byte, 1<<20)...),
		"weak key": csr(t, weak), "odd curve": csr(t, ecKey(t, elliptic.P521())), "other identity": csr(t, key, id("db").String()),
		"a host name": enc("CERTIFICATE REQUEST", named), "bad signature": enc("CERTIFICATE REQUEST", forged),
		"truncated": enc("CERTIFICATE REQUEST", block.Bytes[:40]),
	} {
		if _, err := a.Sign(id("web"), text, 0); !errors.Is(err, ca.ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.Sign(identity.Identity{TrustDomain: "x", Namespace: "a", ServiceAccount: "b"}, csr(t, key), 0); !errors.Is(err, ca.ErrBadRequest) {
		t.Errorf("other trust domain: %v", err)
	}
	if _, err := a.Sign(id("web"), good, -1); !errors.Is(err, ca.ErrBadRequest) {
		t.Errorf("negative: %v", err)
	}
}

func FuzzSign(f *testing.F) {
	a, err := ca.Open(ca.Config{StateDir: f.TempDir(), TrustDomain: trustDomain})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = a.Close() })
	key := ecKey(f, elliptic.P256())
	f.Add(csr(f, key, id("web").String()))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := a.Sign(id("web"), text, 0)
		if err != nil {
			return
		}
		block, _ := pem.Decode([]byte(chain[0]))
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || c.IsCA || len(c.URIs) != 1 || c.URIs[0].String() != id("web").String() || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 {
			t.Errorf("signed %+v, %v", c, err)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	a, err := ca.Open(ca.Config{StateDir: b.TempDir(), TrustDomain: trustDomain})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	req := csr(b, ecKey(b, elliptic.P256()), id("web").String())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Sign(id("web"), req, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}

// shake runs a handshake from one workload to another.
func shake(from, to *mtls.Bundle) error {
	p, q := net.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	server := tls.Server(q, mtls.Server(func() (*mtls.Bundle, error) { return to, nil }))
	failed := make(chan error, 1)
	go func() {
		err := server.HandshakeContext(ctx)
		if err != nil {
			_ = q.Close()
		}
		failed <- err
	}()
	err := tls.Client(p, mtls.Client(from, []identity.Identity{to.Identity})).HandshakeContext(ctx)
	if err != nil {
		_ = p.Close()
	}
	return errors.Join(err, <-failed)
}
