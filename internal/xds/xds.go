// Package xds speaks the delta discovery protocol, both ends: state machines
// without IO that know who was told what, and thin gRPC around them.
package xds

import (
	"crypto/sha256"
	"encoding/hex"

	"google.golang.org/grpc/mem"
)

// Resource is one named, versioned message. The body is the marshalled
// message without its envelope; it is marshalled once and never changed, and
// neither are name, version and aliases once a Cache has the resource.
type Resource struct {
	Name    string
	Version string
	Body    []byte
	// Aliases are further names a client may subscribe to. Several resources
	// may have one alias: a subscriber gets all of them.
	Aliases []string
	// With names resources that this one is a part of, such as the services of
	// a pod: a client that follows one of them gets this one too, as far as its
	// Scope permits. It is not sent.
	With []string
	// Groups are the sets that the resource is a member of, for clients that
	// may have a part of the type only (see Scope). They are not sent.
	Groups []Group
	// Late is set for resources of a First type (see ServerOptions.First) whose
	// change waits until the client has accepted what came before it of the
	// other types. A client that does not have the resource gets it at once.
	Late bool

	// wire is the resource as a field of a response, which holds Body; nil
	// until it is made by NewResource or a Cache.
	wire mem.Buffer
}

// VersionOf derives a version from a body: equal bodies, equal versions, also
// across restarts.
func VersionOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:8])
}

// Rejection is a resource that a client could not use.
type Rejection struct {
	Name string
	Err  error
}

// Delta is one response, as a client's Apply gets it.
type Delta struct {
	Updated []Resource
	Removed []string
	// First response of its type on a connection; with a wildcard
	// subscription it brings the whole state (less what is known already).
	First bool
}

// Wildcard is the name that subscribes to every resource of a type.
const Wildcard = "*"

const (
	// featurePartial in a node's client features: the client knows that a
	// response with partialVersion is continued in the next.
	featurePartial = "ambit.xds.partial-responses"
	// partialVersion is the system_version_info of such a response.
	partialVersion = "partial"

	// maxMessage bounds a message in bytes. Clients that do not understand
	// partial responses get the whole mesh in one: 200 MiB is what upstream's
	// node proxy takes.
	maxMessage = 200 << 20
	// MaxRequest bounds what a client sends. The largest request lists all that
	// it has: 100,000 resources with the longest names that Kubernetes admits and
	// their versions, some 370 bytes each.
	MaxRequest = 40 << 20
)
