// Command opa is an external authorizer for tests: the engine of the Open Policy Agent
// behind envoy.service.auth.v3.Authorization.
//
//	opa -policy FILE [-query data.envoy.authz.allow] [-listen ADDRESS]
//
// The input of a policy has the form that OPA's own plugin for Envoy gives it
// (attributes, parsed_path, parsed_query), and so has the decision: true or false, or an
// object with allowed, headers, body, http_status and others.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/open-policy-agent/opa/v1/rego"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

func main() {
	policy := flag.String("policy", "", "file of Rego")
	query := flag.String("query", "data.envoy.authz.allow", "the decision")
	listen := flag.String("listen", "[::]:9191", "where the authorizer is asked")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *policy, *query, *listen); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, policy, query, listen string) error {
	text, err := os.ReadFile(policy) //nolint:gosec // the file that the caller names
	if err != nil {
		return err
	}
	q, err := rego.New(rego.Query(query), rego.Module(policy, string(text))).PrepareForEval(ctx)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, &authorizer{query: q})
	context.AfterFunc(ctx, s.Stop)
	return s.Serve(l)
}

type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	query rego.PreparedEvalQuery
}

// Check implements envoy.service.auth.v3.Authorization. A decision that is missing or not
// understood denies.
func (a *authorizer) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	in, err := input(req)
	if err != nil {
		return nil, err
	}
	found, err := a.query.Eval(ctx, rego.EvalInput(in))
	if err != nil {
		return nil, err
	}
	if len(found) != 1 || len(found[0].Expressions) != 1 {
		return nil, errors.New("the policy has no decision")
	}
	return answer(found[0].Expressions[0].Value)
}

// input returns what a policy decides on.
func input(req *authv3.CheckRequest) (map[string]any, error) {
	b, err := protojson.Marshal(req)
	if err != nil {
		return nil, err
	}
	in := map[string]any{}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, err
	}
	u, err := url.Parse(req.GetAttributes().GetRequest().GetHttp().GetPath())
	if err != nil {
		return nil, err
	}
	segments := []any{}
	for s := range strings.SplitSeq(strings.TrimPrefix(u.Path, "/"), "/") {
		segments = append(segments, s)
	}
	query := map[string]any{}
	for name, values := range u.Query() {
		list := []any{}
		for _, v := range values {
			list = append(list, v)
		}
		query[name] = list
	}
	in["parsed_path"], in["parsed_query"] = segments, query
	return in, nil
}

// decision is the object that a policy may return in place of a truth value.
type decision struct {
	Allowed         bool              `json:"allowed"`
	Headers         map[string]string `json:"headers"`
	ResponseHeaders map[string]string `json:"response_headers_to_add"`
	Remove          []string          `json:"request_headers_to_remove"`
	Body            string            `json:"body"`
	Status          int32             `json:"http_status"`
	Metadata        map[string]any    `json:"dynamic_metadata"`
}

func answer(value any) (*authv3.CheckResponse, error) {
	d := decision{}
	if yes, is := value.(bool); is {
		d.Allowed = yes
	} else if b, err := json.Marshal(value); err != nil {
		return nil, err
	} else if err := json.Unmarshal(b, &d); err != nil {
		return nil, err
	}
	out := &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}}
	if d.Metadata != nil {
		m, err := structpb.NewStruct(d.Metadata)
		if err != nil {
			return nil, err
		}
		out.DynamicMetadata = m
	}
	if d.Allowed {
		out.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: options(d.Headers), HeadersToRemove: d.Remove, ResponseHeadersToAdd: options(d.ResponseHeaders),
		}}
		return out, nil
	}
	denied := &authv3.DeniedHttpResponse{Headers: options(d.Headers), Body: d.Body}
	if d.Status != 0 {
		denied.Status = &typev3.HttpStatus{Code: typev3.StatusCode(d.Status)}
	}
	out.Status.Code = int32(codes.PermissionDenied)
	out.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied}
	return out, nil
}

func options(headers map[string]string) (out []*corev3.HeaderValueOption) {
	for name, value := range headers {
		out = append(out, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}})
	}
	return out
}
