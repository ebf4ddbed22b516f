package local

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func testPKI(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := pkiFiles(plan{count: 2, ipv6: true}, "test", 12345, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func leaf(t *testing.T, cert, key []byte) *x509.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func pool(pem []byte) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(pem)
	return p
}

func TestServersAreWhoClientsAskFor(t *testing.T) {
	files := testPKI(t)
	for file, names := range map[string][]string{
		"apiserver":     {"127.0.0.1", "localhost", "172.30.0.11", "fd00:172:30::b", "10.96.0.1", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		"kubelet-node2": {"node2", "172.30.0.12", "fd00:172:30::c"},
	} {
		cert := leaf(t, files[file+".crt"], files[file+".key"])
		for _, name := range names {
			if _, err := cert.Verify(x509.VerifyOptions{Roots: pool(files["ca.crt"]), DNSName: name}); err != nil {
				t.Errorf("%s for %s: %v", file, name, err)
			}
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool(files["ca.crt"]), DNSName: "else.where"}); err == nil {
			t.Errorf("%s is also else.where", file)
		}
	}
}

func TestClientsHaveTheirRights(t *testing.T) {
	files := testPKI(t)
	for file, want := range map[string]struct{ server, user, group string }{
		"admin":                   {"https://127.0.0.1:12345", "kubernetes-admin", "system:masters"},
		"admin-lan":               {"https://172.30.0.11:6443", "kubernetes-admin", "system:masters"},
		"kube-controller-manager": {"https://127.0.0.1:6443", "system:kube-controller-manager", ""},
		"kube-scheduler":          {"https://127.0.0.1:6443", "system:kube-scheduler", ""},
		"kube-proxy":              {"https://172.30.0.11:6443", "system:kube-proxy", ""},
		"kubelet-node1":           {"https://172.30.0.11:6443", "system:node:node1", "system:nodes"},
		"kubelet-node2":           {"https://172.30.0.11:6443", "system:node:node2", "system:nodes"},
	} {
		var c struct {
			Clusters []struct {
				Cluster struct {
					Server string
					CA     string `json:"certificate-authority-data"`
				}
			}
			Users []struct {
				User struct {
					Cert string `json:"client-certificate-data"`
					Key  string `json:"client-key-data"`
				}
			}
		}
		if err := yaml.Unmarshal(files[file+".kubeconfig"], &c); err != nil || len(c.Clusters) != 1 || len(c.Users) != 1 {
			t.Fatalf("%s: %v", file, err)
		}
		decode := func(s string) []byte {
			b, err := base64.StdEncoding.DecodeString(s)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		if string(decode(c.Clusters[0].Cluster.CA)) != string(files["ca.crt"]) || c.Clusters[0].Cluster.Server != want.server {
			t.Errorf("%s: server %s", file, c.Clusters[0].Cluster.Server)
		}
		cert := leaf(t, decode(c.Users[0].User.Cert), decode(c.Users[0].User.Key))
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool(files["ca.crt"]), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		group := ""
		if g := cert.Subject.Organization; len(g) > 0 {
			group = g[0]
		}
		if cert.Subject.CommonName != want.user || group != want.group {
			t.Errorf("%s: user %s, group %q", file, cert.Subject.CommonName, group)
		}
	}
	front := leaf(t, files["front-proxy-client.crt"], files["front-proxy-client.key"])
	if _, err := front.Verify(x509.VerifyOptions{Roots: pool(files["ca.crt"]), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("the front proxy's certificate is good for a user's too")
	}
}
