package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// impersonatedKey is where a node proxy names the workload it acts for.
const impersonatedKey = "ImpersonatedIdentity"

// What a caller learns. The full reason is in the log: it would tell a thief
// of a token which workloads run where.
var (
	errNotAuthorized = status.Error(codes.Unauthenticated, "not authorized")
	errBadCSR        = status.Error(codes.InvalidArgument, "certificate request refused")
	errCannotSign    = status.Error(codes.Unavailable, "cannot sign now")
)

// NodeAuthorizer knows which workloads run where.
type NodeAuthorizer interface {
	// MayImpersonate is nil when id belongs to a workload on the caller's
	// node and the caller is the pod it says it is.
	MayImpersonate(c auth.Caller, id identity.Identity) error
}

// Server is the certificate service of the mesh. Calls must come through
// auth.Interceptors.
type Server struct {
	securityapi.UnimplementedIstioCertificateServiceServer

	Authority   *Authority
	TrustDomain string
	// TrustedNodeAccounts are the namespace/name of the service accounts of
	// node proxies. Only these may impersonate.
	TrustedNodeAccounts []string
	// Nodes judges impersonation; without it nobody may impersonate.
	Nodes   NodeAuthorizer
	Logger  *slog.Logger
	Metrics *Metrics
}

// CreateCertificate signs a certificate for the caller's own identity, or for
// the one it may impersonate. The caller must have a token: a stolen certificate
// would otherwise renew itself without end.
func (s *Server) CreateCertificate(ctx context.Context, req *securityapi.IstioCertificateRequest) (*securityapi.IstioCertificateResponse, error) {
	s.Metrics.requested()
	caller, ok := auth.FromContext(ctx)
	if !ok {
		s.Metrics.notAllowed()
		s.Logger.Error("certificate refused: the call was not authenticated; the server lacks its interceptor")
		return nil, errNotAuthorized
	}
	log := s.Logger.With("caller", caller.Account(), "node", caller.Node, "pod", caller.PodName)
	if caller.ByCertificate() {
		s.Metrics.notAllowed()
		log.Warn("certificate refused", "reason", "the caller showed a certificate and no valid token: no certificate is renewed by a certificate alone")
		return nil, errNotAuthorized
	}
	id, err := s.subject(caller, req)
	if err != nil {
		s.Metrics.notAllowed()
		log.Warn("certificate refused", "reason", err)
		return nil, errNotAuthorized
	}
	ttl, err := validity(req.GetValidityDuration())
	if err != nil {
		s.Metrics.malformed()
		log.Warn("certificate refused", "identity", id, "reason", err)
		return nil, errBadCSR
	}
	chain, err := s.Authority.Sign(id, []byte(req.GetCsr()), s.life(caller, ttl))
	switch {
	case errors.Is(err, ErrBadRequest):
		s.Metrics.malformed()
		log.Warn("certificate refused", "identity", id, "reason", err)
		return nil, errBadCSR
	case err != nil:
		s.Metrics.signFailed()
		log.Error("cannot sign a certificate", "identity", id, "error", err)
		return nil, errCannotSign
	}
	s.Metrics.succeeded()
	log.Debug("certificate issued", "identity", id)
	return &securityapi.IstioCertificateResponse{CertChain: chain}, nil
}

// subject decides which identity the certificate has.
func (s *Server) subject(c auth.Caller, req *securityapi.IstioCertificateRequest) (identity.Identity, error) {
	own := identity.Identity{TrustDomain: s.TrustDomain, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}
	value, asked := req.GetMetadata().GetFields()[impersonatedKey]
	if !asked {
		return own, own.Validate()
	}
	id, err := identity.Parse(value.GetStringValue())
	if err != nil {
		return id, fmt.Errorf("impersonation: %w", err)
	}
	if id.TrustDomain != s.TrustDomain {
		return id, fmt.Errorf("impersonation of %s: the mesh's trust domain is %s", id, s.TrustDomain)
	}
	if !slices.Contains(s.TrustedNodeAccounts, c.Account()) {
		return id, fmt.Errorf("impersonation of %s: %s is not a trusted node account", id, c.Account())
	}
	if s.Nodes == nil {
		return id, fmt.Errorf("impersonation of %s: nothing here knows which workloads run on which node", id)
	}
	if err := s.Nodes.MayImpersonate(c, id); err != nil {
		return id, fmt.Errorf("impersonation of %s: %w", id, err)
	}
	return id, nil
}

// life bounds the life of a certificate that a node proxy asks for by the
// default. The token of a node proxy is worth every identity of its node, so that
// what it buys must end soon.
func (s *Server) life(c auth.Caller, asked time.Duration) time.Duration {
	if slices.Contains(s.TrustedNodeAccounts, c.Account()) {
		return min(asked, s.Authority.DefaultTTL())
	}
	return asked
}

func validity(seconds int64) (time.Duration, error) {
	if seconds < 0 {
		return 0, fmt.Errorf("negative validity of %d s", seconds)
	}
	if seconds > math.MaxInt64/int64(time.Second) {
		return math.MaxInt64, nil // Sign cuts it
	}
	return time.Duration(seconds) * time.Second, nil
}
