// Package hello reads how a program begins a connection, where that chooses the
// connection's route: the first message of TLS, or its absence. The bytes stay in the
// socket.
package hello

import (
	"sync"

	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// MaxEach bounds the connections of one namespace that have not begun yet, on one node.
// Each also takes a descriptor of its pod's share.
const MaxEach = 256

// Node counts the connections of a node that are waited for.
type Node struct {
	mu    sync.Mutex
	taken map[string]int // by namespace
}

func (n *Node) enter(namespace string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taken[namespace] >= MaxEach {
		return false
	}
	if n.taken == nil {
		n.taken = map[string]int{}
	}
	n.taken[namespace]++
	return true
}

func (n *Node) leave(namespace string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taken[namespace]--; n.taken[namespace] <= 0 {
		delete(n.taken, namespace)
	}
}

// Pod has the connections of one pod that are waited for. The zero value has none.
type Pod struct {
	mu      sync.Mutex
	closed  bool
	waiting map[*wait]struct{}
}

// Read reads how the connection of a socket begins, where that decides. plain: what is not
// TLS may go on. done is called once, on the loop, perhaps before Read returns. Until then the socket is not
// the caller's.
func (p *Pod) Read(n *Node, l *poll.Loop, fd int, namespace string, plain bool, done func(opening.Opening, *reason.Error)) {
	o, more, err := look(l, fd, false)
	if err != nil || !more {
		done(o, err)
		return
	}
	if !n.enter(namespace) {
		done(o, reason.Errorf(reason.ResourceExhausted, "%d connections of namespace %s on this node have not begun their TLS handshake, or not sent all of it, on ports of TLS where the name decides", MaxEach, namespace))
		return
	}
	w := &wait{pod: p, node: n, loop: l, fd: fd, namespace: namespace, plain: plain, begun: o != opening.Silent, patient: o != opening.Silent, done: done}
	if !p.add(w) {
		w.end(o, &reason.Error{Reason: reason.WorkloadRemoved})
		return
	}
	if err := l.AddTo(&w.reg, fd, w); err != nil {
		w.end(o, reason.Errorf(reason.Internal, "watching a socket: %w", err))
		return
	}
	limit := opening.MaxTime
	if w.plain && !w.begun {
		limit = opening.Silence
	}
	w.limit.Arm(l, limit, w.late)
}

// look looks at what has come. The error is that of a client that has gone.
func look(l *poll.Loop, fd int, end bool) (opening.Opening, bool, *reason.Error) {
	if end {
		if err := sockopt.SocketError(fd); err != nil {
			return opening.Opening{}, false, gone(err)
		}
	}
	p := l.Buffer()[:opening.MaxBytes]
	n, err := poll.Peek(fd, p)
	switch {
	case poll.IsAgain(err):
		n = 0
	case err != nil:
		return opening.Opening{}, false, gone(err)
	case n == 0:
		end = true
	}
	o, more := opening.Look(p[:n], end)
	return o, more, nil
}

func gone(err error) *reason.Error {
	return reason.Errorf(reason.DownstreamReset, "before its first message: %w", err)
}

// Close ends what is waited for.
func (p *Pod) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for w := range p.waiting {
		w.loop.Post(func() { w.end(opening.Opening{}, &reason.Error{Reason: reason.WorkloadRemoved}) })
	}
}

func (p *Pod) add(w *wait) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	if p.waiting == nil {
		p.waiting = map[*wait]struct{}{}
	}
	p.waiting[w] = struct{}{}
	return true
}

// wait is one connection.
type wait struct {
	pod       *Pod
	node      *Node
	loop      *poll.Loop
	reg       poll.Registration
	limit     poll.Deadline
	fd        int
	namespace string
	plain     bool // there is a route for what is not TLS
	begun     bool // the client has sent something
	patient   bool // it has the time of a handshake
	over      bool
	done      func(opening.Opening, *reason.Error)
}

// Ready implements poll.Handler: each arrival is an edge, though nothing is read.
func (w *wait) Ready(ev poll.Events) {
	if ev&(poll.Readable|poll.ReadHup|poll.Hangup|poll.Failed) == 0 {
		return
	}
	o, more, err := look(w.loop, w.fd, ev&(poll.ReadHup|poll.Hangup|poll.Failed) != 0)
	w.begun = w.begun || o != opening.Silent
	if err != nil || !more {
		w.end(o, err)
	}
}

// late is called after a time without a decision. What has begun like TLS is not anything
// else because it is slow. What came while the loop was busy counts.
func (w *wait) late() {
	if w.Ready(poll.Readable); w.over {
		return
	}
	switch {
	case w.plain && !w.begun:
		w.end(opening.Silent, nil)
	case w.plain && !w.patient:
		w.patient = true
		w.limit.Arm(w.loop, opening.MaxTime, w.late)
	default:
		w.end(opening.Opening{}, reason.Errorf(reason.NoRoute, "no TLS handshake has come for %v", opening.MaxTime))
	}
}

// end takes the wait out of the lists, and hands the socket back.
func (w *wait) end(o opening.Opening, err *reason.Error) {
	if w.over {
		return
	}
	w.over = true
	w.limit.Stop()
	w.reg.Remove()
	w.node.leave(w.namespace)
	w.pod.mu.Lock()
	delete(w.pod.waiting, w)
	w.pod.mu.Unlock()
	w.done(o, err)
}
