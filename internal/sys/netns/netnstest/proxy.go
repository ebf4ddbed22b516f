package netnstest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Proxy does what a node proxy does in a pod's namespace, without a tunnel:
// what the pod sends and what is sent to it is recorded and passed on in the
// clear, to the pod under the client's address.
type Proxy struct {
	t  testing.TB
	ns *netns.NS

	mu        sync.Mutex
	listeners []net.Listener
	conns     []net.Conn
	outbound  []netip.AddrPort // where captured connections wanted to go
	inbound   []netip.AddrPort
	closed    bool
}

// StartProxy listens on the proxy's ports in a pod.
func StartProxy(t testing.TB, ns *netns.NS) *Proxy {
	t.Helper()
	p := &Proxy{t: t, ns: ns}
	t.Cleanup(p.Stop)
	for port, serve := range map[uint16]func(*net.TCPConn){
		wellknown.PortOutbound: p.serveOutbound,
		wellknown.PortInbound:  p.serveInbound,
		wellknown.PortHBONE:    p.serveEcho,
	} {
		for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			l := Listen(t, ns, netip.AddrPortFrom(all, port), Proxied(wellknown.MarkProxy))
			p.listeners = append(p.listeners, l)
			go p.accept(l, serve)
		}
	}
	return p
}

// Stop closes listeners and connections, as if the proxy had been killed.
func (p *Proxy) Stop() {
	p.StopListening()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// StopListening closes the listeners and keeps the connections.
func (p *Proxy) StopListening() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.listeners {
		_ = l.Close()
	}
}

// Outbound is where captured connections of the pod wanted to go so far.
func (p *Proxy) Outbound() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]netip.AddrPort(nil), p.outbound...)
}

// Inbound is where captured connections to the pod wanted to go so far.
func (p *Proxy) Inbound() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]netip.AddrPort(nil), p.inbound...)
}

func (p *Proxy) accept(l net.Listener, serve func(*net.TCPConn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		p.own(c)
		go serve(c.(*net.TCPConn))
	}
}

func (p *Proxy) own(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
	}
	p.conns = append(p.conns, c)
}

func (p *Proxy) serveOutbound(c *net.TCPConn) {
	to, err := originalDst(c)
	if err != nil {
		_ = c.Close()
		return
	}
	p.mu.Lock()
	p.outbound = append(p.outbound, to)
	p.mu.Unlock()
	p.relay(c, netip.Addr{}, to)
}

func (p *Proxy) serveInbound(c *net.TCPConn) {
	to, err := originalDst(c)
	if err != nil {
		_ = c.Close()
		return
	}
	p.mu.Lock()
	p.inbound = append(p.inbound, to)
	p.mu.Unlock()
	p.relay(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), to)
}

func (p *Proxy) serveEcho(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.Close()
}

func (p *Proxy) relay(c *net.TCPConn, from netip.Addr, to netip.AddrPort) {
	up, err := Dial(p.ns, from, to, Proxied(wellknown.MarkProxy))
	if err != nil {
		_ = c.SetLinger(0) // the client sees a reset
		_ = c.Close()
		return
	}
	p.own(up)
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.CloseWrite()
	}()
	_, _ = io.Copy(c, up)
	_ = c.CloseWrite()
}

// Serve answers every connection with its client's address and then echoes.
// It returns where it listens.
func Serve(t testing.TB, ns *netns.NS, addr netip.AddrPort) netip.AddrPort {
	t.Helper()
	l := Listen(t, ns, addr, nil)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				fmt.Fprintf(c, "%s\n", c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// originalDst is where a redirected connection wanted to go.
func originalDst(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	v6 := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Is6()
	var to netip.AddrPort
	var errno error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			var sa unix.RawSockaddrInet6
			errno = getsockopt(fd, unix.SOL_IPV6, unsafe.Pointer(&sa), unsafe.Sizeof(sa))
			to = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), swap(sa.Port))
			return
		}
		var sa unix.RawSockaddrInet4
		errno = getsockopt(fd, unix.SOL_IP, unsafe.Pointer(&sa), unsafe.Sizeof(sa))
		to = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), swap(sa.Port))
	})
	return to, errors.Join(err, errno)
}

func getsockopt(fd uintptr, level int, to unsafe.Pointer, size uintptr) error {
	const soOriginalDst = 80 // of IPv4 and of IPv6
	n := uint32(size)        //nolint:gosec // the size of an address
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), soOriginalDst, uintptr(to), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func swap(port uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}
