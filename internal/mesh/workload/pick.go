package workload

import (
	"cmp"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/ending"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/trie"
)

// Rand is the source of choice: a number in [0, n), n > 0.
// math/rand/v2.Uint64N is one.
type Rand func(n uint64) uint64

// Query asks for an endpoint of a service.
type Query struct {
	Service *Service
	// Client is the workload that connects.
	Client *Workload
	// Affine is who keeps its endpoint where the service has affinity to clients: the
	// UID of Client by default. A proxy that connects for others names them.
	Affine string
	// Dialled is the address the client used; it decides the address family.
	// Invalid is no preference.
	Dialled netip.Addr
	// Port of the service.
	Port uint16
	// Waypoint: the service is a waypoint, whose endpoints need not name the
	// port when they have an application tunnel.
	Waypoint bool
	// Excluded endpoints (by UID) have failed this connection already. May be nil.
	Excluded func(uid string) bool
	// Keep is the endpoint (by UID) that is taken if it can take the connection.
	Keep string
	// Load returns the connections in flight to an endpoint (by UID): of two
	// candidates the one with the lower load per capacity is taken. nil makes
	// the choice random.
	Load func(uid string) int
	Rand Rand
	// Preference, when set, is in place of that of the service. Failover is the region that
	// comes before all others but the client's own.
	Preference *Preference
	Failover   string
}

// Preference is which endpoints come before others.
type Preference struct {
	Mode   Mode // Standard is none
	Scopes []Scope
}

// Upstream is where a connection goes.
type Upstream struct {
	Workload *Workload
	// Addr is invalid when the workload has none that fits: then its Hostname
	// is to be resolved, or its NetworkGateway used.
	Addr    netip.Addr
	Port    uint16
	Service *Service // nil when a workload was dialled directly
	// Direct: the service does not choose (PASSTHROUGH); Workload is nil and
	// the address dialled is the address to use.
	Direct bool
}

// samples bounds the tries to hit a usable endpoint at random before all are
// looked at: enough that a third of the endpoints being right (one of three
// zones) is practically never missed, cheap beside looking at hundreds.
const samples = 20

// Pick chooses an endpoint. The error has reason NoHealthyUpstream and says
// what kept the endpoints out.
func (s *Snapshot) Pick(q Query) (Upstream, *reason.Error) {
	p := picker{Query: q, mode: q.Service.Mode, scopes: q.Service.Scopes}
	if q.Preference != nil {
		p.mode, p.scopes = q.Preference.Mode, q.Preference.Scopes
	}
	p.preferNetwork = len(p.scopes) > 0 && p.scopes[0] == ScopeNetwork
	if q.Service.Mode == Passthrough && !q.Waypoint {
		return Upstream{Service: q.Service, Direct: true}, nil
	}
	var onService bool
	if p.target, onService = q.Service.TargetPort(q.Port); !onService && !q.Waypoint {
		return Upstream{}, p.failure("it has no port " + strconv.Itoa(int(q.Port)))
	}
	p.set = s.endpointsOf(q.Service.Key())
	if p.set == nil {
		return Upstream{}, p.failure("it has no endpoints")
	}
	e, ok := p.choose()
	if !ok {
		return Upstream{}, p.failure(p.explain())
	}
	port, _ := p.port(e)
	addr, _ := p.addr(e.w)
	return Upstream{Workload: e.w, Addr: addr, Port: port, Service: q.Service}, nil
}

// picker is one Pick.
type picker struct {
	Query
	set           *endpointSet
	target        uint16 // of the service port, 0 when endpoints say
	mode          Mode
	scopes        []Scope
	preferNetwork bool
}

func (p *picker) choose() (endpoint, bool) {
	scoped := p.mode != Standard
	if p.Keep != "" {
		if e, ok := p.set.get(p.Keep); ok && p.weight(e) > 0 && p.rank(e.w, scoped) >= 0 && p.usable(e) {
			return e, true
		}
	}
	if p.Service.ClientAffinity {
		return p.own(scoped)
	}
	if p.set.weight == 0 {
		return p.scan(scoped)
	}
	a, ok := p.sample("", scoped)
	if !ok {
		return p.scan(scoped)
	}
	if p.Load == nil || p.set.n == 1 {
		return a, true
	}
	if b, ok := p.sample(a.w.UID, scoped); ok {
		return p.lighter(a, b), true
	}
	return a, true
}

// weight returns the endpoint's share of connections. Where no endpoint is ready, those
// have one that are about to end and take connections until then, as in kube-proxy.
func (p *picker) weight(e endpoint) uint64 {
	if p.set.weight == 0 && e.w.Ending == ending.Serving {
		return uint64(e.w.Capacity)
	}
	return e.weight(p.set.allowUnhealthy)
}

// sample draws a usable endpoint of the best rank there can be, other than
// the one with UID not, in proportion to weights, and gives up after a few
// tries.
func (p *picker) sample(not string, scoped bool) (endpoint, bool) {
	best := p.bestRank(scoped)
	for range samples {
		e := p.set.at(p.Rand(p.set.weight))
		if e.w.UID != not && p.rank(e.w, scoped) == best && p.usable(e) {
			return e, true
		}
	}
	return endpoint{}, false
}

// bestRank is the rank of an endpoint that shares every scope.
func (p *picker) bestRank(scoped bool) int {
	n := len(p.scopes)
	if p.preferNetwork {
		n = 2*n - 1
	}
	switch {
	case !scoped:
		return 0
	case p.Failover != "":
		return 2 * n
	}
	return n
}

// candidate returns the weight and the rank of an endpoint; ok tells that it can
// take this connection and is of rank best at least.
func (p *picker) candidate(e endpoint, best int, scoped bool) (weight uint64, rank int, ok bool) {
	if weight = p.weight(e); weight == 0 {
		return 0, 0, false
	}
	rank = p.rank(e.w, scoped)
	return weight, rank, rank >= max(best, 0) && p.usable(e)
}

// own returns the client's own endpoint: among those of the best rank, that
// which scores highest for it (rendezvous hashing). So every proxy, after any
// restart, chooses the same one, and an endpoint that comes or goes moves only
// the clients that it takes or leaves.
func (p *picker) own(scoped bool) (endpoint, bool) {
	client := stableHash(offset64, cmp.Or(p.Affine, p.Client.UID))
	var found endpoint
	best, highest := -1, 0.0
	for e := range p.set.all() {
		w, rank, ok := p.candidate(e, best, scoped)
		if !ok {
			continue
		}
		score := affinity(stableHash(client, e.w.UID), w)
		if rank > best || score > highest {
			best, highest, found = rank, score, e
		}
	}
	return found, best >= 0
}

// affinity turns a hash into a score, so that the share of an endpoint in all
// clients is in proportion to its weight.
func affinity(hash, weight uint64) float64 {
	// 52 bits and a half are exact in a float64: never 0 and never 1.
	u := (float64(trie.Mix(hash)>>12) + 0.5) / (1 << 52)
	return float64(weight) / -math.Log(u)
}

// offset64 and prime64 are FNV-1a's: hash/maphash is another in every process.
const (
	offset64 = 14695981039346656037
	prime64  = 1099511628211
)

func stableHash(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * prime64
	}
	return h
}

// scan looks at every endpoint and draws, in proportion to weights, from those
// of the best rank.
func (p *picker) scan(scoped bool) (endpoint, bool) {
	best, total := -1, uint64(0)
	for e := range p.set.all() {
		w, rank, ok := p.candidate(e, best, scoped)
		if !ok {
			continue
		}
		if rank > best {
			best, total = rank, 0
		}
		total += w
	}
	if total == 0 {
		return endpoint{}, false
	}
	a := p.nth(p.Rand(total), best, scoped)
	if p.Load == nil {
		return a, true
	}
	return p.lighter(a, p.nth(p.Rand(total), best, scoped)), true
}

// nth returns the endpoint that owns share r among those of a rank.
func (p *picker) nth(r uint64, rank int, scoped bool) endpoint {
	for e := range p.set.all() {
		w, is, ok := p.candidate(e, rank, scoped)
		if !ok || is != rank {
			continue
		}
		if r < w {
			return e
		}
		r -= w
	}
	return endpoint{}
}

// lighter returns the endpoint with fewer connections per capacity; a on ties.
func (p *picker) lighter(a, b endpoint) endpoint {
	if a.w == b.w {
		return a
	}
	la, lb := uint64(max(p.Load(a.w.UID), 0)), uint64(max(p.Load(b.w.UID), 0))
	if lb*uint64(a.w.Capacity) < la*uint64(b.w.Capacity) {
		return b
	}
	return a
}

// rank counts how many scopes in a row client and endpoint share; -1 keeps
// the endpoint out. When the network is the first scope, sharing it outranks
// all others, and endpoints of other networks are still told apart by those.
func (p *picker) rank(w *Workload, scoped bool) int {
	if !scoped {
		return 0
	}
	rank, bonus := 0, 0
	for _, scope := range p.scopes {
		shared := p.shares(w, scope)
		if scope == ScopeNetwork && p.preferNetwork {
			if !shared {
				continue
			}
			bonus = len(p.scopes) - 1
		}
		if !shared {
			break
		}
		rank++
	}
	if p.mode == Strict && rank != len(p.scopes) {
		return -1
	}
	if rank += bonus; p.Failover == "" {
		return rank
	}
	rank *= 2
	if w.Locality.Region == p.Failover && w.Locality.Region != p.Client.Locality.Region {
		rank++
	}
	return rank
}

func (p *picker) shares(w *Workload, scope Scope) bool {
	c := p.Client
	switch scope {
	case ScopeRegion:
		return c.Locality.Region == w.Locality.Region
	case ScopeZone:
		return c.Locality.Zone == w.Locality.Zone
	case ScopeSubzone:
		return c.Locality.Subzone == w.Locality.Subzone
	case ScopeNode:
		return c.Node == w.Node
	case ScopeCluster:
		return c.ClusterID == w.ClusterID
	case ScopeNetwork:
		return c.Network == w.Network
	}
	return false
}

// usable reports whether an endpoint can take this connection, health and
// weight apart.
func (p *picker) usable(e endpoint) bool {
	if p.Excluded != nil && p.Excluded(e.w.UID) {
		return false
	}
	if _, ok := p.addr(e.w); !ok {
		return false
	}
	_, ok := p.port(e)
	return ok
}

// port maps the service port: the endpoint's own mapping, else the service's,
// else, behind an application tunnel, the port itself.
func (p *picker) port(e endpoint) (uint16, bool) {
	if t, _ := findPort(e.m.Ports, p.Port); t != 0 {
		return t, true
	}
	if p.target != 0 {
		return p.target, true
	}
	if p.Waypoint && e.w.ApplicationTunnel.Present {
		return p.Port, true
	}
	return 0, false
}

// addr chooses the address of a workload. ok without an address means that
// the workload is reached by host name or through its network's gateway.
func (p *picker) addr(w *Workload) (a netip.Addr, ok bool) {
	if p.Dialled.IsValid() && w.HasAddr(p.Dialled) {
		return p.Dialled, true
	}
	for _, c := range w.addrs {
		if !p.Service.Families.Accepts(c) {
			continue
		}
		if !a.IsValid() {
			a = c
		}
		if p.Dialled.IsValid() && c.Is4() == p.Dialled.Unmap().Is4() {
			a = c
			break
		}
	}
	viaGateway := w.Network != p.Client.Network && !w.NetworkGateway.IsZero()
	return a, a.IsValid() || w.Hostname != "" || viaGateway
}

func (p *picker) failure(why string) *reason.Error {
	return reason.Errorf(reason.NoHealthyUpstream, "service %v: %s", p.Service.Key(), why)
}

// explain counts what kept each endpoint out.
func (p *picker) explain() string {
	var unhealthy, idle, excluded, noAddr, noPort, scope int
	for e := range p.set.all() {
		_, hasAddr := p.addr(e.w)
		_, hasPort := p.port(e)
		switch {
		case !e.w.Healthy && !p.set.allowUnhealthy && p.weight(e) == 0:
			unhealthy++
		case e.w.Capacity == 0:
			idle++
		case p.Excluded != nil && p.Excluded(e.w.UID):
			excluded++
		case !hasAddr:
			noAddr++
		case !hasPort:
			noPort++
		default:
			scope++
		}
	}
	parts := []string{"none of " + strconv.Itoa(p.set.n) + " endpoints can be used"}
	for _, c := range [...]struct {
		n    int
		what string
	}{
		{unhealthy, "not ready"}, {idle, "without capacity"}, {excluded, "already tried"},
		{noAddr, "without a usable address"}, {noPort, "without port " + strconv.Itoa(int(p.Port))},
		{scope, "outside the locality that is allowed"},
	} {
		if c.n > 0 {
			parts = append(parts, strconv.Itoa(c.n)+" "+c.what)
		}
	}
	return strings.Join(parts, ", ")
}

// PickWaypoint chooses among a service's weighted waypoints, else its single
// one; the zero value when it has none.
func PickWaypoint(svc *Service, r Rand) GatewayAddress {
	total := uint64(0)
	for _, w := range svc.WeightedWaypoints {
		total += uint64(w.Weight)
	}
	if total == 0 {
		return svc.Waypoint
	}
	n := r(total)
	for _, w := range svc.WeightedWaypoints {
		if n < uint64(w.Weight) {
			return w.Destination
		}
		n -= uint64(w.Weight)
	}
	return svc.Waypoint
}
