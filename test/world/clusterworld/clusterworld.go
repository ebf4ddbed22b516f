// Package clusterworld makes meshes for scenarios of namespaces of a Kubernetes cluster.
package clusterworld

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
	"github.com/ambit-mesh/ambit/test/world"
)

type mesh struct {
	*kit.Cluster
	nodes  map[string]string // by their names in scenarios
	spaces map[string]*kit.Namespace
}

// New returns a world on a cluster with the mesh installed.
func New(t testing.TB, c *kit.Cluster, o world.Options) *world.World {
	t.Helper()
	nodes, err := c.Nodes(t.Context())
	if err != nil || len(nodes) < 2 {
		t.Fatalf("scenarios need two nodes, the cluster has %v, error %v", nodes, err)
	}
	if o.Experimental {
		c.Experimental(t)
	}
	if o.SOCKS5 {
		c.WithSOCKS5(t)
	}
	last := len(nodes) - 1
	return world.On(t, mesh{c, map[string]string{"node1": nodes[last-1], "node2": nodes[last]}, map[string]*kit.Namespace{}})
}

func (m mesh) Namespace(t testing.TB, name string, ambient bool) string {
	t.Helper()
	var labels map[string]string
	if ambient {
		labels = kit.Ambient()
	}
	n := m.Cluster.Namespace(t, name, labels)
	m.spaces[n.Name] = n
	return n.Name
}

// in returns a namespace of the scenario for a test.
func (m mesh) in(t testing.TB, name string) *kit.Namespace {
	t.Helper()
	n, ok := m.spaces[name]
	if !ok {
		t.Fatalf("the scenario has no namespace %q", name)
	}
	return n.For(t)
}

func (m mesh) Apply(t testing.TB, text string) {
	t.Helper()
	all, err := world.Objects(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if o.Kind == "Pod" {
			m.in(t, o.Metadata.Namespace).Account(o.Metadata.Name)
		}
	}
	if err := m.Cluster.Apply(t.Context(), "", strings.ReplaceAll(text, "ECHO", "/echo"), m.place); err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if o.Kind == "Pod" {
			m.in(t, o.Metadata.Namespace).Ready(o.Metadata.Name)
		}
	}
}

// place completes a pod of a scenario, which runs as a service account of its own name.
func (m mesh) place(u *unstructured.Unstructured) {
	if u.GetKind() != "Pod" {
		return
	}
	spec, _ := u.Object["spec"].(map[string]any)
	if node, ok := spec["nodeName"].(string); ok {
		spec["nodeName"] = m.nodes[node]
	}
	if fmt.Sprint(spec["terminationGracePeriodSeconds"]) == "0" { // a kubelet has at least this
		spec["terminationGracePeriodSeconds"] = int64(1)
	}
	before, _ := spec["initContainers"].([]any)
	for _, c := range before {
		c, _ := c.(map[string]any)
		c["image"] = kit.TestImage
	}
	list, _ := spec["containers"].([]any)
	for _, c := range list {
		c, _ := c.(map[string]any)
		c["image"] = kit.TestImage
		if _, ok := c["command"]; !ok { // it waits
			c["command"] = []any{"/echo", "server", "-http", "", "-tcp", ""}
		}
		if probe, ok := c["readinessProbe"].(map[string]any); ok {
			probe["periodSeconds"] = int64(1)
		}
	}
}

func (m mesh) Mistaken(t testing.TB, text string) (refusal string) {
	t.Helper()
	err := m.Cluster.Apply(t.Context(), "", text)
	if err == nil {
		t.Fatal("the API server accepts what has a mistake")
	}
	return err.Error()
}

func (m mesh) Delete(t testing.TB, text string) {
	t.Helper()
	if err := m.Cluster.Delete(t.Context(), "", text); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "objects are gone", func(ctx context.Context) error { return m.Gone(ctx, "", text) })
}

func (m mesh) Scarce(t testing.TB, _ string) { m.Machines(t) }

func (m mesh) Successor(t testing.TB, gone world.Pod, yaml string) {
	t.Helper()
	var ips []string
	for _, a := range gone.IPs {
		ips = append(ips, a.String())
	}
	m.GiveNext(t, gone.Node, ips...)
	m.Apply(t, yaml)
}

func (m mesh) MeshConfig(t testing.TB, text string) {
	t.Helper()
	settings := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &settings); err != nil {
		t.Fatal(err)
	}
	m.Cluster.MeshConfig(t, settings)
}

func (m mesh) ReplaceProxies(t testing.TB) {
	t.Helper()
	m.Roll(t, "ztunnel")
}

func (m mesh) Load(t testing.TB, from world.Pod, url string, rate int, args ...string) world.Load {
	t.Helper()
	return m.in(t, from.Namespace).StartLoad("load-"+strings.ToLower(strings.Map(letters, t.Name())), url, rate, kit.OnNode(from.Node), func(p *corev1.Pod) {
		p.Spec.ServiceAccountName = from.Name
		p.Spec.Containers[0].Command = append(p.Spec.Containers[0].Command, args...)
	})
}

// letters drops what no name of a pod has.
func letters(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
		return r
	}
	return -1
}

func (m mesh) Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	kit.Eventually(t, what, func(context.Context) error { return check() })
}

func (m mesh) Pods(ctx context.Context, namespace string) (all []world.Pod, err error) {
	list, err := m.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		p := &list.Items[i]
		if p.DeletionTimestamp != nil {
			continue
		}
		pod := world.Pod{Namespace: namespace, Name: p.Name, Node: p.Spec.NodeName}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				pod.IPs = append(pod.IPs, a)
			}
		}
		all = append(all, pod)
	}
	return all, nil
}

func (m mesh) Service(ctx context.Context, namespace, name string) (all []netip.Addr, err error) {
	s, err := m.Kube.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			all = append(all, a)
		}
	}
	return all, nil
}

func (mesh) Families() []bool { return []bool{false, true} }

func (m mesh) Exec(ctx context.Context, namespace, pod string, stdout io.Writer, argv ...string) error {
	if argv[0] == "ECHO" {
		argv = append([]string{"/echo"}, argv[1:]...)
	}
	return m.ExecTo(ctx, namespace, pod, stdout, argv...)
}

func (m mesh) Log(ctx context.Context, namespace, pod string) (string, error) {
	return m.Logs(ctx, namespace, pod, "", time.Time{})
}

func (m mesh) ProxyLog(ctx context.Context, node string) (string, error) {
	name, err := m.ZtunnelOn(ctx, node)
	if err != nil {
		return "", err
	}
	return m.Logs(ctx, kit.SystemNamespace, name, "", time.Time{})
}

func (m mesh) ScrapeProxy(ctx context.Context, node string) (string, error) {
	name, err := m.ZtunnelOn(ctx, node)
	if err != nil {
		return "", err
	}
	return m.Scrape(ctx, kit.SystemNamespace, name)
}
