package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
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

// slowly is how long an authorizer takes for paths with /slow.
const slowly = 3 * time.Second

// authorizer is an external authorizer: it allows requests with x-token: letmein, as the user
// ann, and answers others with 401. By gRPC, its answer has the metadata that the header
// x-metadata has as JSON. It prints a line of JSON for each question.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
}

// asked is the line of a question.
type asked struct {
	By       string          `json:"by"`
	Path     string          `json:"path"`
	Body     string          `json:"body,omitempty"`
	Bytes    bool            `json:"bytes,omitempty"` // by gRPC, the body came as bytes
	Headers  http.Header     `json:"headers"`
	Metadata json.RawMessage `json:"metadata,omitempty"` // of authorizers that were asked before
}

func (a asked) print() {
	if b, err := json.Marshal(a); err == nil {
		_, _ = os.Stdout.Write(append(b, '\n'))
	}
}

// ServeHTTP implements http.Handler.
func (authorizer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	asked{By: "http", Path: r.URL.RequestURI(), Body: string(body), Headers: r.Header}.print()
	if strings.Contains(r.URL.Path, "/slow") {
		time.Sleep(slowly)
	}
	rw.Header().Set("x-secret", "of the authorizer")
	if r.Header.Get("x-token") != letIn {
		rw.Header().Set("x-why", "no token")
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	rw.Header().Set("x-user", "ann")
	rw.Header().Set("x-seen", "yes")
}

// Check implements envoy.service.auth.v3.Authorization.
func (authorizer) Check(_ context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	at := q.GetAttributes()
	h := at.GetRequest().GetHttp()
	line := asked{By: "grpc", Path: h.GetPath(), Body: h.GetBody() + string(h.GetRawBody()), Bytes: len(h.GetRawBody()) > 0, Headers: http.Header{}}
	for name, value := range h.GetHeaders() {
		line.Headers.Set(name, value)
	}
	if m := at.GetMetadataContext(); m != nil {
		line.Metadata, _ = protojson.Marshal(m)
	}
	line.print()
	if strings.Contains(h.GetPath(), "/slow") {
		time.Sleep(slowly)
	}
	answer := &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers:              []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user", Value: "ann"}}},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-seen", Value: "yes"}}},
	}}}
	if text, ok := h.GetHeaders()["x-metadata"]; ok {
		answer.DynamicMetadata = new(structpb.Struct)
		if err := protojson.Unmarshal([]byte(text), answer.DynamicMetadata); err != nil {
			return nil, err
		}
	}
	if h.GetHeaders()["x-token"] != letIn {
		answer.Status.Code = int32(codes.Unauthenticated)
		denied := &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized},
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-why", Value: "no token"}}},
		}
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
