package e2e

import (
	"net"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// The mesh is the same over IPv6: Services, pods' own addresses, policies by
// identity and by address, STRICT. It takes a cluster whose pods
// have addresses of both families, which that of make cluster is.
func TestIPv6(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "ipv6", kit.Ambient())
	plain := mesh.Namespace(t, "plain", nil)
	server := n.Pod("server", kit.OnNode(near))
	address := sixOf(server)
	if address == "" {
		t.Fatal("the pods of this cluster have no IPv6 addresses: this test takes a dual-stack cluster, which `make cluster` brings up where the kernel has IPv6")
	}
	n.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: six}
spec:
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv6]
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
`)
	both, err := mesh.Kube.CoreV1().Services(n.Name).Get(t.Context(), "both", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	direct := "http://" + net.JoinHostPort(address, "8080") + "/"
	n.Pod("near", kit.OnNode(near))
	alice := n.Pod("alice", kit.OnNode(far))
	n.Pod("bob", kit.OnNode(far))
	plain.Pod("stranger", kit.OnNode(far))
	for _, from := range []string{"near", "alice"} {
		n.Tunnelled(from, n.URL("six"), server)
		n.Tunnelled(from, direct, server)
		for _, ip := range both.Spec.ClusterIPs {
			n.Tunnelled(from, "http://"+net.JoinHostPort(ip, "80")+"/", server)
		}
	}
	plain.MustGet("stranger", direct)
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	plain.MustRefuse("stranger", direct)
	n.MustGet("alice", direct)
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-alice}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/$NS/sa/alice]}}]}]
`)
	n.MustRefuse("bob", n.URL("six"))
	n.MustGet("alice", n.URL("six"))
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-that-address}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {ipBlocks: ["` + sixOf(alice) + `/128"]}}]}]
`)
	n.MustRefuse("alice", n.URL("six"))
	four := "http://" + net.JoinHostPort(fourOf(server), "8080") + "/"
	n.Tunnelled("alice", four, server) // her other address is not denied
}

func sixOf(pod *corev1.Pod) string  { return addressOf(pod, netip.Addr.Is6) }
func fourOf(pod *corev1.Pod) string { return addressOf(pod, netip.Addr.Is4) }

// addressOf is a pod's first address of a family; empty when it has none.
func addressOf(pod *corev1.Pod, family func(netip.Addr) bool) string {
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && family(a) {
			return ip.IP
		}
	}
	return ""
}
