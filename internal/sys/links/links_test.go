package links_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

func open(t *testing.T) (*netns.NS, *links.Links) {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	l, err := links.Of(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return ns, l
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestLinks builds two hosts on a bridge, and a datagram finds its way.
func TestLinks(t *testing.T) {
	_, lan := open(t)
	a, la := open(t)
	b, lb := open(t)
	must(t, lan.Bridge("lan"),
		lan.Cable("a", la, "eth0"), lan.Plug("a", "lan"),
		lan.Cable("b", lb, "eth0"), lan.Plug("b", "lan"),
		la.Address("eth0", netip.MustParsePrefix("10.1.0.1/24")), lb.Address("eth0", netip.MustParsePrefix("10.1.0.2/24")),
		lb.Up("lo"), lb.Address("lo", netip.MustParsePrefix("10.2.0.1/32")),
		la.Route(netip.MustParsePrefix("10.2.0.0/24"), "eth0", netip.MustParseAddr("10.1.0.2")))
	var server *net.UDPConn
	must(t, b.Do(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("10.2.0.1"), Port: 7})
		return err
	}))
	defer server.Close() //nolint:errcheck // nothing was written
	var client net.Conn
	must(t, a.Do(func() (err error) {
		client, err = net.Dial("udp", "10.2.0.1:7")
		return err
	}))
	defer client.Close() //nolint:errcheck // it is checked below that it arrived
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	must(t, server.SetReadDeadline(time.Now().Add(30*time.Second)))
	buf := make([]byte, 16)
	if n, err := server.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	lan.Remove("a")
	lan.Remove("a")
	if names, err := la.Names(); err != nil || slices.Contains(names, "eth0") {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := la.Index("eth0"); err == nil {
		t.Error("half a cable is left")
	}
}

func TestMissing(t *testing.T) {
	_, l := open(t)
	p := netip.MustParsePrefix("10.1.0.1/24")
	for i, err := range []error{l.Up("x"), l.Address("x", p), l.Route(p, "x", netip.Addr{}), l.Plug("x", "y")} {
		if err == nil {
			t.Errorf("%d: no error about an interface that is not there", i)
		}
	}
}
