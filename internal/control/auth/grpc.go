package auth

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// errRefused is all that an unknown caller learns.
var errRefused = status.Error(codes.Unauthenticated, "authentication failed")

// maxClusterID bounds the name a caller gives its cluster.
const maxClusterID = 253

// Gate bounds what connections do. Its methods are called with the context of
// a call. An error ends the call, and its code and text go to the caller.
type Gate interface {
	// Undecided is called for a call whose credentials are to be reviewed, when
	// its headers have come.
	Undecided(ctx context.Context) error
	// Decided is called when such a call has been admitted or refused.
	Decided(ctx context.Context)
	// Admitted is called for a call whose caller is authenticated.
	Admitted(ctx context.Context, c Caller, method string) error
	// Refused is called for a call that is not authenticated.
	Refused(ctx context.Context, anonymous bool)
	// Source groups callers that share a network address.
	Source(ctx context.Context) string
}

// Interceptors authenticate every call of a gRPC server. With Tap they do so
// when the headers of a call have come and before its body is read, as far as
// the Authenticator is a Screener.
type Interceptors struct {
	Authenticator Authenticator
	Logger        *slog.Logger
	// OnFailure, when set, is called for every refused call.
	OnFailure func()
	// Gate, when set, is asked about every call.
	Gate Gate
}

// Tap is a tap.ServerInHandle. It does not wait.
func (i Interceptors) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	s, ok := i.Authenticator.(Screener)
	if !ok {
		return i.undecided(ctx)
	}
	cr, err := i.fromCall(ctx)
	var caller Caller
	if err == nil {
		caller, err = s.Screen(cr)
	}
	switch {
	case errors.Is(err, ErrUndecided):
		return i.undecided(ctx)
	case err != nil:
		return ctx, i.refuse(ctx, info.FullMethodName, err)
	}
	return i.admit(ctx, caller, info.FullMethodName)
}

func (i Interceptors) undecided(ctx context.Context) (context.Context, error) {
	if i.Gate == nil {
		return ctx, nil
	}
	return ctx, i.Gate.Undecided(ctx)
}

// Unary is a grpc.UnaryServerInterceptor.
func (i Interceptors) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := i.authenticate(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// Stream is a grpc.StreamServerInterceptor.
func (i Interceptors) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := i.authenticate(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return next(srv, stream{ss, ctx})
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

func (i Interceptors) authenticate(ctx context.Context, method string) (context.Context, error) {
	if _, ok := FromContext(ctx); ok { // by Tap
		return ctx, nil
	}
	if i.Gate != nil {
		defer i.Gate.Decided(ctx)
	}
	cr, err := i.fromCall(ctx)
	var caller Caller
	if err == nil {
		caller, err = i.Authenticator.Authenticate(ctx, cr)
	}
	if err != nil {
		return nil, i.refuse(ctx, method, err)
	}
	return i.admit(ctx, caller, method)
}

// refuse returns the answer to a call that is not authenticated.
func (i Interceptors) refuse(ctx context.Context, method string, err error) error {
	if i.OnFailure != nil {
		i.OnFailure()
	}
	if i.Gate != nil {
		i.Gate.Refused(ctx, errors.Is(err, ErrNotMine))
	}
	addr := ""
	if p, ok := peer.FromContext(ctx); ok {
		addr = p.Addr.String()
	}
	i.Logger.Warn("call refused: the caller could not be authenticated", "peer", addr, "method", method, "error", err)
	return errRefused
}

func (i Interceptors) admit(ctx context.Context, c Caller, method string) (context.Context, error) {
	if i.Gate != nil {
		if err := i.Gate.Admitted(ctx, c, method); err != nil {
			i.Logger.Warn("call refused", "caller", c.Account(), "pod", c.PodName, "method", method, "error", err)
			return ctx, err
		}
	}
	return NewContext(ctx, c), nil
}

// fromCall collects the credentials of a call, and its source.
func (i Interceptors) fromCall(ctx context.Context) (cr Credentials, err error) {
	cr, err = fromCall(ctx)
	if i.Gate != nil {
		cr.Source = i.Gate.Source(ctx)
	}
	return cr, err
}

// fromCall collects the credentials of a call. Ambiguous ones are an error.
func fromCall(ctx context.Context) (cr Credentials, err error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			cr.Peer = &info.State
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	switch v := md.Get("authorization"); len(v) {
	case 0:
	case 1:
		scheme, token, _ := strings.Cut(v[0], " ")
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return cr, errors.New("the authorization header is not a bearer token")
		}
		cr.Token = token
	default:
		return cr, errors.New("more than one authorization header")
	}
	if v := md.Get("clusterid"); len(v) == 1 && len(v[0]) <= maxClusterID {
		cr.Cluster = v[0]
	}
	return cr, nil
}
