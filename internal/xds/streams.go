package xds

import (
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Caller names the account and pod for which a stream counts.
type Caller struct {
	// Owner is the pod, or what else is one program; Account is whose it is.
	Owner, Account string
	// Single owners are one program; others are all programs of an account.
	Single bool
	// NodeProxy means that the caller serves a node: it is not held up by others.
	NodeProxy bool
}

const (
	// ownStreams is how many streams one program has at most: two generations
	// of it while it is replaced, and for each one that a lost connection left
	// behind.
	ownStreams = 4
	// accountStreams is the same for the callers of an account of which no more
	// is known.
	accountStreams = 64
	// otherStreams bounds the streams of all that are no node proxies.
	otherStreams = 4096
)

var (
	errReplaced = status.Error(codes.ResourceExhausted, "the caller has opened other streams since")
	errChanged  = status.Error(codes.Unavailable, "what the caller may have has changed; connect again")
	errStreams  = status.Error(codes.ResourceExhausted, "too many streams")
)

// streams are the open streams by owner, each list from the oldest to the
// newest.
type streams struct {
	owners map[string][]*client
	others int
}

// add enters a stream. It returns the stream that ends for it, or nil; and
// whether there is room.
func (s *streams) add(c *client) (victim *client, ok bool) {
	if !c.caller.NodeProxy && s.others >= otherStreams {
		return nil, false
	}
	most := accountStreams
	if c.caller.Single {
		most = ownStreams
	}
	list := s.owners[c.caller.Owner]
	if len(list) >= most {
		victim = stale(list)
		s.remove(victim)
	}
	s.owners[c.caller.Owner] = append(s.owners[c.caller.Owner], c)
	if !c.caller.NodeProxy {
		s.others++
	}
	return victim, true
}

// stale returns the oldest stream that has said nothing, else the oldest.
func stale(list []*client) *client {
	for _, c := range list {
		if !c.spoke.Load() {
			return c
		}
	}
	return list[0]
}

// remove takes a stream out, unless it is out already.
func (s *streams) remove(c *client) {
	list := s.owners[c.caller.Owner]
	for i := range list {
		if list[i] != c {
			continue
		}
		if rest := append(list[:i:i], list[i+1:]...); len(rest) > 0 { //nolint:gocritic // a new list: readers have the old one
			s.owners[c.caller.Owner] = rest
		} else {
			delete(s.owners, c.caller.Owner)
		}
		if !c.caller.NodeProxy {
			s.others--
		}
		return
	}
}

// EndOwner ends the streams of one owner (see Caller), because what it may have
// has changed: its client connects again, and is asked about anew.
func (s *Server) EndOwner(owner string) {
	s.mu.Lock()
	list := slices.Clone(s.streams.owners[owner])
	s.mu.Unlock()
	for _, c := range list {
		c.stop(errChanged)
	}
}

// EndAccount does the same for all streams of an account. It looks at every
// stream.
func (s *Server) EndAccount(account string) {
	s.mu.Lock()
	var list []*client
	for c := range s.clients {
		if c.caller.Account == account {
			list = append(list, c)
		}
	}
	s.mu.Unlock()
	for _, c := range list {
		c.stop(errChanged)
	}
}
