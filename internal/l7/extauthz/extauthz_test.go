package extauthz_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// provider is one by HTTP; by gRPC when h is nil.
func provider(t testing.TB, h *authzpb.HTTPCheck, edit ...func(*authzpb.Provider)) *extauthz.Provider {
	t.Helper()
	pb := &authzpb.Provider{Name: "x", Hostname: "authorizer.auth.svc.cluster.local", Port: 9000, TimeoutMs: 2000, StatusOnError: 403, Protocol: &authzpb.Provider_Http{Http: h}}
	if h == nil {
		pb.Protocol = &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}}
	}
	for _, f := range edit {
		f(pb)
	}
	p, err := extauthz.Compile(pb)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func request(method, path string, fields ...string) *message.Head {
	h := &message.Head{Method: []byte(method), Authority: []byte("api.example"), Path: []byte(path)}
	for i := 0; i < len(fields); i += 2 {
		h.Add(message.NewKey(fields[i]), []byte(fields[i+1]))
	}
	return h
}

func response(status int, fields ...string) *message.Head {
	h := request("", "", fields...)
	return &message.Head{Status: status, Fields: h.Fields}
}

// dump lists the fields of a head.
func dump(h *message.Head) (out []string) {
	for _, f := range h.Fields {
		out = append(out, fmt.Sprintf("%s: %s", f.Name, f.Value))
	}
	slices.Sort(out)
	return out
}

func equal(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%q\nwanted\n%q", what, got, want)
	}
}

func TestCompileRefuses(t *testing.T) {
	for want, edit := range map[string]func(*authzpb.Provider){
		"name:":            func(p *authzpb.Provider) { p.Name = "" },
		"service:":         func(p *authzpb.Provider) { p.Hostname = "*.example" },
		"port: 0":          func(p *authzpb.Provider) { p.Port = 0 },
		"port: 70000":      func(p *authzpb.Provider) { p.Port = 70000 },
		"timeout: 0s":      func(p *authzpb.Provider) { p.TimeoutMs = 0 },
		"timeout: 1h":      func(p *authzpb.Provider) { p.TimeoutMs = 3_600_000 },
		"statusOnError: 2": func(p *authzpb.Provider) { p.StatusOnError = 200 },
		"includeRequestBodyInCheck.maxRequestBytes: 0": func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{} },
		"includeRequestBodyInCheck.maxRequestBytes: 9": func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 99_999_999} },
		"protocol:":                    func(p *authzpb.Provider) { p.Protocol = nil },
		`pathPrefix: "check"`:          func(p *authzpb.Provider) { p.GetHttp().PathPrefix = "check" },
		`pathPrefix: "/a?b"`:           func(p *authzpb.Provider) { p.GetHttp().PathPrefix = "/a?b" },
		`pathPrefix: "/a b"`:           func(p *authzpb.Provider) { p.GetHttp().PathPrefix = "/a b" },
		"includeRequestHeadersInCheck": func(p *authzpb.Provider) { p.GetHttp().IncludeHeaders = []string{"*"} },
		"headersToUpstreamOnAllow[1]":  func(p *authzpb.Provider) { p.GetHttp().ToUpstream = []string{"x", "Content-Length"} },
		"headersToUpstreamOnAllow[0]":  func(p *authzpb.Provider) { p.GetHttp().ToUpstream = []string{"x_ambit_y"} },
		"headersToDownstreamOnAllow":   func(p *authzpb.Provider) { p.GetHttp().ToClientOnAllow = []string{""} },
		"headersToDownstreamOnDeny":    func(p *authzpb.Provider) { p.GetHttp().ToClientOnDeny = []string{"a*b"} },
		`includeAdditionalHeadersInCheck: "host"`: func(p *authzpb.Provider) {
			p.GetHttp().AddHeaders = []*authzpb.CheckHeader{{Name: "host", Value: "x"}}
		},
		`includeAdditionalHeadersInCheck: "x"`: func(p *authzpb.Provider) {
			p.GetHttp().AddHeaders = []*authzpb.CheckHeader{{Name: "x", Value: "a\nb"}}
		},
		`includeAdditionalHeadersInCheck: "y": operator %RESP(X)%`: func(p *authzpb.Provider) {
			p.GetHttp().AddHeaders = []*authzpb.CheckHeader{{Name: "y", Value: "%RESP(X)%"}}
		},
		`includeAdditionalHeadersInCheck: "z": "100%" ends`: func(p *authzpb.Provider) {
			p.GetHttp().AddHeaders = []*authzpb.CheckHeader{{Name: "z", Value: "100%"}}
		},
	} {
		pb := &authzpb.Provider{Name: "x", Hostname: "a", Port: 1, TimeoutMs: 1, StatusOnError: 403, Protocol: &authzpb.Provider_Http{Http: &authzpb.HTTPCheck{}}}
		if _, err := extauthz.Compile(pb); err != nil {
			t.Fatal(err)
		}
		edit(pb)
		if _, err := extauthz.Compile(pb); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, wanted %s", err, want)
		}
	}
}

func TestReserved(t *testing.T) {
	for _, name := range []string{":path", ":authority", "Host", "content-length", "Content_Length", "connection", "transfer-encoding", "te", "upgrade", "x-ambit-a", "X_Envoy_B", "x-forwarded-client-cert", "expect"} {
		if !extauthz.Reserved(name) {
			t.Error(name)
		}
	}
	for _, name := range []string{"authorization", "cookie", "x-user", "x-ambition", "x-forwarded-for", "set-cookie", "location"} {
		if extauthz.Reserved(name) {
			t.Error(name)
		}
	}
}

func TestQuestionByHTTP(t *testing.T) {
	p := provider(t, &authzpb.HTTPCheck{
		PathPrefix: "/check", IncludeHeaders: []string{"cookie", "x-a*", "*-z"}, AddHeaders: []*authzpb.CheckHeader{{Name: "X-Asker", Value: "waypoint"}},
	})
	h := &message.Head{}
	body, err := p.Write(&extauthz.Question{Request: request("PATCH", "/a/b?c=d", "Authorization", "Basic x", "Cookie", "a=b", "X-Ab", "1", "x-other", "2", "q-Z", "3", "content-length", "9", "x-asker", "me", "x-ambit-z", "4")}, h)
	if err != nil || body != nil || string(h.Method) != "PATCH" || string(h.Path) != "/check/a/b?c=d" || string(h.Authority) != "api.example" {
		t.Errorf("%s %s %s, %q, %v", h.Method, h.Path, h.Authority, body, err)
	}
	equal(t, "fields", dump(h), "authorization: Basic x", "cookie: a=b", "x-ab: 1", "q-z: 3", "x-asker: waypoint")

	p = provider(t, &authzpb.HTTPCheck{}, func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 3, AllowPartial: true} })
	h = &message.Head{}
	body, err = p.Write(&extauthz.Question{Request: request("POST", "/"), Body: []byte("abc"), Partial: true}, h)
	if err != nil || string(body) != "abc" {
		t.Errorf("%q, %v", body, err)
	}
	equal(t, "fields", dump(h), "x-envoy-auth-partial-body: true")
	for _, r := range []*message.Head{request("CONNECT", ""), request("OPTIONS", "*")} {
		if _, err := p.Write(&extauthz.Question{Request: r}, &message.Head{}); err == nil {
			t.Errorf("%s is asked about", r.Method)
		}
	}
}

// TestFormats: headers for the authorizer may be made of the request.
func TestFormats(t *testing.T) {
	q := &extauthz.Question{Request: request("PUT", "/a?b", "X-A", "1", "x-a", "2", "x-none", "mine"), TLS: true, Source: netip.MustParseAddrPort("10.0.0.1:99")}
	for text, want := range map[string]string{
		"plain": "plain", "50%%": "50%", "%REQ(:METHOD)% %REQ(:SCHEME)%://%REQ(:AUTHORITY)%%REQ(:PATH)%": "PUT https://api.example/a?b",
		"%REQ(X-A)%": "1,2", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%": "10.0.0.1", "%DOWNSTREAM_REMOTE_ADDRESS%": "10.0.0.1:99", "%REQ(X-Absent)%": "",
	} {
		p := provider(t, &authzpb.HTTPCheck{IncludeHeaders: []string{"x-none"}, AddHeaders: []*authzpb.CheckHeader{{Name: "x-none", Value: text}}})
		h := &message.Head{}
		if _, err := p.Write(q, h); err != nil {
			t.Fatal(err)
		}
		if want == "" {
			equal(t, text, dump(h))
			continue
		}
		equal(t, text, dump(h), "x-none: "+want)
	}
}

func TestQuestionByGRPC(t *testing.T) {
	issuer := jwttest.New(t, "https://a", "k", jose.EdDSA)
	token, refusal := jwt.Parse([]byte(issuer.Token(map[string]any{"sub": "ann", "n": 7, "groups": []string{"a"}})))
	if refusal != jwt.Accepted {
		t.Fatal(refusal)
	}
	keys, err := jwt.ParseKeys([]byte(jwttest.Set(issuer)))
	if err != nil {
		t.Fatal(err)
	}
	claims, refusal := token.Check(&jwt.Rule{Issuer: issuer.Name, Keys: keys}, time.Now())
	if refusal != jwt.Accepted {
		t.Fatal(refusal)
	}
	p := provider(t, nil, func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 9} })
	h := &message.Head{}
	r := request("POST", "/a?b", "X-A", "1", "x-a", "2", "x-bin", "\xff", "x-request-id", "id")
	r.Version = message.HTTP2
	body, err := p.Write(&extauthz.Question{
		Request: r, TLS: true, Time: time.Unix(5, 0), Source: netip.MustParseAddrPort("[::ffff:10.0.0.1]:99"), Called: netip.MustParseAddrPort("[fd00::1]:80"),
		Principal: "spiffe://td/ns/a/sa/b", Self: "spiffe://td/ns/a/sa/w", Token: claims, Length: 3, Body: []byte("abc"),
	}, h)
	if err != nil || string(h.Path) != "/envoy.service.auth.v3.Authorization/Check" || string(h.Method) != "POST" || string(h.Authority) != "authorizer.auth.svc.cluster.local:9000" {
		t.Fatalf("%s %s %s %v", h.Method, h.Authority, h.Path, err)
	}
	equal(t, "fields", dump(h), "content-type: application/grpc", "te: trailers")
	if body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
		t.Fatalf("frame %q", body[:5])
	}
	q := &authv3.CheckRequest{}
	if err := proto.Unmarshal(body[5:], q); err != nil {
		t.Fatal(err)
	}
	if len(q.ProtoReflect().GetUnknown()) > 0 {
		t.Error("a field that the service does not have")
	}
	a := q.GetAttributes()
	http := a.GetRequest().GetHttp()
	want := map[string]string{":authority": "api.example", ":method": "POST", ":path": "/a?b", ":scheme": "https", "x-a": "1,2", "x-bin": "\uFFFD", "x-request-id": "id", "x-envoy-auth-partial-body": "false"}
	if fmt.Sprint(http.GetHeaders()) != fmt.Sprint(want) {
		t.Errorf("headers %v", http.GetHeaders())
	}
	if http.GetId() != "id" || http.GetMethod() != "POST" || http.GetPath() != "/a?b" || http.GetHost() != "api.example" || http.GetScheme() != "https" || http.GetProtocol() != "HTTP/2" || http.GetSize() != 3 || http.GetBody() != "abc" || a.GetRequest().GetTime().GetSeconds() != 5 {
		t.Errorf("%v", a.GetRequest())
	}
	if s := a.GetSource(); s.GetAddress().GetSocketAddress().GetAddress() != "10.0.0.1" || s.GetAddress().GetSocketAddress().GetPortValue() != 99 || s.GetPrincipal() != "spiffe://td/ns/a/sa/b" {
		t.Errorf("%v", s)
	}
	if d := a.GetDestination(); d.GetAddress().GetSocketAddress().GetAddress() != "fd00::1" || d.GetAddress().GetSocketAddress().GetPortValue() != 80 || d.GetPrincipal() != "spiffe://td/ns/a/sa/w" {
		t.Errorf("%v", d)
	}
	payload := a.GetMetadataContext().GetFilterMetadata()["envoy.filters.http.jwt_authn"].GetFields()["payload"].GetStructValue().AsMap()
	if payload["sub"] != "ann" || payload["n"] != 7.0 || fmt.Sprint(payload["groups"]) != "[a]" {
		t.Errorf("claims %v", payload)
	}
	p = provider(t, nil, func(p *authzpb.Provider) { p.Body = &authzpb.CheckBody{MaxBytes: 9, Raw: true} })
	body, err = p.Write(&extauthz.Question{Request: r, Body: []byte("\xff")}, &message.Head{})
	if err != nil || proto.Unmarshal(body[5:], q) != nil || string(q.GetAttributes().GetRequest().GetHttp().GetRawBody()) != "\xff" || q.GetAttributes().GetRequest().GetHttp().GetBody() != "" {
		t.Errorf("as bytes: %v %v", q, err)
	}
}

func TestAnswerByHTTP(t *testing.T) {
	p := provider(t, &authzpb.HTTPCheck{ToUpstream: []string{"x-user", "x-team*", "cookie"}, ToClientOnAllow: []string{"x-seen", "set-cookie"}, ToClientOnDeny: []string{"x-why"}})
	v := p.Read(&extauthz.Answer{Head: response(200, "X-User", "ann", "x-team-a", "1", "x-team-a", "2", "x-other", "o", "content-length", "5", "x-seen", "yes", "set-cookie", "a=1", "set-cookie", "b=2", "x-ambit-team", "no"), Cut: true})
	if v.Outcome != extauthz.Allowed {
		t.Fatal(v)
	}
	h := request("GET", "/", "x-user", "root", "X_USER", "root", "x-team-b", "root", "x_team_c", "root", "cookie", "c=d", "x-keep", "k")
	p.Strip(h)
	if err := v.Apply(h); err != nil {
		t.Fatal(err)
	}
	equal(t, "the program", dump(h), "cookie: c=d", "x-keep: k", "x-user: ann", "x-team-a: 1,2")
	r := response(200, "x-seen", "no", "x-app", "a")
	extauthz.Edits(r, v.Response)
	equal(t, "the client", dump(r), "x-app: a", "x-seen: yes", "set-cookie: a=1", "set-cookie: b=2")

	v = p.Read(&extauthz.Answer{Head: response(401, "x-why", "w", "x-other", "o", "www-authenticate", "Basic", "location", "/l", "content-type", "text/html", "connection", "x", "content-length", "3"), Body: []byte("<p>")})
	r = response(v.Status)
	extauthz.Edits(r, v.Reply)
	if v.Outcome != extauthz.Denied || v.Status != 401 || string(v.Body) != "<p>" {
		t.Error(v)
	}
	equal(t, "a denial", dump(r), "x-why: w", "www-authenticate: Basic", "location: /l", "content-type: text/html")

	all := provider(t, &authzpb.HTTPCheck{})
	v = all.Read(&extauthz.Answer{Head: response(302, "location", "/l", "x-any", "a", "content-type", "text/html", "transfer-encoding", "chunked"), Body: []byte("x"), Cut: true})
	r = response(v.Status)
	extauthz.Edits(r, v.Reply)
	if v.Outcome != extauthz.Denied || v.Body != nil {
		t.Error("a body that was cut", v)
	}
	equal(t, "a denial with everything", dump(r), "location: /l", "x-any: a")
	h = request("GET", "/", "x-user", "me")
	all.Strip(h)
	equal(t, "without a list", dump(h), "x-user: me")
}

// frame is a message of gRPC.
func frame(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func grpcAnswer(t testing.TB, m proto.Message) *extauthz.Answer {
	return &extauthz.Answer{Head: response(200), Trailers: response(0, "grpc-status", "0"), Body: frame(t, m)}
}

func set(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}}
}

func allow(ok *authv3.OkHttpResponse) *authv3.CheckResponse {
	return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}
}

func TestAnswerByGRPC(t *testing.T) {
	p := provider(t, nil)
	joined, present, absent := set("x-join", "b"), set("x-present", "new"), set("x-absent", "new")
	joined.Append = wrapperspb.Bool(true) //nolint:staticcheck // authorizers still send it
	present.AppendAction, absent.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT, corev3.HeaderValueOption_ADD_IF_ABSENT
	overwrite, nothing := set("x-over", "new"), set("x-nothing", "new")
	overwrite.AppendAction, nothing.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS
	v := p.Read(grpcAnswer(t, allow(&authv3.OkHttpResponse{
		Headers: []*corev3.HeaderValueOption{set("X-User", "ann"), joined}, HeadersToRemove: []string{"x-gone"},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{present, absent, overwrite, nothing, set("set-cookie", "a")},
		QueryParametersToSet: []*corev3.QueryParameter{{Key: "n", Value: "a&b=c\n"}}, QueryParametersToRemove: []string{"gone", "a b"},
	})))
	if v.Outcome != extauthz.Allowed {
		t.Fatal(v)
	}
	h := request("GET", "/p?n=1&gone=2&a+b=3&%6e=4&keep=5", "x-user", "root", "x_user", "root", "x-join", "a", "x-gone", "g", "X_Gone", "g")
	if err := v.Apply(h); err != nil {
		t.Fatal(err)
	}
	if string(h.Path) != "/p?keep=5&n=a%26b%3Dc%0A" {
		t.Errorf("%s", h.Path)
	}
	equal(t, "the program", dump(h), "x-user: ann", "x-join: a,b")
	r := response(200, "x-present", "old", "x-over", "old", "set-cookie", "b")
	extauthz.Edits(r, v.Response)
	equal(t, "the client", dump(r), "x-present: old", "x-absent: new", "x-over: new", "set-cookie: a", "set-cookie: b")

	v = p.Read(grpcAnswer(t, &authv3.CheckResponse{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: 429}, Body: "slow", Headers: []*corev3.HeaderValueOption{set("retry-after", "5"), set("content-length", "100"), set("bad\n", "x"), set(":status", "200")},
	}}}))
	r = response(v.Status)
	extauthz.Edits(r, v.Reply)
	if v.Outcome != extauthz.Denied || v.Status != 429 || string(v.Body) != "slow" {
		t.Error(v)
	}
	equal(t, "a denial", dump(r), "retry-after: 5")
}

// TestOnlyAnAllowAllows has every other answer that there is.
func TestOnlyAnAllowAllows(t *testing.T) {
	g, h := provider(t, nil), provider(t, &authzpb.HTTPCheck{})
	edits := func(list ...*corev3.HeaderValueOption) *extauthz.Answer {
		return grpcAnswer(t, allow(&authv3.OkHttpResponse{Headers: list}))
	}
	many := make([]*corev3.HeaderValueOption, 300)
	for i := range many {
		many[i] = set(fmt.Sprint("x-", i), "a")
	}
	good := grpcAnswer(t, allow(nil))
	if v := g.Read(good); v.Outcome != extauthz.Allowed {
		t.Fatal("the plainest allow: ", v)
	}
	with := func(edit func(*extauthz.Answer)) *extauthz.Answer {
		a := *good
		a.Body = slices.Clone(a.Body)
		edit(&a)
		return &a
	}
	for name, tt := range map[string]struct {
		p    *extauthz.Provider
		a    *extauthz.Answer
		want extauthz.Outcome
	}{
		"HTTP 201":                 {h, &extauthz.Answer{Head: response(201)}, extauthz.Denied},
		"HTTP 204":                 {h, &extauthz.Answer{Head: response(204)}, extauthz.Denied},
		"HTTP 302":                 {h, &extauthz.Answer{Head: response(302)}, extauthz.Denied},
		"HTTP 404":                 {h, &extauthz.Answer{Head: response(404)}, extauthz.Denied},
		"HTTP 403 cut":             {h, &extauthz.Answer{Head: response(403), Cut: true}, extauthz.Denied},
		"HTTP 500":                 {h, &extauthz.Answer{Head: response(500)}, extauthz.Failed},
		"HTTP 503":                 {h, &extauthz.Answer{Head: response(503)}, extauthz.Failed},
		"HTTP 999":                 {h, &extauthz.Answer{Head: response(999)}, extauthz.Failed},
		"HTTP without a status":    {h, &extauthz.Answer{Head: response(0)}, extauthz.Failed},
		"gRPC by HTTP 200":         {g, &extauthz.Answer{Head: response(200), Body: []byte("ok")}, extauthz.Failed},
		"gRPC 404":                 {g, &extauthz.Answer{Head: response(404)}, extauthz.Failed},
		"gRPC without a status":    {g, with(func(a *extauthz.Answer) { a.Trailers = nil }), extauthz.Failed},
		"gRPC status 7":            {g, with(func(a *extauthz.Answer) { a.Trailers = response(0, "grpc-status", "7") }), extauthz.Failed},
		"gRPC status of letters":   {g, with(func(a *extauthz.Answer) { a.Trailers = response(0, "grpc-status", "ok") }), extauthz.Failed},
		"status 7 in the head":     {g, with(func(a *extauthz.Answer) { a.Head = response(200, "grpc-status", "7") }), extauthz.Failed},
		"gRPC cut":                 {g, with(func(a *extauthz.Answer) { a.Cut = true }), extauthz.Invalid},
		"gRPC cut without status":  {g, with(func(a *extauthz.Answer) { a.Cut, a.Trailers = true, nil }), extauthz.Invalid},
		"no message":               {g, with(func(a *extauthz.Answer) { a.Body = nil }), extauthz.Invalid},
		"half a frame":             {g, with(func(a *extauthz.Answer) { a.Body = a.Body[:3] }), extauthz.Invalid},
		"a short message":          {g, with(func(a *extauthz.Answer) { a.Body = a.Body[:len(a.Body)-1] }), extauthz.Invalid},
		"two messages":             {g, with(func(a *extauthz.Answer) { a.Body = append(a.Body, a.Body...) }), extauthz.Invalid},
		"compressed":               {g, with(func(a *extauthz.Answer) { a.Body[0] = 1 }), extauthz.Invalid},
		"garbage":                  {g, with(func(a *extauthz.Answer) { a.Body = []byte("\x00\x00\x00\x00\x03abc") }), extauthz.Invalid},
		"an empty message":         {g, grpcAnswer(t, &authv3.CheckResponse{}), extauthz.Invalid},
		"allow and deny":           {g, grpcAnswer(t, &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{}}}), extauthz.Invalid},
		"deny and allow":           {g, grpcAnswer(t, &authv3.CheckResponse{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}), extauthz.Denied},
		"deny":                     {g, grpcAnswer(t, &authv3.CheckResponse{Status: &status.Status{Code: -1}}), extauthz.Denied},
		"an error of its own":      {g, grpcAnswer(t, &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{}}}), extauthz.Failed},
		":path":                    {g, edits(set(":path", "/admin")), extauthz.Invalid},
		"host":                     {g, edits(set("Host", "other")), extauthz.Invalid},
		"content-length":           {g, edits(set("content-length", "0")), extauthz.Invalid},
		"Content_Length":           {g, edits(set("Content_Length", "0")), extauthz.Invalid},
		"transfer-encoding":        {g, edits(set("transfer-encoding", "chunked")), extauthz.Invalid},
		"connection":               {g, edits(set("connection", "x-user")), extauthz.Invalid},
		"x-ambit":                  {g, edits(set("x-ambit-hop", "1")), extauthz.Invalid},
		"x-forwarded-client-cert":  {g, edits(set("x-forwarded-client-cert", "By=me")), extauthz.Invalid},
		"no name":                  {g, edits(set("", "a")), extauthz.Invalid},
		"a name that is none":      {g, edits(set("a b", "a")), extauthz.Invalid},
		"a line in a value":        {g, edits(set("x-a", "a\r\nx-b: c")), extauthz.Invalid},
		"space before a value":     {g, edits(set("x-a", " a")), extauthz.Invalid},
		"too many changes":         {g, edits(many...), extauthz.Invalid},
		"removes host":             {g, grpcAnswer(t, allow(&authv3.OkHttpResponse{HeadersToRemove: []string{"host"}})), extauthz.Invalid},
		"removes :method":          {g, grpcAnswer(t, allow(&authv3.OkHttpResponse{HeadersToRemove: []string{":method"}})), extauthz.Invalid},
		"connection to the client": {g, grpcAnswer(t, allow(&authv3.OkHttpResponse{ResponseHeadersToAdd: []*corev3.HeaderValueOption{set("connection", "close")}})), extauthz.Invalid},
	} {
		if v := tt.p.Read(tt.a); v.Outcome != tt.want || (v.Outcome == extauthz.Failed || v.Outcome == extauthz.Invalid) && v.Err == nil {
			t.Errorf("%s: %v %v", name, v.Outcome, v.Err)
		}
	}
	v := g.Read(grpcAnswer(t, allow(&authv3.OkHttpResponse{QueryParametersToSet: []*corev3.QueryParameter{{Key: "a", Value: strings.Repeat("a", 20<<10)}}})))
	if v.Outcome != extauthz.Allowed || v.Apply(request("GET", "/")) == nil {
		t.Error("a query of 20 KiB is made")
	}
}

// FuzzAnswer: an answer that allows makes a request that can be sent: nothing of its
// framing has changed.
func FuzzAnswer(f *testing.F) {
	f.Add(true, 200, "0", frame(f, allow(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{set("x-user", "ann")}, QueryParametersToSet: []*corev3.QueryParameter{{Key: "a", Value: "b"}}})))
	f.Add(true, 200, "0", frame(f, &authv3.CheckResponse{Status: &status.Status{Code: 7}}))
	f.Add(true, 200, "", []byte("\x00\x00\x00\x00\x02\x1a\x00"))
	f.Add(false, 403, "", []byte("no"))
	g, h := provider(f, nil), provider(f, &authzpb.HTTPCheck{ToUpstream: []string{"x-*"}})
	f.Fuzz(func(t *testing.T, grpc bool, code int, state string, body []byte) {
		p := h
		a := &extauthz.Answer{Head: response(code, "x-user", "ann"), Body: body}
		if grpc {
			p = g
			if state != "" {
				a.Trailers = response(0, "grpc-status", state)
			}
		}
		v := p.Read(a)
		switch v.Outcome {
		case extauthz.Denied:
			r := response(v.Status)
			extauthz.Edits(r, v.Reply)
			if v.Status < 200 || v.Status > 599 {
				t.Fatalf("status %d", v.Status)
			}
			return
		case extauthz.Allowed:
		default:
			if v.Err == nil {
				t.Fatal("no error")
			}
			return
		}
		if code != 200 || grpc && state != "0" {
			t.Fatalf("allowed with status %d, %q", code, state)
		}
		r := request("POST", "/a?b=c", "content-length", "5", "x-forwarded-client-cert", "By=a", "x-user", "root")
		p.Strip(r)
		if v.Apply(r) != nil {
			return
		}
		if string(r.Method) != "POST" || string(r.Authority) != "api.example" || !strings.HasPrefix(string(r.Path), "/a") || r.CheckRequest() != nil {
			t.Fatalf("%s %s %s", r.Method, r.Authority, r.Path)
		}
		length, cert := 0, 0
		for _, f := range r.Fields {
			if _, fault := message.CheckName(f.Name); fault != nil || message.CheckValue(f.Value) != nil {
				t.Fatalf("field %q: %q", f.Name, f.Value)
			}
			switch f.ID {
			case message.ContentLength:
				length++
			case message.XForwardedClientCert:
				cert++
			case message.Connection, message.TransferEncoding, message.Host, message.Upgrade, message.TE:
				t.Fatalf("field %s", f.Name)
			}
		}
		if length != 1 || cert != 1 {
			t.Fatalf("%d lengths, %d certificates", length, cert)
		}
	})
}

// BenchmarkCheck is the question and the answer of one request by gRPC.
func BenchmarkCheck(b *testing.B) {
	p := provider(b, nil)
	q := &extauthz.Question{Request: request("GET", "/a?b=c", "user-agent", "curl/8", "accept", "*/*", "authorization", "Bearer x"), Source: netip.MustParseAddrPort("10.0.0.1:99"), Principal: "spiffe://td/ns/a/sa/b", Length: -1}
	a := grpcAnswer(b, allow(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{set("x-user", "ann")}}))
	b.ReportAllocs()
	for b.Loop() {
		h := &message.Head{}
		if _, err := p.Write(q, h); err != nil {
			b.Fatal(err)
		}
		v := p.Read(a)
		if v.Outcome != extauthz.Allowed {
			b.Fatal(v)
		}
	}
}
