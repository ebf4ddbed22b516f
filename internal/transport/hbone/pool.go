package hbone

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

const (
	defaultMaxStreams    = 100
	defaultIdleRelease   = 5 * time.Minute
	defaultDialTimeout   = 10 * time.Second
	defaultAnswerTimeout = 20 * time.Second
	defaultProbeAfter    = time.Second
	defaultProbeTimeout  = time.Second
	defaultDialPatience  = 2 * time.Second
	defaultMaxDials      = 64
	defaultMaxWaiting    = 8192
	// maxAttempts is how many tunnels one Open is tried on when they die or
	// refuse it unprocessed.
	maxAttempts = 3
)

var errSockets = errors.New("the pod's budget of descriptors is used up")

// Pool holds the tunnels of one pod's outgoing connections. Its methods may be
// called from any goroutine.
//
// Every key has a home loop, where all of its decisions are made without
// locks. Its first tunnel lives there; further ones, which only a busy key
// needs, go to the next loops.
type Pool struct {
	cfg    PoolConfig
	seed   maphash.Seed
	ctx    context.Context // of dials
	cancel context.CancelCauseFunc
	shards []*shard
	dials  sync.WaitGroup
}

// NewPool makes an empty pool.
func NewPool(cfg PoolConfig) *Pool {
	cfg.MaxStreams = or(cfg.MaxStreams, defaultMaxStreams)
	cfg.IdleRelease = or(cfg.IdleRelease, defaultIdleRelease)
	cfg.DialTimeout = or(cfg.DialTimeout, defaultDialTimeout)
	cfg.AnswerTimeout = or(cfg.AnswerTimeout, defaultAnswerTimeout)
	cfg.ProbeAfter = or(cfg.ProbeAfter, defaultProbeAfter)
	cfg.DialPatience = or(cfg.DialPatience, defaultDialPatience)
	cfg.ProbeTimeout = or(cfg.ProbeTimeout, defaultProbeTimeout)
	cfg.MaxDials = or(cfg.MaxDials, defaultMaxDials)
	cfg.MaxWaiting = or(cfg.MaxWaiting, defaultMaxWaiting)
	p := &Pool{cfg: cfg, seed: maphash.MakeSeed(), shards: make([]*shard, cfg.Loops.Len())}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	for i := range p.shards {
		p.shards[i] = &shard{pool: p, loop: cfg.Loops.Loop(i), entries: map[place]*entry{}}
	}
	return p
}

func or[T int | uint32 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Open opens a connection; it returns at once. The pool takes o over.
func (p *Pool) Open(o *Open) {
	a := begin(o)
	s := p.shards[maphash.Comparable(p.seed, o.Key)%uint64(len(p.shards))]
	if o.Loop != nil {
		s = p.shards[o.Loop.Index()]
	}
	s.loop.Post(func() { s.open(a) })
}

// Follow does to the tunnels to the workload with this UID what becomes of them.
func (p *Pool) Follow(uid string, f workload.Fate) {
	switch f {
	case workload.Stay:
	case workload.Release:
		p.ReleaseWorkload(uid)
	case workload.Renew:
		p.RenewWorkload(uid)
	case workload.Close:
		p.CloseWorkload(uid)
	}
}

// CloseWorkload ends the tunnels to a workload that was removed. They take no
// new connections, and connections without an answer fail at once, with a
// reason for which their owner tries another endpoint. Connections that run go
// on for as long as the peer answers.
func (p *Pool) CloseWorkload(uid string) {
	p.each(func(s *shard) {
		for _, e := range s.entries {
			if e.key.DstUID == uid {
				s.remove(e, reason.Errorf(reason.TunnelClosed, "workload %s left the mesh", uid))
			}
		}
	})
}

// ReleaseWorkload ends the tunnels to the workload with this UID as soon as they carry
// nothing, instead of after IdleRelease. The workload ends, or clients will connect to it
// without tunnels. Connections under way are not disturbed. New connections are still
// carried.
func (p *Pool) ReleaseWorkload(uid string) {
	p.each(func(s *shard) {
		for _, e := range s.entries {
			if e.key.DstUID != uid {
				continue
			}
			e.leaving = true
			for _, r := range e.refs {
				r.where.loop.Post(r.client.leave)
			}
		}
	})
}

// RenewWorkload replaces the tunnels to the workload with this UID, because another instance
// has that UID now. Existing tunnels lead to the former instance, and take no new
// connections. Connections that wait get new tunnels.
func (p *Pool) RenewWorkload(uid string) {
	p.each(func(s *shard) {
		for _, e := range s.entries {
			if e.key.DstUID != uid {
				continue
			}
			e.leaving = false
			for _, r := range e.refs {
				r.gone = true
				r.where.loop.Post(r.client.shutdown)
			}
			if len(e.waiting) > 0 {
				s.dial(e)
			}
		}
	})
}

// Drain has every tunnel take no new connections and end with its last one.
// Further Opens fail with reason Draining.
func (p *Pool) Drain() {
	p.each(func(s *shard) {
		s.refuse = reason.Errorf(reason.Draining, "no new connections")
		for _, e := range s.entries {
			s.retire(e, s.refuse)
		}
	})
}

// Close ends everything now; flows get r.
func (p *Pool) Close(r reason.Reason) {
	why := reason.Errorf(r, "the pod's tunnels were closed")
	p.cancel(why)
	p.each(func(s *shard) {
		s.refuse, s.killed = why, true
		for _, e := range s.entries {
			s.retire(e, why)
		}
		for len(s.local) > 0 {
			s.local[len(s.local)-1].t.Fail(r, nil)
		}
	})
}

// each runs f on every shard's loop.
func (p *Pool) each(f func(*shard)) {
	for _, s := range p.shards {
		s.loop.Post(func() { f(s) })
	}
}

// shard is the part of a pool that one loop owns.
type shard struct {
	pool    *Pool
	loop    *poll.Loop
	entries map[place]*entry // whose home this is
	local   []*client        // tunnels that live here, whatever their home
	waiting int
	dials   [2]dials      // of tunnels on the network, and inside of others
	refuse  *reason.Error // why nothing is opened any more
	killed  bool
}

// dials bounds the tunnels that are being made. Those inside of other tunnels wait for
// these, and have a bound of their own.
type dials struct {
	n     int
	queue []*entry // want to dial, but too many do
}

func (s *shard) dialsOf(k *Key) *dials {
	if k.Via != nil {
		return &s.dials[1]
	}
	return &s.dials[0]
}

// maxStreams is how many streams a tunnel of this key has.
func (c *PoolConfig) maxStreams(k *Key) int {
	if k.Via != nil {
		return 1
	}
	return c.MaxStreams
}

// place is a key on its home loop. The tunnels of one that is pinned stay there.
type place struct {
	Key
	pinned bool
}

// entry is one key, on its home loop.
type entry struct {
	key     Key
	pinned  bool // its tunnels live on this loop alone
	refs    []*ref
	waiting []*attempt
	dialing bool
	slow    bool // its dial takes longer than DialPatience
	queued  bool
	retired bool // not in shard.entries any more
	leaving bool // tunnels are not kept without connections
	made    int  // tunnels so far: spreads them over loops
	limit   int  // streams that the last tunnel's peer permits
}

// ref is the home's view of a tunnel, which may live on another loop.
type ref struct {
	home   *shard
	entry  *entry
	where  *shard
	client *client
	active int // streams assigned and not ended
	limit  int // streams it takes
	gone   bool
}

// attempt is an Open on its way.
type attempt struct {
	*Open
	tries int
	until time.Time // zero: the pool's own times alone
}

func (s *shard) open(o *attempt) {
	if s.refuse != nil {
		o.OnFail(s.refuse, 0)
		return
	}
	at := place{o.Key, o.Loop != nil}
	e := s.entries[at]
	if e == nil {
		e = &entry{key: o.Key, pinned: at.pinned, limit: s.pool.cfg.maxStreams(&o.Key)}
		s.entries[at] = e
	}
	if s.assign(e, o) {
		return
	}
	if e.slow && o.spare() {
		o.OnFail(s.slow(e), 0)
		return
	}
	if s.waiting >= s.pool.cfg.MaxWaiting {
		o.OnFail(reason.Errorf(reason.ResourceExhausted, "%d connections wait for tunnels already", s.waiting), 0)
		s.forget(e)
		return
	}
	s.waiting++
	e.waiting = append(e.waiting, o)
	s.expire(e, o)
	s.dial(e)
}

// assign gives o to a tunnel with room. The fullest is taken, so that others
// can fall idle.
func (s *shard) assign(e *entry, o *attempt) bool {
	var best *ref
	for _, r := range e.refs {
		if !r.gone && r.active < r.limit && (best == nil || r.active > best.active) {
			best = r
		}
	}
	if best == nil {
		return false
	}
	best.active++
	if best.where == s {
		best.client.open(o)
	} else {
		c := best.client
		best.where.loop.Post(func() { c.open(o) })
	}
	return true
}

// drainWaiting assigns as many waiting attempts as there is room for, and
// dials for the rest.
func (s *shard) drainWaiting(e *entry) {
	n := 0
	for n < len(e.waiting) && s.assign(e, e.waiting[n]) {
		n++
	}
	s.waiting -= n
	e.waiting = slices.Delete(e.waiting, 0, n)
	if len(e.waiting) == 0 {
		e.waiting = nil
		s.forget(e)
		return
	}
	s.dial(e)
}

// forget drops an entry that holds nothing.
func (s *shard) forget(e *entry) {
	if !e.retired && len(e.refs) == 0 && len(e.waiting) == 0 && !e.dialing && !e.queued {
		delete(s.entries, place{e.key, e.pinned})
		e.retired = true
	}
}

// dial makes one more tunnel for the key, unless one is being made.
func (s *shard) dial(e *entry) {
	if e.dialing || e.queued {
		return
	}
	d := s.dialsOf(&e.key)
	if d.n >= s.pool.cfg.MaxDials {
		e.queued = true
		d.queue = append(d.queue, e)
		return
	}
	e.dialing = true
	d.n++
	home := s.loop.Index()
	where := s
	if !e.pinned {
		where = s.pool.shards[(home+e.made)%len(s.pool.shards)]
	}
	e.made++
	s.count(e, 1)
	patience := s.loop.AfterFunc(s.pool.cfg.DialPatience, func() { s.impatient(e) })
	s.pool.dials.Add(1)
	s.loop.Go(func() {
		defer s.pool.dials.Done()
		k, err := s.pool.connect(e.key)
		if !s.loop.Post(func() { patience.Stop(); s.dialed(e, where, k, err) }) && err == nil {
			s.pool.letGo(k)
		}
	})
}

// letGo closes a link that no tunnel has.
func (p *Pool) letGo(k tunnel.Link) {
	p.closed(k.Under() != nil)
	k.Close()
}

// closed gives the unit of a tunnel's descriptor back.
func (p *Pool) closed(inside bool) {
	if p.cfg.Sockets != nil && !inside {
		p.cfg.Sockets.Give(1)
	}
}

// connect dials and shakes hands, on the dial's goroutine.
func (p *Pool) connect(k Key) (tunnel.Link, *reason.Error) {
	if k.Via != nil {
		return p.connectInside(k)
	}
	if p.cfg.Sockets != nil && !p.cfg.Sockets.Take(1) {
		return tunnel.Link{}, reason.Errorf(reason.ResourceExhausted, "tunnel to %s: %w", k.Dst, errSockets)
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	fd, conf, err := p.cfg.Dial(ctx, k)
	if err != nil {
		p.closed(false)
		return tunnel.Link{}, asReason(err, reason.ConnectFailure, k)
	}
	link, err := tunnel.Handshake(ctx, fd, nil, tunnel.Security{Config: conf, LibraryRecords: p.cfg.LibraryRecords})
	if err != nil {
		poll.CloseFD(fd)
		p.closed(false)
		if cause := context.Cause(p.ctx); cause != nil {
			err = cause
		}
		return tunnel.Link{}, p.handshakeError(k, err)
	}
	return link, nil
}

func asReason(err error, fallback reason.Reason, k Key) *reason.Error {
	var re *reason.Error
	if errors.As(err, &re) {
		return re
	}
	return reason.Errorf(fallback, "tunnel to %s: %w", k.Dst, err)
}

// dialed goes on at home when a dial is over.
func (s *shard) dialed(e *entry, where *shard, k tunnel.Link, err *reason.Error) {
	e.dialing, e.slow = false, false
	d := s.dialsOf(&e.key)
	d.n--
	s.next(d)
	if k.Under() != nil {
		where = s.pool.shards[k.Under().Loop().Index()]
	}
	if err == nil && (e.retired || s.refuse != nil) {
		s.pool.letGo(k)
		s.count(e, -1)
		return // what waited has failed already
	}
	if err != nil {
		s.count(e, -1)
		s.failWaiting(e, err)
		s.forget(e)
		return
	}
	c := &client{shard: where, key: e.key, leaving: e.leaving}
	r := &ref{home: s, entry: e, where: where, client: c, limit: e.limit}
	c.ref = r
	e.refs = append(e.refs, r)
	if where == s {
		c.start(k)
	} else if !where.loop.Post(func() { c.start(k) }) {
		k.Close()
		s.lost(r)
		return
	}
	s.drainWaiting(e)
}

// next lets the next entry dial that had to wait for it.
func (s *shard) next(d *dials) {
	for len(d.queue) > 0 && d.n < s.pool.cfg.MaxDials {
		e := d.queue[0]
		d.queue[0] = nil
		d.queue = d.queue[1:]
		e.queued = false
		if len(e.waiting) > 0 && !e.retired {
			s.dial(e)
		} else {
			s.forget(e)
		}
	}
}

func (s *shard) failWaiting(e *entry, err *reason.Error) {
	waiting := e.waiting
	e.waiting = nil
	s.waiting -= len(waiting)
	for _, o := range waiting {
		o.OnFail(err, 0)
	}
}

// retire takes an entry out of the pool: its tunnels end with their streams.
func (s *shard) retire(e *entry, why *reason.Error) {
	delete(s.entries, place{e.key, e.pinned})
	e.retired = true
	for _, r := range e.refs {
		r.gone = true
		r.where.loop.Post(r.client.shutdown)
	}
	s.failWaiting(e, why)
}

// remove retires an entry whose workload was removed.
func (s *shard) remove(e *entry, why *reason.Error) {
	refs := e.refs
	s.retire(e, why)
	for _, r := range refs {
		r.where.loop.Post(func() { r.client.workloadGone(why) })
	}
}

// count reports a tunnel that begins to be made, or is gone.
func (s *shard) count(e *entry, delta int) {
	if s.pool.cfg.OnTunnel != nil && e.key.Via == nil {
		s.pool.cfg.OnTunnel(e.key, delta)
	}
}

// impatient has those that wait for a slow dial, and have a spare endpoint, go
// there. The others wait on.
func (s *shard) impatient(e *entry) {
	if !e.dialing {
		return
	}
	e.slow = true
	var stay, leave []*attempt
	for _, o := range e.waiting {
		if o.spare() {
			leave = append(leave, o)
		} else {
			stay = append(stay, o)
		}
	}
	e.waiting = stay
	s.waiting -= len(leave)
	for _, o := range leave {
		o.OnFail(s.slow(e), 0)
	}
}

func (s *shard) slow(e *entry) *reason.Error {
	return reason.Errorf(reason.ConnectTimeout, "no tunnel to %s in %s", e.key.Dst, s.pool.cfg.DialPatience)
}

// The following are called by tunnels, from their own loop.

// atHome runs f on the loop where the tunnel's key lives.
func (r *ref) atHome(here *shard, f func()) {
	if r.home == here {
		f()
		return
	}
	r.home.loop.Post(f)
}

// release says that one stream has ended.
func (r *ref) release(here *shard) {
	r.atHome(here, func() {
		r.active--
		if len(r.entry.waiting) > 0 {
			r.home.drainWaiting(r.entry)
		}
	})
}

// retry says that o was not processed: another tunnel may take it.
func (r *ref) retry(here *shard, o *attempt) {
	// In the next turn: the tunnel that refused is still in the middle of it.
	r.home.loop.Post(func() {
		r.active--
		r.home.open(o)
	})
}

// setLimit says how many streams the peer permits; 0 when it goes away.
func (r *ref) setLimit(here *shard, n int) {
	r.atHome(here, func() {
		r.limit = n
		if n == 0 {
			r.gone = true
		} else {
			r.entry.limit = n // the next peer at this address will say the same
		}
		if len(r.entry.waiting) > 0 {
			r.home.drainWaiting(r.entry)
		}
	})
}

// closed says that the tunnel is gone.
func (r *ref) closed(here *shard) { r.atHome(here, func() { r.home.lost(r) }) }

func (s *shard) lost(r *ref) {
	r.gone = true
	e := r.entry
	e.refs = slices.DeleteFunc(e.refs, func(o *ref) bool { return o == r })
	s.pool.closed(e.key.Via != nil)
	s.count(e, -1)
	if len(e.waiting) > 0 {
		s.drainWaiting(e)
	}
	s.forget(e)
}
