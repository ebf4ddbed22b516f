package mtls_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// revoke makes a list by a, as DER.
func (a *authority) revoke(certs ...*x509.Certificate) []byte {
	a.t.Helper()
	list := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour),
		NextUpdate: time.Now().Add(-time.Minute), // old, and still in force
	}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func crlPEM(ders ...[]byte) (text []byte) {
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	// As Kubernetes does it: a new file in the old one's place.
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestCRL(t *testing.T) {
	root := newRoot(t, "root")
	mid := root.intermediate("mid")
	impostor := newRoot(t, "mid") // borrows the name
	peer, other := mid.workload(id("peer")), mid.workload(id("other"))
	self := root.workload(id("self"))
	for _, tt := range []struct {
		name string
		text []byte
		want reason.Reason
	}{
		{"nothing", nil, reason.OK},
		{"empty list", crlPEM(mid.revoke()), reason.OK},
		{"somebody else", crlPEM(mid.revoke(other.Cert.Leaf)), reason.OK},
		{"leaf", crlPEM(mid.revoke(other.Cert.Leaf, peer.Cert.Leaf)), reason.CertificateRevoked},
		{"leaf, in the second list", crlPEM(root.revoke(), mid.revoke(peer.Cert.Leaf)), reason.CertificateRevoked},
		{"leaf, DER", mid.revoke(peer.Cert.Leaf), reason.CertificateRevoked},
		{"intermediate", crlPEM(root.revoke(mid.cert)), reason.CertificateRevoked},
		{"same number, other issuer", crlPEM(root.revoke(peer.Cert.Leaf)), reason.OK},
		{"by an impostor", crlPEM(impostor.revoke(peer.Cert.Leaf)), reason.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "crl")
			if tt.text == nil {
				tt.text = []byte("\n")
				if _, err := mtls.OpenCRL(t.TempDir(), slog.New(slog.DiscardHandler)); err == nil {
					t.Error("a file that is a directory")
				}
				tt.text = crlPEM(root.revoke())
			}
			write(t, path, tt.text)
			crl, err := mtls.OpenCRL(path, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			o := mtls.Options{CRL: crl}
			// The peer as a server, then as a client.
			_, cli, _, cerr := handshake(t, mtls.Server(fixed(peer)), o.Client(self, []identity.Identity{id("peer")}))
			check(t, "client", cerr, tt.want)
			_, _, serr, _ := handshake(t, o.Server(fixed(self)), mtls.Client(peer, []identity.Identity{id("self")}))
			check(t, "server", serr, tt.want)
			if cli.PeerCertificates == nil {
				cli = established(t, peer, self)
			}
			check(t, "recheck", crl.Recheck(&cli, self), tt.want)
		})
	}
}

func established(t *testing.T, server, client *mtls.Bundle) tls.ConnectionState {
	t.Helper()
	_, cli, serr, cerr := handshake(t, mtls.Server(fixed(server)), mtls.Client(client, []identity.Identity{server.Identity}))
	if err := errors.Join(serr, cerr); err != nil {
		t.Fatal(err)
	}
	return cli
}

// TestRecheckOutlivesRoots: a revocation is also found when the roots of
// today do not know the peer's chain any more, and when its leaf has expired.
func TestRecheckOutlivesRoots(t *testing.T) {
	old, now := newRoot(t, "old"), newRoot(t, "new")
	mid := old.intermediate("mid")
	peer, self := mid.workload(id("peer")), old.workload(id("self"))
	state := established(t, peer, self)
	path := filepath.Join(t.TempDir(), "crl")
	write(t, path, crlPEM(mid.revoke(peer.Cert.Leaf)))
	crl, err := mtls.OpenCRL(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	check(t, "recheck", crl.Recheck(&state, now.workload(id("self"))), reason.CertificateRevoked)
	check(t, "recheck of nothing", crl.Recheck(&tls.ConnectionState{}, self), reason.OK)
}

// A file that nobody has made yet revokes nothing, and counts when it comes.
func TestCRLComesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newRoot(t, "root")
		peer := root.workload(id("peer"))
		path := filepath.Join(t.TempDir(), "crl")
		crl, err := mtls.OpenCRL(path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{peer.Cert.Leaf}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			crl.Run(t.Context())
		}()
		time.Sleep(time.Minute)
		check(t, "no file", crl.Recheck(state, peer), reason.OK)
		write(t, path, crlPEM(root.revoke(peer.Cert.Leaf)))
		time.Sleep(time.Minute)
		check(t, "a file", crl.Recheck(state, peer), reason.CertificateRevoked)
	})
}

func TestCRLReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newRoot(t, "root")
		peer := root.workload(id("peer"))
		dir := t.TempDir()
		path := filepath.Join(dir, "crl")
		write(t, path, crlPEM(root.revoke()))
		crl, err := mtls.OpenCRL(path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{peer.Cert.Leaf}}
		told := 0
		crl.OnReload(func() {
			told++
			_ = crl.Recheck(state, peer) // must be allowed here
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			crl.Run(t.Context())
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := crl.Recheck(state, peer); err != nil || told != 0 {
			t.Errorf("%v, told %d times", err, told)
		}
		write(t, path, crlPEM(root.revoke(peer.Cert.Leaf)))
		time.Sleep(time.Minute)
		synctest.Wait()
		check(t, "after reload", crl.Recheck(state, peer), reason.CertificateRevoked)
		if told != 1 {
			t.Errorf("told %d times", told)
		}
		// What is broken or gone changes nothing.
		for _, text := range []string{"", "garbage", "-----BEGIN X509 CRL-----\nMA==\n-----END X509 CRL-----\n", "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"} {
			write(t, path, []byte(text))
			time.Sleep(time.Minute)
			check(t, "broken file", crl.Recheck(state, peer), reason.CertificateRevoked)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		check(t, "no file", crl.Recheck(state, peer), reason.CertificateRevoked)
	})
}
