package ratelimit

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Asker asks rate limit services.
type Asker interface {
	// Ask sends a question, framed for gRPC, for a party. done is called once, on the loop,
	// with the answer, or why there is none.
	Ask(l *poll.Loop, s *ratelimit.Service, party string, question []byte, done func(answer []byte, err error))
}

// Asks reports whether a rate limit service is to be asked about connections to a port of a
// pod.
func (n *Node) Asks(w *workload.Workload, port uint16) bool {
	if n == nil {
		return false
	}
	for _, e := range (*n.now.Load())[w.Namespace] {
		if e.limit.Service != nil && isFor(e.limit, w, port) {
			return true
		}
	}
	return false
}

// Ask asks the rate limit services that are for a connection, which Take has counted. done
// is called once, on the loop, perhaps before Ask returns.
func (n *Node) Ask(l *poll.Loop, w *workload.Workload, port uint16, src ratelimit.Source, done func(*reason.Error)) {
	var ask []*entry
	for _, e := range (*n.now.Load())[w.Namespace] {
		if e.limit.Service != nil && isFor(e.limit, w, port) {
			ask = append(ask, e)
		}
	}
	n.ask(l, ask, &asked{w, port, src}, done)
}

// asked is a connection that services are asked about.
type asked struct {
	w    *workload.Workload
	port uint16
	src  ratelimit.Source
}

// ask asks one service after the other, until one refuses.
func (n *Node) ask(l *poll.Loop, list []*entry, c *asked, done func(*reason.Error)) {
	if len(list) == 0 {
		done(nil)
		return
	}
	e := list[0]
	s := e.limit.Service
	v := c.values(e.limit)
	n.Asker.Ask(l, s, c.src.Identity.Namespace, s.Question(nil, &v), func(answer []byte, err error) {
		room := false
		if err == nil {
			room, err = ratelimit.Answer(answer)
		}
		if refused := e.judge(room, err); refused != nil {
			done(refused)
			return
		}
		n.ask(l, list[1:], c, done)
	})
}

// judge returns why a connection is refused, by what a service has answered; it was counted
// as one that is allowed.
func (e *entry) judge(room bool, err error) *reason.Error {
	s := e.limit.Service
	if err != nil {
		e.unanswered.Add(1)
		room = s.Open
	}
	switch {
	case room:
		return nil
	case e.limit.DryRun:
		e.allowed.Add(^uint64(0))
		e.reported.Add(1)
		return nil
	}
	e.allowed.Add(^uint64(0))
	e.refused.Add(1)
	if err != nil {
		return reason.Errorf(reason.RateLimited, "%s: service %s:%d gave no usable answer, and failureMode is Deny: %w", e.limit, s.Hostname, s.Port, err)
	}
	return reason.Errorf(reason.RateLimited, "%s: service %s:%d has no room in domain %s", e.limit, s.Hostname, s.Port, s.Domain)
}

// values returns what descriptors have of a connection. The service is the target of the
// limit, whatever the client has named.
func (c *asked) values(l *ratelimit.Limit) (v ratelimit.Values) {
	v[ratelimit.EntrySourceNamespace] = c.src.Identity.Namespace
	v[ratelimit.EntrySourceIdentity] = c.src.Identity.String()
	if c.src.Addr != (netip.Addr{}) {
		v[ratelimit.EntrySourceAddress] = c.src.Addr.String()
	}
	v[ratelimit.EntryDestinationNamespace] = c.w.Namespace
	v[ratelimit.EntryDestinationWorkload] = c.w.Namespace + "/" + c.w.WorkloadName
	for i := range c.w.Services {
		m := &c.w.Services[i]
		if m.Service.Namespace == l.Namespace && slices.Contains(l.Hosts, m.Service.Hostname) && behind(m, c.port) {
			v[ratelimit.EntryDestinationService] = m.Service.Hostname
			break
		}
	}
	return v
}
