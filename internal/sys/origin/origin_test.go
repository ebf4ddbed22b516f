package origin

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

// TestUDP: a datagram that was redirected leads back to where its sender sent it, and one
// that was not leads nowhere else.
func TestUDP(t *testing.T) {
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	setup(t, ns)
	if err := nft.Apply(ns, nft.Config{IPv6: true, CaptureDNS: true}); err != nil {
		t.Fatal(err)
	}
	table, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, test := range []struct{ listen, to string }{
		{"127.0.0.1:15053", "192.0.2.7:53"}, {"127.0.0.1:15053", "192.0.2.8:53"}, {"[::1]:15053", "[2001:db8::7]:53"},
	} {
		at := netip.MustParseAddrPort(test.listen)
		var server net.PacketConn
		var client, direct net.Conn
		err := ns.Do(func() (err error) {
			if server, err = net.ListenPacket("udp", test.listen); err == nil {
				if client, err = net.Dial("udp", test.to); err == nil {
					direct, err = net.Dial("udp", test.listen)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{client, direct} {
			if _, err := c.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, from, err := server.ReadFrom(make([]byte, 100))
			if err != nil {
				t.Fatal(err)
			}
			peer := from.(*net.UDPAddr).AddrPort()
			got, err := table.UDP(netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()), at)
			want := test.to
			if c == direct {
				want = test.listen
			}
			if err != nil || got.String() != want {
				t.Errorf("%s: %s, %v, want %s", test.to, got, err, want)
			}
		}
		if got, err := table.UDP(netip.AddrPortFrom(at.Addr(), 9), at); !errors.Is(err, unix.ENOENT) {
			t.Errorf("a flow that is not there: %s, %v", got, err)
		}
		_ = server.Close()
		_ = client.Close()
		_ = direct.Close()
	}
}

// setup gives a namespace addresses, and routes to everywhere.
func setup(t *testing.T, ns *netns.NS) {
	t.Helper()
	l, err := links.Of(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, err := range []error{
		l.Up("lo"), l.Bridge("eth0"),
		l.Address("eth0", netip.MustParsePrefix("10.0.0.2/24")), l.Address("eth0", netip.MustParsePrefix("fd00::2/64")),
		l.Route(netip.MustParsePrefix("0.0.0.0/0"), "eth0", netip.Addr{}), l.Route(netip.MustParsePrefix("::/0"), "eth0", netip.Addr{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzFlowTarget: no answer of the kernel's form breaks the reader.
func FuzzFlowTarget(f *testing.F) {
	f.Add(make([]byte, 20))
	b := binary.NativeEndian.AppendUint32(nil, 36)
	f.Add(append(b, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < netlinkHeader {
			return
		}
		if a, err := flowTarget(b); err == nil && !a.IsValid() {
			t.Fatal("no address, and no error")
		}
	})
}
