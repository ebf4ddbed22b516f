package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects from within a namespace; the address is numeric. The
// descriptor is the caller's.
func Dial(ctx context.Context, sp *Space, network, address string) (*os.File, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: the address must be numeric, with a port", address)
	}
	kind := unix.SOCK_STREAM
	if strings.HasPrefix(network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	family, sa := sockaddr(to)
	fd, err := sp.Ns.Socket(family, kind, 0)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	f := os.NewFile(uintptr(fd), address)
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = f.Close()
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	if err := awaitConnect(ctx, fd); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return f, nil
}

func sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func awaitConnect(ctx context.Context, fd int) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}} //nolint:gosec // descriptors are small
		// Short turns, so that the end of ctx is seen.
		n, err := unix.Poll(p, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err != nil {
				return err
			}
			if code != 0 {
				return unix.Errno(code)
			}
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// DialConn is dialIn for those who want a connection.
func DialConn(ctx context.Context, sp *Space, network, address string) (net.Conn, error) {
	f, err := Dial(ctx, sp, network, address)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // the connection has its own copy
	return net.FileConn(f)
}

// HTTP is a client for one request at a time from within a namespace.
func HTTP(sp *Space, timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return DialConn(ctx, sp, network, address)
			},
		},
	}
}
