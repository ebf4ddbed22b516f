package poll

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// acceptBatch is how many connections one turn accepts from one socket, so
	// that a flood does not starve established connections.
	acceptBatch = 64
	// acceptNext is up to how long after a turn the next one is about connections that
	// waited then.
	acceptNext = 100 * time.Microsecond
	// acceptPause is how long accepting rests when descriptors or memory ran
	// out: connections wait in the kernel's backlog meanwhile.
	acceptPause = 50 * time.Millisecond
)

// Listener accepts connections from a listening socket on one loop.
type Listener struct {
	loop   *Loop
	fd     int
	reg    Registration
	accept func(l *Loop, fd int, remote netip.AddrPort)
	spare  int // an open descriptor to give up when there are no others
	closed atomic.Bool
	paused *Timer
	done   chan struct{}
	batch  int       // how many connections this turn accepts
	turn   uint64    // that accepted last
	at     time.Time // when that was
}

var nextListener atomic.Uint64

// Listen takes over a non-blocking listening TCP socket. accept runs on a loop
// of the group with every accepted socket, non-blocking and close-on-exec,
// which is then accept's own. Listening sockets are spread over the loops; all
// connections of one are accepted on its loop, so that nothing is handed over
// twice. On error fd stays the caller's.
func Listen(g *Group, fd int, accept func(l *Loop, fd int, remote netip.AddrPort)) (*Listener, error) {
	return listenOn(g.Pick(nextListener.Add(1)), fd, accept)
}

// ListenEach has every loop of the group accept from a socket of its own. listen makes
// one of them: all are bound to one address with SO_REUSEPORT, and the kernel spreads
// connections over them. It is for a program with few addresses and many connections;
// a node proxy has many addresses, and Listen spreads those. On error nothing is left.
func ListenEach(g *Group, listen func() (fd int, err error), accept func(l *Loop, fd int, remote netip.AddrPort)) ([]*Listener, error) {
	all := make([]*Listener, 0, g.Len())
	for _, l := range g.loops {
		fd, err := listen()
		if err == nil {
			var ln *Listener
			if ln, err = listenOn(l, fd, accept); err == nil {
				all = append(all, ln)
				continue
			}
			CloseFD(fd)
		}
		for _, ln := range all {
			ln.Close()
			<-ln.Done()
		}
		return nil, err
	}
	return all, nil
}

func listenOn(l *Loop, fd int, accept func(l *Loop, fd int, remote netip.AddrPort)) (*Listener, error) {
	ln := &Listener{loop: l, fd: fd, accept: accept, spare: -1, done: make(chan struct{})}
	ln.keepSpare()
	// Watched level-triggered: what one batch left is reported again.
	errc := make(chan error, 1)
	err := ErrClosed
	if ln.loop.Post(func() { errc <- ln.loop.addTo(&ln.reg, fd, ln, unix.EPOLLIN) }) {
		select {
		case err = <-errc:
		case <-ln.loop.done:
		}
	}
	if err != nil {
		ln.dropSpare()
		return nil, err
	}
	return ln, nil
}

// Close stops accepting and closes the socket; connections in the backlog are
// reset by the kernel. It may be called from any goroutine, more than once;
// accept is not called any more after Done.
func (ln *Listener) Close() {
	if !ln.closed.CompareAndSwap(false, true) {
		return
	}
	if !ln.loop.Post(ln.release) {
		go func() { // the loop has ended or is ending: it no longer looks at the socket
			<-ln.loop.done
			ln.release()
		}()
	}
}

// Done is closed when the socket is.
func (ln *Listener) Done() <-chan struct{} { return ln.done }

func (ln *Listener) release() {
	ln.paused.Stop()
	ln.reg.Remove()
	_ = unix.Close(ln.fd)
	ln.dropSpare()
	close(ln.done)
}

func (ln *Listener) keepSpare() {
	if ln.spare < 0 {
		// Without one it sheds nothing, and rests nevertheless.
		if fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			ln.spare = fd
		}
	}
}

func (ln *Listener) dropSpare() {
	if ln.spare >= 0 {
		_ = unix.Close(ln.spare)
		ln.spare = -1
	}
}

// RestAccepting is for an accept function that has refused a connection: its socket
// rests for acceptPause after the batch at hand. Programs that connect again and
// again then wait in the kernel's backlog, and not at the cost of the loop's others.
func (l *Loop) RestAccepting() { l.restAccepting = true }

// Ready accepts a batch.
func (ln *Listener) Ready(Events) {
	ln.loop.restAccepting = false
	defer func() {
		if ln.loop.restAccepting && !ln.closed.Load() {
			ln.rest()
		}
	}()
	ln.size()
	n := 0
	for range acceptBatch {
		if ln.closed.Load() {
			return
		}
		fd, remote, e := accept(ln.fd)
		switch e {
		case 0:
			ln.accept(ln.loop, fd, remote)
			// Those behind a refused one are refused in the same turn, before the rest.
			if n++; n >= ln.batch && !ln.loop.restAccepting {
				return
			}
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
			// Gone before it was accepted: the next one.
		case unix.EMFILE, unix.ENFILE:
			ln.shed()
			ln.loop.restAccepting = true
			return
		case unix.ENOBUFS, unix.ENOMEM:
			ln.loop.restAccepting = true
			return
		default: // nothing more, or an error of the network that accept passes on
			return
		}
	}
}

// size decides how many connections this turn accepts. A call that finds none costs as
// much as one that does, so the first is taken alone: if others wait, the next turn
// takes more.
func (ln *Listener) size() {
	turn, now := ln.loop.Turns(), ln.loop.Now()
	if turn == ln.turn+1 && now.Sub(ln.at) < acceptNext {
		ln.batch = min(4*max(ln.batch, 1), acceptBatch)
	} else {
		ln.batch = 1
	}
	ln.turn, ln.at = turn, now
}

// accept is accept4 of a listening socket, which never waits: it leaves the scheduler out.
func accept(fd int) (int, netip.AddrPort, unix.Errno) {
	var raw unix.RawSockaddrInet6 // larger than RawSockaddrInet4
	size := uint32(unsafe.Sizeof(raw))
	n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, netip.AddrPort{}, e
	}
	port := (*[2]byte)(unsafe.Pointer(&raw.Port))
	number := uint16(port[0])<<8 | uint16(port[1])
	switch raw.Family {
	case unix.AF_INET:
		return int(n), netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&raw)).Addr), number), 0
	case unix.AF_INET6:
		return int(n), netip.AddrPortFrom(netip.AddrFrom16(raw.Addr).Unmap(), number), 0
	}
	return int(n), netip.AddrPort{}, 0
}

// shed resets one waiting connection with the descriptor that was kept for
// this: its client learns at once that nobody can serve it, and the backlog
// moves.
func (ln *Listener) shed() {
	if ln.spare < 0 {
		return
	}
	ln.dropSpare()
	if fd, _, e := accept(ln.fd); e == 0 {
		ResetFD(fd)
	}
	ln.keepSpare()
}

// rest stops watching for acceptPause: the socket stays readable, and the loop
// would spin.
func (ln *Listener) rest() {
	ln.reg.Remove()
	ln.paused = ln.loop.AfterFunc(acceptPause, func() {
		if ln.closed.Load() {
			return
		}
		ln.keepSpare()
		if err := ln.loop.addTo(&ln.reg, ln.fd, ln, unix.EPOLLIN); err != nil {
			ln.rest() // out of kernel memory: later
		}
	})
}

// IsAgain reports whether err says that a call would have had to wait.
func IsAgain(err error) bool { return errors.Is(err, unix.EAGAIN) }
