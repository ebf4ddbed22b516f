package ca

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// PluginSource is where the files of a plugged-in CA come from. Calls are
// bounded in time.
type PluginSource interface {
	// Files returns texts by name; none when there is no such CA. Unless
	// fresh, it may be what was read last and not known to have changed.
	Files(fresh bool) (map[string][]byte, error)
	// Changed has a value after the files may have changed; nil when nobody
	// knows.
	Changed() <-chan struct{}
	// String says where they are, for people.
	String() string
}

// pluginDir is a directory of plug-in files.
type pluginDir string

func (d pluginDir) Files(bool) (map[string][]byte, error) { return readPluginDir(string(d)) }
func (pluginDir) Changed() <-chan struct{}                { return nil }
func (d pluginDir) String() string                        { return string(d) }

// pluginFiles are the texts of a plugged-in CA.
type pluginFiles struct {
	cert, key, chain, root []byte
	sum                    [sha256.Size]byte
}

// errNoPlugin says that there is no plugged-in CA.
var errNoPlugin = errors.New("no CA files")

// maxPluginFile bounds each file, in bytes; a Secret is at most 1 MiB.
const maxPluginFile = 1 << 20

// pluginNames are the files of Istio's cacerts secret, or else those of a
// Kubernetes TLS secret: certificate, key, chain, roots.
var pluginNames = [...][4]string{
	{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"},
	{"tls.crt", "tls.key", "", "ca.crt"},
}

// readPluginDir reads what there is of the files of a plugged-in CA.
func readPluginDir(dir string) (map[string][]byte, error) {
	files := make(map[string][]byte, 4)
	for _, name := range slices.Concat(pluginNames[0][:], pluginNames[1][:]) {
		if name == "" {
			continue
		}
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		case info.Size() > maxPluginFile:
			return nil, fmt.Errorf("%s is longer than %d bytes", name, maxPluginFile)
		}
		if files[name], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// choosePlugin takes the texts of one CA from files by name. Without the
// certificate there is none.
func choosePlugin(files map[string][]byte) (pluginFiles, error) {
	for _, names := range pluginNames {
		if _, ok := files[names[0]]; ok {
			return pluginAs(files, names)
		}
	}
	return pluginFiles{}, errNoPlugin
}

func pluginAs(files map[string][]byte, names [4]string) (pluginFiles, error) {
	var p pluginFiles
	h := sha256.New()
	for i, to := range []*[]byte{&p.cert, &p.key, &p.chain, &p.root} {
		text, ok := files[names[i]]
		if !ok && i == 2 {
			continue // a CA right below its root needs no chain
		}
		if !ok {
			return p, fmt.Errorf("there is no %s", names[i])
		}
		*to = text
		_, _ = fmt.Fprintf(h, "%d:%d:", i, len(text))
		_, _ = h.Write(text)
	}
	h.Sum(p.sum[:0])
	return p, nil
}

// loadPlugin checks the files and makes a signer of them: the key belongs to
// the certificate, which is a CA's and in force, and what it signs verifies
// against the roots.
func loadPlugin(p pluginFiles, trustDomain string, now time.Time) (*signer, error) {
	certs, err := mtls.ParseCertificates(p.cert)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	roots, err := mtls.ParseCertificates(p.root)
	if err != nil {
		return nil, fmt.Errorf("root certificates: %w", err)
	}
	chain := certs[1:]
	if len(bytes.TrimSpace(p.chain)) != 0 {
		more, err := mtls.ParseCertificates(p.chain)
		if err != nil {
			return nil, fmt.Errorf("certificate chain: %w", err)
		}
		chain = append(chain, more...)
	}
	key, err := parseKey(p.key)
	if err != nil {
		return nil, err
	}
	cert := certs[0]
	if err := checkCA(cert, key, now); err != nil {
		return nil, err
	}
	path, err := pathToRoot(cert, chain, roots, now)
	if err != nil {
		return nil, err
	}
	s := &signer{id: fingerprint(cert), cert: cert, key: key, root: path[len(path)-1], notAfter: cert.NotAfter}
	s.chain = path[:len(path)-1]
	for _, c := range path {
		if c.NotAfter.Before(s.notAfter) {
			s.notAfter = c.NotAfter
		}
	}
	for _, r := range roots {
		if now.Before(r.NotAfter) { // an expired one in the file is harmless and useless
			s.roots = append(s.roots, r)
		}
	}
	if err := s.prove(trustDomain, now); err != nil {
		return nil, err
	}
	return s, nil
}

func checkCA(cert *x509.Certificate, key crypto.Signer, now time.Time) error {
	switch pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); {
	case !ok || !pub.Equal(cert.PublicKey):
		return errors.New("the private key does not belong to the CA certificate")
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return fmt.Errorf("the certificate of %q is not a CA's", cert.Subject)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("the certificate of %q must not sign others (key usage)", cert.Subject)
	case now.After(cert.NotAfter):
		return fmt.Errorf("the certificate of %q expired at %s", cert.Subject, cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate of %q is valid only from %s", cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// pathToRoot finds cert … root, both included; only cert when it is a root.
func pathToRoot(cert *x509.Certificate, chain, roots []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	vo := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range chain {
		vo.Intermediates.AddCert(c)
	}
	for _, r := range roots {
		vo.Roots.AddCert(r)
	}
	paths, err := cert.Verify(vo)
	if err != nil {
		return nil, fmt.Errorf("the CA certificate does not chain to the root certificates: %w", err)
	}
	best := paths[0]
	for _, p := range paths {
		if len(p) < len(best) {
			best = p
		}
	}
	return best, nil
}
