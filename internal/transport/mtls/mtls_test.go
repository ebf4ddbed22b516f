package mtls_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// authority signs whatever a test wants.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	path []*x509.Certificate // intermediates, this one first; empty for a root
	root *x509.Certificate
}

var serial int64 = 100

func (a *authority) sign(tmpl *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	a.t.Helper()
	serial++
	tmpl.SerialNumber = big.NewInt(serial)
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	}
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRoot(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t), cert: caTemplate(name)}
	a.cert = a.sign(a.cert, a.key.Public())
	a.root = a.cert
	return a
}

func (a *authority) intermediate(name string) *authority {
	a.t.Helper()
	b := &authority{t: a.t, key: newKey(a.t), root: a.root}
	b.cert = a.sign(caTemplate(name), b.key.Public())
	b.path = append([]*x509.Certificate{b.cert}, a.path...)
	return b
}

func leafTemplate(uris ...string) *x509.Certificate {
	tmpl := &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	return tmpl
}

// bundle assembles without the checks of NewBundle.
func (a *authority) bundle(id identity.Identity, tmpl *x509.Certificate) *mtls.Bundle {
	a.t.Helper()
	key := newKey(a.t)
	leaf := a.sign(tmpl, key.Public())
	b := &mtls.Bundle{
		Identity: id, Roots: x509.NewCertPool(), NotAfter: leaf.NotAfter,
		Cert: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
	}
	for _, c := range a.path {
		b.Cert.Certificate = append(b.Cert.Certificate, c.Raw)
	}
	b.Roots.AddCert(a.root)
	return b
}

func (a *authority) workload(id identity.Identity) *mtls.Bundle {
	a.t.Helper()
	return a.bundle(id, leafTemplate(id.String()))
}

func encode(certs ...*x509.Certificate) string {
	var s strings.Builder
	for _, c := range certs {
		_ = pem.Encode(&s, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return s.String()
}

func id(name string) identity.Identity {
	return identity.Identity{TrustDomain: "cluster.local", Namespace: "ns", ServiceAccount: name}
}

// handshake runs both sides and one byte each way, so that the client also
// learns what the server thinks of it.
func handshake(t testing.TB, server, client *tls.Config) (srv, cli tls.ConnectionState, srvErr, cliErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			srvErr = err
			return
		}
		c := tls.Server(raw, server)
		defer func() { _ = c.Close() }()
		if srvErr = c.HandshakeContext(ctx); srvErr == nil {
			srv = c.ConnectionState()
			_, srvErr = c.Write([]byte{1})
		}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	defer func() { _ = c.Close() }()
	if cliErr = c.HandshakeContext(ctx); cliErr == nil {
		cli = c.ConnectionState()
		_, cliErr = io.ReadFull(c, make([]byte, 1))
	}
	if cliErr != nil {
		_ = raw.Close()
	}
	<-done
	return srv, cli, srvErr, cliErr
}

func fixed(b *mtls.Bundle) func() (*mtls.Bundle, error) {
	return func() (*mtls.Bundle, error) { return b, nil }
}

func TestHandshake(t *testing.T) {
	root := newRoot(t, "root")
	for name, a := range map[string]*authority{"root": root, "intermediates": root.intermediate("one").intermediate("two")} {
		t.Run(name, func(t *testing.T) {
			s, c := a.workload(id("server")), root.workload(id("client"))
			srv, cli, serr, cerr := handshake(t, mtls.Server(fixed(s)), mtls.Client(c, []identity.Identity{id("other"), id("server")}))
			if serr != nil || cerr != nil {
				t.Fatal(serr, cerr)
			}
			for _, cs := range []tls.ConnectionState{srv, cli} {
				if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" || cs.CurveID != tls.X25519MLKEM768 || cs.DidResume || cs.ServerName != "" {
					t.Errorf("version %x, protocol %q, curve %v, resumed %v, server name %q", cs.Version, cs.NegotiatedProtocol, cs.CurveID, cs.DidResume, cs.ServerName)
				}
			}
			if got, err := mtls.PeerIdentity(&srv); err != nil || got != id("client") {
				t.Errorf("server sees %v, %v", got, err)
			}
			if got, err := mtls.PeerIdentity(&cli); err != nil || got != id("server") {
				t.Errorf("client sees %v, %v", got, err)
			}
		})
	}
}

// TestRefusals has each side judge one bad peer; the other side is good and
// expects whatever it gets, as far as it can.
func TestRefusals(t *testing.T) {
	root, stranger := newRoot(t, "root"), newRoot(t, "root")
	foreign := identity.Identity{TrustDomain: "elsewhere", Namespace: "ns", ServiceAccount: "peer"}
	peer := id("peer")
	with := func(change func(c *x509.Certificate)) *mtls.Bundle {
		tmpl := leafTemplate(peer.String())
		change(tmpl)
		return root.bundle(peer, tmpl)
	}
	trusting := stranger.workload(peer)
	trusting.Roots = root.workload(peer).Roots
	noCA := root.workload(peer)
	fakeCA := &authority{t: t, cert: noCA.Cert.Leaf, key: noCA.Cert.PrivateKey.(*ecdsa.PrivateKey), root: root.root, path: []*x509.Certificate{noCA.Cert.Leaf}}
	for _, tt := range []struct {
		name   string
		peer   *mtls.Bundle
		server reason.Reason // how a server judges it
		client reason.Reason
	}{
		{"good", root.workload(peer), reason.OK, reason.OK},
		{"unknown root of the same name", trusting, reason.TLSFailure, reason.TLSFailure},
		{"other trust domain", root.workload(foreign), reason.TrustDomainMismatch, reason.TrustDomainMismatch},
		{"somebody else", root.workload(id("else")), reason.OK, reason.PeerIdentityMismatch},
		{"expired", with(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}), reason.TLSFailure, reason.TLSFailure},
		{"not yet valid", with(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}), reason.TLSFailure, reason.TLSFailure},
		{"no identity", root.bundle(peer, leafTemplate()), reason.TLSFailure, reason.TLSFailure},
		{"two identities", root.bundle(peer, leafTemplate(peer.String(), id("x").String())), reason.TLSFailure, reason.TLSFailure},
		{"another kind of URI", root.bundle(peer, leafTemplate("https://example.com/")), reason.TLSFailure, reason.TLSFailure},
		{"only a DNS name", with(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"peer"} }), reason.TLSFailure, reason.TLSFailure},
		{"for servers only", with(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), reason.TLSFailure, reason.OK},
		{"for clients only", with(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), reason.OK, reason.TLSFailure},
		{"a CA", with(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), reason.TLSFailure, reason.TLSFailure},
		{"signed by a workload", fakeCA.workload(peer), reason.TLSFailure, reason.TLSFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			good := root.workload(id("good"))
			// A client that takes any server, to see the server's judgement.
			lax := &tls.Config{Certificates: []tls.Certificate{tt.peer.Cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
			_, _, serr, cerr := handshake(t, mtls.Server(fixed(good)), lax)
			check(t, "server", serr, tt.server)
			if tt.server != reason.OK && cerr == nil {
				t.Error("the client was not told")
			}
			lax = &tls.Config{Certificates: []tls.Certificate{tt.peer.Cert}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
			_, _, _, cerr = handshake(t, lax, mtls.Client(good, []identity.Identity{peer}))
			check(t, "client", cerr, tt.client)
		})
	}
}

func check(t *testing.T, who string, err error, want reason.Reason) {
	t.Helper()
	if want == reason.OK {
		if err != nil {
			t.Errorf("%s refused: %v", who, err)
		}
		return
	}
	var re *reason.Error
	if !errors.As(err, &re) || re.Reason != want {
		t.Errorf("%s: %v, want %s", who, err, want)
	}
}

func TestServerDemands(t *testing.T) {
	root := newRoot(t, "root")
	s := root.workload(id("server"))
	good := root.workload(id("client"))
	for name, change := range map[string]func(*tls.Config){
		"a certificate": func(c *tls.Config) { c.Certificates = nil },
		"h2":            func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} },
		"ALPN":          func(c *tls.Config) { c.NextProtos = nil },
		"TLS 1.3":       func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	} {
		t.Run(name, func(t *testing.T) {
			c := mtls.Client(good, []identity.Identity{s.Identity})
			change(c)
			_, _, serr, cerr := handshake(t, mtls.Server(fixed(s)), c)
			if serr == nil || cerr == nil {
				t.Fatalf("server %v, client %v", serr, cerr)
			}
			if mtls.Error(serr).Reason != reason.TLSFailure {
				t.Errorf("reason %v", mtls.Error(serr))
			}
		})
	}
}

func TestNobodyExpected(t *testing.T) {
	root := newRoot(t, "root")
	_, _, _, err := handshake(t, mtls.Server(fixed(root.workload(id("s")))), mtls.Client(root.workload(id("c")), nil))
	check(t, "client", err, reason.PeerIdentityMismatch)
}

func TestNoCertificateForServer(t *testing.T) {
	root := newRoot(t, "root")
	server := mtls.Server(func() (*mtls.Bundle, error) { return nil, errors.New("none") })
	_, _, err, cerr := handshake(t, server, mtls.Client(root.workload(id("c")), []identity.Identity{id("s")}))
	check(t, "server", err, reason.CertificateUnavailable)
	if e := mtls.Error(cerr); e == nil || e.Reason != reason.TLSFailure || !strings.Contains(e.Detail, "peer ended") {
		t.Errorf("client learns %v", e)
	}
}

func TestTLS12(t *testing.T) {
	root := newRoot(t, "root")
	s, c := root.workload(id("s")), root.workload(id("c"))
	o := mtls.Options{TLS12: true}
	old := o.Client(c, []identity.Identity{id("s")})
	old.MaxVersion = tls.VersionTLS12
	// The outer configuration's versions do not bind: the one for the client
	// hello decides.
	srv, _, serr, cerr := handshake(t, o.Server(fixed(s)), old)
	if serr != nil || cerr != nil || srv.Version != tls.VersionTLS12 {
		t.Fatal(srv.Version, serr, cerr)
	}
	if srv, _, _, _ := handshake(t, o.Server(fixed(s)), o.Client(c, []identity.Identity{id("s")})); srv.Version != tls.VersionTLS13 {
		t.Errorf("two that can do better agreed on %x", srv.Version)
	}
}

func TestPQC(t *testing.T) {
	root := newRoot(t, "root")
	server, client := root.workload(id("server")), root.workload(id("client"))
	expect := []identity.Identity{id("server")}
	classic := mtls.Client(client, expect)
	classic.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
	classicServer := mtls.Options{}.ServerConfig(server).Clone()
	classicServer.CurvePreferences = classic.CurvePreferences
	for name, o := range map[string]mtls.Options{"alone": {PQC: true}, "beside TLS 1.2": {PQC: true, TLS12: true}} {
		t.Run(name, func(t *testing.T) {
			srv, cli, srvErr, cliErr := handshake(t, o.Server(fixed(server)), o.Client(client, expect))
			if srvErr != nil || cliErr != nil || srv.CurveID != tls.X25519MLKEM768 || cli.CurveID != tls.X25519MLKEM768 {
				t.Errorf("%v %v, %v %v", srvErr, cliErr, srv.CurveID, cli.CurveID)
			}
			if _, _, err, _ := handshake(t, o.Server(fixed(server)), classic.Clone()); err == nil {
				t.Error("a client without the hybrid key exchange is served")
			}
			if _, _, _, err := handshake(t, classicServer, o.Client(client, expect)); err == nil {
				t.Error("a server without the hybrid key exchange is spoken to")
			}
			old := mtls.Options{TLS12: true}.Client(client, expect)
			old.MaxVersion = tls.VersionTLS12
			if _, _, err, _ := handshake(t, o.Server(fixed(server)), old); err == nil {
				t.Error("TLS 1.2, which has no such key exchange, is served")
			}
		})
	}
}

func TestServerConfigIsShared(t *testing.T) {
	b := newRoot(t, "root").workload(id("s"))
	if first, second := (mtls.Options{}).ServerConfig(b), (mtls.Options{}).ServerConfig(b); first != second {
		t.Error("made anew")
	}
	if (mtls.Options{}).ServerConfig(b) == (mtls.Options{TLS12: true}).ServerConfig(b) {
		t.Error("shared between options")
	}
}

func TestNewBundle(t *testing.T) {
	root := newRoot(t, "root")
	mid := root.intermediate("mid")
	other := newRoot(t, "other")
	key := newKey(t)
	leaf := mid.sign(leafTemplate(id("a").String()), key.Public())
	short := mid.sign(&x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: leaf.URIs, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public())
	for _, tt := range []struct {
		name  string
		id    identity.Identity
		key   crypto.Signer
		chain []string
		bad   string // in the error
	}{
		{"good", id("a"), key, []string{encode(leaf), encode(mid.cert), encode(root.cert)}, ""},
		{"several roots", id("a"), key, []string{encode(leaf), encode(mid.cert), encode(other.cert, root.cert)}, ""},
		{"chain in one element", id("a"), key, []string{encode(leaf, mid.cert), encode(root.cert)}, ""},
		{"without the intermediate", id("a"), key, []string{encode(leaf), encode(root.cert)}, "does not verify"},
		{"other root", id("a"), key, []string{encode(leaf), encode(mid.cert), encode(other.cert)}, "does not verify"},
		{"for somebody else", id("b"), key, []string{encode(leaf), encode(mid.cert), encode(root.cert)}, "sent one of"},
		{"for another key", id("a"), newKey(t), []string{encode(leaf), encode(mid.cert), encode(root.cert)}, "another key"},
		{"for one role", id("a"), key, []string{encode(short), encode(mid.cert), encode(root.cert)}, "does not verify"},
		{"leaf only", id("a"), key, []string{encode(leaf)}, "at least"},
		{"empty", id("a"), key, nil, "at least"},
		{"no roots", id("a"), key, []string{encode(leaf), "\n"}, "no certificate"},
		{"not PEM", id("a"), key, []string{encode(leaf), "x" + encode(root.cert) + "y"}, "not PEM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := mtls.NewBundle(tt.id, tt.key, tt.chain)
			if tt.bad != "" {
				if err == nil || !strings.Contains(err.Error(), tt.bad) {
					t.Fatalf("error %v, want one with %q", err, tt.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b.Identity != tt.id || len(b.Cert.Certificate) != 2 || !b.NotAfter.Equal(leaf.NotAfter) {
				t.Errorf("bundle %+v", b)
			}
			if _, _, serr, cerr := handshake(t, mtls.Server(fixed(b)), mtls.Client(b, []identity.Identity{id("a")})); serr != nil || cerr != nil {
				t.Error(serr, cerr)
			}
		})
	}
}

func FuzzParseCertificates(f *testing.F) {
	root := newRoot(f, "root")
	f.Add([]byte(encode(root.cert, root.cert)))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		certs, err := mtls.ParseCertificates(text)
		if (err == nil) != (len(certs) > 0) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
	})
}

// BenchmarkHandshake is a full mutual handshake, both sides in one process.
func BenchmarkHandshake(b *testing.B) {
	root := newRoot(b, "root")
	s, c := root.workload(id("s")), root.workload(id("c"))
	server, client := mtls.Server(fixed(s)), mtls.Client(c, []identity.Identity{id("s")})
	b.ReportAllocs()
	for b.Loop() {
		if _, _, serr, cerr := handshake(b, server, client); serr != nil || cerr != nil {
			b.Fatal(serr, cerr)
		}
	}
}
