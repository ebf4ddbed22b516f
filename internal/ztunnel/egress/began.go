package egress

import (
	"time"
	"unique"

	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
)

// beginning is what the host of a connection was found by. Connections that began alike share
// it: each costs a pointer.
type beginning struct {
	first opening.Opening
	// name is the name that was looked up; empty where no look-up explained the connection.
	name string
}

// Began remembers what the host of a connection was found by, until Ended, so that a review
// finds the same host. The first bytes are gone then, and the look-up may be.
func (p *Pod) Began(c *conns.Conn, host *hosts.Match, first opening.Opening) {
	if !first.Seen && host.Service == nil {
		return
	}
	b := unique.Make(beginning{first, host.Name})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began == nil {
		p.began = map[*conns.Conn]unique.Handle[beginning]{}
	}
	p.began[c] = b
}

func (p *Pod) beginningOf(c *conns.Conn) beginning {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.began[c]
	if !ok {
		return beginning{}
	}
	return b.Value()
}

// again returns the service that an open connection is to by a look-up: the one that it began
// with, or one that has come since. call is what policies were asked about; its first bytes count
// where none were read before.
func (g *Gate) again(p *Pod, namespace string, c *conns.Conn, call *egress.Call) hosts.Match {
	if g.Hosts.Empty() {
		return hosts.Match{}
	}
	var buf [8]egress.Name
	names, b := buf[:0], p.beginningOf(c)
	if b.name != "" {
		names = append(names, egress.Name{Host: b.name})
	}
	names = p.Answers.Names(names, c.Asked.Addr(), time.Now())
	m := g.Hosts.Find(names, namespace, c.Asked.Port(), hosts.First(b.first))
	if m.Reads && call.Opening != egress.NotSeen {
		first := hosts.First{Seen: true, TLS: call.Opening == egress.TLS, Name: call.SNI}
		m = g.Hosts.Find(names, namespace, c.Asked.Port(), first)
	}
	return m
}
