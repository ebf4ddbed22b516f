package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/sys/packet/packettest"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// A client outside of the cluster sends packets that open no connection through
// a NodePort, and then connects from the same port. A STRICT pod answers none of
// them. A pod outside of the mesh answers, so the attack arrives at pods.
func TestNodePortAfterAPacketThatOpensNothing(t *testing.T) {
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
		for _, door := range open(node) {
			kit.Eventually(t, fmt.Sprintf("a pod outside of the mesh answers at %s", door), func(context.Context) error {
				if r := attackFrom(t, lan, door, 64); r.Answered == 0 {
					return fmt.Errorf("none of %d connections was answered", r.Tried)
				}
				return nil
			})
		}
		for _, door := range closed(node) {
			const sequences = 700 // all sets of flags twice, and some that are drawn
			r := attackFrom(t, lan, door, sequences)
			t.Logf("%s: %d sequences, %d answered, %d neither answered nor refused", door, r.Tried, r.Answered, r.Silent)
			for _, e := range r.Examples {
				t.Errorf("%s answers after %s", door, e)
			}
		}
	}
	n.Pod("client", kit.OnNode(far))
	n.MustGet("client", "http://"+net.JoinHostPort(n.Ready("strict").Status.PodIP, "8080")+"/")
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
