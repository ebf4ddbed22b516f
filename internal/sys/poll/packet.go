package poll

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// packetBatch is how many datagrams one call receives or sends.
	packetBatch = 32
	// MaxPacket is the length in bytes of the longest datagram that a Packet
	// receives: what fits a batch into the loop's buffer. Longer ones are dropped.
	MaxPacket = BufferSize / packetBatch
	// packetTurn is how many batches one socket receives in one turn before others
	// get theirs.
	packetTurn = 8
	// maxPackets and maxPacketBytes bound what waits for room in the socket.
	maxPackets     = 1024
	maxPacketBytes = 256 << 10
	// pktinfoRoom is enough for the control message of both families.
	pktinfoRoom = 64
)

// Packet is a UDP socket on a loop. It receives and sends in batches: what is sent in
// one turn leaves together at its end.
type Packet struct {
	reg     Registration
	loop    *Loop
	receive func(p []byte, from netip.AddrPort, to netip.Addr)
	v6      bool
	dirty   bool // TurnEnd is going to be called

	readable, writable bool

	// What waits to be sent: the bytes of all, and where each begins.
	bytes []byte
	out   []packet
}

// packet is a datagram that waits.
type packet struct {
	to   netip.AddrPort
	from netip.Addr // invalid: the kernel chooses
	n    int
}

// NewPacket takes over fd, a bound and non-blocking UDP socket. receive is called with
// every datagram, where it comes from, and the local address that it was sent to; p is
// valid during the call. On error fd stays the caller's. It is called on the goroutine
// of l.
func NewPacket(l *Loop, fd int, receive func(p []byte, from netip.AddrPort, to netip.Addr)) (*Packet, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	p := &Packet{loop: l, receive: receive, writable: true}
	if _, p.v6 = sa.(*unix.SockaddrInet6); p.v6 {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	} else {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the local address of datagrams: %w", err)
	}
	return p, l.AddTo(&p.reg, fd, p)
}

// Close closes the socket. What waits is lost.
func (p *Packet) Close() {
	p.reg.Close()
	p.out, p.bytes = nil, nil
}

// Send has b sent at the end of the turn, from the local address given, or from one
// that the kernel chooses. The bytes are copied. It reports false when too much waits
// already, and b is dropped, as a network would drop it.
func (p *Packet) Send(b []byte, to netip.AddrPort, from netip.Addr) bool {
	if !p.reg.Active() || len(p.out) >= maxPackets || len(p.bytes)+len(b) > maxPacketBytes {
		return false
	}
	p.bytes = append(p.bytes, b...)
	p.out = append(p.out, packet{to, from, len(b)})
	if !p.dirty {
		p.dirty = true
		p.loop.EndTurnOf(p)
	}
	return true
}

// Ready implements Handler.
func (p *Packet) Ready(ev Events) {
	if ev&Writable != 0 {
		p.writable = true
		p.flush()
	}
	if ev&(Readable|Failed) != 0 {
		p.readable = true
	}
	for range packetTurn {
		if !p.readable || !p.reg.Active() {
			return
		}
		p.read()
	}
	p.reg.Again(Readable)
}

// TurnEnd implements TurnEnder.
func (p *Packet) TurnEnd() {
	p.dirty = false
	p.flush()
}

// mmsghdr is struct mmsghdr of the kernel.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// packets is the memory of one batch. A loop has one, for all of its sockets: the
// kernel gets pointers to it only during a call.
type packets struct {
	msgs    [packetBatch]mmsghdr
	names   [packetBatch]unix.RawSockaddrInet6
	control [packetBatch][pktinfoRoom]byte
	iovs    [packetBatch]unix.Iovec
}

type packetsKey struct{}

func (l *Loop) packets() *packets {
	return l.Value(packetsKey{}, func() any { return &packets{} }).(*packets)
}

// set prepares message i with the bytes b, and room or content for its name and its
// control message.
func (m *packets) set(i int, b []byte, name, control int) {
	v, h := &m.iovs[i], &m.msgs[i].hdr
	*v = unix.Iovec{}
	if len(b) > 0 {
		v.Base = &b[0]
		v.SetLen(len(b))
	}
	*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&m.names[i])), Namelen: uint32(name), Iov: v}
	h.SetIovlen(1)
	if control > 0 {
		h.Control = &m.control[i][0]
		h.SetControllen(control)
	}
}

func (p *Packet) read() {
	m, buf := p.loop.packets(), p.loop.Buffer()
	for i := range m.msgs {
		m.set(i, buf[i*MaxPacket:(i+1)*MaxPacket], int(unsafe.Sizeof(m.names[i])), pktinfoRoom)
	}
	n, err := p.mmsg(unix.SYS_RECVMMSG, m, packetBatch)
	if err != nil || n < packetBatch {
		p.readable = false
	}
	for i := range n {
		h := &m.msgs[i].hdr
		if h.Flags&unix.MSG_TRUNC != 0 {
			continue
		}
		from, ok := m.name(i)
		if ok && p.reg.Active() {
			p.receive(buf[i*MaxPacket:i*MaxPacket+int(m.msgs[i].n)], from, m.local(i))
		}
	}
}

func (p *Packet) flush() {
	m := p.loop.packets()
	for len(p.out) > 0 && p.writable && p.reg.Active() {
		n, at := min(len(p.out), packetBatch), 0
		for i, o := range p.out[:n] {
			name := m.setName(i, o.to, p.v6)
			m.set(i, p.bytes[at:at+o.n], name, m.setLocal(i, o.from, p.v6))
			at += o.n
		}
		sent, err := p.mmsg(unix.SYS_SENDMMSG, m, n)
		switch {
		case IsAgain(err):
			p.writable = false
			return
		case err != nil:
			sent = 1 // the first one cannot be sent: no route, or too long
		}
		p.drop(sent)
	}
}

// drop forgets the first n datagrams.
func (p *Packet) drop(n int) {
	k := 0
	for _, o := range p.out[:n] {
		k += o.n
	}
	p.bytes = p.bytes[:copy(p.bytes, p.bytes[k:])]
	p.out = p.out[:copy(p.out, p.out[n:])]
}

func (p *Packet) mmsg(call uintptr, m *packets, n int) (int, error) {
	for {
		r, _, e := unix.RawSyscall6(call, uintptr(p.reg.fd), uintptr(unsafe.Pointer(&m.msgs[0])), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch e {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// name returns where message i came from.
func (m *packets) name(i int) (netip.AddrPort, bool) {
	raw := &m.names[i]
	port := func(v uint16) uint16 { b := (*[2]byte)(unsafe.Pointer(&v)); return uint16(b[0])<<8 | uint16(b[1]) }
	switch raw.Family {
	case unix.AF_INET:
		r4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		return netip.AddrPortFrom(netip.AddrFrom4(r4.Addr), port(r4.Port)), true
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(raw.Addr).Unmap(), port(raw.Port)), true
	}
	return netip.AddrPort{}, false
}

// setName sets where message i goes, and returns the length of the name.
func (m *packets) setName(i int, to netip.AddrPort, v6 bool) int {
	port := to.Port()
	big := [2]byte{byte(port >> 8), byte(port)}
	if v6 {
		m.names[i] = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: *(*uint16)(unsafe.Pointer(&big)), Addr: to.Addr().As16()}
		return unix.SizeofSockaddrInet6
	}
	r4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&m.names[i]))
	*r4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: *(*uint16)(unsafe.Pointer(&big)), Addr: to.Addr().Unmap().As4()}
	return unix.SizeofSockaddrInet4
}

// local returns the local address that message i was sent to, invalid when the
// kernel did not say.
func (m *packets) local(i int) netip.Addr {
	b := m.control[i][:min(m.msgs[i].hdr.Controllen, pktinfoRoom)]
	if len(b) < unix.SizeofCmsghdr {
		return netip.Addr{}
	}
	h, data := (*unix.Cmsghdr)(unsafe.Pointer(&b[0])), b[unix.CmsgLen(0):]
	switch {
	case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		return netip.AddrFrom4((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Addr)
	case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		return netip.AddrFrom16((*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Addr).Unmap()
	}
	return netip.Addr{}
}

// setLocal sets the local address of message i, and returns the length of the control
// message: 0 without one.
func (m *packets) setLocal(i int, from netip.Addr, v6 bool) int {
	if !from.IsValid() {
		return 0
	}
	b := &m.control[i]
	clear(b[:])
	h, data := (*unix.Cmsghdr)(unsafe.Pointer(&b[0])), b[unix.CmsgLen(0):]
	if v6 {
		h.Level, h.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		(*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Addr = from.As16()
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	h.Level, h.Type = unix.SOL_IP, unix.IP_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	(*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Spec_dst = from.Unmap().As4()
	return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
}
