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
)

// errRefused is all that an unknown caller learns.
var errRefused = status.Error(codes.Unauthenticated, "authentication failed")

// maxClusterID bounds the name a caller gives its cluster.
const maxClusterID = 253

// Interceptors authenticate every call of a gRPC server.
type Interceptors struct {
	Authenticator Authenticator
	Logger        *slog.Logger
	// OnFailure, when set, is called for every refused call.
	OnFailure func()
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
	cr, cluster, err := fromCall(ctx)
	var caller Caller
	if err == nil {
		caller, err = i.Authenticator.Authenticate(ctx, cr)
	}
	if err != nil {
		if i.OnFailure != nil {
			i.OnFailure()
		}
		addr := ""
		if p, ok := peer.FromContext(ctx); ok {
			addr = p.Addr.String()
		}
		i.Logger.Warn("call refused: the caller could not be authenticated", "peer", addr, "method", method, "error", err)
		return nil, errRefused
	}
	caller.ClusterID = cluster
	return NewContext(ctx, caller), nil
}

// fromCall collects the credentials of a call. Ambiguous ones are an error.
func fromCall(ctx context.Context) (cr Credentials, cluster string, err error) {
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
			return cr, "", errors.New("the authorization header is not a bearer token")
		}
		cr.Token = token
	default:
		return cr, "", errors.New("more than one authorization header")
	}
	if v := md.Get("clusterid"); len(v) == 1 && len(v[0]) <= maxClusterID {
		cluster = v[0]
	}
	return cr, cluster, nil
}
