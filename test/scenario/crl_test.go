package scenario

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// plugged is a CA of the installation's own, and its revocation list.
type plugged struct {
	dir, list string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
	number    int64
}

func newPlugged(t *testing.T) *plugged {
	t.Helper()
	p := &plugged{dir: t.TempDir()}
	p.list = filepath.Join(p.dir, "ca-crl.pem")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a CA of our own"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	p.key = key
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	for name, text := range map[string]string{
		"ca-cert.pem": cert, "root-cert.pem": cert, "cert-chain.pem": "",
		"ca-key.pem": string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})),
	} {
		write(t, filepath.Join(p.dir, name), text)
	}
	p.revoke(t)
	return p
}

// revoke makes the list hold exactly these serial numbers.
func (p *plugged) revoke(t *testing.T, serials ...*big.Int) {
	t.Helper()
	p.number++
	tpl := &x509.RevocationList{Number: big.NewInt(p.number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		tpl.RevokedCertificateEntries = append(tpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tpl, p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.list, string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
}

// serial is the number of the certificate that a node uses for an account of
// the shop.
func serial(w *rig.World, node, account string) *big.Int {
	w.T().Helper()
	d, err := w.Dump(node)
	if err != nil {
		w.T().Fatal(err)
	}
	for _, c := range d.Certificates {
		if strings.HasSuffix(c.Identity, "/sa/"+account) && len(c.CertChain) > 0 {
			block, _ := pem.Decode(c.CertChain[0].PEM)
			if block == nil {
				w.T().Fatalf("not PEM: %s", c.CertChain[0].PEM)
			}
			x, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				w.T().Fatal(err)
			}
			return x.SerialNumber
		}
	}
	w.T().Fatalf("%s has no certificate of %s", node, account)
	return nil
}

// TestRevocation: whose certificate is revoked, is refused in either role, and
// connections that are open end; who is not revoked any more, is let in again.
func TestRevocation(t *testing.T) {
	for _, c := range []struct{ name, checks, victim, at string }{
		{"inbound", "node1", "far", "node2"},
		{"outbound", "node2", "web", "node1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // it waits for files to be read, mostly
			authority := newPlugged(t)
			w := rig.Start(t, lab.Config{YAML: shop, Args: map[string][]string{"ambitd": {"--ca-dir", authority.dir}},
				Env: map[string][]string{"ztunnel/" + c.checks: {"CRL_PATH=" + authority.list}}})
			held := map[bool]*rig.Conn{}
			for _, v6 := range []bool{false, true} {
				held[v6] = w.MustHold(far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000))
			}
			authority.revoke(t, serial(w, c.at, c.victim))
			rig.Families(t, func(t *testing.T, v6 bool) {
				w := w.For(t)
				if held[v6].AwaitEnd() == nil {
					t.Error("a connection of a revoked certificate is still there")
				}
				w.BecomesRefused(far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
				w.Logs(c.checks, "dst.addr="+netip.AddrPortFrom(w.Pod("shop", "web", v6), 15008).String(), `reason="CERTIFICATE_REVOKED"`)
			})
			authority.revoke(t, big.NewInt(4711)) // somebody else
			rig.Families(t, func(t *testing.T, v6 bool) {
				w.For(t).BecomesAnswered(far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
			})
		})
	}
}
