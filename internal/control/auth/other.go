package auth

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"google.golang.org/grpc/peer"

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
	return Caller{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Method: MethodCertificate}, nil
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

// Signatures judges the signatures of tokens without the Kubernetes API. Both
// methods return nil for a token that may be valid.
type Signatures interface {
	// Screen does not wait. Its error matches ErrUndecided when Check can say
	// more.
	Screen(token, audience string) error
	// Check may fetch the keys first. Its error matches ErrUndecided when there
	// are none to check with.
	Check(ctx context.Context, token, audience string) error
}

// KubernetesTokens authenticates service account tokens of Kubernetes.
type KubernetesTokens struct {
	Reviewer TokenReviewer
	// Signatures, when set, refuses made-up tokens before the Reviewer is asked.
	Signatures Signatures
	// Audience is the audience that tokens must have; default wellknown.TokenAudience.
	Audience string
}

// Authenticate implements Authenticator.
func (a KubernetesTokens) Authenticate(ctx context.Context, cr Credentials) (Caller, error) {
	if err := a.bounded(cr); err != nil {
		return Caller{}, err
	}
	audience := a.audience()
	if a.Signatures != nil {
		if err := a.Signatures.Check(ctx, cr.Token, audience); err != nil && !errors.Is(err, ErrUndecided) {
			return Caller{}, fmt.Errorf("token: %w", err)
		}
	}
	if p, ok := peer.FromContext(ctx); ok && cr.Source == "" {
		cr.Source, _, _ = net.SplitHostPort(p.Addr.String()) // an address that is none is one group, too
	}
	r, err := a.Reviewer.Review(withSource(ctx, cr.Source), cr.Token, []string{audience})
	if err != nil {
		return Caller{}, fmt.Errorf("token review: %w", err)
	}
	return r.caller(audience)
}

// bounded refuses what is no token at all.
func (a KubernetesTokens) bounded(cr Credentials) error {
	if cr.Token == "" {
		return ErrNotMine
	}
	if len(cr.Token) > maxToken {
		return fmt.Errorf("token: longer than %d bytes", maxToken)
	}
	return nil
}

func (a KubernetesTokens) audience() string { return cmp.Or(a.Audience, wellknown.TokenAudience) }

type sourceKey struct{}

// withSource returns ctx with the Source of a caller.
func withSource(ctx context.Context, source string) context.Context {
	return context.WithValue(ctx, sourceKey{}, source)
}

// SourceFromContext returns the Source of the caller whose token a
// TokenReviewer reviews.
func SourceFromContext(ctx context.Context) string {
	s, _ := ctx.Value(sourceKey{}).(string)
	return s
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
