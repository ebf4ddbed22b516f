// Package interop puts another implementation of the node proxy, given by the
// path in PEER_ZTUNNEL, on two of three nodes of a mesh and makes sure that
// nobody notices: same control plane, same agent, same tunnels.
package interop

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/supervisor"
	"github.com/ambit-mesh/ambit/test/rig"
)

const peerVariable = "PEER_ZTUNNEL"

func TestMain(m *testing.M) {
	supervisor.Main() // first: the parts of a lab are this program, without the variable
	if os.Getenv(peerVariable) == "" {
		fmt.Fprintf(os.Stderr, "%s is not set: it names the other ztunnel's binary, as in\n\n  make interop %s=/path/to/ztunnel\n", peerVariable, peerVariable)
		os.Exit(1)
	}
	rig.Main(m)
}

// The nodes: one of Ambit's, two of the peer's.
const (
	ours  = "node1"
	peer  = "node2"
	peer2 = "node3"
)

// town has a server and a client on every node, each with an identity of its
// own, and a client outside of the mesh.
func town() string {
	y := rig.NamespaceObject("shop", true) + rig.NamespaceObject("street", false) + rig.PodObject("street", "stranger", "node2", "")
	for _, node := range []string{ours, peer, peer2} {
		server := "server-" + node
		y += rig.ServerObject("shop", server, node, "app: "+server, "-first", ":9100") + rig.PodObject("shop", "client-"+node, node, "") +
			rig.ServiceObject("shop", server, server, "{name: http, port: 80, targetPort: 8080}, {name: echo, port: 90, targetPort: 9000}, {name: first, port: 91, targetPort: 9100}")
	}
	return y
}

func start(t *testing.T) *rig.World {
	t.Helper()
	path := os.Getenv(peerVariable)
	w := rig.Start(t, lab.Config{Nodes: 3, YAML: town(), PeerZtunnel: map[string]string{peer: path, peer2: path}})
	out, _ := exec.Command(path, "version").CombinedOutput()
	t.Logf("peer: %s", out)
	allHealthy(w)
	return w
}

// way is one direction through the mesh.
type way struct{ from, to string } // nodes

func (x way) String() string { return who(x.from) + " to " + who(x.to) }

func who(node string) string {
	if node == ours {
		return "ours"
	}
	return "peer " + node
}

// across are the ways on which both implementations have a part.
var across = []way{{ours, peer}, {peer, ours}}

func (x way) client() lab.Where { return lab.InPod("shop", "client-"+x.from) }

func account(name string) string { return "spiffe://cluster.local/ns/shop/sa/" + name }

// A target is how a client names its server.
type target struct {
	name             string
	http, echo, said netip.AddrPort
}

// targets are the server's own address and that of its service.
func (x way) targets(w *rig.World, v6 bool) []target {
	w.T().Helper()
	name := "server-" + x.to
	pod, vip := w.Pod("shop", name, v6), w.Service("shop", name, v6)
	at := netip.AddrPortFrom
	return []target{
		{"pod", at(pod, 8080), at(pod, 9000), at(pod, 9100)},
		{"service", at(vip, 80), at(vip, 90), at(vip, 91)},
	}
}

// each runs f for all ways, address families and kinds of target.
func each(t *testing.T, world *rig.World, ways []way, f func(t *testing.T, w *rig.World, x way, to target, v6 bool)) {
	t.Helper()
	for _, x := range ways {
		rig.Families(t, func(t *testing.T, v6 bool) {
			for _, to := range x.targets(world.For(t), v6) {
				t.Run(strings.ReplaceAll(x.String()+" by "+to.name, " ", "_"), func(t *testing.T) { f(t, world.For(t), x, to, v6) })
			}
		})
	}
}

// allHealthy waits until all proxies know that every pod is ready.
func allHealthy(w *rig.World) {
	w.T().Helper()
	w.Eventually("all proxies know that every pod is ready", func() error {
		for _, node := range []string{ours, peer, peer2} {
			d, err := w.Dump(node)
			if err != nil {
				return err
			}
			for _, wl := range d.Workloads {
				if wl.Status != "Healthy" {
					return fmt.Errorf("to %s, %s is %s", node, wl.Name, wl.Status)
				}
			}
		}
		return nil
	})
}

// logged waits for an access log line of a node with all parts.
func logged(w *rig.World, node string, parts ...string) {
	w.T().Helper()
	w.Eventually("the access log of "+node, func() error {
		if len(w.AccessLines(node, parts...)) == 0 {
			return fmt.Errorf("no line has all of %q", parts)
		}
		return nil
	})
}

// try makes one request, which may hang for a reason.
func try(w *rig.World, from lab.Where, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(w.T().Context(), 3*time.Second)
	defer cancel()
	_, err := w.Lab.Get(ctx, from, "http://"+to.String()+"/")
	return err
}

func served(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("%s is served at %s", from, to), func() error { return try(w, from, to) })
}

func refused(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("%s is refused at %s", from, to), func() error {
		if try(w, from, to) == nil {
			return fmt.Errorf("it is answered")
		}
		return nil
	})
	for range 3 {
		if try(w, from, to) == nil {
			w.T().Errorf("%s is served again at %s", from, to)
		}
	}
}
