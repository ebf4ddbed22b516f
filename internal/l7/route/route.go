// Package route finds the rule for a request. A Table is compiled when
// configuration changes and never changes afterwards. A look-up goes by host,
// then by path, then over the few rules that share both, so that its time does
// not depend on the number of routes. Regular expressions for the path are the
// exception: a look-up tries them one after the other.
//
// Filters, timeouts and retries are data here. The owner executes them.
package route

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
)

// Order is how rules of one host are ordered.
type Order uint8

const (
	// BySpecificity is the precedence of Gateway API's HTTPRoute.
	BySpecificity Order = iota
	// AsListed lets the first rule of the list win, as a VirtualService does.
	AsListed
)

// Kind is how a value is compared.
type Kind uint8

// The kinds. Any and Segments are of paths, Present of fields and parameters.
const (
	Any      Kind = iota // everything matches
	Exact                // the whole value
	Segments             // a prefix of whole path segments
	Prefix               // a prefix of fields and parameters
	Regex                // RE2, the whole value
	Present              // there is a value
)

// Rule is one rule of a route. A request that any of Matches fits takes it; no
// matches fit everything.
type Rule struct {
	Origin  string    // object and rule, for people
	Route   string    // namespace/name: breaks ties
	Created time.Time // of the route: the older wins ties
	Hosts   []string  // exact, *.suffix; none is every host. Of TLS: the names that clients want
	Carries Carries
	Matches []Match

	GRPC     bool // failures are answered as gRPC status
	Backends []Backend
	Filters  Filters
	Timeouts Timeouts
	Retry    *Retry
	Session  *Session
	// Guarded: an authorizer is to be asked about its requests, whether or not that is
	// possible. Connections without HTTP are refused.
	Guarded bool
}

// Session keeps the requests of a client on one endpoint, see package sticky.
type Session struct {
	Name      string        // of the cookie or the header
	Header    bool          // a header, in place of a cookie
	Absolute  time.Duration // how long a session lasts; 0 is for ever
	Permanent bool          // the client keeps the cookie for that time
}

// Match is a condition. All of its parts must fit.
type Match struct {
	Path    Path
	Method  string // "" is every method
	Headers []Value
	Query   []Value
}

// Path is the condition on a path without its query.
type Path struct {
	Kind  Kind // Any, Exact, Segments, Regex
	Value string
}

// Value is the condition on one field or query parameter.
type Value struct {
	Name  string
	Kind  Kind // Exact, Prefix, Regex, Present
	Value string
	Not   bool // fits when the condition does not, or the value is missing
}

// Filters change or answer a request.
type Filters struct {
	Request, Response *HeaderEdit
	Redirect          *Redirect
	Rewrite           *Rewrite
	Mirrors           []Mirror
	CORS              *CORS
	// ExternalAuth is asked about each request; not of a backend.
	ExternalAuth *extauthz.Provider
}

// HeaderEdit changes fields: set, then add, then remove.
type HeaderEdit struct {
	Set, Add []Field
	Remove   []string
}

// Field is a name and its value.
type Field struct{ Name, Value string }

// PathEdit replaces the whole path, or the prefix that the match has.
type PathEdit struct {
	Prefix bool
	Value  string
}

// Redirect is answered in place of a backend. Zero values keep the request's.
type Redirect struct {
	Scheme, Host string
	Port         uint16
	Path         *PathEdit
	Status       int // 0 is 302
}

// Rewrite changes what the backend gets.
type Rewrite struct {
	Host string
	Path *PathEdit
}

// Mirror sends a copy of a share of the requests, Numerator of Denominator.
type Mirror struct {
	Backend                Backend
	Numerator, Denominator uint32
}

// CORS answers preflight requests.
type CORS struct {
	Origins, Methods, Headers, Expose []string
	Credentials                       bool
	MaxAge                            time.Duration
}

// Timeouts of an exchange with all its tries, and of one try. Zero is none.
type Timeouts struct{ Request, Try time.Duration }

// Retry is when and how often a request is sent again.
type Retry struct {
	Codes    []int
	Attempts int
	Backoff  time.Duration
}

// Backend gets a share of a rule's requests.
type Backend struct {
	Name    string // of the upstream: what the owner resolves
	Weight  uint32
	Invalid string // why the reference is refused, "" if it is valid
	Filters Filters
}

// Failure is why a request has no backend.
type Failure uint8

// The failures.
const (
	OK             Failure = iota
	NoRoute                // no rule fits
	NoBackends             // the rule has none, or all weights are 0
	InvalidBackend         // the share of a reference that is refused
	NoEndpoints            // the backend has no ready endpoint
)

var failures = [...]struct {
	status, grpc int
	text         string
}{
	OK: {200, 0, "a backend was chosen"}, NoRoute: {404, 12, "no route matches"}, NoBackends: {500, 14, "the rule has no backend with a weight"},
	InvalidBackend: {500, 14, "the reference to the backend is invalid"}, NoEndpoints: {503, 14, "the backend has no ready endpoint"},
}

// Status returns the HTTP status that Gateway API asks for.
func (f Failure) Status() int { return failures[f].status }

// GRPC returns the gRPC status: UNIMPLEMENTED without a route, else UNAVAILABLE.
func (f Failure) GRPC() int { return failures[f].grpc }

// String returns the failure in words.
func (f Failure) String() string { return failures[f].text }
