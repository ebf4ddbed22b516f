package sockopt

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSockets(t *testing.T) {
	for _, own := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(own, func(t *testing.T) {
			ln, err := Listen(netip.MustParseAddrPort(own), ListenOptions{ReusePort: true, V6Only: true})
			if err != nil {
				t.Fatal(err)
			}
			defer Close(ln)
			addr, err := LocalAddr(ln)
			if err != nil || addr.Port() == 0 {
				t.Fatalf("%s, %v", addr, err)
			}
			second, err := Listen(addr, ListenOptions{ReusePort: true, V6Only: true})
			if err != nil {
				t.Fatalf("two generations: %v", err)
			}
			Close(second)
			fd, err := Stream(addr.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer Close(fd)
			if err := Connect(fd, addr); err != nil {
				t.Fatal(err)
			}
			for _, f := range []func() error{
				func() error { return NoDelay(fd) },
				func() error { return KeepAlive(fd, 180*time.Second, 1500*time.Millisecond, 9) },
				func() error { return UserTimeout(fd, time.Minute) },
				func() error { return SocketError(fd) },
			} {
				if err := f(); err != nil {
					t.Error(err)
				}
			}
			if n, _ := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL); n != 2 {
				t.Errorf("interval of 1.5 s became %d s", n)
			}
			if peer, err := PeerAddr(fd); err != nil || peer != addr {
				t.Errorf("peer %s, %v", peer, err)
			}
			// Nothing redirected it.
			if _, err := OriginalDst(fd); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOPROTOOPT) {
				t.Errorf("original destination: %v", err)
			}
		})
	}
}

func TestMappedAddresses(t *testing.T) {
	ln, err := Listen(netip.MustParseAddrPort("[::]:0"), ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer Close(ln)
	addr, err := LocalAddr(ln)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(addr.Port())})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	pfd := []unix.PollFd{{Fd: int32(ln), Events: unix.POLLIN}}
	if _, err := unix.Poll(pfd, 10_000); err != nil {
		t.Fatal(err)
	}
	fd, _, err := unix.Accept(ln)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(fd)
	if peer, err := PeerAddr(fd); err != nil || peer.String() != c.LocalAddr().String() {
		t.Errorf("peer %s is %s, %v", peer, c.LocalAddr(), err)
	}
}
