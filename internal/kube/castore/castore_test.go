package castore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/kube/castore"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

const ns = "istio-system"

var web = identity.Identity{TrustDomain: "cluster.local", Namespace: "app", ServiceAccount: "web"}

// replica opens an authority on the Secret and follows it until the test ends.
func replica(t *testing.T, s *kubetest.Server, conf ca.Config) *ca.Authority {
	t.Helper()
	return replicaAfter(t, s, conf, func() {})
}

// replicaAfter opens an authority, calls between, and then runs the authority.
func replicaAfter(t *testing.T, s *kubetest.Server, conf ca.Config, between func()) *ca.Authority {
	t.Helper()
	kube := s.Client().Kube
	store := castore.New(kube, ns)
	plugin := castore.NewPlugin(kube, ns)
	conf.Store, conf.Plugin, conf.TrustDomain = store, plugin, web.TrustDomain
	a, err := ca.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	between()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{store.Run, plugin.Run, a.Run} {
		wg.Go(func() { _ = run(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait(); _ = a.Close() })
	return a
}

func lead(t *testing.T, a *ca.Authority) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Lead(ctx) }()
	eventually(t, "leads", func() bool { return a.Status().Leads })
	return func() { cancel(); <-done }
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sign has a certificate signed and returns the leaf.
func sign(t *testing.T, a *ca.Authority, ttl time.Duration) (*x509.Certificate, error) {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key(t))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(web, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), ttl)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(chain[0]))
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c, nil
}

func mustSign(t *testing.T, a *ca.Authority) *x509.Certificate {
	t.Helper()
	c, err := sign(t, a, 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// accepts reports whether a peer that trusts what a hands out accepts c.
func accepts(a *ca.Authority, c *x509.Certificate) bool {
	_, err := c.Verify(x509.VerifyOptions{Roots: a.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

func secret(t *testing.T, s *kubetest.Server, name string) *corev1.Secret {
	t.Helper()
	o, err := s.Client().Kube.CoreV1().Secrets(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestReplicasBegin: replicas that start together end up with one root.
func TestReplicasBegin(t *testing.T) {
	s := kubetest.Start(t)
	all := make([]*ca.Authority, 5)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i] = replica(t, s, ca.Config{}) })
	}
	wg.Wait()
	for _, a := range all {
		c := mustSign(t, a)
		for _, b := range all {
			if !accepts(b, c) {
				t.Fatalf("%q and %q do not accept each other", a.Status().Signer, b.Status().Signer)
			}
		}
	}
	o := secret(t, s, castore.StateSecret)
	for _, k := range []string{"ca-cert.pem", "ca-key.pem", "root-cert.pem", "ca-state.json"} {
		if len(o.Data[k]) == 0 {
			t.Errorf("the Secret has no %s", k)
		}
	}
}

// TestRotationAcrossReplicas: one replica rotates, the others follow, and a
// certificate of any is accepted by all at each step.
func TestRotationAcrossReplicas(t *testing.T) {
	s := kubetest.Start(t)
	a, b := replica(t, s, ca.Config{}), replica(t, s, ca.Config{})
	stop := lead(t, a)
	before := mustSign(t, b)
	if err := b.StartRotation(); !errors.Is(err, ca.ErrNoRotation) {
		t.Fatalf("a replica that does not lead rotated: %v", err)
	}
	if err := a.StartRotation(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b distributes the new root", func() bool { return b.Status().Stage == ca.NewRootDistributed })
	if !a.Status().Until.After(before.NotAfter) {
		t.Errorf("the stage ends at %s, a certificate of the other replica lives until %s", a.Status().Until, before.NotAfter)
	}
	stop() // the next leader goes on where this one was
	defer lead(t, b)()
	if err := b.Hurry(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a signs with the new root", func() bool { return a.Status().Stage == ca.SigningByNew })
	after := mustSign(t, a)
	for _, x := range []*ca.Authority{a, b} {
		if !accepts(x, before) || !accepts(x, after) {
			t.Error("old and new do not accept each other during the change")
		}
	}
	if err := b.Hurry(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old root is gone", func() bool { return a.Status().Stage == ca.Steady && !accepts(a, before) })
	if !accepts(a, after) {
		t.Error("the new root is not trusted")
	}
}

// TestRecordAcrossReplicas: a stage waits for certificates that a replica
// signed which had not seen the rotation, and which the leader never saw.
func TestRecordAcrossReplicas(t *testing.T) {
	s := kubetest.Start(t)
	a := replica(t, s, ca.Config{})
	// Deaf: it follows neither the Secret nor the leader.
	deaf, err := ca.Open(ca.Config{Store: castore.New(s.Client().Kube, ns), TrustDomain: web.TrustDomain})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = deaf.Close() }()
	defer lead(t, a)()
	mustSign(t, deaf)
	if err := a.StartRotation(); err != nil {
		t.Fatal(err)
	}
	// Within what the record covers it does not know; beyond, it has to learn.
	for _, ttl := range []time.Duration{time.Hour, 48 * time.Hour} {
		c, err := sign(t, deaf, ttl)
		if err != nil {
			t.Fatal(err)
		}
		if knows := deaf.Status().Roots == 2; !knows && !a.Status().Until.After(c.NotAfter) {
			t.Errorf("%s: a certificate without the new root lives until %s, the stage ends at %s", ttl, c.NotAfter, a.Status().Until)
		}
	}
	if deaf.Status().Roots != 2 {
		t.Error("it handed out a certificate beyond the record without the new root")
	}
}

// TestAPIServerGone: certificates are signed for as long as others know of,
// and no longer.
func TestAPIServerGone(t *testing.T) {
	s := kubetest.Start(t)
	a := replica(t, s, ca.Config{})
	first := mustSign(t, a)
	s.Stop()
	second, err := sign(t, a, 90*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if second.NotAfter.After(first.NotAfter.Add(2 * time.Hour)) {
		t.Errorf("lives until %s, of which no other replica knows", second.NotAfter)
	}
	began := time.Now()
	for range 20 {
		mustSign(t, a)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("20 signatures took %s without the API server", took)
	}
	s.Restart()
	eventually(t, "the record is kept again", func() bool {
		c, err := sign(t, a, 90*24*time.Hour)
		return err == nil && time.Until(c.NotAfter) > 80*24*time.Hour
	})
}

// TestAdopt: the root that Istio left is the mesh's root from now on.
func TestAdopt(t *testing.T) {
	s := kubetest.Start(t)
	k := key(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"cluster.local"}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(9, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := x509.ParseCertificate(der)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.Add(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: castore.StateSecret}, Type: "istio.io/ca-root",
		Data: map[string][]byte{
			"ca-cert.pem": text, "ca-key.pem": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
			"cert-chain.pem": {}, "key.pem": {}, "root-cert.pem": {},
		},
	})
	a := replica(t, s, ca.Config{})
	if err := mustSign(t, a).CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
	if o := secret(t, s, castore.StateSecret); string(o.Data["ca-cert.pem"]) != string(text) || string(o.Data["root-cert.pem"]) != string(text) {
		t.Error("the root is not in the Secret any more")
	}
	defer lead(t, a)()
	if err := a.StartRotation(); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(a.Status().Until); left < ca.MaxTTL-time.Hour {
		t.Errorf("certificates of before may live for %s, and are waited for for %s", ca.MaxTTL, left)
	}
}

// TestBrokenForeignRoot: a root that cannot be used is not overwritten.
func TestBrokenForeignRoot(t *testing.T) {
	s := kubetest.Start(t, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: castore.StateSecret},
		Data:       map[string][]byte{"ca-cert.pem": []byte("x"), "ca-key.pem": []byte("y")},
	})
	if _, err := ca.Open(ca.Config{Store: castore.New(s.Client().Kube, ns), TrustDomain: web.TrustDomain}); err == nil {
		t.Error("began with another root")
	}
	if o := secret(t, s, castore.StateSecret); string(o.Data["ca-key.pem"]) != "y" {
		t.Error("the key was overwritten")
	}
}

// TestSecretDeleted: the root that the mesh trusts is not lost with it.
func TestSecretDeleted(t *testing.T) {
	s := kubetest.Start(t)
	a := replica(t, s, ca.Config{})
	b := replica(t, s, ca.Config{})
	c := mustSign(t, a)
	if err := s.Client().Kube.CoreV1().Secrets(ns).Delete(t.Context(), castore.StateSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Secret is back", func() bool {
		_, err := s.Client().Kube.CoreV1().Secrets(ns).Get(t.Context(), castore.StateSecret, metav1.GetOptions{})
		return err == nil
	})
	if n := replica(t, s, ca.Config{}); !accepts(n, c) || !accepts(b, mustSign(t, n)) {
		t.Error("another root")
	}
}

// TestSecretDeletedBeforeTheWatch: a Secret that is deleted after the authority
// has read it and before the first watch lists it is written again.
func TestSecretDeletedBeforeTheWatch(t *testing.T) {
	s := kubetest.Start(t)
	secrets := s.Client().Kube.CoreV1().Secrets(ns)
	replicaAfter(t, s, ca.Config{}, func() {
		if err := secrets.Delete(t.Context(), castore.StateSecret, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, "the Secret is back", func() bool {
		_, err := secrets.Get(t.Context(), castore.StateSecret, metav1.GetOptions{})
		return err == nil
	})
}

// TestPluginSecret: cacerts is taken up by all replicas when the leader says.
func TestPluginSecret(t *testing.T) {
	s := kubetest.Start(t)
	a, b := replica(t, s, ca.Config{}), replica(t, s, ca.Config{})
	defer lead(t, a)()
	rootKey, caKey := key(t), key(t)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "operator root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(9, 0, 0),
	}
	inter := *root
	inter.SerialNumber, inter.Subject = big.NewInt(2), pkix.Name{CommonName: "operator intermediate"}
	encode := func(tmpl *x509.Certificate, k *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, root, k.Public(), rootKey)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	keyDER, err := x509.MarshalECPrivateKey(caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, rootPEM := encode(&inter, caKey), encode(root, rootKey)
	s.Add(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: castore.PluginSecret}, Data: map[string][]byte{
		"ca-cert.pem": cert, "ca-key.pem": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
		"cert-chain.pem": append(cert, rootPEM...), "root-cert.pem": rootPEM,
	}})
	eventually(t, "its root is distributed", func() bool { return b.Status().Stage == ca.NewRootDistributed })
	if err := a.Hurry(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other replica signs with it", func() bool {
		c, err := sign(t, b, 0)
		return err == nil && c.Issuer.CommonName == "operator intermediate"
	})
	if o := secret(t, s, castore.StateSecret); len(o.Data["ca-key.pem"]) != 0 {
		t.Error("the retired root's key is kept")
	}
}

// Revocation lists are taken when they are good, and are not taken back.
func TestRevocations(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: castore.PluginSecret}, Data: map[string][]byte{"ca-crl.pem": []byte("bad")}}
	s := kubetest.Start(t, secret)
	ctx, cancel := context.WithCancel(context.Background())
	judge := func(text []byte) error {
		if strings.HasPrefix(string(text), "bad") {
			return errors.New("not a list")
		}
		return nil
	}
	plugin := castore.NewPlugin(s.Client().Kube, ns)
	r := castore.NewRevocations(plugin, judge, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{plugin.Run, r.Run} {
		wg.Go(func() { _ = run(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	is := func(want string) {
		t.Helper()
		eventually(t, "the lists are "+want, func() bool {
			text, _ := r.Text()
			return string(text) == want
		})
	}
	put := func(data map[string][]byte) {
		secret = secret.DeepCopy()
		secret.Data = data
		s.Update(secret)
	}
	_, changed := r.Text()
	put(map[string][]byte{"ca-crl.pem": []byte("one")})
	is("one")
	<-changed
	put(map[string][]byte{"ca-crl.pem": []byte("bad again")})
	put(map[string][]byte{})
	put(map[string][]byte{"ca-crl.pem": []byte("two")})
	is("two")
	put(map[string][]byte{"ca-cert.pem": []byte("x")})
	put(map[string][]byte{"ca-cert.pem": []byte("y")})
	time.Sleep(200 * time.Millisecond)
	is("two")
}
