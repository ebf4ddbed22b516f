package telemetry

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// maxPairs bounds the interned pairs of a process: what peers say in baggage
// must not grow memory without end. A pair costs about 600 bytes.
const maxPairs = 1 << 16

// maxTold bounds the pairs that one identity makes by what it says of itself: many
// times the workloads that run as one service account.
const maxTold = 256

// Recorder counts and logs. It is safe for concurrent use.
type Recorder struct {
	log   *slog.Logger
	live  Live
	lines *accesslog.Limiter

	mu     sync.Mutex // guards what follows
	pairs  map[Key]*Pair
	told   map[identity.Identity]int // pairs with baggage, by the peer that sent it
	tagged tagged
	series map[labelValues]*series
	byWl   map[*workload.Workload]map[*Pair]struct{}
	// byService has the pairs of a Service, which may end before its endpoints do.
	byService map[ServiceRef]map[*Pair]struct{}

	sockets   [numReporters]atomic.Int64
	revoked   [numReporters]atomic.Uint64
	untracked [numReporters]atomic.Uint64
	names     *names

	suppressed *prometheus.Desc

	cells     atomic.Int64 // outcomes of requests that are counted
	uncounted atomic.Uint64
}

// NewRecorder writes access log lines to log.
func NewRecorder(log *slog.Logger) *Recorder {
	return NewLimited("ztunnel", log, accesslog.Rates{})
}

// NewLimited is NewRecorder for a program, with a bound of the lines of each pod.
func NewLimited(program string, log *slog.Logger, rates accesslog.Rates) *Recorder {
	return &Recorder{
		suppressed: prometheus.NewDesc(program+"_access_log_suppressed_total",
			"Access log lines that were not written because a pod had more than its rate (unstable).", []string{"outcome"}, nil),
		log:       log,
		lines:     accesslog.NewLimiter(log, rates),
		told:      map[identity.Identity]int{},
		tagged:    tagged{by: map[identity.Identity]int{}},
		pairs:     map[Key]*Pair{},
		series:    map[labelValues]*series{},
		byWl:      map[*workload.Workload]map[*Pair]struct{}{},
		byService: map[ServiceRef]map[*Pair]struct{}{},
		names:     newNames(),
	}
}

// Live reports what is in the directory at this moment. Connections that were
// decided about before a workload or service went would otherwise make series
// that nothing takes away.
type Live struct {
	Workload func(*workload.Workload) bool
	Service  func(ServiceRef) bool
}

// Follow has the recorder keep series of what is in the directory only. It is
// called before the first connection, and WorkloadChanged and ServiceGone after
// each change.
func (r *Recorder) Follow(l Live) { r.live = l }

// Limit returns the budget of access log lines of a pod.
func (r *Recorder) Limit(pod string) *accesslog.Limit { return r.lines.Pod(pod) }

// Revoked counts a peer whose certificate is on a revocation list.
func (r *Recorder) Revoked(rep Reporter) { r.revoked[rep].Add(1) }

// Untracked counts a tunnel that could not be looked up in revocation lists
// that changed, because its certificates or the roots were not available.
func (r *Recorder) Untracked(rep Reporter) { r.untracked[rep].Add(1) }

// pair interns k.
func (r *Recorder) pair(k Key) *Pair {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pairLocked(k)
}

func (r *Recorder) pairLocked(k Key) *Pair {
	if p, ok := r.pairs[k]; ok {
		return p
	}
	if k.Baggage != (connect.Baggage{}) && r.told[k.teller()] >= maxTold {
		// What this peer says further is not believed.
		k.Baggage = connect.Baggage{}
		return r.pairLocked(k)
	}
	if t := r.tagged.admit(&k); t != k.Tags {
		k.Tags = t
		return r.pairLocked(k)
	}
	if !r.isLive(&k) {
		return &Pair{key: k, series: r.seriesFor(&k)} // its series ends with its connections
	}
	return r.intern(k)
}

// isLive reports whether a later change of the directory takes the pair away.
func (r *Recorder) isLive(k *Key) bool {
	for _, w := range [...]*workload.Workload{k.Src, k.Dst} {
		if w != nil && r.live.Workload != nil && !r.live.Workload(w) {
			return false
		}
	}
	return !ofService(k) || r.live.Service == nil || r.live.Service(k.Service)
}

func (r *Recorder) intern(k Key) *Pair {
	if p, ok := r.pairs[k]; ok {
		return p
	}
	if k.Baggage != (connect.Baggage{}) {
		r.told[k.teller()]++
	}
	r.tagged.count(&k, 1)
	if len(r.pairs) >= maxPairs {
		r.evict()
	}
	p := &Pair{key: k, series: r.seriesFor(&k)}
	p.series.pairs++
	r.pairs[k] = p
	for _, w := range [...]*workload.Workload{k.Src, k.Dst} {
		if w == nil {
			continue
		}
		set := r.byWl[w]
		if set == nil {
			set = map[*Pair]struct{}{}
			r.byWl[w] = set
		}
		set[p] = struct{}{}
	}
	if ofService(&k) {
		if r.byService[k.Service] == nil {
			r.byService[k.Service] = map[*Pair]struct{}{}
		}
		r.byService[k.Service][p] = struct{}{}
	}
	return p
}

// ofService reports whether a pair goes with its Service.
func ofService(k *Key) bool { return k.Service != ServiceRef{} }

func (r *Recorder) seriesFor(k *Key) *series {
	v, rep := k.labels(), k.Reporter
	r.tagged.ever = r.tagged.ever || v.tags != ""
	s, ok := r.series[v]
	if !ok {
		n := len(rep.flags())
		s = &series{labels: v, reporter: rep, closed: make([]atomic.Uint64, n), failed: make([]atomic.Uint64, n)}
		r.series[v] = s
	}
	return s
}

// evict drops some pair; open connections keep theirs.
func (r *Recorder) evict() {
	for _, p := range r.pairs {
		r.drop(p)
		return
	}
}

func (r *Recorder) drop(p *Pair) {
	p.gone.Store(true)
	delete(r.pairs, p.key)
	r.tagged.count(&p.key, -1)
	if id := p.key.teller(); p.key.Baggage != (connect.Baggage{}) {
		if r.told[id]--; r.told[id] <= 0 {
			delete(r.told, id)
		}
	}
	for _, w := range [...]*workload.Workload{p.key.Src, p.key.Dst} {
		if set := r.byWl[w]; set != nil {
			delete(set, p)
			if len(set) == 0 {
				delete(r.byWl, w)
			}
		}
	}
	if set := r.byService[p.key.Service]; ofService(&p.key) {
		delete(set, p)
		if len(set) == 0 {
			delete(r.byService, p.key.Service)
		}
	}
	p.series.pairs--
	r.release(p.series)
}

// release forgets a series that nobody will count on any more.
func (r *Recorder) release(s *series) {
	if s.pairs > 0 {
		return
	}
	s.mu.Lock()
	idle := s.conns == 0
	s.mu.Unlock()
	if idle && r.series[s.labels] == s {
		delete(r.series, s.labels)
		r.cells.Add(-s.end())
	}
}

// WorkloadChanged follows the directory: the series of a workload that is
// gone (now is nil) die with it; those of one that changed go on if their
// labels are still the same.
func (r *Recorder) WorkloadChanged(old, now *workload.Workload) {
	if old == nil {
		return
	}
	r.names.changed(old, now)
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.byWl[old] {
		if now != nil {
			k := p.key
			if k.Src == old {
				k.Src = now
			}
			if k.Dst == old {
				k.Dst = now
			}
			r.intern(k) // before the drop, so that the series has a holder
		}
		r.drop(p)
	}
}

// ServiceGone follows the directory: series of a service die with it, whether or not
// their workloads go on.
func (r *Recorder) ServiceGone(svc *workload.Service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.byService[RefTo(svc)] {
		r.drop(p)
	}
}

// SocketOpened counts an accepted socket, until SocketClosed: a program's that
// was captured, a client's without a tunnel, or a tunnel's, however many
// connections that carries.
func (r *Recorder) SocketOpened(rep Reporter) { r.Sockets(rep, 1) }

// SocketClosed is the end of one SocketOpened.
func (r *Recorder) SocketClosed(rep Reporter) { r.Sockets(rep, -1) }

// Sockets counts sockets that were opened, or closed.
func (r *Recorder) Sockets(rep Reporter, delta int) { r.sockets[rep].Add(int64(delta)) }

// Attempted counts an endpoint that failed a connection which another one then
// got: as failed, under the endpoint that is at fault, and not as a connection
// that was opened.
func (r *Recorder) Attempted(k Key, err *reason.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// With the lock held the series cannot be dropped meanwhile.
	s := r.pairLocked(k).series
	s.failed[s.reporter.flagIndex(err.Reason)].Add(1)
	r.release(s)
}

// Failed logs a connection of a pod that ended before anything about its other end was
// known but the address. The reporter is the pod's end.
func (r *Recorder) Failed(l *accesslog.Limit, rep Reporter, src, dst netip.AddrPort, err *reason.Error) {
	if !l.Permit(false) {
		return
	}
	e := &accesslog.Entry{
		Src: accesslog.Party{Addr: src}, Dst: accesslog.Party{Addr: dst},
		Direction: rep.direction(), Reason: err.Reason, Err: err,
	}
	pod := &e.Dst
	if rep == Source {
		pod = &e.Src
	}
	pod.Namespace, pod.Workload = l.Pod()
	accesslog.Failed(r.log, e)
}

// Conn is one connection that is counted and logged. Set the exported fields,
// then Begin.
type Conn struct {
	// Src is the client's address; Dst where the connection goes next, which
	// for a tunnel is the tunnel's end.
	Src, Dst netip.AddrPort
	Target   connect.Target // of the tunnel; zero without one
	Trace    connect.Trace
	ended    atomic.Bool // here it needs no room of its own
	// Forwarded is the client that the other end of the tunnel speaks for, as it says;
	// nil when it speaks for itself, as most do.
	Forwarded *netip.Addr
	// Log bounds the access log lines of the pod; nil for no bound.
	Log *accesslog.Limit
	// More is what most connections do not have; nil without any.
	More *More

	pair  *Pair
	start time.Duration // since epoch: a third of a time.Time
	flow  Flow          // guarded by the series' mu
	// Links of the series' list of open connections, guarded by its mu.
	prev, next *Conn
}

// epoch is what connections measure their beginning from.
var epoch = time.Now()

// SrcIdentity is the identity that the client proved, after Begin.
func (c *Conn) SrcIdentity() identity.Identity { return c.pair.key.SrcIdentity }

// Begun reports whether Begin was called.
func (c *Conn) Begun() bool { return c.pair != nil }

// Begin counts the connection as opened; it was accepted at start. Where other
// endpoints may be tried it is called when the outcome is known.
func (r *Recorder) Begin(c *Conn, k Key, start time.Time) {
	c.start = start.Sub(epoch)
	if c.More != nil && c.More.Tags != nil {
		c.pair = &Pair{key: k, series: &series{labels: k.labels(), reporter: k.Reporter}} // for its entry
		k.Tags = c.More.Tags(c.entry())
	}
	c.pair = r.pair(k)
	s := c.pair.series
	s.opened.Add(1)
	s.mu.Lock()
	s.conns++
	c.next = s.live
	if c.next != nil {
		c.next.prev = c
	}
	s.live = c
	s.mu.Unlock()
	if r.log.Enabled(context.Background(), slog.LevelDebug) {
		accesslog.Opened(r.log, c.entry())
	}
}

// Flow is what carries a connection: it says, from any goroutine, how many bytes went
// from the client to the server so far, and back.
type Flow interface {
	Bytes() (sent, received uint64)
}

// Count has the bytes of a flow counted as the connection's.
func (c *Conn) Count(f Flow) {
	s := c.pair.series
	s.mu.Lock()
	c.flow = f
	if c.More != nil {
		c.More.up = time.Since(epoch)
	}
	s.mu.Unlock()
}

// unlink takes c from the list; the caller holds mu.
func (s *series) unlink(c *Conn) {
	s.conns--
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.live = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}

// End counts and logs the end of a connection; only the first call does.
// policy names the policy that decided, if one did.
func (r *Recorder) End(c *Conn, res relay.Result, policy string) {
	if !c.ended.CompareAndSwap(false, true) {
		return
	}
	s := c.pair.series
	s.mu.Lock()
	s.unlink(c)
	s.sent += res.Received
	s.received += res.Sent
	c.flow = nil
	gone := s.conns == 0
	s.mu.Unlock()
	i := s.reporter.flagIndex(res.Reason)
	s.closed[i].Add(1)
	if i != 0 {
		s.failed[i].Add(1)
	}
	if gone {
		r.mu.Lock()
		r.release(s)
		r.mu.Unlock()
	}
	if s.reporter == Waypoint {
		return // whose lines are those of requests
	}
	if c.More != nil && c.More.Watch != nil {
		r.watched(c, res, policy)
		return
	}
	if c.Log.Permit(res.Reason == reason.OK && res.Err == nil) {
		accesslog.Complete(r.log, c.complete(res, policy))
	}
}

// complete returns the entry of a connection that has ended.
func (c *Conn) complete(res relay.Result, policy string) *accesslog.Entry {
	e := c.entry()
	// The log speaks as the local workload: what it sent, and what it got.
	e.Sent, e.Received = res.Sent, res.Received
	if c.pair.key.Reporter == Destination {
		e.Sent, e.Received = res.Received, res.Sent
	}
	e.Duration = time.Since(epoch) - c.start
	e.Reason, e.Policy = res.Reason, policy
	if e.Err = res.Err; e.Err == nil && res.Reason != reason.OK {
		e.Err = &reason.Error{Reason: res.Reason}
	}
	if c.More != nil {
		e.DryRun = c.More.DryRun
	}
	return e
}

func (c *Conn) entry() *accesslog.Entry {
	k := &c.pair.key
	e := &accesslog.Entry{
		Src: accesslog.Party{Addr: c.Src}, Dst: accesslog.Party{Addr: c.Dst},
		HBONEAddr: c.Target.String(), Service: k.Service.Hostname,
		Direction: k.Reporter.direction(), TraceID: c.Trace.TraceID(),
	}
	if c.Forwarded != nil {
		e.Forwarded = *c.Forwarded
	}
	switch {
	case k.Src != nil:
		e.Src.Workload, e.Src.Namespace, e.Src.Cluster = k.Src.Name, k.Src.Namespace, k.Src.ClusterID
	case k.Reporter == Destination:
		e.Src.Workload, e.Src.Namespace, e.Src.Cluster = k.Baggage.Workload, k.Baggage.Namespace, k.Baggage.Cluster
	}
	switch {
	case k.Dst != nil:
		e.Dst.Workload, e.Dst.Namespace, e.Dst.Cluster = k.Dst.Name, k.Dst.Namespace, k.Dst.ClusterID
	case k.Reporter == Source:
		e.Dst.Workload, e.Dst.Namespace, e.Dst.Cluster = k.Baggage.Workload, k.Baggage.Namespace, k.Baggage.Cluster
	}
	if k.MTLS {
		// Rendered once, for the labels.
		p := &c.pair.series.labels.party
		if !k.SrcIdentity.IsZero() {
			e.Src.Identity = p[lSrcPrincipal]
		}
		if k.Dst != nil || !k.DstIdentity.IsZero() {
			e.Dst.Identity = p[lDstPrincipal]
		}
	}
	return e
}
