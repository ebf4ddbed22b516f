package nft

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// family is one address family of the two test namespaces.
type family struct {
	name               string
	pod, peer, looback netip.Addr
}

var families = []family{
	{"IPv4", netnstest.PodIPv4, netnstest.PeerIPv4, netip.MustParseAddr("127.0.0.1")},
	{"IPv6", netnstest.PodIPv6, netnstest.PeerIPv6, netip.IPv6Loopback()},
}

func inBoth(t *testing.T, fn func(t *testing.T, f family)) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { fn(t, f) })
	}
}

// talk connects, reads the address the server saw, and has a line echoed.
func talk(ns *netns.NS, to netip.AddrPort, set func(int) error) (netip.Addr, error) {
	c, err := netnstest.Dial(ns, netip.Addr{}, to, set)
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = c.Close() }()
	return converse(c)
}

func converse(c net.Conn) (netip.Addr, error) {
	_ = c.SetDeadline(time.Now().Add(netnstest.Timeout))
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return netip.Addr{}, err
	}
	seen, err := netip.ParseAddr(line[:len(line)-1])
	if err != nil {
		return seen, err
	}
	return seen, echo(c, r)
}

func echo(c net.Conn, r *bufio.Reader) error {
	_ = c.SetDeadline(time.Now().Add(netnstest.Timeout))
	if _, err := fmt.Fprintln(c, "ping"); err != nil {
		return err
	}
	answer, err := r.ReadString('\n')
	if err == nil && answer != "ping\n" {
		err = fmt.Errorf("echo of ping is %q", answer)
	}
	return err
}

func mustTalk(t *testing.T, ns *netns.NS, to netip.AddrPort, set func(int) error) netip.Addr {
	t.Helper()
	seen, err := talk(ns, to, set)
	if err != nil {
		t.Fatalf("connection to %s: %v", to, err)
	}
	return seen
}

func TestOutboundIsCaptured(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		server := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		mustTalk(t, pod, server, nil)
		if got := proxy.Outbound(); !slices.Equal(got, []netip.AddrPort{server}) {
			t.Errorf("the proxy saw connections to %v, not to %s", got, server)
		}
	})
}

func TestMarkedSocketsAreNotCaptured(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		server := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		for _, mark := range []int{wellknown.MarkProxy, 0x7000 | wellknown.MarkProxy} {
			mustTalk(t, pod, server, netnstest.Proxied(mark))
		}
		if got := proxy.Outbound(); len(got) > 0 {
			t.Errorf("the proxy's own connections to %v were captured", got)
		}
	})
}

// The proxy connects to the pod under the client's address, and the replies
// come back to it although they are addressed to the client.
func TestInboundIsCapturedAndKeepsItsSource(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		server := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		if seen := mustTalk(t, peer, server, nil); seen != f.peer {
			t.Errorf("the server saw %s, not the client's address %s", seen, f.peer)
		}
		if got := proxy.Inbound(); !slices.Equal(got, []netip.AddrPort{server}) {
			t.Errorf("the proxy saw connections to %v, not to %s", got, server)
		}
	})
}

func TestTunnelPortIsNotRedirected(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		c, err := netnstest.Dial(peer, netip.Addr{}, netip.AddrPortFrom(f.pod, wellknown.PortHBONE), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if err := echo(c, bufio.NewReader(c)); err != nil {
			t.Error(err)
		}
		if got := proxy.Inbound(); len(got) > 0 {
			t.Errorf("the tunnel port was captured as plaintext to %v", got)
		}
	})
}

func TestPodTalksToItselfDirectly(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, _ := netnstest.Link(t)
		netnstest.Settle(t, pod) // until then, the pod's own IPv6 address is not its own to routing
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		for _, at := range []netip.Addr{f.looback, f.pod} {
			server := netnstest.Serve(t, pod, netip.AddrPortFrom(at, 0))
			mustTalk(t, pod, server, nil)
		}
		if in, out := proxy.Inbound(), proxy.Outbound(); len(in)+len(out) > 0 {
			t.Errorf("the proxy saw inbound %v and outbound %v", in, out)
		}
	})
}

func TestConnectionsOlderThanTheRulesLiveOn(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		out, err := netnstest.Dial(pod, netip.Addr{}, outside, nil)
		if err != nil {
			t.Fatal(err)
		}
		in, err := netnstest.Dial(peer, netip.Addr{}, inside, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{in, out} {
			defer func() { _ = c.Close() }()
			if _, err := converse(c); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, pod, Config{IPv6: true}) // and there is no proxy
		for i, c := range []net.Conn{in, out} {
			if err := echo(c, bufio.NewReader(c)); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		}
	})
}

func TestWithoutProxyConnectionsAreReset(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		mustTalk(t, pod, outside, nil)
		mustTalk(t, peer, inside, nil)
		proxy.Stop()
		for name, d := range map[string]struct {
			from *netns.NS
			to   netip.AddrPort
		}{"outbound": {pod, outside}, "inbound": {peer, inside}} {
			if _, err := talk(d.from, d.to, nil); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s without a proxy: %v, want a refused connection", name, err)
			}
		}
	})
}

// While one rule set replaces the other over and over, and no proxy listens,
// not one connection gets through.
func TestNothingPassesWhileRulesChange(t *testing.T) {
	pod, peer := netnstest.Link(t)
	variants := []Config{{IPv6: true}, {IPv6: true, CaptureDNS: true}, {IPv6: true, VirtualInterfaces: []string{"net1"}}}
	apply(t, pod, variants[0])
	var stop atomic.Bool
	var tried, passed atomic.Int64
	done := make(chan struct{})
	for _, f := range families {
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		go func() {
			defer func() { done <- struct{}{} }()
			for !stop.Load() {
				for _, d := range []struct {
					from *netns.NS
					to   netip.AddrPort
				}{{pod, outside}, {peer, inside}} {
					tried.Add(1)
					if c, err := netnstest.Dial(d.from, netip.Addr{}, d.to, nil); err == nil {
						passed.Add(1)
						_ = c.Close()
					}
				}
			}
		}()
	}
	for i := range 60 {
		apply(t, pod, variants[i%len(variants)])
	}
	stop.Store(true)
	<-done
	<-done
	if passed.Load() > 0 || tried.Load() == 0 {
		t.Errorf("%d of %d connections got through", passed.Load(), tried.Load())
	}
}

func TestQuiesceKeepsCapturedConnections(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		netnstest.Settle(t, pod)
		before := dump(t, pod)
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		var conns []net.Conn
		for _, d := range []struct {
			from *netns.NS
			to   netip.AddrPort
		}{{pod, outside}, {peer, inside}} {
			c, err := netnstest.Dial(d.from, netip.Addr{}, d.to, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := converse(c); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		apply(t, pod, Config{IPv6: true, Quiesce: true})
		proxy.StopListening()
		for i, c := range conns {
			if err := echo(c, bufio.NewReader(c)); err != nil {
				t.Errorf("captured connection %d did not live on: %v", i, err)
			}
		}
		mustTalk(t, pod, outside, nil)
		mustTalk(t, peer, inside, nil)
		if in, out := len(proxy.Inbound()), len(proxy.Outbound()); in != 1 || out != 1 {
			t.Errorf("the proxy got %d inbound and %d outbound connections, want one each", in, out)
		}
		if err := Remove(pod); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, dump(t, pod)); diff != "" {
			t.Errorf("not restored:\n%s", diff)
		}
		mustTalk(t, pod, outside, nil)
		mustTalk(t, peer, inside, nil)
	})
}

func TestBypassInbound(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true, BypassInbound: true})
		mustTalk(t, peer, inside, nil)
		mustTalk(t, pod, outside, nil)
		if in, out := len(proxy.Inbound()), len(proxy.Outbound()); in != 0 || out != 1 {
			t.Errorf("the proxy got %d inbound and %d outbound connections, want none and one", in, out)
		}
	})
}

func TestVirtualInterfaceIsOutbound(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		inside := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true, VirtualInterfaces: []string{"eth0"}})
		mustTalk(t, peer, inside, nil)
		if in, out := len(proxy.Inbound()), len(proxy.Outbound()); in != 0 || out != 1 {
			t.Errorf("the proxy got %d inbound and %d outbound connections, want none and one", in, out)
		}
	})
}

func TestProbesReachTheirPortOnly(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		probed := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		other := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		apply(t, pod, Config{IPv6: true, Probes: []Probe{{Source: netip.PrefixFrom(f.peer, f.peer.BitLen()), Ports: []uint16{probed.Port()}}}})
		mustTalk(t, peer, probed, nil)
		if _, err := talk(peer, other, nil); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port that is not probed, without a proxy: %v, want a refused connection", err)
		}
	})
}

func TestIPv6CanBeLeftAlone(t *testing.T) {
	pod, peer := netnstest.Link(t)
	apply(t, pod, Config{})
	v6 := netnstest.Serve(t, peer, netip.AddrPortFrom(netnstest.PeerIPv6, 0))
	v4 := netnstest.Serve(t, peer, netip.AddrPortFrom(netnstest.PeerIPv4, 0))
	mustTalk(t, pod, v6, nil)
	if _, err := talk(pod, v4, nil); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("IPv4 without a proxy: %v, want a refused connection", err)
	}
}
