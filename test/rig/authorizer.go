package rig

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// Ports of an Authorizer.
const (
	AuthorizerHTTP = 9000
	AuthorizerGRPC = 9001
)

// Authorizer is an external authorizer in a pod, by HTTP and by gRPC. It allows
// everything until a test changes that.
type Authorizer struct {
	authv3.UnimplementedAuthorizationServer
	w *World

	mu    sync.Mutex
	http  http.HandlerFunc
	grpc  func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
	asked []Asked
	stop  []func()
}

// Asked is one question.
type Asked struct {
	Request *http.Request // by HTTP
	Body    string
	Check   *authv3.CheckRequest // by gRPC
}

// Authorizer serves one in a pod.
func (w *World) Authorizer(in lab.Where) *Authorizer {
	w.t.Helper()
	a := &Authorizer{w: w}
	a.Serve(in)
	w.t.Cleanup(a.Stop)
	return a
}

// Serve begins to listen.
func (a *Authorizer) Serve(in lab.Where) {
	a.w.t.Helper()
	h := &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	l := a.w.Listen(in, ":9000")
	go func() { _ = h.Serve(l) }()
	g := grpc.NewServer()
	authv3.RegisterAuthorizationServer(g, a)
	l2 := a.w.Listen(in, ":9001")
	go func() { _ = g.Serve(l2) }()
	a.stop = append(a.stop, func() { _ = h.Close() }, g.Stop)
}

// Stop ends that. Requests that are under way are cut.
func (a *Authorizer) Stop() {
	for _, f := range a.stop {
		f()
	}
	a.stop = nil
}

// Answer replaces the answers by HTTP and by gRPC; nil allows.
func (a *Authorizer) Answer(h http.HandlerFunc, g func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.http, a.grpc = h, g
}

// Asked returns the questions since the last call.
func (a *Authorizer) Asked() []Asked {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.asked
	a.asked = nil
	return all
}

// ServeHTTP implements http.Handler.
func (a *Authorizer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	a.asked = append(a.asked, Asked{Request: r, Body: string(b)})
	f := a.http
	a.mu.Unlock()
	if f != nil {
		f(rw, r)
	}
}

// Check implements envoy.service.auth.v3.Authorization.
func (a *Authorizer) Check(ctx context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.mu.Lock()
	a.asked = append(a.asked, Asked{Check: q})
	f := a.grpc
	a.mu.Unlock()
	if f != nil {
		return f(ctx, q)
	}
	return &authv3.CheckResponse{Status: &status.Status{}}, nil
}

// MeshFile is a file with the mesh configuration of a control plane.
type MeshFile struct{ Path string }

// NewMeshFile writes one.
func NewMeshFile(t interface {
	TempDir() string
	Fatal(...any)
}, text string,
) MeshFile {
	m := MeshFile{filepath.Join(t.TempDir(), "mesh.yaml")}
	if err := m.Write(text); err != nil {
		t.Fatal(err)
	}
	return m
}

// Write replaces the text.
func (m MeshFile) Write(text string) error {
	next := m.Path + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(next, m.Path)
}
