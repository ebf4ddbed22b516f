package e2e

import (
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// Under REGISTRY_ONLY, pods reach Services, pods and the API server, and what a
// ServiceEntry lists; an address of a node, which is in no registry, they do not. Probes
// of the kubelet go on.
func TestRegistryOnly(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "egress", kit.Ambient())
	plain := mesh.Namespace(t, "plain", nil)
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.Pod("client", kit.OnNode(far))
	host := plain.Pod("host", kit.OnNode(near), kit.HostNetwork, kit.WithCommand("/echo", "server", "-http", ":18082", "-tcp", ":19002", "-first", ":19102"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe.TCPSocket.Port = intstr.FromInt32(18082)
	})
	outside := "http://" + net.JoinHostPort(host.Status.HostIP, "18082") + "/"
	n.MustGet("client", outside)

	n.Label(map[string]*string{wellknown.LabelOutbound: ptr.To("REGISTRY_ONLY")})
	n.MustRefuse("client", outside)
	n.Tunnelled("client", n.URL("server"), server)
	out, err := mesh.Exec(t.Context(), n.Name, "client", "/echo", "get", "-insecure", "-url", "https://kubernetes.default.svc.cluster.local/version")
	if err != nil || !strings.Contains(out, "gitVersion") {
		t.Errorf("the API server: %q, %v", out, err)
	}
	n.Pod("probed", kit.OnNode(far)) // is ready when the kubelet reaches it

	n.MustApply(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: host}
spec:
  hosts: [host.$NS.example]
  exportTo: ["."]
  location: MESH_EXTERNAL
  resolution: NONE
  addresses: ["` + host.Status.HostIP + `"]
  ports: [{number: 18082, name: http, protocol: HTTP}]
`)
	n.MustGet("client", outside)
	n.Label(map[string]*string{wellknown.LabelOutbound: nil})
}
