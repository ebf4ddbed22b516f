package dnsproxy

import (
	"context"
	"net/netip"
	"slices"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ambit-mesh/ambit/internal/dns"
)

// Lookup returns the addresses of one family that the mesh has for a name, as a look-up
// of the pod's programs gets them. It reports whether the name is the mesh's. It may wait
// for the control plane, until ctx ends. The nil Pod has no names.
func (p *Pod) Lookup(ctx context.Context, name string, v6 bool) (addrs []netip.Addr, known bool) {
	if p == nil {
		return nil, false
	}
	s := &scratch{}
	s.resolver.Domain = p.node.Domain
	s.question.Parse(asking(name, v6))
	if !s.question.Asks {
		return nil, false
	}
	answer, decision := p.resolve(s, tcp)
	if wanted := p.missing(s, decision); wanted != nil {
		done := make(chan struct{})
		if p.learn(p.node.Loops.Pick(nextLoop.Add(1)), wanted, func() { close(done) }) {
			select {
			case <-done:
			case <-ctx.Done():
				return nil, false
			}
			answer, decision = p.resolve(s, tcp)
		}
	}
	return slices.Clone(answer.Addrs), decision == dns.Answered
}

// asking returns a question for addresses; nil for what is no name.
func asking(name string, v6 bool) []byte {
	kind := dnsmessage.TypeA
	if v6 {
		kind = dnsmessage.TypeAAAA
	}
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}
