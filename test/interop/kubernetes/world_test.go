package kubernetes

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

//go:embed istiod.yaml
var istiodManifest string

// The DaemonSets of node proxies.
const (
	ourProxies  = "ztunnel"
	peerProxies = "ztunnel-peer"
)

// uninstallTime bounds taking a mesh away on a slow machine.
const uninstallTime = 5 * time.Minute

// mesh is a mesh made of parts of both.
type mesh struct {
	*kit.Cluster
	name        string
	peerControl bool   // istiod, not ambitd
	service     string // the name under which istiod is reached
	mixed       bool   // our node proxy on the first node, Istio's on the others
	nodes       []string
}

// meshes are those that can be made of the programs that were given.
func meshes() []*mesh {
	var all []*mesh
	if peerZtunnel != "" {
		all = append(all, &mesh{Cluster: cluster, name: "ambitd, both proxies", mixed: true})
	}
	if peerIstiod != "" {
		all = append(all, &mesh{Cluster: cluster, name: "istiod, our proxies", peerControl: true, service: "istiod"})
	}
	if peerIstiod != "" && peerZtunnel != "" {
		// By another name than charts assume: the values that say so are heeded.
		all = append(all, &mesh{Cluster: cluster, name: "istiod, both proxies", peerControl: true, service: "discovery", mixed: true})
	}
	return all
}

// TestMeshes asks the same of every mesh.
func TestMeshes(t *testing.T) {
	for _, m := range meshes() {
		t.Run(m.name, func(t *testing.T) {
			m.install(t)
			for _, test := range []struct {
				name string
				run  func(*testing.T, *mesh)
			}{
				{"Enrolment", enrolment},
				{"Policy", policy},
				{"Strict", strict},
				{"Certificates", certificates},
				{"CommandLine", commandLine},
				{"ControlPlaneRestarted", controlPlaneRestarted},
				{"NodesRolled", nodesRolled},
			} {
				t.Run(test.name, func(t *testing.T) { test.run(t, m) })
			}
			if m.peerControl && !m.mixed {
				// Last: these add control planes.
				t.Run("SameDirectory", func(t *testing.T) { sameDirectory(t, m) })
				t.Run("Exchanged", func(t *testing.T) { exchanged(t, m) })
			}
		})
	}
}

// install makes the mesh, and sees to it that it is taken away again.
func (m *mesh) install(t *testing.T) {
	t.Helper()
	var err error
	if m.nodes, err = m.Nodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(m.nodes) < 2 {
		t.Fatalf("these tests need two nodes, better three; the cluster has %v", m.nodes)
	}
	if os.Getenv("AMBIT_KEEP") == "" {
		t.Cleanup(func() { m.uninstall(t) })
	}
	args := []string{"-f", m.values(t)}
	if m.peerControl {
		if err := m.Install(t.Context(), "--set", "components.pilot.enabled=false,components.cni.enabled=false,components.ztunnel.enabled=false"); err != nil {
			t.Fatal(err)
		}
		if err := m.Apply(t.Context(), kit.SystemNamespace, m.istiod()); err != nil {
			t.Fatal(err)
		}
		m.ControlPlane(t, 1)
		at := m.service + "." + kit.SystemNamespace + ".svc:15012"
		args = append(args, "--set", "components.pilot.enabled=false", "--set", "values.ztunnel.caAddress="+at, "--set", "values.ztunnel.xdsAddress="+at)
	}
	if err := m.Install(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
	if m.mixed {
		m.installPeers(t)
	}
}

func (m *mesh) istiod() string {
	return strings.NewReplacer("$IMAGE", peerIstiod, "$SERVICE", m.service).Replace(istiodManifest)
}

// values is a file with what ours is told: to keep to the first node.
func (m *mesh) values(t *testing.T) string {
	t.Helper()
	text := ""
	if m.mixed {
		text = fmt.Sprintf(`
values:
  ztunnel:
    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [%s]}]}]
`, m.nodes[0])
	}
	path := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// installPeers puts Istio's proxy on the nodes that ours is kept from: the
// DaemonSet of our chart, with another image.
func (m *mesh) installPeers(t *testing.T) {
	t.Helper()
	sets := m.Kube.AppsV1().DaemonSets(kit.SystemNamespace)
	ours, err := sets.Get(t.Context(), ourProxies, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	peers := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: peerProxies, Labels: ours.Labels}, Spec: *ours.Spec.DeepCopy()}
	const instance = "app.kubernetes.io/instance"
	peers.Spec.Selector.MatchLabels[instance] = peerProxies
	peers.Spec.Template.Labels[instance] = peerProxies
	peers.Spec.Template.Spec.Containers[0].Image = peerZtunnel
	terms := peers.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	terms[0].MatchFields[0].Operator = corev1.NodeSelectorOpNotIn
	if err := sets.Delete(t.Context(), peerProxies, metav1.DeleteOptions{}); err == nil {
		time.Sleep(time.Second)
	}
	if _, err := sets.Create(t.Context(), peers, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.RolledOut(t, peerProxies)
}

// uninstall takes everything away: what istiod would write again after istiod.
func (m *mesh) uninstall(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), uninstallTime) // the test's context has ended
	defer cancel()
	if m.peerControl {
		if _, err := m.Ambit(ctx, "uninstall", "-y"); err != nil {
			t.Error(err)
		}
		if err := m.Delete(ctx, kit.SystemNamespace, m.istiod()); err != nil {
			t.Error(err)
		}
		if err := m.noControlPlane(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := m.Uninstall(ctx); err != nil {
		t.Error(err)
	}
	if there, err := systemNamespace(ctx); err != nil || there {
		t.Errorf("namespace %s stays behind: %v", kit.SystemNamespace, err)
	}
}

// noControlPlane waits until the pods of the control plane have gone.
func (m *mesh) noControlPlane(ctx context.Context) error {
	for {
		list, err := m.Kube.CoreV1().Pods(kit.SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
		if err != nil || len(list.Items) == 0 {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// proxies are the DaemonSets of node proxies.
func (m *mesh) proxies() []string {
	if m.mixed {
		return []string{ourProxies, peerProxies}
	}
	return []string{ourProxies}
}

// who is the maker of a node's proxy.
func (m *mesh) who(node string) string {
	if m.mixed && node != m.nodes[0] {
		return "peer"
	}
	return "ours"
}

// way is one direction through the mesh, between nodes.
type way struct{ from, to string }

func (x way) client() string { return "client-" + x.from }
func (x way) server() string { return "server-" + x.to }

// ways has one from node to node for every pair of makers.
func (m *mesh) ways() []way {
	seen := map[string]bool{}
	var all []way
	for _, from := range m.nodes {
		for _, to := range m.nodes {
			if pair := m.who(from) + m.who(to); from != to && !seen[pair] {
				seen[pair] = true
				all = append(all, way{from, to})
			}
		}
	}
	return all
}

// town is a namespace with a client, a server and a service on every node, each
// under an account of its own.
type town struct {
	*kit.Namespace
	m       *mesh
	t       *testing.T
	servers map[string]*corev1.Pod // by node
}

func (m *mesh) town(t *testing.T, name string, labels map[string]string) *town {
	t.Helper()
	n := &town{Namespace: m.Namespace(t, name, labels), m: m, t: t, servers: map[string]*corev1.Pod{}}
	for _, node := range m.nodes {
		n.Create("client-"+node, kit.OnNode(node))
		n.Create("server-"+node, kit.OnNode(node))
		n.Service("server-" + node)
	}
	for _, node := range m.nodes {
		n.Ready("client-" + node)
		n.servers[node] = n.Ready("server-" + node)
	}
	return n
}

func (n *town) url(x way) string { return n.URL(x.server()) }

// enrolled waits until every pod is in the mesh, or none is.
func (n *town) enrolled(in bool, more ...string) {
	n.t.Helper()
	for _, node := range n.m.nodes {
		more = append(more, "client-"+node, "server-"+node)
	}
	for _, pod := range more {
		n.Redirected(pod, in)
	}
}

// crosses waits until a connection goes through the mesh, of which both nodes
// know who is at either end.
func (n *town) crosses(x way) {
	n.t.Helper()
	since := time.Now().Add(-time.Second)
	to := n.servers[x.to]
	n.Tunnelled(x.client(), n.url(x), to)
	ends := []string{`src.identity="` + kit.SPIFFE(n.Name, x.client()) + `"`, `dst.identity="` + kit.SPIFFE(n.Name, x.server()) + `"`}
	n.LoggedOn(x.to, to, since, append(ends, `direction="inbound"`)...)
	n.LoggedOn(x.from, to, since, append(ends, `direction="outbound"`)...)
}

// load puts some on every way.
func (n *town) load(rate int) []*kit.Load {
	n.t.Helper()
	var all []*kit.Load
	for i, x := range n.m.ways() {
		all = append(all, n.StartLoad(fmt.Sprintf("load-%d", i), n.url(x), rate, kit.OnNode(x.from)))
	}
	return all
}

func loads(m *mesh) (names []string) {
	for i := range m.ways() {
		names = append(names, fmt.Sprintf("load-%d", i))
	}
	return names
}

// clean ends all load, of which nothing may have failed.
func clean(t *testing.T, all []*kit.Load) {
	t.Helper()
	for _, l := range all {
		r := l.Clean()
		t.Logf("%d requests", r.Sent)
	}
}
