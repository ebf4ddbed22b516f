package nft

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// A pod that routes for others: what it passes on is not addressed to it, and
// not its own.
func TestForwardedConnectionsAreLeftAlone(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		inner := netnstest.New(t)
		gateway, machine := netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("10.7.0.2")
		if f.pod.Is6() {
			gateway, machine = netip.MustParseAddr("fd00:7::1"), netip.MustParseAddr("fd00:7::2")
		}
		inNS(t, pod, func(h *netlink.Handle) error {
			return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vm0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(inner.File().Fd())})
		})
		linkUp(t, pod, "vm0", gateway)
		linkUp(t, inner, "eth0", machine)
		route(t, inner, "eth0", gateway)
		forwarding(t, pod)
		masquerade(t, pod, nil, netip.Addr{})
		outside := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		proxy := netnstest.StartProxy(t, pod)
		apply(t, pod, Config{IPv6: true})
		if seen := mustTalk(t, inner, outside, nil); seen != f.pod {
			t.Errorf("the server sees %s, not the pod %s", seen, f.pod)
		}
		if in, out := proxy.Inbound(), proxy.Outbound(); len(in)+len(out) > 0 {
			t.Errorf("the proxy got inbound %v and outbound %v", in, out)
		}
		// The pod itself is captured as ever.
		mustTalk(t, pod, outside, nil)
		if out := proxy.Outbound(); len(out) != 1 {
			t.Errorf("the proxy got %v", out)
		}
		apply(t, pod, Config{IPv6: true, VirtualInterfaces: []string{"vm0"}})
		mustTalk(t, inner, outside, nil)
		if out := proxy.Outbound(); len(out) != 2 || out[1] != outside {
			t.Errorf("with the machine's interface named, the proxy got %v", out)
		}
	})
}

// A pod that translates addresses itself behaves the same whenever it was
// enrolled: what it passes on to others is its own business, and what its
// programs send is captured first.
func TestPodsOwnTranslationIsTheSameInAnyOrder(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		second, third, service := netip.MustParseAddr("10.9.0.22"), netip.MustParseAddr("10.9.0.3"), netip.MustParseAddr("10.99.0.1")
		if f.pod.Is6() {
			second, third, service = netip.MustParseAddr("fd00:9::22"), netip.MustParseAddr("fd00:9::3"), netip.MustParseAddr("fd00:99::1")
		}
		for name, order := range map[string][]string{
			"rules after enrolment":  {"enrol", "translate"},
			"rules before enrolment": {"translate", "enrol"},
			"table written anew":     {"enrol", "translate", "delete", "enrol"},
		} {
			t.Run(name, func(t *testing.T) {
				pod, peer := netnstest.Link(t)
				netnstest.AddAddr(t, pod, "eth0", second)
				netnstest.AddAddr(t, peer, "peer0", third)
				forwarding(t, pod)
				proxy := netnstest.StartProxy(t, pod)
				for _, step := range order {
					switch step {
					case "enrol":
						apply(t, pod, Config{IPv6: true})
					case "translate":
						masquerade(t, pod, second.AsSlice(), third)
						translate(t, pod, service.AsSlice(), third)
					case "delete":
						if err := removeTable(pod, podTable); err != nil {
							t.Fatal(err)
						}
					}
				}
				server := netnstest.Serve(t, peer, netip.AddrPortFrom(third, 0))
				if seen := mustTalk(t, peer, netip.AddrPortFrom(second, server.Port()), nil); seen != f.pod && seen != second {
					t.Errorf("the server sees %s, not the pod that passes connections on", seen)
				}
				to := netip.AddrPortFrom(service, server.Port())
				mustTalk(t, pod, to, nil)
				if in, out := proxy.Inbound(), proxy.Outbound(); len(in) != 0 || len(out) != 1 || out[0] != to {
					t.Errorf("the proxy got inbound %v and outbound %v", in, out)
				}
			})
		}
	})
}

// A pod's own rules cannot lead a connection past the proxy to a program.
func TestPodsOwnTranslationOpensNothing(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		second := netip.MustParseAddr("10.9.0.22")
		if f.pod.Is6() {
			second = netip.MustParseAddr("fd00:9::22")
		}
		pod, peer := netnstest.Link(t)
		netnstest.AddAddr(t, pod, "eth0", second)
		server := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		translate(t, pod, second.AsSlice(), f.pod)
		at := netip.AddrPortFrom(second, server.Port())
		mustTalk(t, peer, at, nil)
		apply(t, pod, Config{IPv6: true})
		refused(t, "by the pod's own rule", peer, at, nil)
	})
}
