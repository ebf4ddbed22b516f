package ca_test

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
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
