package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/kube/trust"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// life is that of certificates while the root changes, as in shortLives.
const life = time.Minute

const shortLives = `
values:
  pilot:
    extraContainerArgs: [--cert-ttl=60s, --max-cert-ttl=60s]
  ztunnel:
    env: {SECRET_TTL: 60s}
`

// certificates waits until all certificates of all node proxies, of which there
// are some, are as they should be.
func certificates(t *testing.T, what string, check func(admin.Certificates) error) {
	t.Helper()
	nodes, err := mesh.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, what, func(ctx context.Context) error {
		seen := 0
		for _, node := range nodes {
			out, err := mesh.Ambit(ctx, "ztunnel-config", "certificate", "--node", node, "-o", "json")
			if err != nil {
				return err
			}
			var all []admin.Certificates
			if err := json.Unmarshal([]byte(out), &all); err != nil {
				return err
			}
			for _, c := range all {
				if len(c.CertChain) == 0 {
					continue // asked for, and not there yet: nothing is shown with it
				}
				seen++
				if err := check(c); err != nil {
					return fmt.Errorf("%s on %s: %w", c.Identity, node, err)
				}
			}
		}
		if seen == 0 {
			return fmt.Errorf("no proxy holds a certificate")
		}
		return nil
	})
}

// caStage asks ambitd, or orders and asks.
func caStage(t *testing.T, want string, args ...string) {
	t.Helper()
	kit.Eventually(t, "the authority is at "+want, func(ctx context.Context) error {
		out, err := mesh.Ambit(ctx, append(append([]string{"ca"}, args...), "-o", "json")...)
		args = []string{"status"} // an order is given once
		if err != nil {
			return err
		}
		var s struct{ Stage string }
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		if s.Stage != want {
			return fmt.Errorf("it is at %s", s.Stage)
		}
		return nil
	})
}

// bundles are where the API server of the project's cluster has trust bundles.
var bundles = schema.GroupVersionResource{Group: "certificates.k8s.io", Version: "v1beta1", Resource: "clustertrustbundles"}

// trustBundle waits until the ClusterTrustBundle of the mesh has as many roots
// as said: those that the ConfigMaps have.
func trustBundle(t *testing.T, roots int) {
	t.Helper()
	kit.Eventually(t, fmt.Sprintf("the ClusterTrustBundle has %d roots", roots), func(ctx context.Context) error {
		o, err := mesh.Dynamic.Resource(bundles).Get(ctx, trust.BundleName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		text, _, err := unstructured.NestedString(o.Object, "spec", "trustBundle")
		if n := strings.Count(text, "BEGIN CERTIFICATE"); err == nil && (n != roots || text != string(mesh.RootCertificates(t))) {
			err = fmt.Errorf("it has %d, and ConfigMaps have\n%s", n, mesh.RootCertificates(t))
		}
		return err
	})
}

// The root of the mesh changes under load. Each stage is ended by hand, once
// every proxy has what it needs for the next one: the authority itself would
// wait for certificates of a day, from before this test, to expire.
func TestRootRotated(t *testing.T) {
	own := mesh.Machines(t)
	s := newStage(t, "rotated", 100)
	t.Cleanup(func() {
		if err := mesh.Install(context.Background()); err != nil {
			t.Error(err)
		}
	})
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte(shortLives), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mesh.Upgrade(t.Context(), "-f", values); err != nil {
		t.Fatal(err)
	}
	mesh.ControlPlane(t, 1)
	mesh.RolledOut(t, "ztunnel")
	roots := func(n int) func(admin.Certificates) error {
		return func(c admin.Certificates) error {
			if len(c.RootCerts) != n {
				return fmt.Errorf("it comes with %d roots, and not %d", len(c.RootCerts), n)
			}
			return nil
		}
	}
	caStage(t, "steady", "status")
	certificates(t, "every proxy trusts one root", roots(1))
	trustBundle(t, 1)

	caStage(t, "new-root-distributed", "rotate")
	trustBundle(t, 2)
	certificates(t, "every proxy trusts both roots", roots(2))
	for _, node := range own.Nodes() {
		kit.Eventually(t, "the kubelet of "+node+" has given its proxy both roots for ambitd", func(ctx context.Context) error {
			out, err := own.Output(ctx, node, "sh", "-c", "cat /var/lib/kubelet/pods/*/volumes/kubernetes.io~configmap/istiod-ca-cert/root-cert.pem")
			if n := strings.Count(out, "BEGIN CERTIFICATE"); err == nil && n != 2 {
				err = fmt.Errorf("its file has %d", n)
			}
			return err
		})
	}

	signed := time.Now().Truncate(time.Second)
	caStage(t, "signing-by-new", "rotate", "--hurry")
	certificates(t, "every certificate is of the new root", func(c admin.Certificates) error {
		if until := c.CertChain[0].ExpirationTime; until.Before(signed.Add(life)) {
			return fmt.Errorf("it lasts until %s, and the new root signs since %s", until, signed)
		}
		return nil
	})
	s.delivers()

	caStage(t, "steady", "rotate", "--hurry")
	certificates(t, "every proxy trusts the new root only", roots(1))
	trustBundle(t, 1)
	s.delivers()
	s.starts("late")
	s.load.Clean()
}
