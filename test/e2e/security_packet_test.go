package e2e

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/sys/packet/packettest"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// sequences is enough for all sets of flags twice, and some that are drawn.
var sequences = flag.Int("sequences", 700, "how many sequences of packets to send through each address of a service")

// A client outside of the cluster sends packets that open no connection, and
// then connects from the same port: through a NodePort, and through the address
// of the service and of the pod by way of each node. A STRICT pod answers none of
// them. A pod outside of the mesh answers, so the attack arrives at pods.
func TestServiceAfterAPacketThatOpensNothing(t *testing.T) {
	needsOwnCluster(t)
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "unopened", kit.Ambient())
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	n.Pod("strict", kit.OnNode(near))
	n.Redirected("strict", true)
	plain := mesh.Namespace(t, "plain", nil)
	plain.Pod("open", kit.OnNode(near))
	closed, open := nodePort(t, n, "strict"), nodePort(t, plain, "open")
	lan, err := mesh.Own.Netns("lan")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lan.Close() }()

	for _, node := range []string{near, far} {
		open, closed := open(node), closed(node)
		for _, through := range closed {
			route := hostRoutes(t, lan, through.Addr())
			open = append(open, route(plain, "open")...)
			closed = append(closed, route(n, "strict")...)
		}
		for _, door := range open {
			kit.Eventually(t, fmt.Sprintf("a pod outside of the mesh answers at %s", door), func(context.Context) error {
				if r := attackFrom(t, lan, door, 64); r.Answered == 0 {
					return fmt.Errorf("none of %d connections was answered", r.Tried)
				}
				return nil
			})
		}
		for _, door := range closed {
			r := attackFrom(t, lan, door, *sequences)
			t.Logf("%s by way of %s: %d sequences, %d answered, %d neither answered nor refused", door, node, r.Tried, r.Answered, r.Silent)
			for _, e := range r.Examples {
				t.Errorf("%s answers after %s", door, e)
			}
		}
	}
	n.Pod("client", kit.OnNode(far))
	n.MustGet("client", "http://"+net.JoinHostPort(n.Ready("strict").Status.PodIP, "8080")+"/")
}

// hostRoutes has a namespace send through one address of a node what is for a
// service or its pod. The returned function sets the routes of one family for the
// service and pod of a name, and returns their addresses with ports.
func hostRoutes(t *testing.T, ns *netns.NS, through netip.Addr) func(n *kit.Namespace, name string) []netip.AddrPort {
	return func(n *kit.Namespace, name string) []netip.AddrPort {
		t.Helper()
		svc, err := mesh.Kube.CoreV1().Services(n.Name).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var doors []netip.AddrPort
		add := func(text string, port uint16) {
			addr := netip.MustParseAddr(text)
			if addr.Is4() != through.Is4() {
				return
			}
			doors = append(doors, netip.AddrPortFrom(addr, port))
			err := ns.Do(func() error {
				return netlink.RouteReplace(&netlink.Route{Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}, Gw: through.AsSlice()})
			})
			if err != nil {
				t.Fatalf("route to %s through %s: %v", addr, through, err)
			}
		}
		for _, ip := range svc.Spec.ClusterIPs {
			add(ip, 80)
		}
		for _, ip := range n.Ready(name).Status.PodIPs {
			add(ip.IP, 8080)
		}
		if len(doors) == 0 {
			t.Fatalf("%s has no address of the family of %s", name, through)
		}
		return doors
	}
}

func attackFrom(t *testing.T, ns *netns.NS, door netip.AddrPort, sequences int) packettest.Result {
	t.Helper()
	r, err := packettest.Attack{
		In: ns.Do, From: sourceTo(t, ns, door), To: []netip.AddrPort{door}, Request: "GET / HTTP/1.0\r\n\r\n", Seed: 3, Count: sequences,
	}.Run()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sourceTo returns the address that a namespace sends from to a destination.
func sourceTo(t *testing.T, ns *netns.NS, to netip.AddrPort) netip.Addr {
	t.Helper()
	var source netip.Addr
	err := ns.Do(func() error {
		c, err := net.Dial("udp", to.String()) // sends nothing
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		source = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// The agent has the addresses of the pods that it enrols in the node's table for
// bridges, and restores that table.
func TestAgentKeepsTheTableForBridges(t *testing.T) {
	needsOwnCluster(t)
	_, near := twoNodes(t)
	n := mesh.Namespace(t, "bridged", kit.Ambient())
	pod := n.Pod("server", kit.OnNode(near))
	n.Redirected("server", true)
	listed := func(ctx context.Context) error {
		out, err := mesh.Own.Output(ctx, near, "nft", "list", "table", "bridge", nft.HostTableName)
		if err != nil {
			return err
		}
		for _, ip := range pod.Status.PodIPs {
			if !strings.Contains(out, ip.IP) {
				return fmt.Errorf("%s is not in %s", ip.IP, out)
			}
		}
		return nil
	}
	kit.Eventually(t, "the pod is in the table", listed)
	if out, err := mesh.Own.Output(t.Context(), near, "nft", "delete", "table", "bridge", nft.HostTableName); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	kit.Eventually(t, "the table is restored", listed)
}
