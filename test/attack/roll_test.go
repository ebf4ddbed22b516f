package attack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// rounds is how many pods are replaced while connections are made.
const rounds = 6

// instance is one pod of an application of three.
func instance(namespace string, i int) string {
	return rig.ServerObject(namespace, fmt.Sprint("roll", i), []string{"node1", "node2"}[i%2], "app: roll")
}

// TestRollingUnderLoad is no attack, and hits like one: an application's pods
// are replaced one after another while clients make connections. Each goes with
// its network: no FIN and no RST arrive. The mesh loses no more connections than
// the same application loses outside of the mesh.
func TestRollingUnderLoad(t *testing.T) {
	t.Parallel()
	var y strings.Builder
	for _, ns := range []string{"shop", "street"} {
		for i := range 3 {
			y.WriteString(instance(ns, i))
		}
		y.WriteString(rig.ServiceObject(ns, "roll", "roll", "{name: http, port: 80, targetPort: 8080}"))
	}
	w := start(t, y.String())
	for name, prepare := range map[string]func(*rig.World, lab.Where){
		"deleted": func(*rig.World, lab.Where) {},
		"network first": func(w *rig.World, pod lab.Where) {
			if _, err := w.Run(t.Context(), pod, "ip", "link", "set", "eth0", "down"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.For(t)
			meshed := w.StartConnections(rig.Far, vip(w, "shop"), 100)
			plain := w.StartConnections(rig.Stranger, vip(w, "street"), 100)
			for i := range rounds {
				for _, ns := range []string{"shop", "street"} {
					pod := fmt.Sprint("roll", i%3)
					prepare(w, lab.InPod(ns, pod))
					w.MustDelete("Pod", ns, pod)
					w.MustApply(instance(ns, i%3))
				}
				meshed.Seconds(1)
			}
			in, out := meshed.Stop(), plain.Stop()
			t.Logf("in the mesh: %+v; outside: %+v", in, out)
			if in.OK == 0 || out.OK == 0 {
				t.Error("nothing was answered")
			}
			// A request that was on its way to a pod is lost with it, in and outside
			// of the mesh: at most about one for each.
			if in.Failed > out.Failed+rounds {
				t.Errorf("%d of %d connections failed in the mesh, and %d of %d outside: %v", in.Failed, in.Sent, out.Failed, out.Sent, in.Errors)
			}
			if n := in.Errors["i/o timeout"]; n > rounds {
				t.Errorf("%d connections waited until the client gave up, for %d pods that went", n, rounds)
			}
		})
	}
}

func vip(w *rig.World, namespace string) netip.AddrPort {
	return netip.AddrPortFrom(w.Service(namespace, "roll", false), 80)
}
