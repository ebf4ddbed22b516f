package attack

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// looperPod is a pod whose address the directory does not have in its node's
// network, so that a connection to it is passed through.
const looperPod = `
---
apiVersion: v1
kind: Pod
metadata: {name: looper, namespace: market, labels: {app: looper, topology.istio.io/network: elsewhere}}
spec: {nodeName: node1, serviceAccountName: looper, containers: [{name: shell}]}
`

var looper = lab.InPod("market", "looper")

// leads returns a ServiceEntry of the market whose addresses lead to a port at
// other addresses.
func leads(name string, vip4, vip6 netip.Addr, to4, to6 netip.Addr, port uint16) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: market}
spec:
  hosts: [%[1]s.example]
  addresses: ["%s", "%s"]
  ports: [{number: 80, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: "%s", ports: {tcp: %d}}, {address: "%s", ports: {tcp: %[5]d}}]
`, name, vip4, vip6, to4, port, to6)
}

// TestLoops: a pod has its proxy connect to a proxy's own ports, by its own address
// or by services that lead there. Each connection ends at once and costs one.
func TestLoops(t *testing.T) {
	t.Parallel()
	world := start(t, looperPod)
	var more strings.Builder
	n := byte(0)
	vips := func() (netip.Addr, netip.Addr) {
		n++
		return netip.AddrFrom4([4]byte{240, 9, 9, n}), netip.MustParseAddr(fmt.Sprintf("fd99:9::%x", n))
	}
	type target struct {
		name string
		to   [2]netip.AddrPort // by family
	}
	var direct, served []target
	for _, port := range []uint16{wellknown.PortOutbound, wellknown.PortInbound} {
		for _, pod := range []string{"looper", "thief1", "thief2"} {
			a4, a6 := world.Pod("market", pod, false), world.Pod("market", pod, true)
			direct = append(direct, target{fmt.Sprintf("%s:%d", pod, port), [2]netip.AddrPort{netip.AddrPortFrom(a4, port), netip.AddrPortFrom(a6, port)}})
			if pod == "looper" {
				continue // an endpoint with its address would make it known
			}
			v4, v6 := vips()
			more.WriteString(leads(fmt.Sprintf("to-%s-%d", pod, port), v4, v6, a4, a6, port))
			served = append(served, target{fmt.Sprintf("service to %s:%d", pod, port), [2]netip.AddrPort{netip.AddrPortFrom(v4, 80), netip.AddrPortFrom(v6, 80)}})
		}
	}
	lines := func() int {
		return len(world.AccessLines("node1")) + len(world.AccessLines("node2"))
	}
	try := func(t *testing.T, from lab.Where, to netip.AddrPort) {
		w := world.For(t)
		before := lines()
		c, err := w.Dial(t.Context(), from, "tcp", to.String())
		if err == nil {
			if awaitEnd(c) == nil {
				t.Error("the connection does not end")
			}
			_ = c.Close()
		}
		// A chain would go on while this waits.
		w.Always("the number of connections", func() error {
			if n := lines() - before; n > 4 {
				return fmt.Errorf("one connection has made %d lines", n)
			}
			return nil
		})
	}
	all := func(targets []target) {
		rig.Families(t, func(t *testing.T, v6 bool) {
			for _, tc := range targets {
				for _, from := range []lab.Where{looper, thief1} {
					t.Run(fmt.Sprintf("%s from %s", tc.name, from), func(t *testing.T) {
						try(t, from, tc.to[map[bool]int{false: 0, true: 1}[v6]])
					})
				}
			}
		})
	}
	all(direct)
	world.MustApply(more.String())
	all(served)
	w := world.For(t)
	w.Logs("node1", `reason="RECURSIVE_CALL"`, "was not redirected")
	w.MustGet(rig.Near, netip.AddrPortFrom(w.Pod("shop", "web", false), 8080))
}

// awaitEnd waits until a connection ends and returns how; nil when it does not.
func awaitEnd(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return cmp.Or(err, io.EOF)
}
