package main

import (
	"context"
	"net"
	"net/http"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// letIn is the token that an authorizer allows.
const letIn = "letmein"

// authorizer is an external authorizer: it allows requests with x-token: letmein, and
// answers others with 401.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
}

// ServeHTTP implements http.Handler.
func (authorizer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("x-token") != letIn {
		rw.WriteHeader(http.StatusUnauthorized)
	}
}

// Check implements envoy.service.auth.v3.Authorization.
func (authorizer) Check(_ context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	if q.GetAttributes().GetRequest().GetHttp().GetHeaders()["x-token"] == letIn {
		return &authv3.CheckResponse{Status: &status.Status{}}, nil
	}
	denied := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized}}
	return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.Unauthenticated)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied}}, nil
}

func serveAuthorizerHTTP(l net.Listener) error {
	s := &http.Server{Handler: authorizer{}, ReadHeaderTimeout: time.Minute}
	return s.Serve(l)
}

func serveAuthorizerGRPC(l net.Listener) error {
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, authorizer{})
	return s.Serve(l)
}
