// Package race connects to the first of several addresses of one host that answers: the
// next one is tried when the one before has failed, or has not answered for a moment
// (RFC 8305, "happy eyeballs").
package race

import (
	"net/netip"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
)

const (
	// Delay is how long an address has to answer before the next one is tried as well.
	Delay = 250 * time.Millisecond
	// Most bounds the addresses of one race.
	Most = 6
)

// Race is a connection to one of several addresses. It is used on its loop alone.
type Race struct {
	Loop *poll.Loop
	// To are the addresses, the preferred one first.
	To []netip.AddrPort
	// Delay is how long an address has before the next one starts; 0 starts all at once.
	Delay time.Duration
	// Timeout bounds each attempt.
	Timeout time.Duration
	// Socket makes a socket for an address.
	Socket func(netip.Addr) (int, error)
	// Share is that of the pod, of which each attempt but the first takes a descriptor.
	Share *budget.Share
	// Done is called once, with the socket that is connected, or the error of the address
	// that was preferred.
	Done func(fd int, at netip.AddrPort, err error)

	next    int // of To
	running map[int]netip.AddrPort
	extra   int // descriptors that were taken
	first   error
	over    bool
	wait    poll.Deadline
}

// Start begins. Done is not called before it returns.
func (r *Race) Start() {
	r.To = r.To[:min(len(r.To), Most)]
	r.running = map[int]netip.AddrPort{}
	r.start()
}

// start tries the next address, and arms the one after it.
func (r *Race) start() {
	for !r.over && r.next < len(r.To) {
		at := r.To[r.next]
		if r.next > 0 {
			if !r.Share.Take(1) {
				r.To = r.To[:r.next]
				break
			}
			r.extra++
		}
		r.next++
		fd, err := r.Socket(at.Addr())
		if err != nil {
			r.failed(err)
			continue
		}
		r.running[fd] = at
		relay.Connect(r.Loop, fd, at, r.Timeout, func(err error) { r.ended(fd, at, err) })
		if r.Delay > 0 {
			r.wait.Arm(r.Loop, r.Delay, r.start)
			return
		}
	}
	r.exhausted()
}

func (r *Race) failed(err error) {
	if r.first == nil {
		r.first = err
	}
}

// exhausted ends the race when nothing is under way and nothing is left.
func (r *Race) exhausted() {
	if r.over || len(r.running) > 0 || r.next < len(r.To) {
		return
	}
	r.over = true
	r.release(0)
	err := r.first
	if err == nil {
		err = reason.Errorf(reason.NoHealthyUpstream, "no address to connect to")
	}
	r.Loop.Post(func() { r.Done(-1, netip.AddrPort{}, err) })
}

// release gives back all descriptors that were taken but for some.
func (r *Race) release(keep int) {
	if n := r.extra - keep; n > 0 {
		r.Share.Give(int64(n))
		r.extra = keep
	}
}

// ended takes the outcome of one attempt.
func (r *Race) ended(fd int, at netip.AddrPort, err error) {
	delete(r.running, fd)
	switch {
	case r.over:
		sockopt.Close(fd)
		r.release(max(len(r.running), 0))
	case err != nil:
		sockopt.Close(fd)
		r.failed(err)
		if r.next < len(r.To) {
			r.wait.Stop()
			r.start()
			return
		}
		r.exhausted()
	default:
		r.over = true
		r.wait.Stop()
		for other := range r.running {
			// It ends at once, and is closed then.
			_ = syscall.Shutdown(other, syscall.SHUT_RDWR)
		}
		r.release(len(r.running))
		r.Done(fd, at, nil)
	}
}
