// Package conns keeps track of the connections that a proxy carries, so
// that they can be listed, judged again when policies change, and ended.
package conns

import (
	"net/netip"
	"sync"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// Conn is one connection, from before its first policy check until its end.
type Conn struct {
	telemetry.Conn
	Inbound  bool
	Protocol connect.Protocol
	// Sockets is how many descriptors the connection has taken of its pod's share.
	Sockets int32
	// Asked is the address the program dialled, of an outbound connection; of
	// an inbound one, where it goes in the pod, which is what policies see.
	Asked netip.AddrPort
	// Name is the UID of the workload at the other end of an outbound
	// connection; of an inbound one, the service that the client named.
	Name string

	set *Set
	// The rest is guarded by the set's mu.
	prev, next *Conn
	flow       *relay.Flow
	aborted    *abort // nil: it was not
}

// abort is why a connection was ended, and the policy that took the permission away,
// if one did.
type abort struct {
	why    reason.Reason
	policy string
}

// Access is what policies see of an inbound connection that has begun.
func (c *Conn) Access() rbac.Conn {
	return rbac.Conn{Identity: c.SrcIdentity(), Src: c.Src, Dst: c.Asked}
}

// Set is the connections of one pod. The zero value is empty. It is safe for
// concurrent use.
type Set struct {
	mu   sync.Mutex
	head *Conn
	n    int
}

// Add registers c, which must be new.
func (s *Set) Add(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.set = s
	c.next = s.head
	if c.next != nil {
		c.next.prev = c
	}
	s.head = c
	s.n++
}

// Remove forgets c; again does nothing.
func (s *Set) Remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.set != s {
		return
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.head = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next, c.set, c.flow = nil, nil, nil, nil
	s.n--
}

// Len counts the connections.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// All lists the connections.
func (s *Set) All() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Conn, 0, s.n)
	for c := s.head; c != nil; c = c.next {
		all = append(all, c)
	}
	return all
}

// Carry gives the flow that moves c's bytes. When c was aborted before it had
// one, the flow is aborted now. It may be called after Remove.
func (s *Set) Carry(c *Conn, f *relay.Flow) {
	s.mu.Lock()
	c.flow = f
	aborted := c.aborted
	s.mu.Unlock()
	c.Count(f)
	if aborted != nil {
		f.Abort(aborted.why)
	}
}

// Abort ends c: at once when bytes run, else before they can. policy names
// the policy that decided; may be empty. Only the first call counts.
func (s *Set) Abort(c *Conn, why reason.Reason, policy string) {
	s.mu.Lock()
	if c.set != s || c.aborted != nil {
		s.mu.Unlock()
		return
	}
	c.aborted = &abort{why, policy}
	f := c.flow
	s.mu.Unlock()
	if f != nil {
		f.Abort(why)
	}
}

// Aborted tells why c was aborted, OK when it was not, and by which policy.
func (s *Set) Aborted(c *Conn) (reason.Reason, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.aborted == nil {
		return reason.OK, ""
	}
	return c.aborted.why, c.aborted.policy
}
