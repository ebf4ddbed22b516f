package sockdiag

import "net/netip"

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

func (r Ports) has(p uint16) bool { return r.First <= p && p <= r.Last }

// Uncaptured returns the connections from outside that reach a program of the
// namespace without the proxy. The other end of a captured connection is a
// socket of the proxy, in the same namespace, and so is that of a connection
// within the pod. A connection is from outside when something listens on its
// port. The listener may have closed: then a port that is not of the ephemeral
// range is a server's.
func Uncaptured(all []Socket, ephemeral Ports) []*Socket {
	type ends struct{ local, remote netip.AddrPort }
	have := make(map[ends]struct{}, len(all))
	listening := map[netip.AddrPort]struct{}{}
	anywhere := map[uint16]struct{}{}
	for i := range all {
		s := &all[i]
		switch {
		case !s.Listens:
			have[ends{s.Local, s.Remote}] = struct{}{}
		case s.Local.Addr().IsUnspecified():
			anywhere[s.Local.Port()] = struct{}{}
		default:
			listening[s.Local] = struct{}{}
		}
	}
	var out []*Socket
	for i := range all {
		s := &all[i]
		if s.Listens || s.Remote.Addr().IsLoopback() {
			continue
		}
		if _, inside := have[ends{s.Remote, s.Local}]; inside {
			continue
		}
		_, here := listening[s.Local]
		_, everywhere := anywhere[s.Local.Port()]
		if here || everywhere || !ephemeral.has(s.Local.Port()) {
			out = append(out, s)
		}
	}
	return out
}

// Both returns the sockets of the first list that are in the second one, too.
func Both(first, second []*Socket) []*Socket {
	have := make(map[uint64]struct{}, len(second))
	for _, s := range second {
		have[s.Key()] = struct{}{}
	}
	var out []*Socket
	for _, s := range first {
		if _, ok := have[s.Key()]; ok {
			out = append(out, s)
		}
	}
	return out
}
