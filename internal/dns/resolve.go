package dns

import (
	"bytes"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// maxWildcards bounds how many labels a name may have for hosts with a wildcard to be
// looked for.
const maxWildcards = 16

// maxAddrs bounds the addresses that an answer is made of: what fits a message.
const maxAddrs = 4000

// Client is who asks.
type Client struct {
	Namespace string
	Network   string
	Cluster   string
	// IPv6: the client's network has IPv6. It gets no such addresses otherwise.
	IPv6 bool
}

// Decision is what becomes of a question.
type Decision uint8

const (
	// Forward passes the question to the pod's name server, and what comes back to the
	// pod.
	Forward Decision = iota
	// ForwardOwned does the same, but the name exists whatever that server says.
	ForwardOwned
	// Answered has a complete answer.
	Answered
)

// Resolver decides, for one client at a time. Its memory is used again.
type Resolver struct {
	// Domain is the cluster's, such as cluster.local.
	Domain string

	name  [2*maxName + 2]byte
	addrs []netip.Addr
}

// Match is what a name stands for.
type Match struct {
	Service  *workload.Service
	Workload *workload.Workload // a single endpoint of a headless service
	// Alias is what is left of the name without a search domain; empty where nothing
	// was taken off.
	Alias string
	// headless: the endpoints' addresses are the service's.
	headless bool
}

// Resolve decides about a question. turn is a random number. The answer's memory is
// valid until the next call.
func (r *Resolver) Resolve(s *workload.Snapshot, c *Client, q *Question, turn uint64) (Answer, Match, Decision) {
	if !q.Plain || q.Class != ClassIN {
		return Answer{}, Match{}, Forward
	}
	m, ok := r.Find(s, c, q.Name())
	if !ok {
		return Answer{}, Match{}, Forward
	}
	if !q.Addresses() {
		return Answer{}, m, ForwardOwned
	}
	return r.answer(s, c, q, &m, turn), m, Answered
}

// Addresses reports whether the question is for addresses.
func (q *Question) Addresses() bool {
	return q.Plain && q.Class == ClassIN && (q.Type == TypeA || q.Type == TypeAAAA)
}

func (r *Resolver) answer(s *workload.Snapshot, c *Client, q *Question, m *Match, turn uint64) Answer {
	a := Answer{Alias: m.Alias, Turn: turn}
	switch {
	case q.Type == TypeA:
		a.Addrs = r.addresses(s, c, m, netip.Addr.Is4)
	case c.IPv6:
		a.Addrs = r.addresses(s, c, m, netip.Addr.Is6)
	}
	return a
}

// Complete answers a question for addresses of a name that stands for another, as the
// response m of a name server has it, when that server has no addresses of the other one
// and the mesh has: a Service of type ExternalName, for instance, that leads to a host of
// a ServiceEntry.
func (r *Resolver) Complete(s *workload.Snapshot, c *Client, q *Question, m []byte, turn uint64) (Answer, Match, bool) {
	if !q.Addresses() {
		return Answer{}, Match{}, false
	}
	target, ok := dangling(m)
	if !ok {
		return Answer{}, Match{}, false
	}
	match, ok := r.exact(s, c, []byte(target))
	if !ok {
		return Answer{}, Match{}, false
	}
	match.Alias = target
	return r.answer(s, c, q, &match, turn), match, true
}

// Find returns what a name, in lower case and without a final dot, stands for. The
// order is: the name as it is, as Kubernetes completes it, and without a search domain
// of the cluster at its end. Of each, the name itself comes before the endpoint of a
// headless service, and that before a host with a wildcard. Search domains that are not
// the cluster's are left alone: the mesh does not own the names below them.
//
// A host that another namespace claims never comes before a name that Kubernetes may
// have, in any spelling.
func (r *Resolver) Find(s *workload.Snapshot, c *Client, name []byte) (Match, bool) {
	if m, ok := r.complete(s, c, name); ok {
		return m, true
	}
	for i := range searchDomains {
		rest, ok := r.without(i, c, name)
		if !ok {
			continue
		}
		if m, ok := r.exact(s, c, rest); ok && (m.Service.Namespace == c.Namespace || !r.kubernetes(s, c, name, rest)) {
			m.Alias = m.host(rest)
			return m, true
		}
	}
	return Match{}, false
}

// kubernetes reports whether a name may be one of Kubernetes, or what is left of it
// without a search domain: that of a service, of an endpoint of a service, or the
// beginning of one.
func (r *Resolver) kubernetes(s *workload.Snapshot, c *Client, name, rest []byte) bool {
	if before, ok := r.inCluster(name); ok {
		switch bytes.Count(before, []byte(".")) {
		case 1:
			return true
		case 2:
			if s.ServiceByHostname(text(name[bytes.IndexByte(name, '.')+1:]), c.Namespace) != nil {
				return true
			}
		}
	}
	full, ok := r.expand(c, rest)
	if ok {
		_, ok = r.exact(s, c, full)
	}
	return ok
}

// inCluster returns what stands before svc.DOMAIN.
func (r *Resolver) inCluster(name []byte) (before []byte, ok bool) {
	if before, ok = cutDomain(name, r.Domain); ok {
		before, ok = cutDomain(before, "svc")
	}
	return before, ok
}

// host returns the name that the match was found by: of a service the host, but for a
// wildcard, which stands for what was asked.
func (m *Match) host(asked []byte) string {
	if m.Workload == nil && m.Service.Hostname[0] != '*' {
		return m.Service.Hostname
	}
	return string(asked)
}

// searchDomains is how many domains of the cluster a pod appends to names.
const searchDomains = 3

// without takes search domain i off a name.
func (r *Resolver) without(i int, c *Client, name []byte) ([]byte, bool) {
	switch i {
	case 0: // NAMESPACE.svc.DOMAIN
		rest, ok := r.inCluster(name)
		if ok {
			rest, ok = cutDomain(rest, c.Namespace)
		}
		return rest, ok
	case 1: // svc.DOMAIN
		return r.inCluster(name)
	}
	return cutDomain(name, r.Domain)
}

// cutDomain returns what stands before a domain.
func cutDomain(name []byte, domain string) ([]byte, bool) {
	n := len(name) - len(domain) - 1
	if n <= 0 || name[n] != '.' || string(name[n+1:]) != domain {
		return nil, false
	}
	return name[:n], true
}

// complete looks a name up as it is, and as Kubernetes completes it.
func (r *Resolver) complete(s *workload.Snapshot, c *Client, name []byte) (Match, bool) {
	m, ok := r.exact(s, c, name)
	if ok && m.Service.Namespace == c.Namespace {
		return m, true
	}
	if full, can := r.expand(c, name); can {
		if completed, found := r.exact(s, c, full); found {
			return completed, true
		}
	}
	return m, ok
}

// expand writes the full name of a service that is named by SERVICE, SERVICE.NAMESPACE
// or SERVICE.NAMESPACE.svc.
func (r *Resolver) expand(c *Client, name []byte) ([]byte, bool) {
	dots := bytes.Count(name, []byte("."))
	if dots > 2 || dots == 2 && !bytes.HasSuffix(name, []byte(".svc")) {
		return nil, false
	}
	if len(name)+len(c.Namespace)+len(r.Domain)+len("..svc.") > maxName {
		return nil, false
	}
	b := append(r.name[:0], name...)
	if dots == 0 {
		b = append(append(b, '.'), c.Namespace...)
	}
	if dots < 2 {
		b = append(b, ".svc"...)
	}
	return append(append(b, '.'), r.Domain...), true
}

// exact looks up a name, an endpoint of a headless service, and a wildcard.
func (r *Resolver) exact(s *workload.Snapshot, c *Client, name []byte) (Match, bool) {
	if m, ok := r.owned(s.ServiceByHostname(text(name), c.Namespace), c); ok {
		return m, true
	}
	if m, ok := r.endpoint(s, c, name); ok {
		return m, true
	}
	return r.wildcard(s, c, name)
}

// owned reports whether the mesh answers for a service: it has an address in the
// client's network, or is one of Kubernetes. A name of the cluster is that of the
// namespace in it.
func (r *Resolver) owned(svc *workload.Service, c *Client) (Match, bool) {
	if svc == nil {
		return Match{}, false
	}
	before, kubernetes := r.inCluster([]byte(svc.Hostname))
	if kubernetes && string(before[bytes.LastIndexByte(before, '.')+1:]) != svc.Namespace {
		return Match{}, false
	}
	for i := range svc.VIPs {
		if svc.VIPs[i].Network == c.Network {
			return Match{Service: svc}, true
		}
	}
	return Match{Service: svc, headless: true}, kubernetes
}

// wildcard looks for a host such as *.example.com, from the longest one on.
func (r *Resolver) wildcard(s *workload.Snapshot, c *Client, name []byte) (Match, bool) {
	if bytes.Count(name, []byte(".")) > maxWildcards {
		return Match{}, false
	}
	var host [maxName + 2]byte
	host[0] = '*'
	for {
		i := bytes.IndexByte(name, '.')
		if i < 0 {
			return Match{}, false
		}
		n := copy(host[1:], name[i:])
		if m, ok := r.owned(s.ServiceByHostname(text(host[:1+n]), c.Namespace), c); ok && !m.headless {
			return m, true
		}
		name = name[i+1:]
	}
}

// endpoint looks for one endpoint of a headless service: HOST.SERVICE.NAMESPACE.svc.DOMAIN,
// where HOST is the name of a pod, or its address with dashes.
func (r *Resolver) endpoint(s *workload.Snapshot, c *Client, name []byte) (Match, bool) {
	rest, ok := r.inCluster(name)
	if !ok || bytes.Count(rest, []byte(".")) != 2 {
		return Match{}, false
	}
	i := bytes.IndexByte(rest, '.')
	m, ok := r.owned(s.ServiceByHostname(text(name[i+1:]), c.Namespace), c)
	if !ok || !m.headless {
		return Match{}, false
	}
	if m.Workload = pod(s, c, m.Service, string(rest[:i])); m.Workload == nil {
		return Match{}, false
	}
	return m, true
}

// pod returns the endpoint of a service that has a name or, with dashes, an address.
func pod(s *workload.Snapshot, c *Client, svc *workload.Service, host string) *workload.Workload {
	w := s.WorkloadByUID(c.Cluster + "//Pod/" + svc.Namespace + "/" + host)
	if w == nil {
		a, err := netip.ParseAddr(dashed(host))
		if err != nil {
			return nil
		}
		w = s.WorkloadByAddr(c.Network, a)
	}
	if w == nil || w.ServesAs(svc.Key()) == nil {
		return nil
	}
	return w
}

// dashed returns the address of a name such as 10-0-0-1 or fd00--1.
func dashed(host string) string {
	b := []byte(host)
	separator := byte(':')
	if bytes.Count(b, []byte("-")) == 3 && !bytes.ContainsAny(b, "abcdef") && !bytes.Contains(b, []byte("--")) {
		separator = '.'
	}
	for i := range b {
		if b[i] == '-' {
			b[i] = separator
		}
	}
	return string(b)
}

// addresses returns those of a family that a match has.
func (r *Resolver) addresses(s *workload.Snapshot, c *Client, m *Match, family func(netip.Addr) bool) []netip.Addr {
	r.addrs = r.addrs[:0]
	add := func(a netip.Addr) {
		if family(a) && m.Service.Families.Accepts(a) && len(r.addrs) < maxAddrs {
			r.addrs = append(r.addrs, a)
		}
	}
	switch {
	case m.Workload != nil:
		r.ofWorkload(c, m, m.Workload, add)
	case m.headless:
		for w := range s.Endpoints(m.Service) {
			r.ofWorkload(c, m, w, add)
		}
	default:
		for _, a := range m.Service.VIPs {
			if a.Network == c.Network {
				add(a.Addr)
			}
		}
	}
	return r.addrs
}

// ofWorkload adds the addresses of an endpoint that can be reached.
func (r *Resolver) ofWorkload(c *Client, m *Match, w *workload.Workload, add func(netip.Addr)) {
	if w.Network != c.Network || !w.Healthy && !m.Service.AllowUnhealthy {
		return
	}
	for _, a := range w.Addrs() {
		add(a)
	}
}

// Wanted returns the services, as namespace/host, that a name may stand for and that a
// directory filled on demand may not have yet.
func (r *Resolver) Wanted(c *Client, name []byte) []string {
	var all []string
	add := func(namespace, host string) {
		if w := namespace + "/" + host; namespace != "" && !slices.Contains(all, w) {
			all = append(all, w)
		}
	}
	one := func(name []byte) {
		rest, ok := r.inCluster(name)
		if !ok {
			add(c.Namespace, string(name))
			return
		}
		if labels := bytes.Split(rest, []byte(".")); len(labels) == 2 {
			add(string(labels[1]), string(name))
		} else if len(labels) == 3 {
			add(string(labels[2]), string(name[len(labels[0])+1:]))
		}
	}
	one(name)
	if full, ok := r.expand(c, name); ok {
		one(full)
	}
	for i := range searchDomains {
		if rest, ok := r.without(i, c, name); ok {
			one(rest)
		}
	}
	return all
}

// text is b as a string for the length of a call, without a copy.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
