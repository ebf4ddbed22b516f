package nft

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/packet"
)

func TestBridgeRulesAreTheGoldenOnes(t *testing.T) {
	path := filepath.Join("testdata", "bridge.nft")
	got := BridgeRules(podAddrs).String()
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

// neighbours are two pods at one bridge of their host.
type neighbours struct {
	host, pod, other *netns.NS
	macs             [2][]byte // of pod and other
}

// bridged makes a host whose bridge shows its frames to the packet filter, or
// not.
func bridged(t *testing.T, f family, shows bool) neighbours {
	t.Helper()
	n := neighbours{host: netnstest.New(t), pod: netnstest.New(t), other: netnstest.New(t)}
	inNS(t, n.host, func(h *netlink.Handle) error {
		return h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	})
	for name, end := range map[string]*netns.NS{"pod0": n.pod, "pod1": n.other} {
		inNS(t, n.host, func(h *netlink.Handle) error {
			br, err := h.LinkByName("br0")
			if err != nil {
				return err
			}
			return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(end.File().Fd())})
		})
		linkUp(t, n.host, name, netip.Addr{})
	}
	linkUp(t, n.host, "br0", f.peer)
	linkUp(t, n.pod, "eth0", f.pod)
	linkUp(t, n.other, "eth0", netip.Addr{})
	for i, end := range []*netns.NS{n.pod, n.other} {
		inNS(t, end, func(h *netlink.Handle) error {
			link, err := h.LinkByName("eth0")
			if err == nil {
				n.macs[i] = link.Attrs().HardwareAddr
			}
			return err
		})
	}
	text := "0"
	if shows {
		text = "1"
	}
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		if err := writeIn(n.host, "/proc/sys/net/bridge/"+name, text); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// impersonate gives the host's address to the other pod, and has the pod believe
// it: the pod gets what a forged answer of ARP or neighbour discovery would give
// it.
func (n neighbours) impersonate(t *testing.T, host netip.Addr) {
	t.Helper()
	linkUp(t, n.other, "eth0", host)
	inNS(t, n.pod, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: unix.NUD_PERMANENT, IP: host.AsSlice(), HardwareAddr: n.macs[1]})
	})
}

// send sends a packet in a frame of its own, behind as many tags of VLAN 0.
func (n neighbours) send(t *testing.T, tags int, ip []byte) {
	t.Helper()
	frame := slices.Concat(n.macs[0], n.macs[1])
	for range tags {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_8021Q)
		frame = append(frame, 0, 0)
	}
	protocol := uint16(unix.ETH_P_IP)
	if ip[0]>>4 == 6 {
		protocol = unix.ETH_P_IPV6
	}
	frame = append(binary.BigEndian.AppendUint16(frame, protocol), ip...)
	fd, err := n.other.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	var index int
	inNS(t, n.other, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	})
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil {
		t.Fatal(err)
	}
}

// answers are the flags of segments that the other pod receives, by the port
// that they go to.
type answers struct {
	fd   int
	v6   bool
	seen map[uint16]byte
}

func (n neighbours) answers(t *testing.T, v6 bool) answers {
	t.Helper()
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := n.other.Socket(family, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	limit := unix.NsecToTimeval(netnstest.Timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	return answers{fd, v6, map[uint16]byte{}}
}

// to waits for the answer to a port.
func (a answers) to(t *testing.T, port uint16) byte {
	t.Helper()
	for end := time.Now().Add(netnstest.Timeout); time.Now().Before(end); {
		if flags, has := a.seen[port]; has {
			return flags
		}
		b := make([]byte, 2048)
		count, _, err := unix.Recvfrom(a.fd, b, 0)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			t.Errorf("waiting for an answer to port %d: %v", port, err)
			return 0
		}
		if b = b[:count]; !a.v6 {
			b = b[int(b[0]&15)*4:]
		}
		a.seen[binary.BigEndian.Uint16(b[2:])] = b[13]
	}
	t.Errorf("port %d got no answer", port)
	return 0
}

// disguise is a way to send a SYN.
type disguise struct {
	name    string
	tags    int
	packets func(h packet.Header, syn []byte) [][]byte
}

func plainly(h packet.Header, syn []byte) [][]byte { return [][]byte{packet.Packet(h, syn)} }

func behind(kind byte, header ...byte) func(packet.Header, []byte) [][]byte {
	return func(h packet.Header, syn []byte) [][]byte {
		h.Protocol = kind
		return [][]byte{packet.Packet(h, append(slices.Clone(header), syn...))}
	}
}

func disguises(v6 bool) []disguise {
	list := []disguise{
		{"plain", 0, plainly}, {"tagged", 1, plainly}, {"tagged twice", 2, plainly}, {"tagged three times", 3, plainly},
	}
	if v6 {
		const tcp, padN = packet.TCP, 1
		return append(list,
			disguise{"with destination options", 0, behind(unix.IPPROTO_DSTOPTS, tcp, 0, padN, 4, 0, 0, 0, 0)},
			disguise{"with hop-by-hop options", 0, behind(unix.IPPROTO_HOPOPTS, tcp, 0, padN, 4, 0, 0, 0, 0)},
			disguise{"the only fragment", 0, behind(unix.IPPROTO_FRAGMENT, tcp, 0, 0, 0, 0, 0, 0, 1)},
		)
	}
	return append(list,
		disguise{"with IP options", 0, func(h packet.Header, syn []byte) [][]byte {
			h.Options = []byte{1, 1, 1, 1}
			return plainly(h, syn)
		}},
		disguise{"with flags in the second fragment", 0, func(h packet.Header, syn []byte) [][]byte {
			const first = 8
			head, tail := h, h
			head.More, tail.Fragment = true, first
			return [][]byte{packet.Packet(head, syn[:first]), packet.Packet(tail, syn[first:])}
		}})
}

// A pod that takes the host's address at its bridge, and sends with all hops, is
// not the host: whether the bridge shows its frames to the packet filter or not.
func TestImpersonatorsAtABridgeAreNotTheHost(t *testing.T) {
	for name, shows := range map[string]bool{"hidden": false, "shown": true} {
		t.Run(name, func(t *testing.T) {
			inBoth(t, func(t *testing.T, f family) { impersonators(t, f, shows) })
		})
	}
}

func impersonators(t *testing.T, f family, shows bool) {
	n := bridged(t, f, shows)
	all := netip.IPv4Unspecified()
	if f.pod.Is6() {
		all = netip.IPv6Unspecified()
	}
	probed := netip.AddrPortFrom(f.pod, netnstest.Serve(t, n.pod, netip.AddrPortFrom(all, 0)).Port())
	apply(t, n.pod, hostProbe(f.peer, probed.Port()))
	applyHost(t, n.host, podAddrs...)
	mustTalk(t, n.host, probed, nil)

	n.impersonate(t, f.peer)
	refused(t, "a pod with the host's address and all hops", n.other, probed, allHops)
	linkLocal := netip.MustParseAddr("fe80::2")
	if f.pod.Is6() {
		linkUp(t, n.pod, "eth0", linkLocal)
	}
	answer := n.answers(t, f.pod.Is6())
	port := uint16(20000)
	id := uint16(0)
	try := func(d disguise, to netip.Addr, hops byte) uint16 {
		port++
		id++
		s := packet.Segment{From: netip.AddrPortFrom(f.peer, port), To: netip.AddrPortFrom(to, probed.Port()), Flags: packet.SYN, Seq: 1}
		for _, p := range d.packets(packet.Header{From: f.peer, To: to, Protocol: packet.TCP, Hops: hops, ID: id}, s.Bytes()) {
			n.send(t, d.tags, p)
		}
		return port
	}
	refusedAll := func(t *testing.T, d disguise, to netip.Addr) {
		t.Helper()
		tried := try(d, to, hostHops)
		if d.tags > 1 { // it does not arrive, and what is sent later is answered later
			if flags := answer.to(t, try(disguise{packets: plainly}, to, 64)); flags&packet.RST == 0 {
				t.Errorf("with fewer hops, flags are %#x, want a reset", flags)
			}
			if flags, answered := answer.seen[tried]; answered {
				t.Errorf("%s to %s was answered with flags %#x", d.name, to, flags)
			}
			return
		}
		if flags := answer.to(t, tried); flags&packet.RST == 0 {
			t.Errorf("%s to %s was answered with flags %#x, want a reset", d.name, to, flags)
		}
	}
	for _, d := range disguises(f.pod.Is6()) {
		refusedAll(t, d, f.pod)
		if f.pod.Is6() {
			refusedAll(t, d, linkLocal)
		}
	}
	if shows {
		return
	}
	// Without the bridges' table each of them is let in: the test sends what it
	// is to send.
	if err := removeTable(n.host, bridgeHostTable); err != nil {
		t.Fatal(err)
	}
	for _, d := range disguises(f.pod.Is6()) {
		if flags := answer.to(t, try(d, f.pod, hostHops)); flags&packet.SYN == 0 {
			t.Errorf("%s: without the table flags are %#x, want those of an open port", d.name, flags)
		}
	}
	if differs := applyHost(t, n.host, podAddrs...); len(differs) != 1 || !strings.Contains(differs[0], "bridge") {
		t.Errorf("a missing table is found as %q", differs)
	}
	refused(t, "a pod with the host's address and all hops, after repair", n.other, probed, allHops)
}

// Where the kernel has no nftables for bridges, a bridge between pods leaves the
// node without its proof.
func TestBridgesThatNeedTheTable(t *testing.T) {
	pair := func(bridge int) netlink.Link { return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{MasterIndex: bridge}} }
	bridge := func(index int, name string) netlink.Link {
		return &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: index, Name: name}}
	}
	card := func(bridge int) netlink.Link {
		return &netlink.Device{LinkAttrs: netlink.LinkAttrs{MasterIndex: bridge}}
	}
	for name, c := range map[string]struct {
		links []netlink.Link
		want  []string
	}{
		"no bridge":             {[]netlink.Link{pair(0), card(0)}, nil},
		"no ports":              {[]netlink.Link{bridge(2, "docker0"), pair(0)}, nil},
		"a bridge of machines":  {[]netlink.Link{bridge(2, "lan"), card(2), pair(0)}, nil},
		"another kind of group": {[]netlink.Link{&netlink.Bond{LinkAttrs: netlink.LinkAttrs{Index: 2, Name: "bond0"}}, pair(2)}, nil},
		"two bridges of three":  {[]netlink.Link{pair(3), bridge(3, "cni1"), bridge(4, "cni0"), bridge(5, "lan"), pair(4), card(5)}, []string{"cni0", "cni1"}},
	} {
		got := bridgesOf(c.links)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
		switch err := unguarded(got); {
		case len(c.want) == 0 && err != nil:
			t.Errorf("%s: %v", name, err)
		case len(c.want) > 0 && (err == nil || !strings.Contains(err.Error(), "cni0, cni1")):
			t.Errorf("%s: the error is %v", name, err)
		}
	}
	n := bridged(t, family{pod: netnstest.PodIPv4, peer: netnstest.PeerIPv4}, false)
	if got, err := joining(n.host); err != nil || !slices.Equal(got, []string{"br0"}) {
		t.Errorf("the host's bridges are %q: %v", got, err)
	}
}

// A kernel without the family bridge is enough where no bridge joins pods. No
// kernel translates in that family, so it refuses such a chain as it would
// refuse any chain without the family.
func TestKernelWithoutTablesForBridges(t *testing.T) {
	want := BridgeRules(podAddrs)
	want.Chains[0].Type = "nat"
	if err := writeBridges(netnstest.New(t), want); err != nil {
		t.Errorf("a host without a bridge: %v", err)
	}
	n := bridged(t, family{pod: netnstest.PodIPv4, peer: netnstest.PeerIPv4}, true)
	if err := writeBridges(n.host, want); err == nil || !strings.Contains(err.Error(), "pods are ports of br0") {
		t.Errorf("a host with a bridge: %v", err)
	}
}
