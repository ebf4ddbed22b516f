package dnsproxy

import (
	"bytes"
	"errors"
	"hash/maphash"
	"net/netip"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/dns"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/origin"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// errTaken is the error when another program of the pod has the port.
var errTaken = syscall.EADDRINUSE

var seed = maphash.MakeSeed()

// datagrams is what comes over UDP to one address of a pod. Everything of it is on one
// loop.
type datagrams struct {
	pod     *Pod
	loop    *poll.Loop
	scratch *scratch
	packet  *poll.Packet
	fd      int
	at      netip.AddrPort
	origins *origin.Table // opened when the first question is passed on
	flights map[flightKey]*flight
	closed  bool
}

// flightKey is a question that waits. A client that repeats it has the same.
type flightKey struct {
	from netip.AddrPort
	sum  uint64
}

func (p *Pod) serveUDP(fd int, a netip.Addr) (*datagrams, error) {
	u := &datagrams{pod: p, fd: fd, at: netip.AddrPortFrom(a, wellknown.PortDNS), flights: map[flightKey]*flight{}}
	u.loop = p.node.Loops.Pick(nextLoop.Add(1))
	done := make(chan error, 1)
	posted := u.loop.Post(func() {
		var err error
		u.scratch = p.node.scratch(u.loop)
		u.packet, err = poll.NewPacket(u.loop, fd, u.receive)
		done <- err
	})
	if !posted {
		return nil, poll.ErrClosed
	}
	select {
	case err := <-done:
		return u, err
	case <-u.loop.Done():
		return nil, poll.ErrClosed
	}
}

// receive takes a message from the pod. The memory of m is the loop's.
func (u *datagrams) receive(m []byte, from netip.AddrPort, _ netip.Addr) {
	p, s := u.pod, u.scratch
	s.question.Parse(m)
	if !s.question.Asks {
		return
	}
	p.count(&s.question, udp)
	answer, decision := p.resolve(s, udp)
	if decision == dns.Answered {
		u.answer(m, answer, from)
		return
	}
	if wanted := p.missing(s, decision); wanted != nil {
		m = bytes.Clone(m)
		if p.learn(u.loop, wanted, func() { u.again(m, from) }) {
			return
		}
	}
	u.forward(m, from, decision == dns.ForwardOwned)
}

// again decides after the control plane was asked.
func (u *datagrams) again(m []byte, from netip.AddrPort) {
	if u.closed {
		return
	}
	s := u.scratch
	s.question.Parse(m)
	if answer, decision := u.pod.resolve(s, udp); decision == dns.Answered {
		u.answer(m, answer, from)
	} else {
		u.forward(m, from, decision == dns.ForwardOwned)
	}
}

func (u *datagrams) answer(m []byte, a dns.Answer, to netip.AddrPort) {
	s := u.scratch
	s.out = s.question.Append(s.out[:0], m, a, true)
	u.packet.Send(s.out, to, u.at.Addr())
}

func (u *datagrams) fail(m []byte, to netip.AddrPort, rcode byte) {
	u.scratch.out = dns.Fail(u.scratch.out[:0], m, rcode)
	u.packet.Send(u.scratch.out, to, u.at.Addr())
}

// forward passes a question to the name server that the pod has sent it to.
func (u *datagrams) forward(m []byte, from netip.AddrPort, owned bool) {
	p := u.pod
	key := flightKey{from, maphash.Bytes(seed, m)}
	if f := u.flights[key]; f != nil {
		f.send()
		return
	}
	if !p.take() {
		p.node.Metrics.shed.Add(1)
		u.fail(m, from, dns.ServFail)
		return
	}
	f := &flight{u: u, key: key, question: bytes.Clone(m), began: time.Now(), owned: owned}
	u.flights[key] = f
	p.passed(udp)
	if err := f.start(); err != nil {
		f.failed(err)
	}
}

// origin returns the name server that a question from a client was sent to.
func (u *datagrams) origin(from netip.AddrPort) (netip.AddrPort, error) {
	if u.origins == nil {
		var err error
		if u.origins, err = u.pod.origins(); err != nil {
			return netip.AddrPort{}, err
		}
	}
	to, err := u.origins.UDP(from, u.at)
	if err == nil && to == u.at {
		err = errDirect
	}
	return to, err
}

// errDirect is the error for a question that was not redirected, and so has no name
// server.
var errDirect = errors.New("the question was sent to the proxy itself, not to a name server")

// drain takes no more questions. Where generations cannot share a port, the next one
// needs this one's.
func (u *datagrams) drain() {
	if !u.pod.node.ReusePort {
		u.close()
		return
	}
	u.run(func() {
		if !u.closed {
			// The kernel delivers only what this peer sends, which sends nothing. Answers
			// still go out from the port.
			_ = sockopt.Connect(u.fd, netip.AddrPortFrom(u.at.Addr(), 9))
			u.packet.Ready(poll.Readable) // what has come already
		}
	})
}

// run runs a function on the loop, and returns after it.
func (u *datagrams) run(f func()) {
	done := make(chan struct{})
	if u.loop.Post(func() { defer close(done); f() }) {
		select {
		case <-done:
		case <-u.loop.Done():
		}
	}
}

// close ends it, and returns when the port is free.
func (u *datagrams) close() {
	u.run(func() {
		if u.closed {
			return
		}
		u.closed = true
		for _, f := range u.flights {
			f.end()
		}
		u.packet.Close()
		u.origins.Close()
		u.origins = nil
	})
}

// flight is a question that waits for the answer of a name server, on a socket of its
// own: its port is one more thing that a forger would have to guess.
type flight struct {
	u        *datagrams
	key      flightKey
	reg      poll.Registration
	fd       int
	question []byte
	began    time.Time
	limit    poll.Deadline
	wrong    int
	owned    bool
	socket   bool       // of the pod's share
	server   netip.Addr // that has the question
}

func (f *flight) start() error {
	u := f.u
	p := u.pod
	to, err := u.origin(f.key.from)
	if err != nil {
		return err
	}
	f.server = to.Addr().Unmap()
	if f.socket = p.Sockets.Take(1); !f.socket {
		return syscall.EMFILE
	}
	fd := -1
	if err := p.Do(func() (err error) { fd, err = sockopt.Datagram(to.Addr()); return err }); err != nil {
		return err
	}
	err = p.mark(fd)
	if err == nil {
		err = sockopt.Connect(fd, to) // the kernel takes answers from there alone
	}
	if err == nil {
		err = u.loop.AddTo(&f.reg, fd, f)
	}
	if err != nil {
		sockopt.Close(fd)
		return err
	}
	f.fd = fd
	f.limit.Arm(u.loop, flightTime, f.late)
	f.send()
	return nil
}

// send sends the question. What cannot be sent is lost, as in a network.
func (f *flight) send() {
	if f.reg.Active() {
		_, _ = poll.Write(f.fd, f.question)
	}
}

// Ready implements poll.Handler.
func (f *flight) Ready(poll.Events) {
	b := f.u.loop.Buffer()
	for f.reg.Active() {
		n, err := poll.Read(f.fd, b)
		if errors.Is(err, poll.Again) {
			return
		}
		if err != nil {
			f.failed(err) // such as ICMP's: no name server is there
			return
		}
		f.take(b[:n])
	}
}

// take takes a message from the name server's address.
func (f *flight) take(m []byte) {
	p := f.u.pod
	if !dns.Answers(f.question, m) {
		p.node.Metrics.wrong.Add(1)
		if f.wrong++; f.wrong >= maxWrong {
			p.upstreamFailed(udp)
			f.end()
		}
		return
	}
	p.upstreamTook(udp, time.Since(f.began))
	if f.owned {
		dns.Exists(m)
	} else if a, ok := p.complete(f.u.scratch, f.server, f.question, m); ok {
		f.u.answer(f.question, a, f.key.from)
		f.end()
		return
	}
	f.u.packet.Send(m, f.key.from, f.u.at.Addr())
	f.end()
}

// failed answers that there is no answer, so that the client goes on to its next name
// server.
func (f *flight) failed(err error) {
	p := f.u.pod
	p.upstreamFailed(udp)
	if errors.Is(err, syscall.EPERM) && p.node.warned.CompareAndSwap(false, true) {
		p.node.Logger.Warn("look-ups cannot be passed on: give ztunnel the capability NET_ADMIN", "error", err)
	}
	p.node.Logger.Debug("a look-up cannot be passed on", "src.workload", p.Name, "error", err)
	rcode := byte(dns.ServFail)
	if errors.Is(err, errDirect) || errors.Is(err, syscall.ENOENT) {
		rcode = dns.Refused
	}
	f.u.fail(f.question, f.key.from, rcode)
	f.end()
}

// late ends a question without an answer. So it is without the proxy.
func (f *flight) late() {
	f.u.pod.upstreamFailed(udp)
	f.end()
}

func (f *flight) end() {
	f.limit.Stop()
	f.reg.Close()
	if f.socket {
		f.u.pod.Sockets.Give(1)
	}
	f.u.pod.give()
	delete(f.u.flights, f.key)
}
