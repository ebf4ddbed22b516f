// Package zds is the conversation between the node agent, which knows pods and
// their network namespaces, and the node proxy, which serves them. Both ends
// are here: Server is the agent's, Client the proxy's.
//
// The wire is that of Istio's ZDS: one protobuf message is one packet of a
// SOCK_SEQPACKET unix socket, and the namespace of a workload travels as a
// descriptor in the packet's ancillary data. The proxy dials and says hello;
// the agent then names every workload of the node, one request at a time and
// each acknowledged, ends the list, and reports changes from then on. Several
// generations of the proxy may be connected during an upgrade: the newest gets
// what is added, all are told what is deleted.
package zds

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Info says whose pod a workload is.
type Info struct {
	Name, Namespace, ServiceAccount string
}

// Bounds of the protocol.
const (
	// Deadline is how long one packet, or one acknowledgement, may take. It is
	// Istio's.
	Deadline = 5 * time.Second

	// maxPacket bounds one message. Peers read at most 1 KiB, and a message is
	// three names of at most 253 bytes and a UID.
	maxPacket = 1024
)

// ErrNoProxy tells that no proxy is connected to the agent.
var ErrNoProxy = errors.New("no ztunnel is connected to the node agent")

// RefusedError is a proxy's answer that it could not do what it was asked to.
type RefusedError struct {
	UID    string
	Reason string // the proxy's own words
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("ztunnel refused workload %s: %s", e.UID, e.Reason)
}

// Handler is the proxy behind a Client. Its methods are called one after the
// other, on one goroutine; what they return goes back to the agent as the
// acknowledgement.
type Handler interface {
	// Add starts to serve a workload. The namespace is the handler's from the
	// call on, also when it returns an error: it may keep it and try again by
	// itself. The same UID with the same namespace ID again is no change; with
	// another namespace, the old one is replaced.
	Add(ctx context.Context, uid string, info Info, ns *netns.NS) error
	// Del stops to serve a workload. An unknown one is no error.
	Del(ctx context.Context, uid string) error
	// Snapshot ends the list that follows every connect: what is served and not
	// in named is gone. The map is the handler's.
	Snapshot(ctx context.Context, named map[string]bool)
	// Connected reports whether the agent is there. It becomes true with the end
	// of the first list of a connection, and false when the connection is lost.
	Connected(bool)
}
