// Package identity is the vocabulary of who a workload is: the SPIFFE
// identities that certificates carry and policies compare.
package identity

import (
	"errors"
	"fmt"
	"strings"
)

// DefaultTrustDomain is the trust domain of a mesh that was not given one.
const DefaultTrustDomain = "cluster.local"

// maxLength bounds a SPIFFE ID (SPIFFE-ID, section 2.3: 2048 bytes).
const maxLength = 2048

const scheme = "spiffe://"

// ErrInvalid is matched by every error of Parse.
var ErrInvalid = errors.New("not a workload identity")

// Identity names a service account of a namespace in a trust domain. It is
// comparable; the zero value means "no identity".
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// String renders spiffe://<trust domain>/ns/<namespace>/sa/<account>; the zero
// value renders as the empty string.
func (id Identity) String() string {
	if id.IsZero() {
		return ""
	}
	return scheme + id.Principal()
}

// Principal is String without the scheme: the form that policies compare.
func (id Identity) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// IsZero reports whether there is no identity.
func (id Identity) IsZero() bool { return id == Identity{} }

// Parse reads the form that String writes, and nothing else: exactly the path
// ns/<namespace>/sa/<account>, each part non-empty, of letters, digits, '.',
// '-' and '_', the trust domain in lower case (SPIFFE-ID, section 2).
// The error matches ErrInvalid.
func Parse(s string) (Identity, error) {
	if len(s) > maxLength {
		return Identity{}, fmt.Errorf("%w: longer than %d bytes", ErrInvalid, maxLength)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return Identity{}, fmt.Errorf("%w: %q does not begin with %s", ErrInvalid, s, scheme)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("%w: %q is not %s<trust domain>/ns/<namespace>/sa/<service account>", ErrInvalid, s, scheme)
	}
	id := Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.Validate(); err != nil {
		return Identity{}, fmt.Errorf("%w (in %q)", err, s)
	}
	return id, nil
}

// Validate reports whether every part can stand in a SPIFFE ID. The error
// matches ErrInvalid.
func (id Identity) Validate() error {
	for _, p := range [...]struct {
		what, value string
		upper       bool
	}{
		{"trust domain", id.TrustDomain, false},
		{"namespace", id.Namespace, true},
		{"service account", id.ServiceAccount, true},
	} {
		if p.value == "" {
			return fmt.Errorf("%w: empty %s", ErrInvalid, p.what)
		}
		if p.value == "." || p.value == ".." {
			return fmt.Errorf("%w: %s %q is a relative path segment", ErrInvalid, p.what, p.value)
		}
		for i := range len(p.value) {
			if !segmentByte(p.value[i], p.upper) {
				return fmt.Errorf("%w: %s %q has the character %q", ErrInvalid, p.what, p.value, p.value[i])
			}
		}
	}
	return nil
}

func segmentByte(c byte, upper bool) bool {
	switch {
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		return true
	case 'A' <= c && c <= 'Z':
		return upper
	}
	return false
}
