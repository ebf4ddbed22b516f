package clusterworld

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// Outside runs a pod in the network of a node, which no registry has.
func (m mesh) Outside(t testing.TB, args ...string) (all []netip.Addr) {
	t.Helper()
	argv := append([]string{"/echo", "server", "-name", "outside"}, args...)
	n := m.Cluster.Namespace(t, "outside", nil)
	p := n.Pod("outside", kit.OnNode(m.nodes["node1"]), kit.HostNetwork, kit.WithCommand(argv...), func(p *corev1.Pod) {
		for i, arg := range args {
			if arg == "-http" {
				_, port, _ := net.SplitHostPort(args[i+1])
				p.Spec.Containers[0].ReadinessProbe.TCPSocket.Port = intstr.Parse(port)
			}
		}
	})
	for _, ip := range p.Status.HostIPs {
		all = append(all, netip.MustParseAddr(ip.IP))
	}
	return all
}

// Name makes a headless Service without a selector.
func (m mesh) Name(t testing.TB, namespace, name string, all []netip.Addr) string {
	t.Helper()
	y := fmt.Sprintf("\n---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: %s}\nspec: {clusterIP: None, ipFamilyPolicy: PreferDualStack}\n", name, namespace)
	for _, v6 := range []bool{false, true} {
		var list []string
		for _, a := range all {
			if a.Is6() == v6 {
				list = append(list, fmt.Sprintf("{addresses: [%q]}", a))
			}
		}
		if len(list) > 0 {
			family := map[bool]string{false: "4", true: "6"}[v6]
			y += fmt.Sprintf("\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %[1]s-%[3]s, namespace: %[2]s, labels: {kubernetes.io/service-name: %[1]s}}\n"+
				"addressType: IPv%[3]s\nendpoints: [%[4]s]\nports: []\n", name, namespace, family, strings.Join(list, ", "))
		}
	}
	m.Apply(t, y)
	return name + "." + namespace + ".svc.cluster.local"
}
