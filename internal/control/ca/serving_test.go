package ca_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca"
)

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
