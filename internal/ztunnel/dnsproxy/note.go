package dnsproxy

import (
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/dns"
)

// Listener gets the addresses that the pod's look-ups have led to.
type Listener struct {
	// Wanted reports whether there is a need for it now.
	Wanted func() bool
	// Trusts reports whether answers of a name server count: a pod may ask any.
	Trusts func(server netip.Addr) bool
	// Given is called with a name and an address of it. entry is the namespace of the
	// ServiceEntry that has both; empty for an answer of a name server.
	Given func(host, entry string, addr netip.Addr, ttl time.Duration)
}

// note passes on what the mesh has answered. Names of Services of Kubernetes are left out:
// what they lead to is the mesh's.
func (p *Pod) note(s *scratch, a *dns.Answer, m *dns.Match) {
	l := p.Answers
	if l == nil || m.Service == nil || len(a.Addrs) == 0 || strings.HasSuffix(m.Service.Hostname, ".svc."+p.node.Domain) || !l.Wanted() {
		return
	}
	host := m.Alias
	if host == "" {
		host = string(s.question.Name())
	}
	for _, addr := range a.Addrs {
		l.Given(host, m.Service.Namespace, addr, dns.TTL*time.Second)
	}
}

// heard passes on what a name server has answered.
func (p *Pod) heard(server netip.Addr, response []byte) {
	l := p.Answers
	if l == nil || !l.Wanted() || !l.Trusts(server) {
		return
	}
	var addrs []netip.Addr
	var ttls []uint32
	host, ok := dns.Given(response, func(addr netip.Addr, ttl uint32) { addrs, ttls = append(addrs, addr), append(ttls, ttl) })
	for i := range addrs {
		if ok {
			l.Given(host, "", addrs[i], time.Duration(ttls[i])*time.Second)
		}
	}
}

// completed passes on an answer whose first part is a name server's, and whose addresses are
// the mesh's.
func (p *Pod) completed(s *scratch, server netip.Addr, a *dns.Answer, m *dns.Match) {
	if p.Answers == nil || !p.Answers.Trusts(server) {
		return
	}
	own := *m
	own.Alias = ""
	p.note(s, a, &own)
}
