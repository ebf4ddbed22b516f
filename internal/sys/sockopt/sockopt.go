// Package sockopt makes TCP sockets and sets what the proxies need on them:
// marks, transparency, keepalive, and the addresses behind redirection.
package sockopt

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST of linux/netfilter_ipv4.h and, with the
// same value, IP6T_SO_ORIGINAL_DST: where a connection was going before
// netfilter redirected it.
const soOriginalDst = 80

// OriginalDst returns where the accepted connection fd was going before
// netfilter redirected it. The error is ENOENT (errors.Is) when it was not
// redirected, or connection tracking does not know it.
func OriginalDst(fd int) (netip.AddrPort, error) {
	local, err := LocalAddr(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return OriginalDstOf(fd, !local.Addr().Is4())
}

// OriginalDstOf is OriginalDst for a connection whose family is known: v6 is false for
// IPv4, also on a socket of IPv6.
func OriginalDstOf(fd int, v6 bool) (netip.AddrPort, error) {
	var raw unix.RawSockaddrInet6 // larger than RawSockaddrInet4
	level := uintptr(unix.SOL_IP)
	if v6 {
		level = unix.SOL_IPV6
	}
	size := uint32(unsafe.Sizeof(raw))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), level, soOriginalDst,
		uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt SO_ORIGINAL_DST", e)
	}
	switch raw.Family {
	case unix.AF_INET:
		r4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&raw))
		return netip.AddrPortFrom(netip.AddrFrom4(r4.Addr), ntohs(r4.Port)), nil
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(raw.Addr).Unmap(), ntohs(raw.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("original destination of address family %d", raw.Family)
}

func ntohs(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}

// LocalAddr returns the socket's own address, IPv4-mapped ones as IPv4.
func LocalAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	return addrPort(sa), nil
}

// PeerAddr returns the address the socket is connected to, IPv4-mapped ones as
// IPv4.
func PeerAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getpeername", err)
	}
	return addrPort(sa), nil
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// setInt leaves the scheduler out, because the call never waits: entering and leaving
// a system call the usual way costs as much as this one.
func setInt(fd, level, opt, v int, name string) error {
	n := int32(v) //nolint:gosec // options are small
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(&n)), unsafe.Sizeof(n), 0)
	if e != 0 { // the name is put together only then
		return os.NewSyscallError("setsockopt "+name, e)
	}
	return nil
}

// Mark sets the firewall mark of what the socket sends (CAP_NET_ADMIN).
func Mark(fd int, mark uint32) error {
	return setInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark), "SO_MARK")
}

// Transparent lets the socket be bound to, and accept for, addresses that are
// not local (CAP_NET_ADMIN); v6 says which family the socket has.
func Transparent(fd int, v6 bool) error {
	if v6 {
		return setInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT")
	}
	return setInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1, "IP_TRANSPARENT")
}

// FreeBind lets the socket be bound to an address that does not exist yet.
func FreeBind(fd int, v6 bool) error {
	if v6 {
		return setInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1, "IPV6_FREEBIND")
	}
	return setInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1, "IP_FREEBIND")
}

// BindLate makes a bind without a port choose none until the socket connects
// (Linux 4.2). The kernel then looks for a port that is free for the whole
// pair of addresses. Without it, the port must be free for every destination,
// and no other connection of the namespace can have it.
func BindLate(fd int) error {
	// IPPROTO_IP for both families: the kernel keeps the flag there.
	return setInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT")
}

// SpreadPorts has connect choose among all ports alike (Linux 6.8). By default
// it looks at every second port first. Once half of the ports are taken, each
// connection has the kernel look at all of that half, which takes milliseconds.
func SpreadPorts(fd int) error {
	// A range of the socket's own does it. 1 to 65535 (the low and the high half) is wider than the
	// namespace's, so that the namespace's holds.
	return setInt(fd, unix.SOL_IP, unix.IP_LOCAL_PORT_RANGE, -1<<16|1, "IP_LOCAL_PORT_RANGE")
}

// NoPortLeft reports whether a bind or connect failed because every port that
// the socket could have is taken.
func NoPortLeft(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE)
}

// UrgentInline leaves urgent bytes (MSG_OOB) where they are in the stream. By
// default the kernel takes them out, and read never returns them. Accepted
// sockets inherit it.
func UrgentInline(fd int) error {
	return setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1, "SO_OOBINLINE")
}

// ReusePort lets several sockets listen on one address: two generations of a
// proxy side by side.
func ReusePort(fd int) error {
	return setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT")
}

// ReuseAddr lets the socket be bound although connections of a predecessor
// are in TIME_WAIT.
func ReuseAddr(fd int) error {
	return setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR")
}

// NoDelay sends small segments at once.
func NoDelay(fd int) error {
	return setInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY")
}

// KeepAlive has the kernel probe an idle connection: first after idle, then
// every interval, and give it up after count unanswered probes. Times are
// rounded up to seconds.
func KeepAlive(fd int, idle, interval time.Duration, count int) error {
	return errors.Join(
		setInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE, seconds(idle), "TCP_KEEPIDLE"),
		setInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL, seconds(interval), "TCP_KEEPINTVL"),
		setInt(fd, unix.SOL_TCP, unix.TCP_KEEPCNT, count, "TCP_KEEPCNT"),
		setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, "SO_KEEPALIVE"),
	)
}

func seconds(d time.Duration) int { return max(1, int((d+time.Second-1)/time.Second)) }

// UserTimeout gives a connection up when sent data stays unacknowledged for d.
func UserTimeout(fd int, d time.Duration) error {
	return setInt(fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()), "TCP_USER_TIMEOUT")
}

// ListenOptions says how a listening socket is made.
type ListenOptions struct {
	Transparent bool
	ReusePort   bool
	// V6Only keeps an IPv6 socket from accepting IPv4.
	V6Only bool
	// Mark is the firewall mark; 0 for none.
	Mark uint32
	// Owner is the user that the kernel has as the socket's owner, and with
	// whose sockets it can share its address; 0 for the process's own. Another
	// one needs CAP_CHOWN: see ErrOwner.
	Owner uint32
	// Backlog is how many connections may wait to be accepted; 0 means the
	// kernel's maximum (net.core.somaxconn).
	Backlog int
}

// Stream makes a non-blocking, close-on-exec TCP socket of the address's family
// in the network namespace of the calling thread.
func Stream(a netip.Addr) (int, error) {
	family := unix.AF_INET
	if !a.Is4() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// Listen makes a non-blocking TCP socket that listens on addr, in the network
// namespace of the calling thread.
func Listen(addr netip.AddrPort, o ListenOptions) (int, error) {
	fd, err := Stream(addr.Addr())
	if err != nil {
		return -1, err
	}
	if err := listen(fd, addr, o); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listening on %s: %w", addr, err)
	}
	return fd, nil
}

// Datagram makes a non-blocking, close-on-exec UDP socket of the address's family in
// the network namespace of the calling thread.
func Datagram(a netip.Addr) (int, error) {
	family := unix.AF_INET
	if !a.Is4() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// ListenDatagram makes a UDP socket that is bound to addr, in the network namespace of
// the calling thread. Of the options, Transparent and Backlog do not concern it.
func ListenDatagram(addr netip.AddrPort, o ListenOptions) (int, error) {
	fd, err := Datagram(addr.Addr())
	if err != nil {
		return -1, err
	}
	o.Transparent = false
	if err := bind(fd, addr, o); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("binding to %s: %w", addr, err)
	}
	return fd, nil
}

// ErrOwner is returned when a socket cannot be given its owner.
var ErrOwner = errors.New("the socket cannot be given an owner (CAP_CHOWN is missing)")

// Inode is the number by which the kernel lists a socket.
func Inode(fd int) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return uint32(st.Ino), nil
}

func listen(fd int, addr netip.AddrPort, o ListenOptions) error {
	if err := ReuseAddr(fd); err != nil {
		return err
	}
	if err := bind(fd, addr, o); err != nil {
		return err
	}
	backlog := o.Backlog
	if backlog <= 0 {
		backlog = 1 << 16 // the kernel clamps it to net.core.somaxconn
	}
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

func bind(fd int, addr netip.AddrPort, o ListenOptions) error {
	v6 := !addr.Addr().Is4()
	if o.Owner != 0 {
		if err := unix.Fchown(fd, int(o.Owner), -1); err != nil {
			return fmt.Errorf("%w: %w", ErrOwner, err)
		}
	}
	if v6 {
		only := 0
		if o.V6Only {
			only = 1
		}
		if err := setInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only, "IPV6_V6ONLY"); err != nil {
			return err
		}
	}
	if o.ReusePort {
		if err := ReusePort(fd); err != nil {
			return err
		}
	}
	if o.Transparent {
		if err := Transparent(fd, v6); err != nil {
			return err
		}
		if v6 && !o.V6Only {
			if err := Transparent(fd, false); err != nil {
				return err
			}
		}
	}
	if o.Mark != 0 {
		if err := Mark(fd, o.Mark); err != nil {
			return err
		}
	}
	return Bind(fd, addr)
}

// Bind gives the socket its own address.
func Bind(fd int, addr netip.AddrPort) error {
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr)))
}

// Connect starts to connect a non-blocking socket. It returns nil also when
// that takes time: the socket is writable when it is over, and SocketError
// then says how it went.
func Connect(fd int, to netip.AddrPort) error {
	for {
		switch e := connect(fd, to); e {
		case 0, unix.EINPROGRESS, unix.EALREADY, unix.EISCONN:
			return nil
		case unix.EINTR:
		default:
			return os.NewSyscallError("connect", e)
		}
	}
}

// ConnectNow is Connect that reports whether the connection exists already, as one within
// the machine does when the call returns. The error may also be that of its end.
func ConnectNow(fd int, to netip.AddrPort) (connected bool, err error) {
	if err := Connect(fd, to); err != nil {
		return false, err
	}
	// A call that began to connect returns EINPROGRESS in any case. The second one has the
	// result.
	switch e := connect(fd, to); e {
	case 0, unix.EISCONN:
		return true, nil
	case unix.EALREADY, unix.EINPROGRESS, unix.EINTR:
		return false, nil
	default:
		return false, e
	}
}

// connect is one call of a non-blocking socket. It leaves the scheduler out.
func connect(fd int, to netip.AddrPort) unix.Errno {
	// Ports are in the order of the network.
	port := ntohs(to.Port())
	var e unix.Errno
	if to.Addr().Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: to.Addr().As4()}
		_, _, e = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
	} else {
		sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: to.Addr().As16()}
		_, _, e = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet6)
	}
	return e
}

// SocketError takes the pending error of the socket, nil if there is none.
func SocketError(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_ERROR", err)
	}
	if n != 0 {
		return syscall.Errno(n)
	}
	return nil
}

// Close closes a socket that nothing else owns.
func Close(fd int) { _ = unix.Close(fd) }
