package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// outsider is a pod in the network of its node, outside of the mesh, with a server of
// test/echo. It is ready when the port of HTTP answers.
func outsider(t *testing.T, node, http string, more ...string) *corev1.Pod {
	t.Helper()
	argv := append([]string{"/echo", "server", "-http", ":" + http}, more...)
	return mesh.Namespace(t, "outside", nil).Pod("host", kit.OnNode(node), kit.HostNetwork, kit.WithCommand(argv...), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe.TCPSocket.Port = intstr.Parse(http)
	})
}

// lookedUpName returns a name of the domain of a pod's namespace, for which the cluster's name
// server answers with the address in it.
func lookedUpName(of *corev1.Pod, ip string) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(ip) + "." + podDomain(of)
}

func podDomain(of *corev1.Pod) string { return of.Namespace + ".pod." + wellknown.DefaultDomain }

// Under REGISTRY_ONLY, pods reach Services, pods and the API server, and what a
// ServiceEntry lists; an address of a node, which is in no registry, they do not. Probes
// of the kubelet go on.
func TestRegistryOnly(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "egress", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.Pod("client", kit.OnNode(far))
	host := outsider(t, near, "18082", "-tcp", ":19002", "-first", ":19102")
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

// TestHostsByLookUps: under REGISTRY_ONLY, a pod reaches a host of a wildcard of DYNAMIC_DNS
// once the cluster's name server has given it the host's address, in each family: at the
// entry's ports, and where TLS names the host.
func TestHostsByLookUps(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "wildcard", kit.Ambient())
	host := outsider(t, near, "18084", "-tcp", ":19004", "-first", ":19104", "-tls", ":18444")
	n.Pod("client", kit.OnNode(far), captures("true"))
	n.Label(map[string]*string{wellknown.LabelOutbound: ptr.To("REGISTRY_ONLY")})
	n.MustApply(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec:
  hosts: ["*.` + podDomain(host) + `"]
  exportTo: ["."]
  location: MESH_EXTERNAL
  resolution: DYNAMIC_DNS
  ports: [{number: 18084, name: http, protocol: HTTP}, {number: 18444, name: tls, protocol: TLS}, {number: 18085, name: moved, protocol: TCP, targetPort: 18084}]
`)
	get := func(args ...string) error {
		out, err := mesh.Exec(t.Context(), n.Name, "client", append([]string{"/echo", "get"}, args...)...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	for _, ip := range host.Status.HostIPs {
		name := lookedUpName(host, ip.IP)
		n.MustRefuse("client", "http://"+net.JoinHostPort(ip.IP, "18084")+"/")
		n.MustGet("client", "http://"+name+":18084/")
		n.MustGet("client", "http://"+name+":18085/")
		if err := get("-insecure", "-url", "https://"+name+":18444/"); err != nil {
			t.Errorf("TLS that names the host: %v", err)
		}
		if err := get("-insecure", "-sni", "evil.example", "-url", "https://"+name+":18444/"); err == nil {
			t.Error("TLS with another name is answered")
		}
		if err := get("-url", "http://"+name+":19104/"); err == nil {
			t.Error("another port is answered")
		}
		out, err := mesh.Ambit(t.Context(), "why", "client."+n.Name, name+":18084")
		if err != nil || !strings.Contains(out, n.Name+"/outside") {
			t.Errorf("ambit why: %v\n%s", err, out)
		}
	}
}
