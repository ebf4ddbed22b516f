// Package portguard finds the listening sockets at the proxy's ports in a pod that are
// not the proxy's, and ends those of other programs.
//
// The proxy shares its ports with its next generation (SO_REUSEPORT), and must not share
// them with programs of the pod: those would get connections that no policy has judged.
// The proxy's sockets have an owner of their own, so that the kernel keeps the sockets of
// other users out.
package portguard

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// generations is how long another generation of the proxy may listen beside this one, or
// in its place. Kubernetes starts it before it ends this one, and it takes up to about a
// minute to become ready. What listens for longer is another program.
const generations = 2 * time.Minute

// Guard is what is known of the listening sockets at one pod's ports. The zero value has
// seen none. It is safe for concurrent use.
type Guard struct {
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

// Own notes the proxy's own sockets, and the user who owns them.
func (g *Guard) Own(owner uint32, fds []int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.owner, g.own = owner, g.own[:0]
	for _, fd := range fds {
		if inode, err := sockopt.Inode(fd); err == nil {
			g.own = append(g.own, inode)
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

// holder is a listening socket at a port of the proxy, in a pod that is in the mesh.
type holder struct {
	own   bool // this process has it
	ours  bool // it has the owner that sockets of the proxy have
	root  bool // it is root's, as those of other node proxies are
	alone bool // this process does not listen: the holder has the port
	age   time.Duration
}

// judge decides about a holder. Beside the proxy there can only be sockets of the same
// owner, unless they were there first.
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

// In runs a function in the network of the pod.
type In func(func() error) error

// Look ends the listening sockets of other programs at the ports. It calls found for each
// of them once.
func (g *Guard) Look(in In, ports []uint16, log *slog.Logger, found func()) {
	var d *sockdiag.Diag
	err := in(func() (err error) { d, err = sockdiag.Open(); return err })
	if err != nil {
		log.Debug("the proxy's ports cannot be looked at", "error", err)
		return
	}
	defer d.Close()
	all, err := d.List(sockdiag.Listening)
	if err != nil {
		log.Debug("the proxy's ports cannot be looked at", "error", err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	seen := map[uint32]*sighting{}
	for i := range all {
		if s := &all[i]; slices.Contains(ports, s.Local.Port()) {
			g.look(d, s, seen, log, found)
		}
	}
	g.seen = seen // without those that have gone
}

// look judges one socket; the caller holds mu.
func (g *Guard) look(d *sockdiag.Diag, s *sockdiag.Socket, seen map[uint32]*sighting, log *slog.Logger, found func()) {
	now, was, own := time.Now(), g.seen[s.Inode], slices.Contains(g.own, s.Inode)
	if was == nil {
		was = &sighting{since: now}
	}
	v := holder{
		own: own, ours: s.UID == wellknown.UIDProxy || len(g.own) > 0 && s.UID == g.owner,
		root: s.UID == 0, alone: len(g.own) == 0, age: now.Sub(was.since),
	}.judge()
	if own {
		return
	}
	seen[s.Inode] = was
	if v == leave {
		return
	}
	log = log.With("address", s.Local, "owner", s.UID, "inode", s.Inode)
	if !was.reported {
		was.reported = true
		found()
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

// Holder names, for a log, the socket that has one of the ports, when err says that one
// is taken.
func Holder(in In, ports []uint16, err error) []any {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil
	}
	var attrs []any
	_ = in(func() error { // what cannot be found out is left out
		d, err := sockdiag.Open()
		if err != nil {
			return err
		}
		defer d.Close()
		all, err := d.List(sockdiag.Listening)
		for _, s := range all {
			if slices.Contains(ports, s.Local.Port()) {
				attrs = []any{"holder", s.Local, "holder_owner", s.UID, "holder_inode", s.Inode}
			}
		}
		return err
	})
	return attrs
}
