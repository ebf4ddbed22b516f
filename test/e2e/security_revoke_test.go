package e2e

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// authority reads the mesh's own, with which only who may read its Secret can
// sign.
func authority(t *testing.T) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	s, err := mesh.Kube.CoreV1().Secrets(kit.SystemNamespace).Get(t.Context(), "istio-ca-secret", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := pem.Decode(s.Data["ca-cert.pem"])
	key, _ := pem.Decode(s.Data["ca-key.pem"])
	if cert == nil || key == nil {
		t.Fatal("Secret istio-ca-secret has no certificate or key in PEM")
	}
	issuer, err := x509.ParseCertificate(cert.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := x509.ParseECPrivateKey(key.Bytes); err == nil {
		return issuer, k
	}
	k, err := x509.ParsePKCS8PrivateKey(key.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return issuer, k.(crypto.Signer)
}

// revocations is a list of serial numbers, signed by the mesh's authority.
func revocations(t *testing.T, serials ...*big.Int) []byte {
	t.Helper()
	issuer, key := authority(t)
	now := time.Now()
	list := &x509.RevocationList{Number: big.NewInt(now.Unix()), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: now.Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// serialOf is that of the certificate that a node's proxy holds for an identity.
func serialOf(t *testing.T, node, identity string) *big.Int {
	t.Helper()
	var serial *big.Int
	kit.Eventually(t, "the proxy of "+node+" shows the certificate of "+identity, func(ctx context.Context) error {
		out, err := mesh.Ambit(ctx, "ztunnel-config", "certificate", "--node", node, "-o", "json")
		if err != nil {
			return err
		}
		var all []admin.Certificates
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		for _, c := range all {
			if c.Identity == identity && len(c.CertChain) > 0 {
				var ok bool
				if serial, ok = new(big.Int).SetString(c.CertChain[0].SerialNumber, 10); ok {
					return nil
				}
			}
		}
		return fmt.Errorf("there is none: %s", out)
	})
	return serial
}

// Revocation lists beside the plugged-in CA reach every namespace and, where
// that is asked for, the node proxies: who is on one is refused, as a server and
// as a client, and nobody else is.
func TestRevoked(t *testing.T) {
	from, to := twoNodes(t)
	n := mesh.Namespace(t, "revoked", kit.Ambient())
	secrets := mesh.Kube.CoreV1().Secrets(kit.SystemNamespace)
	t.Cleanup(func() {
		ctx := context.Background()
		if err := secrets.Delete(ctx, "cacerts", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
		if err := mesh.Install(ctx); err != nil {
			t.Error(err)
		}
	})
	// There is no list yet, and the proxies start nevertheless.
	if err := mesh.Upgrade(t.Context(), "--set", "values.ztunnel.peerCaCrl.enabled=true"); err != nil {
		t.Fatal(err)
	}
	mesh.RolledOut(t, "ztunnel")
	server, other := n.Pod("server", kit.OnNode(to)), n.Pod("other", kit.OnNode(to))
	n.Pod("client", kit.OnNode(from))
	for _, s := range []string{"server", "other"} {
		n.Service(s)
	}
	n.Tunnelled("client", n.URL("server"), server)

	list := revocations(t, serialOf(t, to, kit.SPIFFE(n.Name, "server")))
	if _, err := secrets.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "cacerts"}, Data: map[string][]byte{"ca-crl.pem": list},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{kit.SystemNamespace, n.Name} {
		kit.Eventually(t, "the list is in namespace "+ns, func(ctx context.Context) error {
			m, err := mesh.Kube.CoreV1().ConfigMaps(ns).Get(ctx, "istio-ca-crl", metav1.GetOptions{})
			if err == nil && m.Data["ca-crl.pem"] != string(list) {
				err = fmt.Errorf("it is another: %q", m.Data)
			}
			return err
		})
	}
	// Kubelets look at a mounted ConfigMap once a minute, or when the pod changes.
	for _, node := range []string{from, to} {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"ambit.test/look":"%d"}}}`, time.Now().Unix())
		proxy := mesh.ProxyOn(t, node)
		if _, err := mesh.Kube.CoreV1().Pods(proxy.Namespace).Patch(t.Context(), proxy.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	since := time.Now()
	_ = n.MustRefuse("client", n.URL("server"))
	n.LoggedOn(from, server, since, `direction="outbound"`, `reason="CERTIFICATE_REVOKED"`)
	_ = n.MustRefuse("server", n.URL("other"))
	n.Tunnelled("client", n.URL("other"), other)
}
