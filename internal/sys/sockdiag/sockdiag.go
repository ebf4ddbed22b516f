// Package sockdiag lists the TCP sockets of a network namespace, whatever
// process has them, and ends connections and listening sockets of others.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone is returned for a socket that has ended.
var ErrGone = errors.New("the socket has ended")

// ErrUnsupported is returned by Destroy where the kernel was built without
// CONFIG_INET_DIAG_DESTROY.
var ErrUnsupported = errors.New("this kernel cannot end sockets of other processes (CONFIG_INET_DIAG_DESTROY)")

// States is a set of the kernel's TCP states, one bit each.
type States uint32

// The sets in use; the numbers are those of enum tcp_state.
const (
	Listening States = 1 << 10
	// Connected are connections of which at least one direction is open.
	// TIME_WAIT is not among them: no process has such a socket any more.
	Connected States = 1<<1 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11
	// Opening are connections whose handshake is under way, on either side.
	Opening States = 1<<2 | 1<<3
)

// closes are the states that a socket which this side has closed can have.
const closes States = 1<<4 | 1<<5 | 1<<9 | 1<<11

// Socket is one TCP socket. IPv4-mapped addresses are IPv4.
type Socket struct {
	Local, Remote netip.AddrPort
	Listens       bool
	// Orphaned sockets were closed by their process. The kernel brings them to
	// their end.
	Orphaned bool
	// UID owns the socket, as the initial user namespace has it.
	UID uint32
	// Inode is that of the descriptor; 0 when no process has one.
	Inode uint32

	family byte
	id     [idLen]byte // as the kernel gave it, with the cookie
}

// Key names one socket for as long as the machine runs.
func (s *Socket) Key() uint64 { return binary.NativeEndian.Uint64(s.id[idLen-8:]) }

// Lengths of the kernel's structures, in bytes (linux/inet_diag.h).
const (
	headerLen = 16
	idLen     = 48
	reqLen    = 8 + idLen
	msgLen    = 4 + idLen + 20

	byFamily = 20 // SOCK_DIAG_BY_FAMILY
	destroy  = 21 // SOCK_DESTROY
)

const (
	// bufLen is what one answer may have; the kernel fills up to 32 KiB.
	bufLen = 64 << 10
	// timeout bounds the wait for the kernel, which answers at once.
	timeout = 5 * time.Second
)

// Diag asks about the namespace in which it was opened. It is used by one
// goroutine at a time.
type Diag struct {
	fd  int
	seq uint32
	buf []byte
}

// Open starts in the network namespace of the calling thread.
func Open() (*Diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
	}
	return &Diag{fd: fd, buf: make([]byte, bufLen)}, nil
}

// Close ends it.
func (d *Diag) Close() { _ = unix.Close(d.fd) }

// List returns the sockets in some of the states, of both families.
func (d *Diag) List(states States) ([]Socket, error) {
	var all []Socket
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := d.ask(byFamily, unix.NLM_F_DUMP, family, states, [idLen]byte{}, func(p []byte) {
			if s, ok := parse(p); ok {
				all = append(all, s)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("listing sockets: %w", err)
		}
	}
	return all, nil
}

// Find reports whether the socket still exists.
func (d *Diag) Find(s *Socket) (bool, error) {
	found := false
	err := d.ask(byFamily, 0, s.family, ^States(0), s.id, func([]byte) { found = true })
	if errors.Is(err, ErrGone) {
		err = nil
	}
	return found, err
}

// Destroy ends the socket: its owner's calls fail with ECONNABORTED, and a
// peer gets a reset. It needs CAP_NET_ADMIN in the namespace.
func (d *Diag) Destroy(s *Socket) error {
	states := Connected
	if s.Listens {
		states = Listening
	}
	return d.ask(destroy, unix.NLM_F_ACK, s.family, states, s.id, func([]byte) {})
}

// ask sends one request and calls got with each answer.
func (d *Diag) ask(kind, flags uint16, family byte, states States, id [idLen]byte, got func([]byte)) error {
	d.seq++
	m := make([]byte, headerLen+reqLen)
	order := binary.NativeEndian
	order.PutUint32(m, uint32(len(m)))
	order.PutUint16(m[4:], kind)
	order.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	order.PutUint32(m[8:], d.seq)
	m[headerLen], m[headerLen+1] = family, unix.IPPROTO_TCP
	order.PutUint32(m[headerLen+4:], uint32(states))
	copy(m[headerLen+8:], id[:])
	if err := unix.Sendto(d.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if err == unix.EINTR { //nolint:errorlint // a system call's own
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		over, err := read(d.buf[:n], d.seq, flags&unix.NLM_F_DUMP != 0, got)
		if over || err != nil {
			return err
		}
	}
}

// read goes through the messages of one answer. It reports whether the
// request is over.
func read(p []byte, seq uint32, dump bool, got func([]byte)) (over bool, err error) {
	order := binary.NativeEndian
	for len(p) >= headerLen {
		n := int(order.Uint32(p))
		if n < headerLen || n > len(p) {
			return true, fmt.Errorf("netlink message of %d bytes in %d", n, len(p))
		}
		body, kind, at := p[headerLen:n], order.Uint16(p[4:]), order.Uint32(p[8:])
		p = p[min((n+3)&^3, len(p)):]
		switch {
		case at != seq: // the rest of an earlier request
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR:
			return true, failure(body)
		default:
			got(body)
			over = over || !dump
		}
	}
	return over, nil
}

// failure reads the kernel's error; nil is a success that was asked for.
func failure(body []byte) error {
	if len(body) < 4 {
		return errors.New("netlink error without a number")
	}
	switch e := unix.Errno(-int32(binary.NativeEndian.Uint32(body))); e {
	case 0:
		return nil
	case unix.ENOENT, unix.ESTALE:
		return ErrGone
	case unix.EOPNOTSUPP:
		return ErrUnsupported
	default:
		return e
	}
}

// parse reads a struct inet_diag_msg.
func parse(p []byte) (Socket, bool) {
	if len(p) < msgLen {
		return Socket{}, false
	}
	s := Socket{family: p[0], Listens: States(1)<<p[1] == Listening}
	copy(s.id[:], p[4:])
	s.Local = addrPort(p[0], p[8:], p[4:])
	s.Remote = addrPort(p[0], p[24:], p[6:])
	rest := p[4+idLen:]
	s.UID = binary.NativeEndian.Uint32(rest[12:])
	s.Inode = binary.NativeEndian.Uint32(rest[16:])
	s.Orphaned = s.Inode == 0 && States(1)<<p[1]&closes != 0
	return s, true
}

func addrPort(family byte, addr, port []byte) netip.AddrPort {
	a := netip.AddrFrom16([16]byte(addr[:16])).Unmap()
	if family == unix.AF_INET {
		a = netip.AddrFrom4([4]byte(addr[:4]))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}
