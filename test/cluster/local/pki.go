package local

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"time"

	"sigs.k8s.io/yaml"
)

// certLifetime: a cluster for tests does not outlive a year.
const certLifetime = 365 * 24 * time.Hour

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
}

func newAuthority(name string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := unsigned(name, nil, now)
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, pem: pemBlock("CERTIFICATE", der), key: key}, err
}

func unsigned(name string, groups []string, now time.Time) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails
	serial[0] &= 0x7f        // positive
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(certLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// pair is a certificate and its key, as PEM.
type pair struct{ cert, key []byte }

// issue makes a certificate: a server's if there are names (or addresses) to
// serve, else that of a client, who is user `name` in `groups`.
func (a *authority) issue(name string, groups, serves []string, now time.Time) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	t := unsigned(name, groups, now)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, s := range serves {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(s); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, s)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return pair{}, err
	}
	keyPEM, err := privatePEM(key)
	return pair{cert: pemBlock("CERTIFICATE", der), key: keyPEM}, err
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func privatePEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pemBlock("EC PRIVATE KEY", der), err
}

func publicPEM(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	return pemBlock("PUBLIC KEY", der), err
}

// kubeconfig is a client's configuration file.
func kubeconfig(cluster, server, user string, ca []byte, id pair) ([]byte, error) {
	type object map[string]any
	return yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": cluster,
		"clusters": []object{{"name": cluster, "cluster": object{"server": server, "certificate-authority-data": ca}}},
		"users":    []object{{"name": user, "user": object{"client-certificate-data": id.cert, "client-key-data": id.key}}},
		"contexts": []object{{"name": cluster, "context": object{"cluster": cluster, "user": user}}},
	})
}

// pkiFiles makes every key, certificate and kubeconfig of a cluster, by file
// name. outside is the port on the machine's loopback.
func pkiFiles(p plan, cluster string, outside int, now time.Time) (map[string][]byte, error) {
	ca, err := newAuthority(cluster+"-ca", now)
	if err != nil {
		return nil, err
	}
	front, err := newAuthority(cluster+"-front-proxy-ca", now)
	if err != nil {
		return nil, err
	}
	w := &pkiWriter{ca: ca, cluster: cluster, now: now, files: map[string][]byte{"ca.crt": ca.pem, "front-proxy-ca.crt": front.pem}}
	w.keys()
	w.pair(ca, "apiserver", "kube-apiserver", nil, p.apiNames())
	w.pair(ca, "apiserver-kubelet-client", "kube-apiserver-kubelet-client", []string{"system:masters"}, nil)
	w.pair(front, "front-proxy-client", "front-proxy-client", nil, nil)
	nodes := fmt.Sprintf("https://%s:%d", p.node(1)[0], apiPort)
	control := fmt.Sprintf("https://127.0.0.1:%d", apiPort)
	w.config("admin", fmt.Sprintf("https://127.0.0.1:%d", outside), "kubernetes-admin", "system:masters")
	w.config("admin-lan", nodes, "kubernetes-admin", "system:masters")
	w.config("kube-controller-manager", control, "system:kube-controller-manager")
	w.config("kube-scheduler", control, "system:kube-scheduler")
	w.config("kube-proxy", nodes, "system:kube-proxy")
	for _, n := range p.nodes() {
		name := nodeName(n)
		serves := []string{name}
		for _, a := range p.node(n) {
			serves = append(serves, a.String())
		}
		w.pair(ca, "kubelet-"+name, "system:node:"+name, []string{"system:nodes"}, serves)
		w.config("kubelet-"+name, nodes, "system:node:"+name, "system:nodes")
	}
	return maps.Clone(w.files), w.err
}

// pkiWriter collects files; after the first error it does nothing more.
type pkiWriter struct {
	ca      *authority
	cluster string
	now     time.Time
	files   map[string][]byte
	err     error
}

// keys are the authority's own, which signs client certificates on request,
// and the one that service account tokens are signed with.
func (w *pkiWriter) keys() {
	w.files["ca.key"], w.err = privatePEM(w.ca.key)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if w.err == nil {
		w.err = err
	}
	if w.err == nil {
		w.files["sa.key"], w.err = privatePEM(key)
	}
	if w.err == nil {
		w.files["sa.pub"], w.err = publicPEM(key.Public())
	}
}

func (w *pkiWriter) pair(by *authority, file, name string, groups, serves []string) {
	if w.err != nil {
		return
	}
	var p pair
	p, w.err = by.issue(name, groups, serves, w.now)
	w.files[file+".crt"], w.files[file+".key"] = p.cert, p.key
}

func (w *pkiWriter) config(file, server, user string, groups ...string) {
	if w.err != nil {
		return
	}
	var p pair
	if p, w.err = w.ca.issue(user, groups, nil, w.now); w.err == nil {
		w.files[file+".kubeconfig"], w.err = kubeconfig(w.cluster, server, user, w.ca.pem, p)
	}
}
