package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// maxCRLFile bounds the file of revocation lists, in bytes. A ConfigMap or
// Secret holds 1 MiB; a list from elsewhere may be longer.
const maxCRLFile = 32 << 20

// crlPoll is how often the file is looked at. Looking by path also sees the
// symlink swaps of Kubernetes volumes, which notifications miss easily.
const crlPoll = 5 * time.Second

// CRL answers whether certificates are revoked, from a file of revocation
// lists that is read again when it changes. Safe for use by several
// goroutines; compare it by pointer.
type CRL struct {
	path   string
	logger *slog.Logger
	lists  atomic.Pointer[crlSet]
	failed string // the last failure, which is logged once; of OpenCRL and then of Run

	mu        sync.Mutex
	stamp     fileStamp
	listeners []func()
}

type fileStamp struct {
	size  int64
	mtime time.Time
	info  os.FileInfo
}

// same reports whether nothing happened to the file since.
func (s fileStamp) same(info os.FileInfo) bool {
	return s.info != nil && os.SameFile(s.info, info) && s.size == info.Size() && s.mtime.Equal(info.ModTime())
}

// crlSet is immutable but for the memory of verified signatures.
type crlSet struct {
	byIssuer map[string][]*crlList // by raw issuer name
}

type crlList struct {
	list    *x509.RevocationList
	revoked map[string]struct{} // serial numbers, big endian
	// checked remembers the result of a signature check by raw issuer
	// certificate; issuers of one name are few.
	checked sync.Map
}

// OpenCRL reads the lists at path: one DER list, or PEM blocks "X509 CRL". A file
// that is there must be readable now; later it may break, which is logged,
// and the last good lists stay. Without a file nothing is revoked until there
// is one: where it is mounted from an object that nobody has made yet, pods
// start nevertheless.
func OpenCRL(path string, logger *slog.Logger) (*CRL, error) {
	c := &CRL{path: path, logger: logger}
	c.lists.Store(&crlSet{})
	switch _, err := c.Reload(); {
	case errors.Is(err, fs.ErrNotExist):
		logger.Warn("there are no revocation lists yet: nothing is revoked until there are", "file", path)
		c.failed = err.Error()
	case err != nil:
		return nil, err
	}
	return c, nil
}

// CheckCRL tells what is wrong with a text of revocation lists, PEM or DER.
func CheckCRL(text []byte) error {
	_, err := parseCRLs(text)
	return err
}

// Run reloads the file when it changes, until ctx ends.
func (c *CRL) Run(ctx context.Context) {
	t := time.NewTicker(crlPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		_, err := c.Reload()
		if err == nil {
			c.failed = ""
			continue
		}
		if err.Error() != c.failed {
			c.failed = err.Error()
			c.logger.Error("cannot reload the revocation lists; the last good ones stay in force", "file", c.path, "error", err)
		}
	}
}

// OnReload has fn called after every change of the lists, on the goroutine
// that reloads. The owner of connections uses it to Recheck them.
func (c *CRL) OnReload(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners = append(c.listeners, fn)
}

// Reload reads the file if it changed and reports whether it did.
func (c *CRL) Reload() (changed bool, err error) {
	changed, listeners, err := c.reload()
	if changed {
		for _, fn := range listeners {
			fn()
		}
	}
	return changed, err
}

func (c *CRL) reload() (changed bool, listeners []func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.path)
	if err != nil {
		return false, nil, fmt.Errorf("revocation lists: %w", err)
	}
	if c.stamp.same(info) {
		return false, nil, nil
	}
	text, err := readBounded(c.path, maxCRLFile)
	if err != nil {
		return false, nil, fmt.Errorf("revocation lists: %w", err)
	}
	set, err := parseCRLs(text)
	if err != nil {
		return false, nil, fmt.Errorf("revocation lists in %s: %w", c.path, err)
	}
	c.lists.Store(set)
	c.stamp = fileStamp{size: info.Size(), mtime: info.ModTime(), info: info}
	return true, slices.Clone(c.listeners), nil
}

// Recheck asks again about the peer of an established connection, whose
// chain was verified in its handshake against the roots of b. A revoked peer
// is a *reason.Error with CertificateRevoked; any other result is nil: roots
// that have changed since do not end connections.
func (c *CRL) Recheck(cs *tls.ConnectionState, b *Bundle) error {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return nil
	}
	certs := cs.PeerCertificates
	vo := x509.VerifyOptions{
		Roots: b.Roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		// The leaf may have expired on the living connection.
		CurrentTime: certs[0].NotBefore.Add(certs[0].NotAfter.Sub(certs[0].NotBefore) / 2),
	}
	for _, x := range certs[1:] {
		vo.Intermediates.AddCert(x)
	}
	chains, err := certs[0].Verify(vo)
	if err != nil {
		// Without a chain to today's roots, what the peer sent is checked as
		// it was sent.
		chains = [][]*x509.Certificate{certs}
	}
	return c.check(chains)
}

// check refuses when every verified chain holds a revoked certificate: one
// that does not would have been enough for the handshake.
func (c *CRL) check(chains [][]*x509.Certificate) error {
	set := c.lists.Load()
	var first error
	for _, chain := range chains {
		err := set.checkChain(chain)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// checkChain looks at leaf and intermediates; a root is trusted by being
// configured.
func (s *crlSet) checkChain(chain []*x509.Certificate) error {
	for i := 0; i+1 < len(chain); i++ {
		if s.revoked(chain[i], chain[i+1]) {
			return reason.Errorf(reason.CertificateRevoked, "serial number %s issued by %q", chain[i].SerialNumber, chain[i].Issuer)
		}
	}
	return nil
}

func (s *crlSet) revoked(c, issuer *x509.Certificate) bool {
	for _, l := range s.byIssuer[string(c.RawIssuer)] {
		if _, listed := l.revoked[string(c.SerialNumber.Bytes())]; listed && l.signedBy(issuer) {
			return true
		}
	}
	return false
}

// signedBy guards against lists that only borrow an issuer's name.
func (l *crlList) signedBy(issuer *x509.Certificate) bool {
	key := string(issuer.RawSubjectPublicKeyInfo)
	if ok, known := l.checked.Load(key); known {
		return ok.(bool)
	}
	ok := l.list.CheckSignatureFrom(issuer) == nil
	l.checked.Store(key, ok)
	return ok
}

func parseCRLs(text []byte) (*crlSet, error) {
	set := &crlSet{byIssuer: make(map[string][]*crlList)}
	if !bytes.Contains(text, []byte("-----BEGIN")) {
		if err := set.add(text); err != nil {
			return nil, err
		}
		return set, nil
	}
	for {
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			break
		}
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("text that is not PEM")
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("a PEM block of type %q among revocation lists", block.Type)
		}
		if err := set.add(block.Bytes); err != nil {
			return nil, err
		}
		text = rest
	}
	return set, nil
}

// reasonRemoved is the CRL reason removeFromCRL (RFC 5280, 5.3.1).
const reasonRemoved = 8

func (s *crlSet) add(der []byte) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	l := &crlList{list: list, revoked: make(map[string]struct{}, len(list.RevokedCertificateEntries))}
	for _, e := range list.RevokedCertificateEntries {
		if e.ReasonCode != reasonRemoved {
			l.revoked[string(e.SerialNumber.Bytes())] = struct{}{}
		}
	}
	// An old list still counts: who was revoked stays revoked.
	key := string(list.RawIssuer)
	s.byIssuer[key] = append(s.byIssuer[key], l)
	return nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return text, nil
}
