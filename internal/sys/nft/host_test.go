package nft

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

var podAddrs = []netip.Addr{netnstest.PodIPv4, netnstest.PodIPv6}

func TestHostRulesAreTheGoldenOnes(t *testing.T) {
	path := filepath.Join("testdata", "host.nft")
	got := HostRules([]netip.Addr{podAddrs[1], podAddrs[0], podAddrs[1], netip.MustParseAddr("10.9.0.1")}).String()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func applyHost(t *testing.T, ns *netns.NS, pods ...netip.Addr) []string {
	t.Helper()
	differs, err := ApplyHost(ns, pods)
	if err != nil {
		t.Fatal(err)
	}
	return differs
}

func TestHostTableFollowsPods(t *testing.T) {
	host := netnstest.New(t)
	before := dump(t, host)
	var many []netip.Addr
	for i := range 600 {
		many = append(many, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)}))
	}
	for _, pods := range [][]netip.Addr{nil, many[:3], many, many[100:700], many[650:], nil, podAddrs} {
		if differs := applyHost(t, host, pods...); len(differs) == 0 {
			t.Errorf("%d pods: nothing was different before", len(pods))
		}
		if differs := applyHost(t, host, pods...); len(differs) > 0 {
			t.Errorf("%d pods: after having been applied: %q", len(pods), differs)
		}
	}
	if err := TryHost(host); err != nil {
		t.Fatal(err)
	}
	if differs := applyHost(t, host, podAddrs...); len(differs) > 0 {
		t.Errorf("a trial has changed the table: %q", differs)
	}
	for range 2 {
		if err := RemoveHost(host); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, dump(t, host)); diff != "" {
		t.Errorf("not restored:\n%s", diff)
	}
}

// allHops has a client send packets with as many hops left as there can be.
func allHops(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	if domain == unix.AF_INET6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, hostHops)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TTL, hostHops)
}

// hostProbe exempts what the host sends to a port from the host's address.
func hostProbe(host netip.Addr, port uint16) Config {
	return Config{IPv6: true, Probes: []Probe{{Source: netip.PrefixFrom(host, host.BitLen()), Ports: []uint16{port}, Host: true}}}
}

// refused expects a connection to be captured: no proxy listens.
func refused(t *testing.T, what string, from *netns.NS, to netip.AddrPort, set func(int) error) {
	t.Helper()
	if _, err := talk(from, to, set); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s: %v, want a refused connection", what, err)
	}
}

func TestHostProbesReachTheirPortOnly(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, host := netnstest.Link(t)
		probed := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		other := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		apply(t, pod, hostProbe(f.peer, probed.Port()))
		refused(t, "a host without its table", host, probed, nil)
		applyHost(t, host, podAddrs...)
		mustTalk(t, host, probed, nil)
		refused(t, "a port that is not probed", host, other, nil)
		applyHost(t, host)
		refused(t, "a host whose table does not know the pod", host, probed, nil)
	})
}

// What the host passes on under its own address is not from the host, whatever
// the sender has set.
func TestMasqueradedClientsAreNotTheHost(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		pod, host := netnstest.Link(t)
		outside := netnstest.New(t)
		joined := map[bool][2]netip.Addr{
			false: {netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")},
			true:  {netip.MustParseAddr("fd00:8::1"), netip.MustParseAddr("fd00:8::2")},
		}[f.pod.Is6()]
		inNS(t, host, func(h *netlink.Handle) error {
			return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(outside.File().Fd())})
		})
		linkUp(t, host, "out0", joined[0])
		linkUp(t, outside, "eth0", joined[1])
		route(t, outside, "eth0", joined[0])
		forwarding(t, host)
		masquerade(t, host, nil, netip.Addr{})

		probed := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		if seen := mustTalk(t, outside, probed, allHops); seen != f.peer {
			t.Fatalf("the pod sees %s: this test is none", seen)
		}
		apply(t, pod, hostProbe(f.peer, probed.Port()))
		applyHost(t, host, podAddrs...)
		mustTalk(t, host, probed, nil)
		refused(t, "a client behind the host", outside, probed, nil)
		refused(t, "a client behind the host, with all hops", outside, probed, allHops)

		proxy := netnstest.StartProxy(t, pod)
		mustTalk(t, outside, probed, allHops)
		if got := proxy.Inbound(); !slices.Equal(got, []netip.AddrPort{probed}) {
			t.Errorf("the proxy saw connections to %v, not to %s", got, probed)
		}
	})
}

// A bridge that shows its packets to the packet filter translates them without
// taking a hop.
func TestBridgedClientsAreNotTheHost(t *testing.T) {
	inBoth(t, func(t *testing.T, f family) {
		host, pod, other := netnstest.New(t), netnstest.New(t), netnstest.New(t)
		service, client := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.9.0.3")
		sysctl, network := "bridge-nf-call-iptables", "ipv4"
		if f.pod.Is6() {
			service, client = netip.MustParseAddr("fd00:99::1"), netip.MustParseAddr("fd00:9::3")
			sysctl, network = "bridge-nf-call-ip6tables", "ipv6"
		}
		inNS(t, host, func(h *netlink.Handle) error {
			return h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
		})
		for name, end := range map[string]*netns.NS{"pod0": pod, "pod1": other} {
			inNS(t, host, func(h *netlink.Handle) error {
				br, err := h.LinkByName("br0")
				if err != nil {
					return err
				}
				return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(end.File().Fd())})
			})
			linkUp(t, host, name, netip.Addr{})
		}
		linkUp(t, host, "br0", f.peer)
		linkUp(t, pod, "eth0", f.pod)
		linkUp(t, other, "eth0", client)
		route(t, host, "br0", f.pod) // the host, too, has a way to the service
		route(t, pod, "eth0", f.peer)
		route(t, other, "eth0", f.peer)
		forwarding(t, host)
		if err := writeIn(host, "/proc/sys/net/bridge/"+sysctl, "1"); err != nil {
			t.Fatalf("this kernel's bridges do not know the packet filter (%s): %v", network, err)
		}
		masquerade(t, host, service.AsSlice(), f.pod)

		probed := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		through := netip.AddrPortFrom(service, probed.Port())
		if seen := mustTalk(t, other, through, allHops); seen != f.peer {
			t.Fatalf("the pod sees %s: this test is none", seen)
		}
		apply(t, pod, hostProbe(f.peer, probed.Port()))
		applyHost(t, host, podAddrs...)
		mustTalk(t, host, probed, nil)
		refused(t, "a pod on the same bridge, with all hops", other, through, allHops)
		refused(t, "the host, through a Service", host, through, nil)
	})
}

func inNS(t *testing.T, ns *netns.NS, fn func(h *netlink.Handle) error) {
	t.Helper()
	if err := withLinks(ns, fn); err != nil {
		t.Fatal(err)
	}
}

// linkUp gives an interface an address, if there is one, and switches it on.
func linkUp(t *testing.T, ns *netns.NS, name string, addr netip.Addr) {
	t.Helper()
	inNS(t, ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if addr.IsValid() {
			bits := 24
			if addr.Is6() {
				bits = 64
			}
			a, err := netlink.ParseAddr(netip.PrefixFrom(addr, bits).String())
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD // usable at once
			if err := h.AddrAdd(link, a); err != nil {
				return err
			}
		}
		return h.LinkSetUp(link)
	})
}

func route(t *testing.T, ns *netns.NS, name string, gateway netip.Addr) {
	t.Helper()
	inNS(t, ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	})
}

func writeIn(ns *netns.NS, path, text string) error {
	return ns.Do(func() error { return os.WriteFile(path, []byte(text), 0) })
}

func forwarding(t *testing.T, ns *netns.NS) {
	t.Helper()
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := writeIn(ns, path, "1"); err != nil {
			t.Fatal(err)
		}
	}
}

// masquerade has a host pass everything on under its own address, and, if there
// is a service, what is for that to a pod: as kube-proxy does.
func masquerade(t *testing.T, host *netns.NS, service []byte, pod netip.Addr) {
	t.Helper()
	conn, err := open(host)
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "others"})
	post := conn.AddChain(&nftables.Chain{Table: table, Name: "post", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: []expr.Any{&expr.Masq{}}})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(service) > 0 {
		translate(t, host, service, pod)
	}
}

// translate has a namespace send what is for the service to another address.
func translate(t *testing.T, ns *netns.NS, service []byte, to netip.Addr) {
	t.Helper()
	conn, err := open(ns)
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "others"})
	family, offset := uint32(unix.NFPROTO_IPV4), uint32(16)
	if to.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	for name, hook := range map[string]*nftables.ChainHook{"pre": nftables.ChainHookPrerouting, "out": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{Table: table, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(Family{IPv6: to.Is6()}.exprs(),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(service))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: service},
			&expr.Immediate{Register: 1, Data: to.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1},
		)})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}
