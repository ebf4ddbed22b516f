package socks5

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

const (
	// handshakeTime is how long a program may take to ask.
	handshakeTime = 10 * time.Second
	// maxAsking bounds the programs of a pod that have not asked yet.
	maxAsking = 256
)

// Host is a pod as its owner has it.
type Host struct {
	Loops *poll.Group
	// Do runs a function in the pod's network.
	Do func(func() error) error
	// Owner is the user who owns listening sockets; 0 for the process's own.
	Owner     uint32
	ReusePort bool
	// Mark is put on what goes to name servers, which is not redirected then.
	Mark uint32
	Mesh Names
	// Found is called with the address of a name that is not the mesh's; nil for no call.
	Found func(host string, addr netip.Addr)
	// Take counts a connection, if the pod may have one more; Give is its end, when it
	// was not handed to Connect.
	Take func() *reason.Error
	Give func()
	// Connect takes a connection over, on its loop.
	Connect func(*Client)
	// Refused is called for a connection that ends without Connect.
	Refused func(remote, local netip.AddrPort, err *reason.Error)
}

// Client is a program that waits for a reply.
type Client struct {
	Loop    *poll.Loop
	FD      int
	Remote  netip.AddrPort
	Start   time.Time
	Request Request

	pod *Pod
}

// Pod serves one pod. The nil Pod does nothing.
type Pod struct {
	Host
	listeners []*poll.Listener

	mu     sync.Mutex // guards what follows
	closed bool
	asking map[*asker]struct{}
}

// Serve listens in a pod. Nothing is left on error. A pod without IPv6 is served in IPv4.
func Serve(h Host) (*Pod, error) {
	p := &Pod{Host: h, asking: map[*asker]struct{}{}}
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		at := netip.AddrPortFrom(a, wellknown.PortSOCKS5)
		fd, err := p.listen(at, h.Owner)
		if errors.Is(err, sockopt.ErrOwner) {
			fd, err = p.listen(at, 0)
		}
		if err != nil && a.Is6() && !errors.Is(err, errTaken) {
			break
		}
		if err == nil {
			var ln *poll.Listener
			if ln, err = poll.Listen(h.Loops, fd, func(l *poll.Loop, fd int, remote netip.AddrPort) { p.accept(l, fd, remote, at) }); err == nil {
				p.listeners = append(p.listeners, ln)
				continue
			}
			sockopt.Close(fd)
		}
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pod) listen(at netip.AddrPort, owner uint32) (fd int, err error) {
	err = p.Do(func() error {
		fd, err = sockopt.Listen(at, sockopt.ListenOptions{ReusePort: p.ReusePort, Owner: owner, V6Only: true})
		return err
	})
	return fd, err
}

// Drain takes no more connections. Programs that are asking go on.
func (p *Pod) Drain() {
	if p == nil {
		return
	}
	for _, ln := range p.listeners {
		ln.Close()
		<-ln.Done()
	}
}

// Close ends everything. When it returns, the ports are free.
func (p *Pod) Close() {
	if p == nil {
		return
	}
	p.Drain()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for a := range p.asking {
		a.loop.Post(func() { a.end(&reason.Error{Reason: reason.WorkloadRemoved}, nil) })
	}
}

// asker is a program that has not asked yet, on one loop.
type asker struct {
	pod           *Pod
	loop          *poll.Loop
	remote, local netip.AddrPort
	start         time.Time
	sock          poll.Sock
	limit         poll.Deadline
	handshake     Handshake
	ended         bool
}

// accept takes a connection in.
func (p *Pod) accept(l *poll.Loop, fd int, remote, local netip.AddrPort) {
	if err := p.Take(); err != nil {
		p.Refused(remote, local, err)
		poll.ResetFD(fd)
		l.RestAccepting()
		return
	}
	_ = sockopt.NoDelay(fd)
	a := &asker{pod: p, loop: l, remote: remote, local: local, start: time.Now()}
	a.handshake.Begin()
	a.sock.Init(l)
	p.mu.Lock()
	var why *reason.Error
	switch {
	case p.closed:
		why = &reason.Error{Reason: reason.WorkloadRemoved}
	case len(p.asking) >= maxAsking:
		why = reason.Errorf(reason.ResourceExhausted, "more than %d programs of the pod have not asked for a connection yet", maxAsking)
	default:
		p.asking[a] = struct{}{}
	}
	p.mu.Unlock()
	if why == nil {
		if err := a.sock.Watch(l, fd, a); err != nil {
			a.leave()
			why = &reason.Error{Reason: reason.ResourceExhausted, Err: err}
		}
	}
	if why != nil {
		poll.ResetFD(fd)
		p.Give()
		p.Refused(remote, local, why)
		return
	}
	a.limit.Arm(l, handshakeTime, func() {
		a.end(reason.Errorf(reason.BadRequest, "SOCKS5: the program has not asked for a connection in %s", handshakeTime), nil)
	})
}

// leave forgets a program that is asking.
func (a *asker) leave() {
	a.pod.mu.Lock()
	delete(a.pod.asking, a)
	a.pod.mu.Unlock()
}

// Ready implements poll.Handler.
func (a *asker) Ready(ev poll.Events) {
	a.sock.Note(ev)
	for !a.ended {
		n, err := a.sock.Read(a.handshake.Room())
		switch {
		case poll.IsAgain(err):
			return
		case err != nil || n == 0:
			a.end(&reason.Error{Reason: reason.DownstreamReset, Err: err}, nil)
			return
		}
		switch answer, next := a.handshake.Got(n); next {
		case More:
		case Answer:
			// A program that leaves no room for two bytes does not read.
			if a.sock.Send(answer) != nil || a.sock.Queued() > 0 {
				a.end(&reason.Error{Reason: reason.DownstreamReset}, nil)
			}
		case Refusal:
			a.end(&reason.Error{Reason: reason.BadRequest, Err: a.handshake.Err}, answer)
		case Done:
			a.done()
		}
	}
}

// done hands the connection over.
func (a *asker) done() {
	a.ended = true
	a.limit.Stop()
	a.leave()
	a.pod.Connect(&Client{Loop: a.loop, FD: a.sock.Detach(), Remote: a.remote, Start: a.start, Request: a.handshake.Request, pod: a.pod})
}

// end ends a connection that was not handed over, after an answer if there is one.
func (a *asker) end(err *reason.Error, answer []byte) {
	if a.ended {
		return
	}
	a.ended = true
	a.limit.Stop()
	a.leave()
	if fd := a.sock.Detach(); answer != nil {
		end(fd, answer)
	} else {
		poll.ResetFD(fd)
	}
	a.pod.Give()
	a.pod.Refused(a.remote, a.local, err)
}
