package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// plugin is a CA that an operator brings along.
type plugin struct {
	t     *testing.T
	roots []*x509.Certificate // the signing one last
	rkey  *ecdsa.PrivateKey
}

func newPlugin(t *testing.T, more ...*x509.Certificate) *plugin {
	t.Helper()
	p := &plugin{t: t, rkey: ecKey(t, elliptic.P256())}
	root := p.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "operator root"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
	}, nil, &p.rkey.PublicKey)
	p.roots = append(p.roots, more...)
	p.roots = append(p.roots, root)
	return p
}

func (p *plugin) sign(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	p.t.Helper()
	if parent == nil {
		parent = tmpl
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, p.rkey)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// write issues an intermediate, changed as wanted, and puts the files down.
func (p *plugin) write(dir string, change func(c *x509.Certificate)) {
	p.t.Helper()
	key := ecKey(p.t, elliptic.P256())
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "operator intermediate"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	if change != nil {
		change(tmpl)
	}
	cert := p.sign(tmpl, p.roots[len(p.roots)-1], &key.PublicKey)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	put(p.t, dir, "ca-key.pem", pemOf("EC PRIVATE KEY", der))
	put(p.t, dir, "root-cert.pem", pemCerts(p.roots...))
	put(p.t, dir, "cert-chain.pem", pemCerts(cert, p.roots[len(p.roots)-1]))
	put(p.t, dir, "ca-cert.pem", pemCerts(cert))
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func pemOf(typ string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
}

func pemCerts(certs ...*x509.Certificate) string {
	var s strings.Builder
	for _, c := range certs {
		s.WriteString(pemOf("CERTIFICATE", c.Raw))
	}
	return s.String()
}

func TestPlugin(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	p := newPlugin(t)
	p.write(dir, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(30 * 24 * time.Hour) })
	a := open(t, ca.Config{StateDir: state, PluginDir: dir})
	key := ecKey(t, elliptic.P256())
	chain, err := a.Sign(id("a"), csr(t, key), 0)
	if err != nil || len(chain) != 3 || chain[2] != pemCerts(p.roots...) {
		t.Fatalf("%d elements, %v", len(chain), err)
	}
	first, err := mtls.NewBundle(id("a"), key, chain)
	if err != nil {
		t.Fatal(err)
	}
	// Not beyond the CA's own end.
	chain, err = a.Sign(id("a"), csr(t, key), 60*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if long, err := mtls.NewBundle(id("a"), key, chain); err != nil || !long.NotAfter.Equal(a.Status().SignerExpires) {
		t.Errorf("%v, lives until %s", err, long.NotAfter)
	}
	if err := a.StartRotation(); err == nil {
		t.Error("rotated by itself")
	}
	if text, err := os.ReadFile(filepath.Join(state, "ca-state.json")); err != nil || strings.Contains(string(text), "PRIVATE") {
		t.Errorf("the plugged-in key was copied: %v", err)
	}
	// Another intermediate below the same root takes effect at once.
	expires := a.Status().SignerExpires
	p.write(dir, nil)
	a.Tick()
	if st := a.Status(); st.Stage != ca.Steady || st.SignerExpires.Equal(expires) || st.PluginProblem != "" {
		t.Errorf("%+v", st)
	}
	chain, err = a.Sign(id("b"), csr(t, key), 0)
	if err != nil {
		t.Fatal(err)
	}
	second, err := mtls.NewBundle(id("b"), key, chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := shake(first, second); err != nil {
		t.Error(err)
	}
	// Without its files the authority does not begin with a root of its own.
	_ = a.Close()
	if _, err := ca.Open(ca.Config{StateDir: state, TrustDomain: trustDomain}); err == nil || !strings.Contains(err.Error(), "put its files back") {
		t.Errorf("opened without the plugged-in CA: %v", err)
	}
}

// TestPluginBroken: the last good signer stays, and the reason is said.
func TestPluginBroken(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	good := newPlugin(t)
	good.write(dir, nil)
	a := open(t, ca.Config{StateDir: state, PluginDir: dir})
	defer func() { _ = a.Close() }()
	want := a.Status().SignerExpires
	key := ecKey(t, elliptic.P256())
	for _, tt := range []struct {
		name, problem string
		brk           func()
	}{
		{"expired", "expired", func() {
			good.write(dir, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}},
		{"not yet valid", "valid only from", func() {
			good.write(dir, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
		}},
		{"no CA", "not a CA", func() {
			good.write(dir, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
		}},
		{"must not sign", "must not sign", func() {
			good.write(dir, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
		}},
		{"usage above", "would not be accepted", func() {
			good.write(dir, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		}},
		{"names above", "would not be accepted", func() {
			good.write(dir, func(c *x509.Certificate) {
				c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"example.com"}, true
			})
		}},
		{"other root", "does not chain", func() {
			newPlugin(t).write(dir, nil)
			put(t, dir, "root-cert.pem", pemCerts(good.roots...))
			put(t, dir, "cert-chain.pem", "")
		}},
		{"other key", "does not belong", func() {
			good.write(dir, nil)
			der, _ := x509.MarshalECPrivateKey(ecKey(t, elliptic.P256()))
			put(t, dir, "ca-key.pem", pemOf("EC PRIVATE KEY", der))
		}},
		{"half a file", "CA certificate", func() { good.write(dir, nil); put(t, dir, "ca-cert.pem", "-----BEGIN CERT") }},
		{"no key", "ca-key.pem", func() { _ = os.Remove(filepath.Join(dir, "ca-key.pem")) }},
		{"nothing", "no CA files", func() { _ = os.Remove(filepath.Join(dir, "ca-cert.pem")) }},
	} {
		tt.brk()
		a.Tick()
		st := a.Status()
		if !strings.Contains(st.PluginProblem, tt.problem) || !st.SignerExpires.Equal(want) {
			t.Errorf("%s: %+v", tt.name, st)
		}
		if _, err := a.Sign(id("a"), csr(t, key), 0); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	good.write(dir, nil)
	a.Tick()
	if st := a.Status(); st.PluginProblem != "" {
		t.Errorf("after repair: %+v", st)
	}
	broken := t.TempDir()
	put(t, broken, "ca-cert.pem", "x")
	put(t, broken, "ca-key.pem", "x")
	put(t, broken, "root-cert.pem", "x")
	if _, err := ca.Open(ca.Config{StateDir: t.TempDir(), PluginDir: broken, TrustDomain: trustDomain}); err == nil {
		t.Error("a mesh began with a root nobody asked for, because the plugged-in CA is broken")
	}
}

// TestPluginReplacesRoot: from the self-signed root to a plugged-in CA, and
// on to one with another root, under a mesh that talks all the time.
func TestPluginReplacesRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cur := now(open(t, ca.Config{StateDir: t.TempDir(), PluginDir: dir}))
		ms, ids := mesh(t, cur, time.Hour, 24*time.Hour)
		for _, m := range ms {
			defer m.Close()
		}
		synctest.Wait()
		for round := range 2 {
			newPlugin(t).write(dir, nil)
			for range 60 {
				time.Sleep(time.Hour)
				cur.a().Tick()
				synctest.Wait()
				everybody(t, ms, ids)
			}
			if st := cur.a().Status(); st.Stage != ca.Steady || !st.PluggedIn || st.Roots != 1 {
				t.Errorf("round %d: %+v", round, st)
			}
		}
		_ = cur.a().Close()
	})
}

func TestTLSSecretNames(t *testing.T) {
	dir := t.TempDir()
	newPlugin(t).write(dir, nil)
	for old, name := range map[string]string{"ca-cert.pem": "tls.crt", "ca-key.pem": "tls.key", "root-cert.pem": "ca.crt"} {
		if err := os.Rename(filepath.Join(dir, old), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	a := open(t, ca.Config{StateDir: t.TempDir(), PluginDir: dir})
	defer func() { _ = a.Close() }()
	if !a.Status().PluggedIn {
		t.Errorf("%+v", a.Status())
	}
}

// TestPluginReplacedAndRestarted: the key of the CA that signs went with the
// process that had read it. The next CA signs at once, but not while another
// replica may still have that key.
func TestPluginReplacedAndRestarted(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	newPlugin(t).write(dir, nil)
	first := open(t, ca.Config{StateDir: state, PluginDir: dir})
	if _, err := first.ServingConfig([]string{"istiod"}); err != nil { // a certificate is out
		t.Fatal(err)
	}
	newPlugin(t).write(dir, nil)
	first.Tick()
	if st := first.Status(); st.Stage != ca.NewRootDistributed {
		t.Fatalf("%+v", st)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	others := true
	conf := ca.Config{StateDir: state, PluginDir: dir, TrustDomain: trustDomain, Others: func() bool { return others }}
	if _, err := ca.Open(conf); !errors.Is(err, ca.ErrNotYet) || strings.Contains(err.Error(), "%!") {
		t.Fatalf("opened beside another replica: %v", err)
	}
	others = false
	second, err := ca.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if st := second.Status(); st.Stage != ca.SigningByNew || !st.PluggedIn || st.Roots != 2 {
		t.Errorf("%+v", st)
	}
	if _, err := second.ServingConfig([]string{"istiod"}); err != nil {
		t.Error(err)
	}
}
