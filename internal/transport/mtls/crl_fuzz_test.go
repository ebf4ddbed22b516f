package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// FuzzParseCRLs: whatever is in the file, there are lists or an error, and
// every list is found by its issuer.
func FuzzParseCRLs(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), KeyUsage: x509.KeyUsageCRLSign, IsCA: true, SubjectKeyId: []byte{1}, RawSubject: []byte{0x30, 0}}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Unix(1e9, 0), NextUpdate: time.Unix(2e9, 0),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(255), RevocationTime: time.Unix(1e9, 0)}},
	}, issuer, key)
	if err != nil {
		f.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})
	f.Add(list)
	f.Add(append(block, block...))
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := parseCRLs(text)
		if err != nil {
			return
		}
		found := 0
		for name, lists := range set.byIssuer {
			for _, l := range lists {
				if string(l.list.RawIssuer) != name || len(l.revoked) > len(l.list.RevokedCertificateEntries) {
					t.Errorf("list of %q below %q with %d serial numbers", l.list.RawIssuer, name, len(l.revoked))
				}
				found++
			}
		}
		if found == 0 {
			t.Error("neither lists nor an error")
		}
	})
}
