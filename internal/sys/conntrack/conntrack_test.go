package conntrack_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/conntrack"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft/nfttest"
)

// A connection that is forgotten and restored goes on, with the translations that it
// had, when its server is the next to send.
func TestRestoredConnectionsGoOn(t *testing.T) {
	for name, addrs := range map[string][2]netip.Addr{
		"IPv4": {netnstest.PodIPv4, netnstest.PeerIPv4},
		"IPv6": {netnstest.PodIPv6, netnstest.PeerIPv6},
	} {
		t.Run(name, func(t *testing.T) {
			pod, peer := netnstest.Link(t)
			netnstest.Settle(t, pod)
			l := netnstest.Listen(t, peer, netip.AddrPortFrom(addrs[1], 0), nil)
			service := netip.AddrPortFrom(addrs[0], 8443)
			nfttest.Forward(t, pod, service, l.Addr().(*net.TCPAddr).AddrPort())
			client, err := netnstest.Dial(peer, netip.Addr{}, service, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close() //nolint:errcheck // only closing
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close() //nolint:errcheck // only closing
			send := func(from, to net.Conn, text string) {
				t.Helper()
				got := make([]byte, len(text))
				_ = to.SetDeadline(time.Now().Add(netnstest.Timeout))
				if _, err := io.WriteString(from, text); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
					t.Fatalf("%q, %v, want %q", got, err, text)
				}
			}
			for range 5 {
				send(server, client, "from the server")
				retrack(t, pod)
				send(server, client, "from the server again")
				send(client, server, strings.Repeat("from the client ", 10000))
				retrack(t, pod)
			}
		})
	}
}

func retrack(t *testing.T, ns *netns.NS) {
	t.Helper()
	// A segment on its way, such as a late acknowledgement, would have the kernel track
	// the connection before it is restored.
	release := nfttest.Hold(t, ns)
	defer release()
	before := forget(t, ns)
	if len(before) != 1 || !before[0].Redirected() || !before[0].Masked() || before[0].Own || before[0].Local {
		t.Fatalf("tracked: %+v", before)
	}
	if now := forget(t, ns); len(now) > 0 {
		t.Fatalf("not forgotten: %+v", now)
	}
	// One that the kernel refuses does not keep the other from being tracked.
	bad := before[0]
	other := netip.MustParseAddr("192.0.2.1")
	if before[0].Ends.SrcIP.To4() != nil {
		other = netip.MustParseAddr("2001:db8::1")
	}
	bad.Ends.SrcIP, bad.Ends.DstIP = other.AsSlice(), other.AsSlice()
	if err := conntrack.Restore(ns, []conntrack.Flow{bad, before[0]}, 0); err == nil {
		t.Fatal("ends of another family are accepted")
	}
}

func forget(t *testing.T, ns *netns.NS) []conntrack.Flow {
	t.Helper()
	gone, err := conntrack.Forget(ns, func(f *conntrack.Flow) bool { return f.Protocol() == unix.IPPROTO_TCP })
	if err != nil {
		t.Fatal(err)
	}
	return gone
}
