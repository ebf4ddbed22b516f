// Package labworld makes meshes for scenarios of network namespaces of this machine.
package labworld

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/ends"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// fewAddresses is how many pods a node has room for in a world with few addresses.
const fewAddresses = 3

type mesh struct {
	*rig.World
	config rig.MeshFile
	names  *names // nil without a name server
}

// New starts a mesh of two nodes for the length of the test. rig.Main is the TestMain.
func New(t testing.TB, o world.Options) *world.World {
	t.Helper()
	m := mesh{config: rig.NewMeshFile(t, "{}")}
	cfg := lab.Config{Args: map[string][]string{lab.Ambitd: {"--mesh-config", m.config.Path}}}
	if o.FewAddresses {
		cfg.PodAddresses = fewAddresses
	}
	if o.SOCKS5 {
		cfg.Env = map[string][]string{"ztunnel": {"UNSTABLE_ENABLE_SOCKS5=true"}}
	}
	if o.Names {
		cfg.ClusterDNS, cfg.YAML = true, nameServer
	}
	m.World = rig.Start(t, cfg)
	if o.Names {
		m.names = serveNames(t, m.World)
	}
	return world.On(t, m)
}

func (m mesh) Namespace(t testing.TB, name string, ambient bool) string {
	t.Helper()
	m.Apply(t, rig.NamespaceObject(name, ambient))
	return name
}

func (m mesh) Apply(t testing.TB, yaml string) {
	t.Helper()
	m.For(t).MustApply(yaml)
}

func (m mesh) Mistaken(t testing.TB, yaml string) (refusal string) {
	t.Helper()
	m.Apply(t, yaml)
	return ""
}

func (m mesh) Delete(t testing.TB, yaml string) {
	t.Helper()
	all, err := world.Objects(yaml)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		m.For(t).MustDelete(o.Kind, o.Metadata.Namespace, o.Metadata.Name)
	}
}

func (m mesh) Scarce(t testing.TB, namespace string) {
	t.Helper()
	s, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	free := fewAddresses - 1
	for i := range s.Pods {
		if s.Pods[i].Node == "node1" {
			free--
		}
	}
	for i := range free {
		m.Apply(t, rig.PodObject(namespace, fmt.Sprintf("filler%d", i), "node1", ""))
	}
}

func (m mesh) Successor(t testing.TB, gone world.Pod, yaml string) {
	t.Helper()
	m.Apply(t, yaml)
}

func (m mesh) MeshConfig(t testing.TB, yaml string) {
	t.Helper()
	if err := m.config.Write(yaml); err != nil {
		t.Fatal(err)
	}
}

func (m mesh) ReplaceProxies(t testing.TB) {
	t.Helper()
	for _, node := range []string{"node1", "node2"} {
		if err := m.Restart(t.Context(), "ztunnel/"+node, lab.RestartGraceful); err != nil {
			t.Fatal(err)
		}
	}
	m.For(t).Settled()
}

func (m mesh) Load(t testing.TB, from world.Pod, url string, rate int, args ...string) world.Load {
	t.Helper()
	return m.For(t).StartLoadWith(lab.InPod(from.Namespace, from.Name), url, rate, args...)
}

func (m mesh) Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	m.For(t).Eventually(what, check)
}

func (m mesh) Pods(ctx context.Context, namespace string) (all []world.Pod, err error) {
	s, err := m.Status(ctx)
	if err != nil {
		return nil, err
	}
	for i := range s.Pods {
		if p := &s.Pods[i]; p.Namespace == namespace && p.Phase != ends.Terminating {
			all = append(all, world.Pod{Namespace: namespace, Name: p.Name, Node: p.Node, IPs: addresses(p.IPs)})
		}
	}
	return all, nil
}

func (m mesh) Service(ctx context.Context, namespace, name string) ([]netip.Addr, error) {
	s, err := m.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range s.Services {
		if v.Namespace == namespace && v.Name == name {
			return addresses(v.IPs), nil
		}
	}
	return nil, fmt.Errorf("there is no service %s/%s", namespace, name)
}

func addresses(ips []string) (all []netip.Addr) {
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			all = append(all, a)
		}
	}
	return all
}

func (m mesh) Exec(ctx context.Context, namespace, pod string, stdout io.Writer, argv ...string) error {
	if argv[0] == "ECHO" {
		argv = append([]string{rig.Bin("echo")}, argv[1:]...)
	}
	return m.RunTo(ctx, lab.InPod(namespace, pod), stdout, argv...)
}

func (m mesh) Log(_ context.Context, namespace, pod string) (string, error) {
	container := "main" // of rig.PodObject
	if strings.HasPrefix(pod, "waypoint-") {
		container = deploy.Container
	}
	return m.World.Log("pod/" + namespace + "/" + pod + "/" + container), nil
}

func (m mesh) ProxyLog(_ context.Context, node string) (string, error) {
	return m.World.Log("ztunnel/" + node), nil
}

func (m mesh) Scrape(ctx context.Context, namespace, pod string) (string, error) {
	b, err := m.Lab.Get(ctx, lab.InPod(namespace, pod), "http://127.0.0.1:15020/metrics")
	return string(b), err
}

func (m mesh) ScrapeProxy(ctx context.Context, node string) (string, error) {
	b, err := m.Lab.Get(ctx, lab.InZtunnel(node), "http://127.0.0.1:15020/metrics")
	return string(b), err
}

func (mesh) Families() []bool { return rig.PodFamilies() }

func (m mesh) Ambit(_ context.Context, args ...string) (string, error) {
	return m.World.Ambit(args[0], args[1:]...)
}
