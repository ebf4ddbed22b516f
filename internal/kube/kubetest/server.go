// Package kubetest is a Kubernetes API server in memory, for tests: the part
// of the API's behaviour that clients rely on, over real HTTP. It validates
// nothing but names, sets no defaults, and takes any client for an
// administrator; server-side apply is a merge without field ownership.
package kubetest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// Server is the API server. Its methods may be called from any goroutine.
type Server struct {
	t    testing.TB
	addr string

	mu          sync.Mutex
	store       *store
	http        *http.Server // nil while stopped
	breakWatch  chan struct{}
	requests    map[string]int
	tokenReview func(*authenticationv1.TokenReview)
	fault       func(verb, resource, name string) int
	handlers    map[string]http.Handler
	noWatchList bool
}

// Start serves objs on a loopback port until the test ends. Built-in kinds,
// Istio's and the Gateway API's are there; see Define for others.
func Start(t testing.TB, objs ...runtime.Object) *Server {
	t.Helper()
	s := &Server{
		t: t, store: newStore(), breakWatch: make(chan struct{}),
		requests: map[string]int{}, handlers: map[string]http.Handler{},
	}
	for _, o := range objs {
		s.Add(o)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	s.serve(ln)
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) serve(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go func(h *http.Server) { _ = h.Serve(ln) }(s.http) // ends with Stop
}

// Stop ends the server and all connections; state stays.
func (s *Server) Stop() {
	s.mu.Lock()
	h := s.http
	s.http = nil
	s.mu.Unlock()
	if h != nil {
		_ = h.Close() // the listener and connections are gone either way
	}
}

// Restart serves again, at the same address.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	ln, err := net.Listen("tcp", s.addr)
	for deadline := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
		ln, err = net.Listen("tcp", s.addr)
	}
	if err != nil {
		s.t.Fatalf("restart the API server: %v", err)
	}
	s.serve(ln)
}

// Client returns a client of the server, without a limit of requests.
func (s *Server) Client() *client.Client {
	s.t.Helper()
	c, err := client.ForConfig(&rest.Config{Host: "http://" + s.addr, QPS: -1, UserAgent: "test"}, "")
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Kubeconfig writes a kubeconfig for the server and returns its path.
func (s *Server) Kubeconfig() string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "http://%s"}}]
users: [{name: test, user: {}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, s.addr)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// Add creates an object as it is, status included. Typed objects need no
// apiVersion and kind. The namespace need not exist.
func (s *Server) Add(obj runtime.Object) { s.t.Helper(); s.direct(obj, (*store).add) }

// Update replaces an object as it is, status included.
func (s *Server) Update(obj runtime.Object) { s.t.Helper(); s.direct(obj, (*store).set) }

// Delete removes an object at once, finalizers or not; a namespace with all
// it holds.
func (s *Server) Delete(obj runtime.Object) { s.t.Helper(); s.direct(obj, (*store).drop) }

func (s *Server) direct(obj runtime.Object, do func(*store, *table, object) error) {
	s.t.Helper()
	o, err := toObject(obj)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.store.tableOf(obj, o)
	if err == nil {
		err = do(s.store, t, o)
	}
	if err != nil {
		s.t.Errorf("%s: %v", o.name(), err)
	}
}

// Get reads what is stored into obj, which has a name and a namespace, and
// reports whether there is such an object.
func (s *Server) Get(obj runtime.Object) bool {
	s.t.Helper()
	o, err := toObject(obj)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.store.tableOf(obj, o)
	if err != nil {
		s.t.Fatal(err)
	}
	found, ok := t.objects[t.key(o)]
	if ok {
		if err := fromObject(t.present(found, t.versions[0]), obj); err != nil {
			s.t.Fatal(err)
		}
	}
	return ok
}

// Define makes the server know a kind; versions[0] is preferred. Creating a
// CustomResourceDefinition does the same.
func (s *Server) Define(group, kind, plural string, namespaced bool, versions ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store.define(kindInfo{group: group, kind: kind, plural: plural, namespaced: namespaced, custom: true, versions: versions})
}

// Undefine makes it forget one, with its objects.
func (s *Server) Undefine(group, plural string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store.undefine(group, plural)
}

// BreakWatches ends all watches.
func (s *Server) BreakWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.breakWatch)
	s.breakWatch = make(chan struct{})
}

// Compact forgets the history: whoever watches or pages from an older
// resourceVersion is told 410 Gone.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store.compact()
}

// NoWatchList makes the server refuse to stream lists, as old ones do.
func (s *Server) NoWatchList() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noWatchList = true
}

// OnTokenReview answers TokenReviews by filling in the status; without it
// nobody is authenticated. Access reviews are always allowed.
func (s *Server) OnTokenReview(review func(*authenticationv1.TokenReview)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokenReview = review
}

// OnRequest is asked before every request: a status code other than 0 is the
// answer. verb is that of RBAC, resource like pods or pods/status.
func (s *Server) OnRequest(fault func(verb, resource string) int) {
	if fault == nil {
		s.OnObject(nil)
		return
	}
	s.OnObject(func(verb, resource, _ string) int { return fault(verb, resource) })
}

// OnObject is OnRequest that is told the name of the object as well, "" for
// requests that are about many.
func (s *Server) OnObject(fault func(verb, resource, name string) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// Handle has requests whose path begins with prefix answered by h.
func (s *Server) Handle(prefix string, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[prefix] = h
}

// Requests counts requests since the start by verb and resource, like
// "list pods" or "patch pods/status".
func (s *Server) Requests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.requests)
}

// handler returns what Handle has set for a path.
func (s *Server) handler(path string) http.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	for prefix, h := range s.handlers {
		if strings.HasPrefix(path, prefix) {
			return h
		}
	}
	return nil
}

// wait returns when something changed (true), or when the watch must end.
func (s *Server) wait(ctx context.Context, changed, broken <-chan struct{}, tick <-chan time.Time) bool {
	select {
	case <-changed:
	case <-tick:
	case <-broken:
		return false
	case <-ctx.Done():
		return false
	}
	return true
}
