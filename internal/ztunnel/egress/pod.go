package egress

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
)

// Pod is what is known of the egress of one pod. The zero value is a pod without policies.
type Pod struct {
	Answers Answers
	Record  Record

	registry counts // of the outbound traffic policy
	policy   counts // of EgressPolicies

	was    egress.Mode // of the last review; only the reviewer uses it
	wasAll []*egress.Policy

	mu sync.Mutex // guards what follows
	// open has the calls of connections that policies have allowed, or hold.
	open map[*conns.Conn]*egress.Call
	// began has the connections of which first bytes were read, or whose host a look-up has named.
	began map[*conns.Conn]unique.Handle[beginning]
}

// counts are connections by what was decided.
type counts struct{ allowed, refused, reported atomic.Uint64 }

// Watched reports whether what a pod looks up and calls is to be remembered. While its
// workload is not known, it may be.
func Watched(w *workload.Workload) bool {
	return w == nil || len(w.Egress) > 0 || w.Outbound != egress.AllowAny
}

// follow remembers the call of a connection.
func (p *Pod) follow(c *conns.Conn, call *egress.Call) {
	kept := *call
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[*conns.Conn]*egress.Call{}
	}
	p.open[c] = &kept
}

// Ended forgets a connection.
func (p *Pod) Ended(c *conns.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
	delete(p.began, c)
}

// Leave gives back what the pod has of the node's share.
func (p *Pod) Leave() {
	p.Answers.Forget()
	p.Answers.Share.Leave()
}

func (p *Pod) callOf(c *conns.Conn) (egress.Call, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	call := p.open[c]
	if call == nil {
		return egress.Call{}, false
	}
	return *call, true
}

// note records a connection.
func (p *Pod) note(c *egress.Call, decision string) {
	w := row{addr: c.Addr, port: c.Port, decision: decision}
	for i := range c.Names {
		if n := c.Names[i].Host; w.host == "" || n == c.SNI {
			w.host = n
		}
	}
	p.Record.add(w)
}

// Review ends connections out of the pod that its policies refuse, when one has come or
// changed. local is the pod's workload. It is called by one goroutine at a time.
func (g *Gate) Review(p *Pod, set *conns.Set, s *workload.Snapshot, network string, local *workload.Workload) {
	confined := local.Outbound == egress.RegistryOnly && p.was != egress.RegistryOnly
	p.was = local.Outbound
	policies, missing := g.Policies.Of(nil, local.Egress)
	changed := missing == "" && !same(policies, p.wasAll)
	if missing == "" {
		p.wasAll = policies
	}
	if !confined && !changed {
		return
	}
	for _, c := range set.All() {
		if c.Inbound {
			continue
		}
		if err := g.review(p, c, s, network, local, policies, changed, confined); err != nil {
			set.Abort(c, err.Reason, err.Detail)
		}
	}
}

// review returns why an open connection ends.
func (g *Gate) review(p *Pod, c *conns.Conn, s *workload.Snapshot, network string, local *workload.Workload, policies []*egress.Policy, changed, confined bool) *reason.Error {
	conn := Conn{Snapshot: s, Network: network, Source: local, Src: c.Src, Dst: c.Asked, Exempt: g.Exempt}
	call, known := p.callOf(c)
	conn.Host = g.again(p, local.Namespace, c, &call)
	outside := known
	if !known && c.Protocol == connect.TCP {
		outside = !conn.inside(c)
		call = egress.Call{Addr: c.Dst.Addr().Unmap(), Port: c.Dst.Port()}
		call.Names = p.Answers.Names(nil, c.Asked.Addr(), time.Now())
	}
	d := egress.Decision{Outcome: egress.Allowed}
	if outside {
		d = egress.Decide(policies, &call, false)
	}
	// The first bytes of a connection from before the policy are gone: its server's name is
	// not known. One that a hold keeps is decided by its own.
	refused := d.Outcome == egress.Refused || d.Outcome == egress.Undecided && !known
	if outside && changed && refused {
		g.policy.refused.Add(1)
		p.policy.refused.Add(1)
		return &reason.Error{Reason: reason.EgressDenied, Detail: key(d.Policies)}
	}
	if confined && !d.Listed && conn.Refusal() != nil {
		g.registry.refused.Add(1)
		p.registry.refused.Add(1)
		return &reason.Error{Reason: reason.NotInRegistry}
	}
	return nil
}

func key(all []*egress.Policy) string {
	if len(all) == 0 {
		return ""
	}
	return all[0].Key()
}

// inside reports whether an open connection without a tunnel stays in the mesh.
func (c *Conn) inside(open *conns.Conn) bool {
	dst := netip.AddrPortFrom(c.Dst.Addr().Unmap(), c.Dst.Port())
	if dst.Addr().IsLoopback() || c.Exempt.has(dst) {
		return true
	}
	return open.Name != "" && member(c.Snapshot.WorkloadByUID(open.Name), true)
}

func same(a, b []*egress.Policy) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// State describes a pod. Its workload is nil while it is not known: then the pod makes no
// connections.
func (g *Gate) State(p *Pod, w *workload.Workload) *admin.Egress {
	if w == nil {
		return nil
	}
	out := &admin.Egress{
		Mode: w.Outbound.String(), Refused: p.registry.refused.Load(), Reported: p.registry.reported.Load(),
		PolicyAllowed: p.policy.allowed.Load(), PolicyRefused: p.policy.refused.Load(), PolicyReported: p.policy.reported.Load(),
		Answers: p.Answers.Len(),
	}
	var all []*egress.Policy
	for _, name := range w.Egress {
		one, missing := g.Policies.Of(nil, []string{name})
		mode := "Enforce"
		switch {
		case missing != "":
			mode = "Missing"
		case one[0].Invalid != "":
			mode = "Invalid"
		case one[0].DryRun:
			mode = "DryRun"
		}
		all = append(all, one...)
		out.Policies = append(out.Policies, admin.EgressPolicy{Name: name, Mode: mode})
	}
	if _, refused := egress.RefusesUDP(all); refused {
		out.UDP = "Refused"
	}
	out.Calls, out.OtherCalls = p.Record.Calls()
	return out
}
