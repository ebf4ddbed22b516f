package node

import (
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/node/packets"
	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

// sizes are those of an interface of a namespace.
func sizes(t *testing.T, ns *netns.NS, name string) links.Sizes {
	t.Helper()
	return find(t, ns, name).Sizes
}

func find(t *testing.T, ns *netns.NS, name string) links.Interface {
	t.Helper()
	l, err := links.Of(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all, err := l.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Name == name {
			return i
		}
	}
	t.Fatalf("no interface %s", name)
	return links.Interface{}
}

func setSizes(t *testing.T, ns *netns.NS, name string, s links.Sizes) {
	t.Helper()
	l, err := links.Of(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.SetSizes(find(t, ns, name).Index, s); err != nil {
		t.Fatal(err)
	}
}

func all(size uint32) links.Sizes {
	return links.Sizes{GSO: size, GRO: size, GSOIPv4: size, GROIPv4: size}
}

// large has the agent let packets be large. The peer is the host.
func (n *testNode) large(mode packets.Mode) {
	n.packets = packets.New(mode, n.peer, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// attributes are all of the links of pod and host, with the sizes apart.
func (n *testNode) attributes() (sizes, others map[string]string) {
	n.t.Helper()
	sizes, others = map[string]string{}, map[string]string{}
	for which, ns := range map[string]*netns.NS{"pod ": n.pod, "host ": n.peer} {
		for k, v := range netnstest.Attributes(n.t, ns) {
			to := others
			for _, size := range []string{"/41", "/58", "/63", "/64"} { // IFLA_GSO_MAX_SIZE, IFLA_GRO_…, IFLA_GSO_IPV4_…, IFLA_GRO_IPV4_…
				if strings.HasSuffix(k, size) && !strings.Contains(k, "/af") {
					to = sizes
				}
			}
			to[which+k] = v
		}
	}
	if len(sizes) != 4*4 {
		n.t.Fatalf("%d sizes of two interfaces in each of two namespaces", len(sizes))
	}
	return sizes, others
}

// linked waits until the kernel has noticed that both ends of the cable are up.
func (n *testNode) linked() {
	n.t.Helper()
	netnstest.Eventually(n.t, "both ends of the cable are up", func() bool {
		_, others := n.attributes()
		ups := 0
		for k, v := range others {
			if strings.HasSuffix(k, "/16") && !strings.Contains(k, "/af") && v == "06" { // IFLA_OPERSTATE, IF_OPER_UP
				ups++
			}
		}
		return ups == 2
	})
}

func (n *testNode) enrol() {
	n.t.Helper()
	n.agent.SetNamespace("default", ambient)
	n.said.await(n.t, podUIDOfTest, "enabled")
	n.agent.Set(n.thePod())
}

func (n *testNode) unenrol() {
	n.t.Helper()
	n.agent.SetNamespace("default", map[string]string{})
	n.said.await(n.t, podUIDOfTest, "")
	n.agent.Set(n.thePod())
	n.awaitRestored()
}

// A pod that joins gets large packets, also after a restart of the agent, and a pod that
// leaves has what it had. Nothing else of any interface changes.
func TestLargePackets(t *testing.T) {
	for mode, want := range map[packets.Mode][3]uint32{ // lo, eth0, the host's end
		packets.Off:      {packets.Default, packets.Default, packets.Default},
		packets.Loopback: {packets.Size, packets.Default, packets.Default},
		packets.Pod:      {packets.Size, packets.Size, packets.Size},
	} {
		t.Run(string(mode), func(t *testing.T) {
			n := newNode(t)
			n.linked()
			before, others := n.attributes()
			n.large(mode)
			n.startAgent(map[string]string{})
			startZtunnel(t, n.zds())
			check := func(when string) {
				t.Helper()
				got := [3]links.Sizes{sizes(t, n.pod, "lo"), sizes(t, n.pod, "eth0"), sizes(t, n.peer, "peer0")}
				if diff := cmp.Diff([3]links.Sizes{all(want[0]), all(want[1]), all(want[2])}, got); diff != "" {
					t.Errorf("%s:\n%s", when, diff)
				}
				if _, now := n.attributes(); !maps.Equal(others, now) {
					t.Errorf("%s, something else of an interface has changed:\n%s", when, cmp.Diff(others, now))
				}
				if got := sizes(t, n.peer, "lo"); got != all(packets.Default) {
					t.Errorf("%s, lo of the host: %+v", when, got)
				}
			}
			n.enrol()
			check("enrolled")
			n.allWork()
			n.stop()
			check("without an agent")
			n.startAgent(ambient)
			n.awaitServed()
			check("with another agent")
			n.allWork()
			n.unenrol()
			if now, _ := n.attributes(); !maps.Equal(before, now) {
				t.Errorf("after the pod has left:\n%s", cmp.Diff(before, now))
			}
			n.allWork()
		})
	}
}

// A size that the pod's owner chose stays, before, in and after the mesh.
func TestLargePacketsKeepOwnersSizes(t *testing.T) {
	n := newNode(t)
	owners := links.Sizes{GSO: packets.Default, GRO: 500_000, GSOIPv4: 100_000, GROIPv4: 20_000}
	setSizes(t, n.pod, "lo", owners)
	setSizes(t, n.peer, "peer0", all(30_000))
	before, _ := n.attributes()
	n.large(packets.Pod)
	n.startAgent(map[string]string{})
	startZtunnel(t, n.zds())
	n.enrol()
	want := owners
	want.GSO = packets.Size
	if got := sizes(t, n.pod, "lo"); got != want {
		t.Errorf("lo: %+v, want %+v", got, want)
	}
	if got := sizes(t, n.peer, "peer0"); got != all(30_000) {
		t.Errorf("the host's end: %+v", got)
	}
	n.allWork()
	n.unenrol()
	if now, _ := n.attributes(); !maps.Equal(before, now) {
		t.Errorf("after the pod has left:\n%s", cmp.Diff(before, now))
	}
	n.enrol()
	setSizes(t, n.pod, "eth0", all(200_000)) // in the mesh
	n.unenrol()
	if got := sizes(t, n.pod, "eth0"); got != all(200_000) {
		t.Errorf("eth0: %+v", got)
	}
}

// What an agent before set is taken back by one that has another setting, and by one
// that finds the pod outside of the mesh.
func TestLargePacketsOfAnotherAgent(t *testing.T) {
	n := newNode(t)
	n.linked()
	before, _ := n.attributes()
	n.large(packets.Pod)
	n.startAgent(ambient)
	startZtunnel(t, n.zds())
	n.said.await(t, podUIDOfTest, "enabled")
	n.stop()
	n.large(packets.Loopback)
	n.startAgent(ambient)
	n.awaitServed()
	netnstest.Eventually(t, "the pod's interface is as it was", func() bool {
		return sizes(t, n.pod, "eth0") == all(packets.Default) && sizes(t, n.peer, "peer0") == all(packets.Default)
	})
	if got := sizes(t, n.pod, "lo"); got != all(packets.Size) {
		t.Errorf("lo: %+v", got)
	}
	n.stop()
	n.large(packets.Off)
	n.startAgent(map[string]string{})
	n.said.await(t, podUIDOfTest, "")
	n.awaitRestored()
	netnstest.Eventually(t, "interfaces are as they were", func() bool {
		now, _ := n.attributes()
		return maps.Equal(before, now)
	})
}

func TestLargePacketsWithoutIPv6(t *testing.T) {
	n := newNode(t)
	netnstest.WithoutIPv6(t, n.pod)
	for _, servers := range []map[netip.Addr]netip.AddrPort{n.inside, n.outside} {
		maps.DeleteFunc(servers, func(a netip.Addr, _ netip.AddrPort) bool { return a.Is6() })
	}
	n.before = n.dump()
	n.linked()
	before, others := n.attributes()
	n.large(packets.Pod)
	n.startAgent(map[string]string{})
	startZtunnel(t, n.zds())
	n.enrol()
	if got := sizes(t, n.pod, "lo"); got != all(packets.Size) {
		t.Errorf("lo: %+v", got)
	}
	if _, now := n.attributes(); !maps.Equal(others, now) {
		t.Errorf("something else has changed:\n%s", cmp.Diff(others, now))
	}
	n.allWork()
	n.unenrol()
	if now, _ := n.attributes(); !maps.Equal(before, now) {
		t.Errorf("after the pod has left:\n%s", cmp.Diff(before, now))
	}
}

// A mesh that is taken off the node in a hurry leaves nothing behind.
func TestAbandonRestoresSizes(t *testing.T) {
	n := newNode(t)
	n.linked()
	before, _ := n.attributes()
	n.large(packets.Pod)
	n.startAgent(ambient)
	startZtunnel(t, n.zds())
	n.said.await(t, podUIDOfTest, "enabled")
	n.stop()
	n.agent.Abandon()
	if now, _ := n.attributes(); !maps.Equal(before, now) {
		t.Errorf("after the mesh has left:\n%s", cmp.Diff(before, now))
	}
}

// What cannot be set is no reason to keep a pod out of the mesh.
func TestLargePacketsFail(t *testing.T) {
	n := newNode(t)
	gone, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewRegistry()
	n.packets = packets.New(packets.Pod, gone, slog.New(slog.DiscardHandler), r) // no host to look at
	n.startAgent(ambient)
	startZtunnel(t, n.zds())
	n.said.await(t, podUIDOfTest, "enabled")
	n.allWork()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	failed := false
	for _, f := range families {
		for _, m := range f.GetMetric() {
			failed = failed || m.GetLabel()[0].GetValue() == "failed" && m.GetCounter().GetValue() > 0
		}
	}
	if !failed {
		t.Errorf("no failure is counted: %v", families)
	}
}
