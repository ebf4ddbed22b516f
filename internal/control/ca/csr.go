package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// maxCSR bounds a certificate request, in bytes of PEM: the largest key we
// accept needs less than 2 KiB.
const maxCSR = 16 << 10

// ErrBadRequest is matched by the errors about a certificate request itself.
var ErrBadRequest = errors.New("bad certificate request")

// parseCSR checks a request for a certificate of id and returns its key. Of
// the names in it only id itself is tolerated: who asks for others has
// misunderstood something, and must not believe to have got them.
func parseCSR(text []byte, id identity.Identity) (crypto.PublicKey, error) {
	if len(text) > maxCSR {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrBadRequest, maxCSR)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: not a PEM certificate request", ErrBadRequest)
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("%w: something follows the request", ErrBadRequest)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	// Before the signature, so that its cost is bounded.
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: its signature is not by its key: %w", ErrBadRequest, err)
	}
	if len(csr.DNSNames)+len(csr.EmailAddresses)+len(csr.IPAddresses) != 0 {
		return nil, fmt.Errorf("%w: it asks for names besides the identity", ErrBadRequest)
	}
	for _, u := range csr.URIs {
		if u.String() != id.String() {
			return nil, fmt.Errorf("%w: it asks for %s, the certificate would be for %s", ErrBadRequest, u, id)
		}
	}
	return csr.PublicKey, nil
}
