// Package kubetest is a Kubernetes API server in memory, for tests: the part
// of the API's behaviour that clients rely on, over real HTTP.
package kubetest

import (
	"net/http"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// Server is the API server. Its methods may be called from any goroutine.
type Server struct{}

// Start serves objs on a loopback port until the test ends. Built-in kinds,
// Istio's and the Gateway API's are there; see Define for others.
func Start(t testing.TB, objs ...runtime.Object) *Server { return &Server{} }

// Client returns a client of the server, without a limit of requests.
func (s *Server) Client() *client.Client { return nil }

// Kubeconfig writes a kubeconfig for the server and returns its path.
func (s *Server) Kubeconfig() string { return "" }

// Add creates an object as it is, status included. Typed objects need no
// apiVersion and kind when their type is a built-in one.
func (s *Server) Add(obj runtime.Object) {}

// Update replaces an object as it is, status included.
func (s *Server) Update(obj runtime.Object) {}

// Delete removes an object at once; a namespace with all it holds.
func (s *Server) Delete(obj runtime.Object) {}

// Get returns what is stored into obj, and whether there is such an object.
// obj needs its name and namespace.
func (s *Server) Get(obj runtime.Object) bool { return false }

// Define makes the server know a kind; versions[0] is preferred. Creating a
// CustomResourceDefinition does the same.
func (s *Server) Define(group, kind, plural string, namespaced bool, versions ...string) {}

// Undefine makes it forget one, with its objects.
func (s *Server) Undefine(group, plural string) {}

// Stop ends the server and all connections; state stays.
func (s *Server) Stop() {}

// Restart serves again, at the same address.
func (s *Server) Restart() {}

// BreakWatches ends all watches.
func (s *Server) BreakWatches() {}

// Compact forgets the history: whoever watches or pages from an older
// resourceVersion is told 410 Gone.
func (s *Server) Compact() {}

// OnTokenReview answers TokenReviews by filling in the status.
func (s *Server) OnTokenReview(review func(*authenticationv1.TokenReview)) {}

// OnRequest is asked before every request: a status code other than 0 is the
// answer. verb is that of RBAC, resource like pods or pods/status.
func (s *Server) OnRequest(fault func(verb, resource string) int) {}

// Handle has requests whose path begins with prefix answered by h.
func (s *Server) Handle(prefix string, h http.Handler) {}

// Requests counts requests since the start by verb and resource, like
// "list pods" or "patch pods/status".
func (s *Server) Requests() map[string]int { return nil }
