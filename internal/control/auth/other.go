package auth

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// ClientCert authenticates by the workload certificate that the caller showed
// in the TLS handshake.
type ClientCert struct {
	TrustDomain string
	// Roots are those of the mesh at this moment.
	Roots func() *x509.CertPool
}

// Authenticate implements Authenticator.
func (a ClientCert) Authenticate(_ context.Context, cr Credentials) (Caller, error) {
	if cr.Peer == nil || len(cr.Peer.PeerCertificates) == 0 {
		return Caller{}, ErrNotMine
	}
	id, err := mtls.PeerIdentity(cr.Peer)
	if err != nil {
		return Caller{}, fmt.Errorf("client certificate: %w", err)
	}
	if id.TrustDomain != a.TrustDomain {
		return Caller{}, fmt.Errorf("client certificate: %s is not of the trust domain %s", id, a.TrustDomain)
	}
	vo := x509.VerifyOptions{
		Roots: a.Roots(), Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range cr.Peer.PeerCertificates[1:] {
		vo.Intermediates.AddCert(c)
	}
	if _, err := cr.Peer.PeerCertificates[0].Verify(vo); err != nil {
		return Caller{}, fmt.Errorf("client certificate of %s: %w", id, err)
	}
	return Caller{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Method: methodCertificate}, nil
}

// Review is the answer of the Kubernetes API about a token.
type Review struct {
	Authenticated bool
	// Error is the API's own reason.
	Error string
	// Username is system:serviceaccount:<namespace>:<name> for an account.
	Username  string
	Audiences []string
	// Extra has the bindings of the token under authentication.kubernetes.io/.
	Extra map[string][]string
}

// TokenReviewer asks the Kubernetes API (authentication.k8s.io TokenReview).
type TokenReviewer interface {
	Review(ctx context.Context, token string, audiences []string) (Review, error)
}

// KubernetesTokens authenticates service account tokens of Kubernetes.
type KubernetesTokens struct {
	Reviewer TokenReviewer
	// Audience is whom tokens must be meant for; default wellknown.TokenAudience.
	Audience string
}

// Authenticate implements Authenticator.
func (a KubernetesTokens) Authenticate(ctx context.Context, cr Credentials) (Caller, error) {
	if cr.Token == "" {
		return Caller{}, ErrNotMine
	}
	if len(cr.Token) > maxToken {
		return Caller{}, fmt.Errorf("token: longer than %d bytes", maxToken)
	}
	audience := cmp.Or(a.Audience, wellknown.TokenAudience)
	r, err := a.Reviewer.Review(ctx, cr.Token, []string{audience})
	if err != nil {
		return Caller{}, fmt.Errorf("token review: %w", err)
	}
	return r.caller(audience)
}

func (r Review) caller(audience string) (Caller, error) {
	if !r.Authenticated {
		return Caller{}, fmt.Errorf("token review: not authenticated: %s", r.Error)
	}
	// An API server that knows no audiences answers none; such a token was
	// meant for somebody else.
	if !slices.Contains(r.Audiences, audience) {
		return Caller{}, fmt.Errorf("token review: the token is for %q, not for %s", r.Audiences, audience)
	}
	account, ok := strings.CutPrefix(r.Username, subjectPrefix)
	ns, name, ok2 := strings.Cut(account, ":")
	if !ok || !ok2 {
		return Caller{}, errors.New("token review: the token is not a service account's")
	}
	extra := func(key string) string {
		if v := r.Extra["authentication.kubernetes.io/"+key]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	c := Caller{
		Namespace: ns, ServiceAccount: name, PodName: extra("pod-name"), PodUID: extra("pod-uid"),
		Node: extra("node-name"), Method: "token review",
	}
	if err := c.validate(); err != nil {
		return Caller{}, fmt.Errorf("token review: %w", err)
	}
	return c, nil
}
