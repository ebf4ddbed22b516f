// Package both has the scenarios that run in network namespaces of this machine, as part of
// make test, and on Kubernetes, as part of make e2e. AMBIT_WORLD says where: lab, which it
// is by default, or cluster.
package both

import (
	"fmt"
	"os"
	"testing"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
	"github.com/ambit-mesh/ambit/test/world/clusterworld"
	"github.com/ambit-mesh/ambit/test/world/labworld"
)

// newWorld makes the world of a test.
var newWorld = labworld.New

func TestMain(m *testing.M) {
	switch where := os.Getenv("AMBIT_WORLD"); where {
	case "", "lab":
		rig.Main(m)
	case "cluster":
		kit.Main(m, func(c *kit.Cluster) {
			newWorld = func(t testing.TB, o world.Options) *world.World { return clusterworld.New(t, c, o) }
		})
	default:
		fmt.Fprintf(os.Stderr, "AMBIT_WORLD=%s: there are lab and cluster\n", where)
		os.Exit(1)
	}
}

// start makes the world of a test, with a namespace shop in the mesh.
func start(t *testing.T, o world.Options) *world.World {
	t.Helper()
	w := newWorld(t, o)
	w.Namespace("shop", true)
	return w
}

var far = world.Place{Namespace: "shop", Pod: "far"}

// server is a pod of the shop that runs test/echo's server. Labels are the inside of a YAML
// map.
func server(name, labels string, args ...string) string {
	return rig.ServerObject("$shop", name, "node1", labels, append([]string{"-name", name}, args...)...)
}

// frontOf is a service of the shop that uses its waypoint, for the pods with a label.
func frontOf(name, label, ports string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: $shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {%s}, ipFamilyPolicy: PreferDualStack, ports: [%s]}
`, name, label, ports)
}

// versions are two versions of a server, a service of each, and the service front of both,
// which uses the waypoint; and the client far.
func versions() string {
	y := rig.PodObject("$shop", "far", "node2", "") + world.Waypoint("shop", 1, "")
	for _, v := range []string{"v1", "v2"} {
		y += server(v, "app: "+v+", tier: server", "-first", ":9100") + rig.ServiceObject("$shop", v, v, "{name: http, port: 80, targetPort: 8080, appProtocol: http}")
	}
	return y + frontOf("front", "tier: server", "{name: http, port: 80, targetPort: 8080, appProtocol: http}, {name: foo, port: 9100}")
}
