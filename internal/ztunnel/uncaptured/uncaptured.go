// Package uncaptured ends connections from outside to a pod's programs that were open
// before the pod was enrolled, when a policy comes to deny them. The proxy does not carry
// such connections, so nothing else judges them.
package uncaptured

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
)

// most bounds the connections that are remembered for one pod, at about 150 bytes each.
// It is more than one client address can have to one port.
const most = 1 << 16

// Set is the connections of one pod. The zero value has none. It is not safe for
// concurrent use.
type Set struct {
	known map[uint64]*sockdiag.Socket
	// started and captured are when they have been looked for: when the pod came to be
	// served, and when the control plane said that it is redirected. Between the two, new
	// ones can have been made.
	started, captured bool
}

// Judge decides about a connection.
type Judge struct {
	// Denied reports whether it must end, and for which policy.
	Denied func(*sockdiag.Socket) (policy string, denied bool)
	// Ended reports a connection that was ended.
	Ended func(s *sockdiag.Socket, policy string)
	// Stays reports a connection that could not be ended, and why.
	Stays func(*sockdiag.Socket, error)
}

// Review looks for connections, when it is time to, and ends those that j denies; none
// while j is nil. in runs a function in the network of the pod. captured: the pod is
// redirected.
func (s *Set) Review(in func(func() error) error, captured bool, j *Judge) error {
	look := !s.started || !s.captured && captured
	if !look && len(s.known) == 0 {
		return nil
	}
	var d *sockdiag.Diag
	var ephemeral sockdiag.Ports
	err := in(func() (err error) {
		if ephemeral, err = ephemeralPorts(); err == nil {
			d, err = sockdiag.Open()
		}
		return err
	})
	if err != nil {
		return err
	}
	defer d.Close()
	if look {
		if err := s.find(d, ephemeral); err != nil {
			return err
		}
	}
	s.started, s.captured = true, s.captured || captured
	if j != nil {
		s.judge(d, j)
	}
	return nil
}

// find adds the connections of this moment. The kernel lists sockets one after the other:
// of a connection that begins meanwhile, the program's end can be in the list and the
// proxy's not. The proxy's end is the older one, so a second list has it.
func (s *Set) find(d *sockdiag.Diag, ephemeral sockdiag.Ports) error {
	var lists [2][]*sockdiag.Socket
	for i := range lists {
		all, err := d.List(sockdiag.Connected | sockdiag.Listening)
		if err != nil {
			return err
		}
		lists[i] = sockdiag.Uncaptured(all, ephemeral)
	}
	if s.known == nil {
		s.known = map[uint64]*sockdiag.Socket{}
	}
	for _, c := range sockdiag.Both(lists[0], lists[1]) {
		if len(s.known) < most && !wellknown.IsProxyPort(c.Local.Port()) {
			own := *c // and not the whole list
			s.known[c.Key()] = &own
		}
	}
	return nil
}

// judge ends those that are denied, and forgets those that have ended.
func (s *Set) judge(d *sockdiag.Diag, j *Judge) {
	for key, c := range s.known {
		policy, denied := j.Denied(c)
		if !denied {
			if there, err := d.Find(c); err == nil && !there {
				delete(s.known, key)
			}
			continue
		}
		switch err := d.Destroy(c); {
		case err == nil:
			j.Ended(c, policy)
		case !errors.Is(err, sockdiag.ErrGone):
			j.Stays(c, err)
			continue
		}
		delete(s.known, key)
	}
}

// ephemeralPorts are those that the kernel gives to clients in the namespace of the
// calling thread.
func ephemeralPorts() (sockdiag.Ports, error) {
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	b, err := os.ReadFile(file)
	if err != nil {
		return sockdiag.Ports{}, err
	}
	var r sockdiag.Ports
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return r, fmt.Errorf("%s has %q, and not two numbers", file, b)
	}
	for i, to := range []*uint16{&r.First, &r.Last} {
		v, err := strconv.ParseUint(f[i], 10, 16)
		if err != nil {
			return r, err
		}
		*to = uint16(v)
	}
	return r, nil
}
