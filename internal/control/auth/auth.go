// Package auth establishes who calls the control plane: an open chain of
// authenticators turns the credentials of a call into a Caller, and
// interceptors put the Caller into the call's context or refuse the call.
package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
)

// Caller is an authenticated service account, and where it runs as far as its
// credentials say so.
type Caller struct {
	Namespace      string
	ServiceAccount string
	// Pod and node are empty when the credentials are not bound to them.
	PodName string
	PodUID  string
	Node    string
	// Cluster is the cluster whose tokens the authenticator judges that accepted
	// the caller's; empty for a certificate, which shows none.
	Cluster string
	// Method names the authenticator, for logs.
	Method string
}

// Account is namespace/name of the service account.
func (c Caller) Account() string { return c.Namespace + "/" + c.ServiceAccount }

// MethodCertificate is the Method of ClientCert.
const MethodCertificate = "client certificate"

// ByCertificate reports whether a certificate alone proved who the caller is.
// A certificate outlives the pod that it was made for.
func (c Caller) ByCertificate() bool { return c.Method == MethodCertificate }

// Credentials are what a call brought along.
type Credentials struct {
	// Source groups the callers that share a network address, for bounds.
	Source string
	// Token is the bearer token, empty without one.
	Token string
	// Cluster is what the caller calls its cluster: a claim, which proves nothing.
	Cluster string
	// Peer is the state of the TLS connection, nil without TLS. Its
	// certificates are not verified yet.
	Peer *tls.ConnectionState
}

// ErrNotMine says that the credentials are of a kind this authenticator does
// not judge, so that the next one of a chain is asked.
var ErrNotMine = errors.New("no such credentials")

// Authenticator judges credentials. Its errors are for the log and never go
// to the caller.
type Authenticator interface {
	Authenticate(ctx context.Context, cr Credentials) (Caller, error)
}

// Chain asks one authenticator after the other. The first that answers with a
// Caller decides; the failure of one does not stop the others, because two of
// them may judge the same kind of token.
type Chain []Authenticator

// Authenticate implements Authenticator.
func (c Chain) Authenticate(ctx context.Context, cr Credentials) (Caller, error) {
	var failures []error
	for _, a := range c {
		caller, err := a.Authenticate(ctx, cr)
		switch {
		case err == nil && caller.Namespace != "" && caller.ServiceAccount != "":
			return caller, nil
		case err == nil:
			failures = append(failures, fmt.Errorf("%s: caller without a service account", caller.Method))
		default:
			failures = append(failures, err)
		}
	}
	return Caller{}, refusal(cr, failures)
}

type contextKey struct{}

// NewContext returns ctx with the caller.
func NewContext(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, contextKey{}, c)
}

// FromContext is the caller that an interceptor established.
func FromContext(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(contextKey{}).(Caller)
	return c, ok
}

// maxName bounds the name of a Kubernetes object (a DNS subdomain).
const maxName = 253

// validate admits what can be the name of a Kubernetes object. Names end up
// in identities, logs and comparisons.
func (c Caller) validate() error {
	for _, p := range [...]struct {
		what, value string
		required    bool
	}{
		{"namespace", c.Namespace, true},
		{"service account", c.ServiceAccount, true},
		{"pod", c.PodName, false},
		{"pod UID", c.PodUID, false},
		{"node", c.Node, false},
	} {
		if p.value == "" && p.required {
			return fmt.Errorf("no %s", p.what)
		}
		if len(p.value) > maxName {
			return fmt.Errorf("the name of the %s is longer than %d bytes", p.what, maxName)
		}
		for i := range len(p.value) {
			if b := p.value[i]; (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' && b != '.' {
				return fmt.Errorf("the name of the %s has the character %q", p.what, b)
			}
		}
	}
	return nil
}
