package nft

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// dialFrom connects from an address and a port.
func dialFrom(ns *netns.NS, from, to netip.AddrPort, set func(int) error) (net.Conn, error) {
	return netnstest.Dial(ns, netip.Addr{}, to, func(fd int) error {
		if set != nil {
			if err := set(fd); err != nil {
				return err
			}
		}
		var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(from.Addr().AsSlice()[:4]), Port: int(from.Port())}
		if from.Addr().Is6() {
			sa = &unix.SockaddrInet6{Addr: from.Addr().As16(), Port: int(from.Port())}
		}
		return unix.Bind(fd, sa)
	})
}

// serveRemotes echoes, and reports the client's end of each connection.
func serveRemotes(t *testing.T, ns *netns.NS, at netip.Addr) (netip.AddrPort, <-chan netip.AddrPort) {
	t.Helper()
	const enough = 16
	remotes := make(chan netip.AddrPort, enough)
	l := netnstest.Listen(t, ns, netip.AddrPortFrom(at, 0), nil)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			remotes <- c.RemoteAddr().(*net.TCPAddr).AddrPort()
			go func() {
				defer func() { _ = c.Close() }()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = c.Write([]byte(line))
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), remotes
}

// The proxy connects under the client's address, from a port that the client
// may take for its next connection, or has already.
func TestClientAndProxyMayHaveTheSamePort(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		server, remotes := serveRemotes(t, pod, f.pod)
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		conns := map[string]net.Conn{}
		open := func(name string, c net.Conn, err error) netip.AddrPort {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			t.Cleanup(func() { _ = c.Close() })
			conns[name] = c
			mustEcho(t, name, map[string]net.Conn{name: c})
			return <-remotes
		}
		c, err := dialFrom(peer, netip.AddrPortFrom(f.peer, 0), server, nil)
		q := open("the first", c, err)
		c, err = dialFrom(peer, netip.AddrPortFrom(f.peer, q.Port()), server, nil)
		open("from the port that the proxy has taken", c, err)
		p := conns["the first"].LocalAddr().(*net.TCPAddr).AddrPort()
		c, err = dialFrom(pod, netip.AddrPortFrom(f.peer, p.Port()), server, netnstest.Proxied(wellknown.MarkProxy))
		open("by the proxy from a port that the client has", c, err)
		mustEcho(t, "all together", conns)
		if got := proxy.Inbound(); len(got) != 2 {
			t.Errorf("the proxy got %v, want two connections", got)
		}
	})
}

// While a pod leaves, its connections are no longer captured, and a client may use a
// port for one that the proxy has, or had a moment ago, for another. Such a connection
// is one of those that the pod stays for, and no such connection is made any more when
// it goes.
func TestPortOfTheProxyWhileThePodLeaves(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		server, remotes := serveRemotes(t, pod, f.pod)
		netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		open := func(from *netns.NS, at netip.AddrPort, set func(int) error) (net.Conn, netip.AddrPort) {
			t.Helper()
			c, err := dialFrom(from, at, server, set)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			return c, <-remotes
		}
		remaining := func(want int) {
			t.Helper()
			netnstest.Eventually(t, fmt.Sprintf("%d connections to wait for", want), func() bool {
				n, err := Connections(pod)
				if err != nil {
					t.Fatal(err)
				}
				return n == want
			})
		}
		alive, its := open(pod, netip.AddrPortFrom(f.peer, 0), netnstest.Proxied(wellknown.MarkProxy))
		ended, past := open(pod, netip.AddrPortFrom(f.peer, 0), netnstest.Proxied(wellknown.MarkProxy))
		apply(t, pod, Config{IPv6: true, Quiesce: true})
		_ = ended.Close()
		remaining(0)
		free, seen := open(peer, past, nil)
		if seen != past {
			t.Errorf("the program sees %s, want the client's own end %s", seen, past)
		}
		mustEcho(t, "by the proxy", map[string]net.Conn{"": alive})
		taken, seen := open(peer, its, nil)
		if seen == its {
			t.Fatalf("two connections of %s", its)
		}
		remaining(1)
		_ = taken.Close()
		remaining(0)
		if err := Remove(pod); err != nil {
			t.Fatal(err)
		}
		mustEcho(t, "under the port that was free again", map[string]net.Conn{"": free})
	})
}
