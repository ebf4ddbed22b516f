package ztunnel

import (
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

const (
	// watchEvery is how often the pods' ports are looked at.
	watchEvery = 10 * time.Second
	// generations is how long another generation of the proxy may listen beside
	// this one, or in its place. It starts before this one is told to end, and
	// has a minute or so to become ready. What stays longer is another program.
	generations = 2 * time.Minute
)

// holders is what is known of the listening sockets at a pod's ports. The
// proxy shares its ports with its next generation (SO_REUSEPORT), and must not
// share them with programs of the pod: those would get connections that no
// policy has judged. The proxy's sockets have an owner of their own, so that
// the kernel keeps other users' sockets out.
type holders struct {
	mu    sync.Mutex // guards what follows
	owner uint32     // of the own sockets
	own   []uint32   // their inodes; none while the pod is not served
	seen  map[uint32]*sighting
}

// sighting is a listening socket that is not this process's.
type sighting struct {
	since    time.Time
	reported bool
}

// mine notes the proxy's own sockets.
func (h *holders) mine(owner uint32, fds []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.owner, h.own = owner, h.own[:0]
	for _, fd := range fds {
		if inode, err := sockopt.Inode(fd); err == nil {
			h.own = append(h.own, inode)
		}
	}
}

// verdict is what to do about a listening socket.
type verdict uint8

const (
	leave verdict = iota
	report
	evict
)

// holder is a listening socket at a port of the proxy, in a pod that is in the
// mesh.
type holder struct {
	own   bool // this process has it
	ours  bool // it has the owner that sockets of the proxy have
	root  bool // it is root's, as those of other node proxies are
	alone bool // this process does not listen: the holder has the port
	age   time.Duration
}

// judge decides about a holder. Beside the proxy there can only be sockets of
// the same owner, unless they were there first.
func (h holder) judge() verdict {
	switch old := h.age >= generations; {
	case h.own:
		return leave
	case h.ours && old:
		return report
	case h.ours:
		return leave
	case h.alone && h.root && !old:
		return leave // a proxy that is being replaced
	}
	return evict
}

// owner is the user who owns the listening sockets; 0 for the process's own.
func (n *Node) owner() uint32 {
	if n.Config.Mode != config.Shared || n.ownerless.Load() {
		return 0
	}
	return wellknown.UIDProxy
}

// withoutOwner goes on where sockets cannot be given their owner.
func (n *Node) withoutOwner(err error) {
	if n.ownerless.CompareAndSwap(false, true) {
		n.log.Warn("root in a pod can share the proxy's ports: add CHOWN to the capabilities of ztunnel", "error", err)
	}
}

// watchPorts looks at who listens at the pod's ports, and ends listening
// sockets of other programs. A pod that is not in the mesh may have them.
func (p *pod) watchPorts() {
	if p.ns == nil || p.closed.Load() || !tunnelled(p.local(p.node.Directory.Snapshot())) {
		return
	}
	var d *sockdiag.Diag
	err := p.do(func() (err error) { d, err = sockdiag.Open(); return err })
	if err != nil {
		p.node.log.Debug("the proxy's ports cannot be looked at", "uid", p.uid, "error", err)
		return
	}
	defer d.Close()
	all, err := d.List(sockdiag.Listening)
	if err != nil {
		p.node.log.Debug("the proxy's ports cannot be looked at", "uid", p.uid, "error", err)
		return
	}
	p.holders.mu.Lock()
	defer p.holders.mu.Unlock()
	seen := map[uint32]*sighting{}
	ports := p.ports()
	for i := range all {
		s := &all[i]
		if slices.ContainsFunc(ports, func(o port) bool { return o.number == s.Local.Port() }) {
			p.look(d, s, seen)
		}
	}
	p.holders.seen = seen // without those that have gone
}

// look judges one socket; the caller holds the mutex of holders.
func (p *pod) look(d *sockdiag.Diag, s *sockdiag.Socket, seen map[uint32]*sighting) {
	h, now := &p.holders, time.Now()
	was := h.seen[s.Inode]
	if was == nil {
		was = &sighting{since: now}
	}
	v := holder{
		own: slices.Contains(h.own, s.Inode), ours: s.UID == wellknown.UIDProxy || len(h.own) > 0 && s.UID == h.owner,
		root: s.UID == 0, alone: len(h.own) == 0, age: now.Sub(was.since),
	}.judge()
	if v == leave && slices.Contains(h.own, s.Inode) {
		return
	}
	seen[s.Inode] = was
	if v == leave {
		return
	}
	log := p.node.log.With("uid", p.uid, "workload", p.info.Namespace+"/"+p.info.Name,
		"address", s.Local, "owner", s.UID, "inode", s.Inode)
	if !was.reported {
		was.reported = true
		p.node.Metrics.foreign.Add(1)
		log.Warn("another program listens on a port of the proxy: it can get connections that no policy has judged")
	}
	if v != evict {
		return
	}
	switch err := d.Destroy(s); {
	case err == nil:
		log.Warn("the other program's listening socket was ended")
	case !errors.Is(err, sockdiag.ErrGone):
		log.Warn("the other program's listening socket cannot be ended", "error", err)
	}
}

// namesHolders adds to an error about a taken port who has it.
func (p *pod) namesHolders(err error) []any {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil
	}
	var attrs []any
	_ = p.do(func() error { // what cannot be found out is left out
		d, err := sockdiag.Open()
		if err != nil {
			return err
		}
		defer d.Close()
		all, err := d.List(sockdiag.Listening)
		for _, s := range all {
			if slices.ContainsFunc(p.ports(), func(o port) bool { return o.number == s.Local.Port() }) {
				attrs = []any{"holder", s.Local, "holder_owner", s.UID, "holder_inode", s.Inode}
			}
		}
		return err
	})
	return attrs
}

// watch looks at the ports of all pods, until it is closed.
type watch struct {
	once sync.Once
	kick chan struct{}
	done chan struct{}
}

func newWatch(n *Node) *watch {
	w := &watch{kick: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		t := time.NewTicker(watchEvery)
		defer t.Stop()
		for {
			select {
			case <-w.done:
				return
			case <-t.C:
			case <-w.kick:
			}
			for _, p := range n.list() {
				p.watchPorts()
			}
		}
	}()
	return w
}

// soon has it look now: a port was found taken.
func (w *watch) soon() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *watch) close() { w.once.Do(func() { close(w.done) }) }
