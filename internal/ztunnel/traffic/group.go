package traffic

import (
	"maps"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/outlier"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	rules "github.com/ambit-mesh/ambit/internal/mesh/traffic"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// maxPlaces bounds the endpoints of a group of which failures are remembered.
const maxPlaces = 1024

// Group is the connections from one namespace to one port of one service under one rule.
// Its methods may be called from any goroutine; on nil they do as without a rule.
type Group struct {
	key    groupKey
	rule   atomic.Pointer[bound]
	active atomic.Int64  // connections
	over   atomic.Uint64 // connections that were refused
	turn   atomic.Uint64
	turns  workload.Rand                        // next
	failed atomic.Int32                         // entries of health
	out    atomic.Pointer[map[string]time.Time] // until when endpoints are left out, by UID

	mu     sync.Mutex // guards health
	health map[string]outlier.Health
}

// bound is a rule and those of its settings that a group has.
type bound struct {
	rule     *rules.Rule
	settings *rules.Settings
	nearest  *workload.Preference
}

// idle reports whether no connection is in the group.
func (g *Group) idle() bool { return g.active.Load() == 0 }

// Rule returns the rule of the group, nil without one.
func (g *Group) Rule() *rules.Rule {
	if g == nil {
		return nil
	}
	return g.rule.Load().rule
}

// Settings returns what the rule sets, nil without one.
func (g *Group) Settings() *rules.Settings {
	if g == nil {
		return nil
	}
	return g.rule.Load().settings
}

// Active counts the connections that have entered and not left.
func (g *Group) Active() int64 {
	if g == nil {
		return 0
	}
	return g.active.Load()
}

// Enter counts a connection, or refuses it. One that has entered leaves.
func (g *Group) Enter() *reason.Error {
	if g == nil {
		return nil
	}
	n, b := g.active.Add(1), g.rule.Load()
	if limit := b.settings.MaxConnections; limit > 0 && n > int64(limit) {
		g.active.Add(-1)
		g.over.Add(1)
		return reason.Errorf(reason.ResourceExhausted, "%s: this node proxy has maxConnections, %d, from namespace %s to port %d of %s already", b.rule, limit, g.key.client, g.key.port, g.key.service)
	}
	return nil
}

// Leave is the end of a connection that has entered.
func (g *Group) Leave() {
	if g != nil {
		g.active.Add(-1)
	}
}

// ConnectTimeout returns how long an endpoint may take to accept, 0 for as long as the
// proxy waits by itself.
func (g *Group) ConnectTimeout() time.Duration {
	if g == nil {
		return 0
	}
	return g.rule.Load().settings.ConnectTimeout
}

// Pick chooses an endpoint as the rule says. Endpoints that are ejected are left out, unless
// too few would be left.
func (g *Group) Pick(s *workload.Snapshot, q workload.Query) (workload.Upstream, *reason.Error) {
	if g == nil {
		return s.Pick(q)
	}
	b := g.rule.Load()
	set := b.settings
	switch set.Balance {
	case rules.Random:
		q.Load = nil
	case rules.RoundRobin:
		q.Load, q.Rand = nil, g.turns
	case rules.Default, rules.LeastRequest:
	}
	q.Preference, q.Failover = b.nearest, failover(set.Locality, q.Client)
	out := g.out.Load()
	if out == nil || set.Outlier == nil {
		return s.Pick(q)
	}
	now := time.Now()
	if g.panics(s, q.Service, set.Outlier, *out, now) {
		return s.Pick(q)
	}
	all := q
	q.Excluded = func(uid string) bool {
		return all.Excluded != nil && all.Excluded(uid) || now.Before((*out)[uid])
	}
	up, err := s.Pick(q)
	if err != nil {
		return s.Pick(all) // an endpoint that is ejected is better than none
	}
	return up, nil
}

var none = &workload.Preference{Mode: workload.Standard}

// nearest returns the preference of a rule; nil without one.
func nearest(l *rules.Locality) *workload.Preference {
	switch {
	case l == nil:
		return nil
	case l.Disabled:
		return none
	}
	p := &workload.Preference{Mode: workload.Failover}
	for _, s := range l.Scopes {
		p.Scopes = append(p.Scopes, scopes[s])
	}
	return p
}

var scopes = map[rules.Scope]workload.Scope{
	rules.Region: workload.ScopeRegion, rules.Zone: workload.ScopeZone, rules.Subzone: workload.ScopeSubzone,
	rules.NodeScope: workload.ScopeNode, rules.Cluster: workload.ScopeCluster, rules.Network: workload.ScopeNetwork,
}

// failover returns the region that comes after the client's own.
func failover(l *rules.Locality, client *workload.Workload) string {
	if l == nil || l.Disabled {
		return ""
	}
	for _, f := range l.Failover {
		if f.From == client.Locality.Region {
			return f.To
		}
	}
	return ""
}

// next is the source of choice of turns. Numbers that follow each other are spread over
// the range, so that endpoints of equal weight have equal shares of any few connections.
func (g *Group) next(n uint64) uint64 {
	return turn(g.turn.Add(1), n)
}

// turn returns number i of a sequence that visits all of [0, n) before it repeats.
func turn(i, n uint64) uint64 {
	step := max(n*5/8, 1)
	for gcd(step, n) != 1 {
		step++
	}
	hi, lo := bits.Mul64(i, step)
	_, rest := bits.Div64(hi%n, lo, n)
	return rest
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// panics reports whether so many endpoints are ejected that none is left out.
func (g *Group) panics(s *workload.Snapshot, svc *workload.Service, o *rules.Outlier, out map[string]time.Time, now time.Time) bool {
	return outlier.Panic(ejected(out, now), s.CountEndpoints(svc), o.MinHealthPercent)
}

func ejected(out map[string]time.Time, now time.Time) (n int) {
	for _, until := range out {
		if now.Before(until) {
			n++
		}
	}
	return n
}

// Worked notes that an endpoint has accepted a connection.
func (g *Group) Worked(uid string) {
	if g == nil || g.failed.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if h, ok := g.health[uid]; ok {
		o, now := g.outlier(), time.Now()
		if h = h.Result(o.Settings(), false, now, 0, 0); h.Spent(o.Settings(), now) {
			delete(g.health, uid)
			g.failed.Store(int32(len(g.health)))
			return
		}
		g.health[uid] = h
	}
}

// outlier returns when endpoints are ejected; never, where the rule has nothing about it.
func (g *Group) outlier() *rules.Outlier {
	if o := g.rule.Load().settings.Outlier; o != nil {
		return o
	}
	return &rules.Outlier{}
}

// Failed notes that an endpoint has not accepted a connection, and reports whether it is
// ejected by that.
func (g *Group) Failed(s *workload.Snapshot, svc *workload.Service, uid string) bool {
	if g == nil || svc == nil || s.WorkloadByUID(uid) == nil {
		return false // of one that is gone, nothing has to be kept
	}
	o := g.outlier()
	if o.Consecutive == 0 {
		return false
	}
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.health == nil {
		g.health = map[string]outlier.Health{}
	}
	g.prune(s, o, now)
	n := 0
	for _, h := range g.health {
		if h.Ejected(now) {
			n++
		}
	}
	before := g.health[uid]
	after := before.Result(o.Settings(), true, now, n, s.CountEndpoints(svc))
	g.health[uid] = after
	g.failed.Store(int32(len(g.health)))
	if before.Ejected(now) || !after.Ejected(now) {
		return false
	}
	out := make(map[string]time.Time, n+1)
	for uid, h := range g.health {
		if h.Ejected(now) {
			out[uid] = h.Until()
		}
	}
	g.out.Store(&out)
	return true
}

// prune forgets endpoints that are gone or as new, and makes room; the caller holds mu.
func (g *Group) prune(s *workload.Snapshot, o *rules.Outlier, now time.Time) {
	for uid, h := range g.health {
		if h.Spent(o.Settings(), now) || s.WorkloadByUID(uid) == nil {
			delete(g.health, uid)
		}
	}
	for uid := range g.health {
		if len(g.health) < maxPlaces {
			return
		}
		delete(g.health, uid)
	}
}

// forget forgets what was seen of an endpoint.
func (g *Group) forget(uid string) {
	if g.failed.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, is := g.health[uid]; !is {
		return
	}
	delete(g.health, uid)
	g.failed.Store(int32(len(g.health)))
	if old := g.out.Load(); old != nil {
		out := maps.Clone(*old)
		delete(out, uid)
		g.out.Store(&out)
	}
}

// Ejected returns until when endpoints are left out, by UID.
func (g *Group) Ejected(now time.Time) map[string]time.Time {
	all := map[string]time.Time{}
	if g == nil || g.out.Load() == nil || g.rule.Load().settings.Outlier == nil {
		return all
	}
	for uid, until := range *g.out.Load() {
		if now.Before(until) {
			all[uid] = until
		}
	}
	return all
}
