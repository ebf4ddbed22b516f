package ca_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

func open(t testing.TB, conf ca.Config) *ca.Authority {
	t.Helper()
	conf.TrustDomain = trustDomain
	a, err := ca.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// current signs by whatever authority runs now, as a client that reconnects.
type current struct{ p atomic.Pointer[ca.Authority] }

func now(a *ca.Authority) *current {
	c := &current{}
	c.p.Store(a)
	return c
}

func (c *current) a() *ca.Authority { return c.p.Load() }

func (c *current) Sign(_ context.Context, id identity.Identity, csr []byte, ttl time.Duration) ([]string, error) {
	return c.a().Sign(id, csr, ttl)
}

// mesh is some workloads on nodes with certificates of different lives.
func mesh(t *testing.T, s certs.Signer, lives ...time.Duration) (ms []*certs.Manager, ids []identity.Identity) {
	t.Helper()
	for i, ttl := range lives {
		m := certs.NewManager(certs.Config{Sign: s, TTL: ttl})
		w := id(fmt.Sprint("w", i))
		m.Hold(w, certs.Warmup)
		ms, ids = append(ms, m), append(ids, w)
	}
	return ms, ids
}

// everybody shakes hands with everybody.
func everybody(t *testing.T, ms []*certs.Manager, ids []identity.Identity) {
	t.Helper()
	for i := range ms {
		for j := range ms {
			a, b := ms[i].Current(ids[i]), ms[j].Current(ids[j])
			if a == nil || b == nil {
				t.Fatalf("%s: a certificate is missing", time.Now())
			}
			if err := shake(a, b); err != nil {
				t.Fatalf("%s: %s to %s: %v", time.Now(), ids[i], ids[j], err)
			}
		}
	}
}

// TestRotation changes the root under a mesh that talks all the time, while
// the authority is restarted all the time. No handshake fails, and in the end
// the old root is gone.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cur := now(open(t, ca.Config{StateDir: dir}))
		ms, ids := mesh(t, cur, time.Hour, 24*time.Hour, 60*time.Hour)
		for _, m := range ms {
			defer m.Close()
		}
		serving := func() *tls.Certificate {
			conf, err := cur.a().ServingConfig([]string{"istiod"})
			if err != nil {
				t.Fatal(err)
			}
			c, err := conf.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		time.Sleep(30 * time.Hour)
		before, changed := cur.a().Bundle()
		if err := cur.a().StartRotation(); err != nil {
			t.Fatal(err)
		}
		<-changed
		if err := cur.a().StartRotation(); err == nil {
			t.Error("two rotations at once")
		}
		seen := map[ca.Stage]int{}
		for range 200 {
			time.Sleep(time.Hour)
			cur.a().Tick()
			synctest.Wait()
			everybody(t, ms, ids)
			seen[cur.a().Status().Stage]++
			old := x509.NewCertPool()
			old.AppendCertsFromPEM(before)
			if _, err := serving().Leaf.Verify(x509.VerifyOptions{Roots: old}); err != nil && cur.a().Status().Stage == ca.NewRootDistributed {
				t.Errorf("clients of the control plane lose it too early: %v", err)
			}
			if err := cur.a().Close(); err != nil {
				t.Fatal(err)
			}
			cur.p.Store(open(t, ca.Config{StateDir: dir}))
		}
		after, _ := cur.a().Bundle()
		if seen[ca.NewRootDistributed] < 20 || seen[ca.SigningByNew] < 20 || seen[ca.Steady] < 1 || strings.Contains(string(after), string(before)) {
			t.Errorf("stages %v", seen)
		}
		if file, err := os.ReadFile(filepath.Join(dir, "root-cert.pem")); err != nil || string(file) != string(after) {
			t.Errorf("root-cert.pem: %v", err)
		}
		_ = cur.a().Close()
	})
}

// TestOldRoot: a root that nears its end is replaced without being asked for.
func TestOldRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, ca.Config{StateDir: t.TempDir(), RootTTL: 100 * 24 * time.Hour})
		cur := now(a)
		ms, ids := mesh(t, cur, 24*time.Hour)
		defer ms[0].Close()
		first := a.Status().Signer
		for range 120 {
			time.Sleep(24 * time.Hour)
			a.Tick()
			synctest.Wait()
			everybody(t, ms, ids)
		}
		if st := a.Status(); st.Signer == first || st.Stage != ca.Steady || st.Roots != 1 {
			t.Errorf("%+v", st)
		}
		_ = a.Close()
	})
}

// TestRun: what Tick does happens by itself, soon.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a := open(t, ca.Config{StateDir: t.TempDir(), PluginDir: dir})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = a.Run(ctx)
		}()
		newPlugin(t).write(dir, nil)
		time.Sleep(time.Minute)
		if st := a.Status(); st.Stage != ca.NewRootDistributed {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Hour)
		if st := a.Status(); st.Stage != ca.Steady || !st.PluggedIn {
			t.Errorf("%+v", st)
		}
		cancel()
		<-done
		_ = a.Close()
	})
}

func TestHurry(t *testing.T) {
	a := open(t, ca.Config{StateDir: t.TempDir()})
	defer func() { _ = a.Close() }()
	key := ecKey(t, elliptic.P256())
	if _, err := a.Sign(id("a"), csr(t, key), 0); err != nil {
		t.Fatal(err)
	}
	if err := a.StartRotation(); err != nil {
		t.Fatal(err)
	}
	if err := a.StartRotation(); !errors.Is(err, ca.ErrNoRotation) {
		t.Errorf("a second rotation: %v", err)
	}
	// Without a rotation, hurrying begins one that does not wait.
	for _, want := range []ca.Stage{ca.SigningByNew, ca.Steady, ca.SigningByNew, ca.Steady} {
		before := a.Status()
		if err := a.Hurry(); err != nil || a.Status().Stage != want {
			t.Errorf("%v %+v", err, a.Status())
		}
		if changed := a.Status().Signer != before.Signer; changed != (want == ca.SigningByNew) {
			t.Errorf("in %s %q signs, before it was %q", want, a.Status().Signer, before.Signer)
		}
	}
}

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

func TestStateDirectory(t *testing.T) {
	dir := t.TempDir()
	a := open(t, ca.Config{StateDir: dir})
	if _, err := ca.Open(ca.Config{StateDir: dir, TrustDomain: trustDomain}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("two authorities on one directory: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "ca-state.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	first, _ := a.Bundle()
	_ = a.Close()
	_ = a.Close()
	// What a crash in the middle of a write leaves.
	put(t, dir, ".ca-state.json.tmp", "{\"half")
	if err := os.Remove(filepath.Join(dir, "root-cert.pem")); err != nil {
		t.Fatal(err)
	}
	a = open(t, ca.Config{StateDir: dir})
	if again, _ := a.Bundle(); string(again) != string(first) {
		t.Error("another root after a restart")
	}
	if text, err := os.ReadFile(filepath.Join(dir, "root-cert.pem")); err != nil || string(text) != string(first) {
		t.Errorf("root-cert.pem: %v", err)
	}
	if err := a.StartRotation(); err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	for _, broken := range []string{"", "{", "{}", `{"version":1}`, `{"version":99}`, `{"version":1,"current":{"signerID":"x","cert":"x","key":"x"}}`} {
		put(t, dir, "ca-state.json", broken)
		if a, err := ca.Open(ca.Config{StateDir: dir, TrustDomain: trustDomain}); err == nil {
			_ = a.Close()
			t.Errorf("began anew over the state %q", broken)
		}
	}
}

func TestServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, ca.Config{StateDir: t.TempDir()})
		defer func() { _ = a.Close() }()
		for _, bad := range [][]string{nil, {""}, {"a b"}, {"https://x"}} {
			if _, err := a.ServingConfig(bad); err == nil {
				t.Errorf("%q accepted", bad)
			}
		}
		conf, err := a.ServingConfig([]string{"istiod.istio-system.svc", "10.88.0.1", "fd88::1"})
		if err != nil {
			t.Fatal(err)
		}
		get := func() *tls.Certificate {
			c, err := conf.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"istiod.istio-system.svc", "10.88.0.1", "fd88::1"} {
				if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: a.Roots()}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			return c
		}
		first := get()
		time.Sleep(11 * time.Hour)
		if get() != first {
			t.Error("renewed at each connection")
		}
		for range 100 {
			time.Sleep(11 * time.Hour)
			if c := get(); time.Until(c.Leaf.NotAfter) < time.Hour {
				t.Error("served until the end")
			}
		}
	})
}

// TestKill kills a process -9 that rotates and signs as fast as it can. What
// it has published before is found again by the next one, whole.
func TestKill(t *testing.T) {
	if dir := os.Getenv("AMBIT_TEST_KILL_DIR"); dir != "" {
		victim(t, dir)
		return
	}
	dir := t.TempDir()
	for round := range 15 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "AMBIT_TEST_KILL_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The victim says which signer each step begins with.
		lines := bufio.NewScanner(out)
		last := ""
		for range 1 + mathrand.IntN(40) {
			if !lines.Scan() {
				t.Fatalf("round %d: the victim ended by itself", round)
			}
			last = lines.Text()
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			last = lines.Text()
		}
		_ = cmd.Wait()
		a := open(t, ca.Config{StateDir: dir})
		if _, err := a.Sign(id("a"), csr(t, ecKey(t, elliptic.P256())), 0); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		bundle, _ := a.Bundle()
		file, err := os.ReadFile(filepath.Join(dir, "root-cert.pem"))
		if err != nil || string(file) != string(bundle) {
			t.Errorf("round %d: root-cert.pem is not the bundle: %v", round, err)
		}
		// One step may have happened after the last word; the signer of
		// before that is then at least still trusted.
		known := false
		roots, err := mtls.ParseCertificates(bundle)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range roots {
			known = known || last == "" || strings.Contains(last, r.Subject.CommonName)
		}
		if !known {
			t.Errorf("round %d: %q is forgotten", round, last)
		}
		_ = a.Close()
	}
}

func victim(t *testing.T, dir string) {
	a := open(t, ca.Config{StateDir: dir})
	key := ecKey(t, elliptic.P256())
	for {
		fmt.Println(a.Status().Signer)
		if a.Status().Stage == ca.Steady {
			if err := a.StartRotation(); err != nil {
				t.Fatal(err)
			}
		} else if err := a.Hurry(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Sign(id("a"), csr(t, key), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestServingOverTLS is the whole way of a client of the control plane.
func TestServingOverTLS(t *testing.T) {
	a := open(t, ca.Config{StateDir: t.TempDir()})
	defer func() { _ = a.Close() }()
	conf, err := a.ServingConfig([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	p, q := net.Pipe()
	failed := make(chan error, 1)
	go func() { failed <- tls.Server(q, conf).HandshakeContext(t.Context()) }()
	err = tls.Client(p, &tls.Config{RootCAs: a.Roots(), ServerName: "127.0.0.1"}).HandshakeContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}
