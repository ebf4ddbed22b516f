package scenario

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// moreAuthorizers are for attacks: with little time, that fail open, and that get bodies.
const moreAuthorizers = `
- name: quick-http
  envoyExtAuthzHttp: {service: authorizer.auth.svc.cluster.local, port: 8000, pathPrefix: /quick-http, timeout: 0.2s, statusOnError: "503", includeRequestBodyInCheck: {maxRequestBytes: 100}}
- name: quick-grpc
  envoyExtAuthzGrpc: {service: quick-grpc.auth.svc.cluster.local, port: 8001, timeout: 0.2s, statusOnError: "503", includeRequestBodyInCheck: {maxRequestBytes: 100}}
- name: open-http
  envoyExtAuthzHttp: {service: authorizer.auth.svc.cluster.local, port: 8000, pathPrefix: /open-http, timeout: 0.2s, failOpen: true, headersToUpstreamOnAllow: [x-user]}
- name: open-grpc
  envoyExtAuthzGrpc: {service: open-grpc.auth.svc.cluster.local, port: 8001, timeout: 0.2s, failOpen: true}
`

// called is another service of the authorizer, which finds by it which provider asks.
func called(name string) string {
	return rig.ServiceObject("auth", name, "authorizer", "{name: grpc, port: 8001, targetPort: 9001}")
}

// sink counts the requests that reach the program behind the waypoint.
func sink(w *rig.World) (reached func() []string) {
	got := make(chan string, 10_000)
	l := w.Listen(lab.InPod("shop", "api"), ":8080")
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- fmt.Sprintf("%s %v %s", r.URL, r.Header, b)
	})}
	go func() { _ = s.Serve(l) }()
	w.T().Cleanup(func() { _ = s.Close() })
	return func() (out []string) {
		for {
			select {
			case s := <-got:
				out = append(out, s)
			default:
				return out
			}
		}
	}
}

// TestAttacksOnExternalAuthorization: whatever an authorizer does that is no allow,
// nothing of a request reaches the program.
func TestAttacksOnExternalAuthorization(t *testing.T) {
	m := rig.NewMeshFile(t, authorizers+moreAuthorizers)
	w := rig.Start(t, lab.Config{YAML: authorized() + called("quick-grpc") + called("open-grpc"), Args: map[string][]string{lab.Ambitd: {"--mesh-config", m.Path}}})
	reached := sink(w)
	a := w.Authorizer(lab.InPod("auth", "authorizer"))
	c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
	c.becomes(bare, 200)
	const post = "POST /private HTTP/1.1\nHost: api\nContent-Length: 6\nX-User: root\n\nsecret"
	in := func(provider, says string) {
		t.Helper()
		a.Answer(func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(418)
			_, _ = io.WriteString(rw, strings.Split(r.URL.Path, "/")[1])
		}, func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			name, _, _ := strings.Cut(strings.Join(md[":authority"], ""), ".")
			return &authv3.CheckResponse{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Body: name}}}, nil
		})
		w.MustApply(asks(provider, `[{}]`))
		w.Eventually("the policy is in force", func() error {
			resp, body, err := c.do(bare)
			if err != nil || body != says {
				return fmt.Errorf("%v %q %w", resp, body, err)
			}
			return nil
		})
		reached()
	}
	refused := func(what string, want int) {
		t.Helper()
		resp, body := c.must(post)
		if resp.StatusCode != want {
			t.Errorf("%s: %d %q", what, resp.StatusCode, body)
		}
		if all := reached(); len(all) != 0 {
			t.Errorf("%s: the program got %q", what, all)
		}
	}
	header := func(name, value string) *authv3.CheckResponse {
		return &authv3.CheckResponse{Status: &status.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: name, Value: value}}},
		}}}
	}

	in("quick-http", "quick-http")
	wait := func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
		}
	}
	for what, answer := range map[string]http.HandlerFunc{
		"slow":  func(_ http.ResponseWriter, r *http.Request) { wait(r.Context()) },
		"fails": func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) },
		"a head and no more": func(rw http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(rw).Flush()
			wait(r.Context())
		},
		"garbage": func(rw http.ResponseWriter, _ *http.Request) {
			if conn, _, err := http.NewResponseController(rw).Hijack(); err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
				_ = conn.Close()
			}
		},
		"switches": func(rw http.ResponseWriter, _ *http.Request) {
			if conn, _, err := http.NewResponseController(rw).Hijack(); err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
				_ = conn.Close()
			}
		},
	} {
		a.Answer(answer, nil)
		refused(what, 503)
	}
	a.Answer(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("x-ambit-hop", "1")
		rw.WriteHeader(403)
		for range 1 << 14 {
			if _, err := io.WriteString(rw, strings.Repeat("a", 1<<10)); err != nil {
				return
			}
		}
	}, nil)
	refused("a denial of 16 MiB", 403)
	if resp, body := c.must(post); body != "" || resp.Header["X-Ambit-Hop"] != nil {
		t.Errorf("%d bytes, %v", len(body), resp.Header)
	}

	in("quick-grpc", "quick-grpc")
	for what, answer := range map[string]func(context.Context) (*authv3.CheckResponse, error){
		"slow": func(ctx context.Context) (*authv3.CheckResponse, error) {
			wait(ctx)
			return header("x-user", "ann"), nil
		},
		"fails":          func(context.Context) (*authv3.CheckResponse, error) { return nil, grpcstatus.Error(codes.Internal, "") },
		"says nothing":   func(context.Context) (*authv3.CheckResponse, error) { return &authv3.CheckResponse{}, nil },
		":path":          func(context.Context) (*authv3.CheckResponse, error) { return header(":path", "/public"), nil },
		"host":           func(context.Context) (*authv3.CheckResponse, error) { return header("host", "other"), nil },
		"content-length": func(context.Context) (*authv3.CheckResponse, error) { return header("content-length", "3"), nil },
		"transfer-encoding": func(context.Context) (*authv3.CheckResponse, error) {
			return header("transfer-encoding", "chunked"), nil
		},
		"connection":      func(context.Context) (*authv3.CheckResponse, error) { return header("connection", "x-user"), nil },
		"x-ambit":         func(context.Context) (*authv3.CheckResponse, error) { return header("X_Ambit_Hop", "1"), nil },
		"a second header": func(context.Context) (*authv3.CheckResponse, error) { return header("x-a", "b\r\nx-user: root"), nil },
		"huge": func(context.Context) (*authv3.CheckResponse, error) {
			return header("x-user", strings.Repeat("a", 1<<20)), nil
		},
	} {
		a.Answer(nil, func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) { return answer(ctx) })
		refused(what, 503)
	}
	resp, _ := c.must("POST /private HTTP/1.1\nHost: api\nContent-Length: 101\n\n" + strings.Repeat("a", 101))
	if all := reached(); resp.StatusCode != 413 || len(all) != 0 {
		t.Errorf("a body that is too large: %d, the program got %q", resp.StatusCode, all)
	}
	a.Answer(nil, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return header("x-user", "ann"), nil
	})
	c.must(post)
	if all := reached(); len(all) != 1 || !strings.Contains(all[0], "X-User:[ann]") || !strings.HasSuffix(all[0], " secret") {
		t.Errorf("allowed: %q", all)
	}

	// A client that goes ends the question, and its request goes nowhere.
	asked, gone := make(chan struct{}, 1), make(chan struct{}, 1)
	in("by-grpc", "authorizer")
	a.Answer(nil, func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		asked <- struct{}{}
		<-ctx.Done()
		gone <- struct{}{}
		return header("x-user", "ann"), nil
	})
	conn, err := w.Dial(t.Context(), far, "tcp", c.to.String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, strings.ReplaceAll(bare, "\n", "\r\n")+"\r\n\r\n")
	<-asked
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Error("the question goes on")
	}
	if all := reached(); len(all) != 0 {
		t.Errorf("the program got %q", all)
	}

	// What fails open passes without headers that only the authorizer gives, and what is an
	// answer is none the less obeyed.
	in("open-grpc", "open-grpc")
	a.Answer(nil, func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return header("host", "other"), nil
	})
	refused("an answer that cannot be applied, of an authorizer that fails open", 403)
	in("open-http", "open-http")
	a.Answer(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) }, nil)
	c.must(post)
	if all := reached(); len(all) != 1 || strings.Contains(all[0], "X-User") {
		t.Errorf("failed open: %q", all)
	}

	// No authorizer at all.
	in("quick-http", "quick-http")
	a.Stop()
	refused("away", 503)
	w.MustApply(asks("open-http", `[{}]`))
	c.becomes(bare, 200) // it fails open

	// The authorizer admits the waypoint alone: a policy of its own stands behind that.
	if _, err := w.Get(far, netip.AddrPortFrom(w.Service("auth", "authorizer", false), 8000)); err == nil {
		t.Error("a client reaches the authorizer")
	}
}

// TestProvidersChange: a change of the mesh configuration takes effect, and a mistake in
// one provider is that provider's alone.
func TestProvidersChange(t *testing.T) {
	w, a, m := startAuthorized(t, "")
	c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
	a.Answer(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/elsewhere") {
			rw.WriteHeader(404)
		}
	}, nil)
	w.MustApply(asks("by-http", `[{}]`))
	w.Eventually("it is asked", func() error {
		if _, _, err := c.do(bare); err != nil {
			return err
		}
		if len(a.Asked()) == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	c.becomes(bare, 200)
	write := func(text string) {
		t.Helper()
		if err := m.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.ReplaceAll(authorizers, "/check", "/elsewhere"))
	c.becomes(bare, 404)
	write(strings.ReplaceAll(authorizers, "/check", "check"))
	c.becomes(bare, 403)
	if n := len(a.Asked()); n == 0 {
		t.Error("never asked")
	}
	write("extensionProviders: 7") // the last good configuration stays
	w.MustApply(asks("by-grpc", `[{}]`))
	w.Eventually("the other provider is asked", func() error {
		if resp, _, err := c.do(bare); err != nil || resp.StatusCode != 200 {
			return fmt.Errorf("%v %w", resp, err)
		}
		return nil
	})
	write(authorizers)
	w.MustApply(asks("by-http", `[{}]`))
	w.Eventually("it is asked again", func() error {
		a.Asked()
		resp, _, err := c.do(bare)
		if all := a.Asked(); err != nil || resp.StatusCode != 200 || len(all) != 1 || all[0].Request == nil {
			return fmt.Errorf("%v, %d questions, %w", resp, len(all), err)
		}
		return nil
	})
}
