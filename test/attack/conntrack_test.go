package attack

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft/nfttest"
	"github.com/ambit-mesh/ambit/test/rig"
)

// listen listens in a pod as one of its programs would.
func listen(t *testing.T, ns *netns.NS, at netip.Addr, port uint16) net.Listener {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, port).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// settings writes the times of connection tracking in a pod, to one second.
func settings(t *testing.T, ns *netns.NS) {
	t.Helper()
	if err := ns.Do(func() error {
		for _, state := range []string{"close_wait", "fin_wait", "last_ack", "established", "max_retrans", "unacknowledged"} {
			if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_"+state, []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

const lateAnswer = "LATEANSWER"

// TestHalfClosedConnectionThatIsSilent has no attacker: connection tracking
// forgets a connection of which one side has ended after a minute, or sooner if
// the pod has it so. What comes afterwards must arrive, and not be read between
// the pods. Either side ends first.
func TestHalfClosedConnectionThatIsSilent(t *testing.T) {
	t.Parallel()
	world := rig.Start(t, lab.Config{YAML: rig.Shop})
	server := world.Netns(rig.Web)
	clients := map[string]lab.Where{"near": rig.Near, "far": rig.Far, "stranger": rig.Stranger}
	for _, pod := range []lab.Where{rig.Web, rig.Near, rig.Far} {
		settings(t, world.Netns(pod))
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		web := w.Pod("shop", "web", v6)
		capture, err := w.Capture(t.Context(), lateAnswer)
		if err != nil {
			t.Fatal(err)
		}
		ports := map[bool]uint16{false: 7000, true: 7001} // whether the server ends first
		speak := make(chan struct{})
		received := make(chan string, len(clients))
		for first, port := range ports {
			l := listen(t, server, web, port)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go lateServer(c.(*net.TCPConn), first, speak, received)
				}
			}()
		}
		type open struct {
			name  string
			first bool
			c     net.Conn
		}
		var all []open
		for name, where := range clients {
			for first, port := range ports {
				c := w.MustDial(where, netip.AddrPortFrom(web, port))
				_, _ = io.WriteString(c, "hello")
				if !first {
					_ = c.(*net.TCPConn).CloseWrite()
				}
				all = append(all, open{name, first, c})
			}
		}
		// The kernel's own time passes here, and with it the pods' settings.
		time.Sleep(4 * time.Second)
		close(speak)
		for _, o := range all {
			_ = o.c.SetDeadline(time.Now().Add(time.Minute))
			if o.first {
				_, _ = io.WriteString(o.c, lateAnswer)
				_ = o.c.(*net.TCPConn).CloseWrite()
				continue
			}
			if b, err := io.ReadAll(o.c); err != nil || string(b) != lateAnswer {
				t.Errorf("%s got %q, %v", o.name, b, err)
			}
		}
		for range clients {
			select {
			case got := <-received:
				if got != "hello"+lateAnswer {
					t.Errorf("the server that ended first got %q", got)
				}
			case <-time.After(time.Minute):
				t.Fatal("the server that ended first waits in vain for what a client sends late")
			}
		}
		for _, f := range capture.Stop().Between([]netip.Addr{w.Pod("shop", "far", v6)}, []netip.Addr{web}) {
			if f.Marks > 0 {
				t.Errorf("an answer is readable between the nodes: %+v", f)
			}
		}
	})
}

func lateServer(c *net.TCPConn, endsFirst bool, speak <-chan struct{}, received chan<- string) {
	defer func() { _ = c.Close() }()
	if endsFirst {
		_ = c.CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil {
			b = fmt.Append(b, err)
		}
		received <- string(b)
		return
	}
	_, _ = io.Copy(io.Discard, c)
	<-speak
	_, _ = io.WriteString(c, lateAnswer)
}

// TestManyConnectionsFromChosenPorts has no attacker: a client binds its
// connections to its address, and the kernel gives it and the proxy, which
// connects under the same address, ports from the same range.
func TestManyConnectionsFromChosenPorts(t *testing.T) {
	t.Parallel()
	world := rig.Start(t, lab.Config{YAML: rig.Shop})
	street := world.Netns(rig.Stranger)
	// A small range makes a few connections meet as often as thousands would.
	for _, ns := range []*netns.NS{street, world.Netns(rig.Web)} {
		if err := ns.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40999"), 0)
		}); err != nil {
			t.Fatal(err)
		}
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		from, to := w.Pod("street", "stranger", v6), netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
		const count = 300
		var held []net.Conn
		echo := func(c net.Conn) error {
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			_, err := io.ReadFull(c, make([]byte, 1))
			return err
		}
		for i := range count {
			var c net.Conn
			err := street.Do(func() (err error) {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: time.Minute}
				c, err = d.DialContext(t.Context(), "tcp", to.String())
				return err
			})
			if err == nil {
				defer func() { _ = c.Close() }()
				err = echo(c)
			}
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				continue
			}
			held = append(held, c)
		}
		for i, c := range held {
			if err := echo(c); err != nil {
				t.Errorf("connection %d, after all: %v", i, err)
			}
		}
	})
}

// TestPodThatTranslates has no attacker: a pod with rules of its own, such as a
// load balancer's, behaves the same whether they are older than its enrolment or
// not, and when somebody has deleted the mesh's table.
func TestPodThatTranslates(t *testing.T) {
	t.Parallel()
	world := rig.Start(t, lab.Config{YAML: rig.Shop + rig.ServerObject("street", "shelf", "node1", "")})
	web := world.Netns(rig.Web)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		pod := w.Pod("shop", "web", v6)
		port := map[bool]uint16{false: 8443, true: 8444}[v6]
		nfttest.Forward(t, web, netip.AddrPortFrom(pod, port), netip.AddrPortFrom(w.Pod("street", "shelf", v6), 8080))
		passes := func(when string) {
			t.Helper()
			a, err := w.Get(rig.Stranger, netip.AddrPortFrom(pod, port))
			if err != nil || a.Name != "shelf" || a.Caller != pod {
				t.Errorf("%s: %+v, %v", when, a, err)
			}
		}
		passes("rules after enrolment")
		conn, err := nftables.New(nftables.WithNetNSFd(int(web.File().Fd())))
		if err != nil {
			t.Fatal(err)
		}
		conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "ambit"})
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		// The agent looks at its pods every half minute.
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			list, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("the table is not written anew: %d tables, %v", len(list), err)
			}
			if len(list) == 2 {
				break
			}
		}
		passes("table written anew")
		w.MustGet(rig.Far, netip.AddrPortFrom(pod, 8080))
	})
}

// TestPodThatRoutes has no attacker: a pod passes on the connections of a
// machine inside of it, such as a VPN's client, and they are not taken for
// connections to the pod.
func TestPodThatRoutes(t *testing.T) {
	t.Parallel()
	world := rig.Start(t, lab.Config{YAML: rig.Shop + rig.ServerObject("street", "shelf", "node1", "")})
	near := world.Netns(rig.Near)
	inner, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inner.Close() })
	ends := map[*netns.NS][]string{near: {"10.77.0.1/24", "fd00:77::1/64"}, inner: {"10.77.0.2/24", "fd00:77::2/64"}}
	for _, ns := range []*netns.NS{near, inner} {
		if err := ns.Do(func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			if ns == near {
				if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vm0"}, PeerName: "vm0", PeerNamespace: netlink.NsFd(inner.File().Fd())}); err != nil {
					return err
				}
			}
			link, err := h.LinkByName("vm0")
			if err != nil {
				return err
			}
			for _, text := range ends[ns] {
				a, err := netlink.ParseAddr(text)
				if err != nil {
					return err
				}
				a.Flags = unix.IFA_F_NODAD
				if err := h.AddrAdd(link, a); err != nil {
					return err
				}
			}
			if err := h.LinkSetUp(link); err != nil || ns == near {
				return err
			}
			for _, gateway := range []string{"10.77.0.1", "fd00:77::1"} {
				if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	nfttest.Forward(t, near, netip.AddrPort{}, netip.AddrPort{})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		shelf := netip.AddrPortFrom(w.Pod("street", "shelf", v6), 9000)
		var c net.Conn
		if err := inner.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", shelf.String(), time.Minute)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if lines := w.AccessLines("node1", shelf.String()); len(lines) > 0 {
			t.Errorf("the proxy carried it: %q", lines)
		}
		w.MustGet(rig.Near, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
	})
}
