package packettest

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/packet"
)

// Attack is a number of sequences of packets, each followed by a connection from
// the same port.
type Attack struct {
	// In runs a function inside the attacker's network namespace.
	In      func(fn func() error) error
	From    netip.Addr
	To      []netip.AddrPort // in turn
	Request string           // sent on a connection, for an answer
	Seed    uint64
	// First is the number of the first sequence, Count how many there are.
	First, Count int
	// Connected counts a connection as an answer already: for a destination that
	// no proxy listens for.
	Connected bool
}

// Result reports what became of the connections.
type Result struct {
	Tried, Answered, Silent int
	// Examples are the first sequences whose connection was answered.
	Examples []string
}

// workers are attempts at a time: most of an attempt is a wait.
const workers = 32

// patience bounds an attempt that is neither refused nor answered.
const patience = 10 * time.Second

// Run makes the attack. The error says that it was none.
func (a Attack) Run() (Result, error) {
	var next atomic.Int64
	var r Result
	var firstErr error
	var mu sync.Mutex
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			err := a.In(func() error {
				s, err := packet.Open(a.From.Is6())
				if err != nil {
					return err
				}
				defer func() { _ = s.Close() }()
				for {
					n := int(next.Add(1)) - 1
					if n >= a.Count {
						return nil
					}
					outcome, about, err := a.attempt(s, a.First+n)
					if err != nil {
						return fmt.Errorf("sequence %d: %w", a.First+n, err)
					}
					mu.Lock()
					r.add(outcome, about)
					mu.Unlock()
				}
			})
			if err != nil {
				mu.Lock()
				firstErr = err
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return r, firstErr
}

func (r *Result) add(o outcome, about string) {
	r.Tried++
	switch o {
	case silent:
		r.Silent++
	case answered:
		r.Answered++
		const most = 10
		if len(r.Examples) < most {
			r.Examples = append(r.Examples, about)
		}
	case refused:
	}
}

type outcome int

const (
	refused outcome = iota
	silent
	answered
)

func (a Attack) attempt(s *packet.Sender, number int) (outcome, string, error) {
	to := a.To[number%len(a.To)]
	fd, from, err := bound(a.From)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = unix.Close(fd) }()
	sequence := Sequence(a.Seed, number, from, to)
	for _, b := range sequence {
		// What the sender's own namespace refuses is one of the answers.
		_ = s.Send(b)
	}
	o, err := a.connect(fd, to)
	return o, fmt.Sprintf("seed %d, sequence %d to %s: % x", a.Seed, number, to, sequence), err
}

// bound returns a socket with a port of its own, which is reset when closed.
func bound(from netip.Addr) (fd int, at netip.AddrPort, err error) {
	family := unix.AF_INET
	var bind unix.Sockaddr
	if from.Is6() {
		family, bind = unix.AF_INET6, &unix.SockaddrInet6{Addr: from.As16()}
	} else {
		bind = &unix.SockaddrInet4{Addr: from.As4()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, at, err
	}
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil {
		err = unix.Bind(fd, bind)
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, at, err
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return fd, netip.AddrPortFrom(from, uint16(name.Port)), nil //nolint:gosec // a port
	case *unix.SockaddrInet6:
		return fd, netip.AddrPortFrom(from, uint16(name.Port)), nil //nolint:gosec // a port
	}
	return -1, at, fmt.Errorf("a socket of family %d has the address %v", family, name)
}

func (a Attack) connect(fd int, to netip.AddrPort) (outcome, error) {
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	err := unix.Connect(fd, sa)
	if err != nil && err != unix.EINPROGRESS { //nolint:errorlint // an errno
		return refused, nil
	}
	if !wait(fd, unix.POLLOUT) {
		return silent, nil
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || v != 0 {
		return refused, err
	}
	if a.Connected {
		return answered, nil
	}
	if _, err := unix.Write(fd, []byte(a.Request)); err != nil {
		return refused, nil //nolint:nilerr // the error is the result
	}
	if !wait(fd, unix.POLLIN) {
		return silent, nil
	}
	b := make([]byte, 1)
	if n, err := unix.Read(fd, b); err == nil && n > 0 {
		return answered, nil
	}
	return refused, nil
}

// wait reports whether something happened on the socket in time.
func wait(fd int, events int16) bool {
	deadline := time.Now().Add(patience)
	for {
		list := []unix.PollFd{{Fd: int32(fd), Events: events}} //nolint:gosec // a descriptor
		n, err := unix.Poll(list, int(time.Until(deadline).Milliseconds()))
		if err == unix.EINTR { //nolint:errorlint // an errno
			continue
		}
		return n > 0
	}
}
