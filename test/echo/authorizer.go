package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// letIn is the token that an authorizer allows.
const letIn = "letmein"

// authorizer is an external authorizer: it allows requests with x-token: letmein, and
// answers others with 401. By gRPC, its answer has the metadata that the header x-metadata
// has as JSON. It prints a line of JSON for each question.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
}

// asked is the line of a question.
type asked struct {
	By       string          `json:"by"`
	Path     string          `json:"path"`
	Metadata json.RawMessage `json:"metadata,omitempty"` // of authorizers that were asked before
}

func (a asked) print() {
	if b, err := json.Marshal(a); err == nil {
		_, _ = os.Stdout.Write(append(b, '\n'))
	}
}

// ServeHTTP implements http.Handler.
func (authorizer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	asked{By: "http", Path: r.URL.RequestURI()}.print()
	if r.Header.Get("x-token") != letIn {
		rw.WriteHeader(http.StatusUnauthorized)
	}
}

// Check implements envoy.service.auth.v3.Authorization.
func (authorizer) Check(_ context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	at := q.GetAttributes()
	h := at.GetRequest().GetHttp()
	line := asked{By: "grpc", Path: h.GetPath()}
	if m := at.GetMetadataContext(); m != nil {
		line.Metadata, _ = protojson.Marshal(m)
	}
	line.print()
	answer := &authv3.CheckResponse{Status: &status.Status{}}
	if text, ok := h.GetHeaders()["x-metadata"]; ok {
		answer.DynamicMetadata = new(structpb.Struct)
		if err := protojson.Unmarshal([]byte(text), answer.DynamicMetadata); err != nil {
			return nil, err
		}
	}
	if h.GetHeaders()["x-token"] != letIn {
		answer.Status.Code = int32(codes.Unauthenticated)
		denied := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized}}
		answer.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied}
	}
	return answer, nil
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
