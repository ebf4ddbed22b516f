// Package dnsproxy answers the look-ups of pods: it listens on port 15053 of each pod's
// loopback, to which the node agent redirects what goes to port 53. Package dns decides
// what a question gets. What is not the mesh's goes on to the name server that the pod
// has sent it to, from the pod's own network.
package dnsproxy

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/dns"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/origin"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
)

const (
	// maxFlights bounds the questions of the node that wait for name servers. Each is a
	// descriptor and about a kilobyte.
	maxFlights = 4096
	// flightTime is how long a question waits: clients repeat theirs after 5 s.
	flightTime = 10 * time.Second
	// maxWrong is how many answers to other questions one socket takes before it is
	// closed: an attacker is guessing.
	maxWrong = 16
)

// Options is what the proxy of a node works with.
type Options struct {
	Logger    *slog.Logger
	Directory *workload.Directory
	Loops     *poll.Group
	// Domain is the cluster's.
	Domain string
	// Mark is put on what goes to name servers, which is not redirected then.
	Mark      uint32
	ReusePort bool
	// Demand, when set, asks the control plane for a service, "namespace/hostname".
	Demand  func(ctx context.Context, name string) error
	Metrics *Metrics
}

// Node is the proxy of a node.
type Node struct {
	Options
	flights *budget.Pool
	asked   atomic.Int64 // names that were asked for on demand
	warned  atomic.Bool
}

// New makes one that serves no pod. Without metrics of the caller's it has its own.
func New(o Options) *Node {
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	n := &Node{Options: o, flights: budget.New(maxFlights)}
	o.Metrics.flights.Store(n.flights)
	return n
}

// Host is a pod as its owner has it.
type Host struct {
	Name   string // namespace/name
	Client dns.Client
	// Do runs a function in the pod's network.
	Do func(func() error) error
	// Workload returns what the control plane says of the pod; nil before it does.
	Workload func() *workload.Workload
	// Sockets is the pod's share of descriptors.
	Sockets *budget.Share
	// Busy is called with 1 for a question that waits, and with -1 at its end: a drain
	// lets them be answered. It may be nil.
	Busy func(delta int)
	// Answers gets what look-ups have led to; nil for none.
	Answers *Listener
	// Owner is the user who owns listening sockets; 0 for the process's own.
	Owner uint32
}

// Pod is the proxy of one pod. The nil Pod does nothing.
type Pod struct {
	node *Node
	Host
	flights *budget.Share
	series  series
	asks    atomic.Uint64
	passes  atomic.Uint64
	udp     []*datagrams
	tcp     []*poll.Listener

	mu     sync.Mutex // guards what follows
	closed bool
	conns  map[*conn]struct{}
	wanted map[string]struct{} // services that the control plane was asked for
}

// Serve listens in a pod. Nothing is left on error. A pod without IPv6 is served in
// IPv4.
func (n *Node) Serve(h Host) (*Pod, error) {
	p := &Pod{node: n, Host: h, flights: n.flights.Join(), conns: map[*conn]struct{}{}, wanted: map[string]struct{}{}}
	all, err := p.sockets()
	for i, s := range all {
		if err == nil {
			err = p.serve(s)
		}
		if err != nil {
			for _, left := range all[i:] {
				left.close()
			}
			p.Close()
			return nil, err
		}
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// pair is the listening sockets of an address.
type pair struct {
	at       netip.AddrPort
	udp, tcp int
}

// close closes the sockets that were not taken over.
func (s *pair) close() {
	for _, fd := range []int{s.udp, s.tcp} {
		if fd >= 0 {
			sockopt.Close(fd)
		}
	}
}

// serve takes the sockets over.
func (p *Pod) serve(s *pair) error {
	u, err := p.serveUDP(s.udp, s.at.Addr())
	if err != nil {
		return err
	}
	s.udp = -1
	p.udp = append(p.udp, u)
	ln, err := poll.Listen(p.node.Loops, s.tcp, p.accept)
	if err != nil {
		return err
	}
	s.tcp = -1
	p.tcp = append(p.tcp, ln)
	return nil
}

// sockets makes the listening sockets of both families, or of IPv4 alone where the pod
// has no IPv6.
func (p *Pod) sockets() (all []*pair, err error) {
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if p.Client.IPv6 {
		addrs = append(addrs, netip.IPv6Loopback())
	}
	for _, a := range addrs {
		s, err := p.listen(netip.AddrPortFrom(a, wellknown.PortDNS), p.Owner)
		if errors.Is(err, sockopt.ErrOwner) {
			s, err = p.listen(netip.AddrPortFrom(a, wellknown.PortDNS), 0)
		}
		switch {
		case err == nil:
			all = append(all, s)
		case a.Is6() && !errors.Is(err, errTaken):
			p.Client.IPv6 = false
		default:
			for _, s := range all {
				s.close()
			}
			return nil, err
		}
	}
	return all, nil
}

// listen makes the sockets of an address. What the proxy sends to the pod's program has
// no mark: the program's answers would go back to the proxy by it.
func (p *Pod) listen(at netip.AddrPort, owner uint32) (*pair, error) {
	s := &pair{at: at, udp: -1, tcp: -1}
	o := sockopt.ListenOptions{ReusePort: p.node.ReusePort, Owner: owner, V6Only: true}
	err := p.Do(func() (err error) {
		if s.udp, err = sockopt.ListenDatagram(at, o); err == nil {
			s.tcp, err = sockopt.Listen(at, o)
		}
		return err
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// State describes the pod's look-ups; nil where they are not served.
func (p *Pod) State() *admin.DNS {
	if p == nil {
		return nil
	}
	return &admin.DNS{Requests: p.asks.Load(), UpstreamRequests: p.passes.Load(), Waiting: p.flights.Used(), IPv6: p.Client.IPv6}
}

// Drain takes no more questions, which go to the next generation of the proxy if there
// is one. Those that wait for a name server get their answers.
func (p *Pod) Drain() {
	if p == nil {
		return
	}
	for _, u := range p.udp {
		u.drain()
	}
	for _, ln := range p.tcp {
		ln.Close()
		<-ln.Done()
	}
	p.each((*conn).drain)
}

// Close ends everything. When it returns, the ports are free.
func (p *Pod) Close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	was := p.closed
	p.closed = true
	p.node.asked.Add(-int64(len(p.wanted)))
	p.wanted = nil
	p.mu.Unlock()
	if was {
		return
	}
	for _, u := range p.udp {
		u.close()
	}
	for _, ln := range p.tcp {
		ln.Close()
		<-ln.Done()
	}
	p.each((*conn).close)
	p.flights.Leave()
	p.series.forget(p.node.Metrics)
}

// each has f called with every connection, on its loop.
func (p *Pod) each(f func(*conn)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.loop.Post(func() { f(c) })
	}
}

// take counts a question that waits, if the pod may have one more.
func (p *Pod) take() bool {
	if !p.flights.Take(1) {
		return false
	}
	if p.Busy != nil {
		p.Busy(1)
	}
	return true
}

func (p *Pod) give() {
	p.flights.Give(1)
	if p.Busy != nil {
		p.Busy(-1)
	}
}

// mark marks a socket that goes to a name server.
func (p *Pod) mark(fd int) error {
	if p.node.Mark == 0 {
		return nil
	}
	return sockopt.Mark(fd, p.node.Mark)
}

// scratch is memory that the questions on one loop use in turn.
type scratch struct {
	question dns.Question
	resolver dns.Resolver
	out      []byte
}

type scratchKey struct{}

func (n *Node) scratch(l *poll.Loop) *scratch {
	s := l.Value(scratchKey{}, func() any { return &scratch{} }).(*scratch)
	s.resolver.Domain = n.Domain
	return s
}

// resolve decides about a message that s has read.
func (p *Pod) resolve(s *scratch, protocol protocol) (dns.Answer, dns.Decision) {
	answer, match, decision := s.resolver.Resolve(p.node.Directory.Snapshot(), &p.Client, &s.question, rand.Uint64())
	p.note(s, &answer, &match)
	if log := p.node.Logger; log.Enabled(context.Background(), slog.LevelDebug) {
		p.log(log, s, protocol, &answer, match, decision)
	}
	return answer, decision
}

// complete answers a question in place of a name server whose response leads to a name
// of the mesh and no further. The scratch has the question then.
func (p *Pod) complete(s *scratch, server netip.Addr, question, response []byte) (dns.Answer, bool) {
	s.question.Parse(question)
	a, m, ok := s.resolver.Complete(p.node.Directory.Snapshot(), &p.Client, &s.question, response, rand.Uint64())
	if ok {
		p.completed(s, server, &a, &m)
	} else {
		p.heard(server, response)
	}
	return a, ok
}

func (p *Pod) log(log *slog.Logger, s *scratch, protocol protocol, a *dns.Answer, m dns.Match, d dns.Decision) {
	result, domain := "forwarded", ""
	if m.Service != nil {
		domain = m.Service.Hostname
	}
	if d == dns.Answered {
		result = "answered"
	}
	log.Debug("look-up", "src.workload", p.Name, "src.namespace", p.Client.Namespace, "protocol", protocol.String(),
		"query", string(s.question.Name()), "type", typeName(s.question.Type), "domain", domain, "result", result, "endpoints", len(a.Addrs))
}

// origins opens connection tracking of the pod.
func (p *Pod) origins() (t *origin.Table, err error) {
	err = p.Do(func() (err error) { t, err = origin.Open(nil); return err })
	return t, err
}
