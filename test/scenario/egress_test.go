package scenario

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// digger is a pod of another namespace in the mesh.
var digger = lab.InPod("yard", "digger")

// confined is the shop and a second namespace of the mesh.
var confined = rig.Shop + rig.NamespaceObject("yard", true) + rig.PodObject("yard", "digger", "node2", "")

// outside is a host that no registry has: the machine of ambitd, which answers at 7070
// and 7071.
func outside(w *rig.World) {
	w.T().Helper()
	for _, port := range []string{":7070", ":7071"} {
		l := w.Listen(lab.LAN, port)
		go func() {
			_ = http.Serve(l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { //nolint:gosec // a test's
				a := netip.MustParseAddrPort(r.RemoteAddr)
				_, _ = fmt.Fprintf(rw, "lan answers %s\n", a.Addr().Unmap())
			}))
		}()
	}
}

// entry returns a ServiceEntry for one address outside.
func entry(namespace, name, export, vip string, endpoint netip.Addr) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  hosts: [%[2]s.test]
  exportTo: [%[3]q]
  addresses: [%[4]q]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 7070, name: tcp, protocol: TCP}]
  endpoints: [{address: %[5]q}]
`, namespace, name, export, vip, endpoint)
}

// outbound returns a namespace of the mesh with an outbound traffic policy.
func outbound(name, mode string) string {
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {istio.io/dataplane-mode: ambient, ambit.mesh/outbound-traffic-policy: %q}}\n", name, mode)
}

// meshSettings writes a MeshConfig with an outbound traffic policy, and returns its path.
func meshSettings(t *testing.T, mode string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	setMesh(t, path, mode)
	return path
}

func setMesh(t *testing.T, path, mode string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("outboundTrafficPolicy: {mode: "+mode+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reset makes sure that a connection is refused at once, not by a time that is over.
func reset(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	c, err := w.Dial(w.T().Context(), from, "tcp", to.String())
	if err == nil {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), syscall.ECONNRESET.Error()) {
		w.T().Errorf("%s to %s: %v, want a reset", from, to, err)
	}
}

// egressCount returns how many connections the policy of a node refused, or reported.
func egressCount(w *rig.World, node, decision string) (sum float64) {
	w.T().Helper()
	for _, s := range w.Metrics(node, "ambit_egress_connections_total") {
		if s.Labels["decision"] == decision {
			sum += s.Value
		}
	}
	return sum
}

// TestRegistryOnly: with REGISTRY_ONLY for the mesh, pods reach what is in a registry that
// their namespace sees, and nothing else. What the mesh itself needs goes on.
func TestRegistryOnly(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: confined, Args: map[string][]string{lab.Ambitd: {"--mesh-config", meshSettings(t, "REGISTRY_ONLY")}}})
	outside(world)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		host := netip.AddrPortFrom(lanAddr(v6), 7070)
		before := egressCount(w, "node2", "refused")
		w.Refused(far, host) // a hard-coded address
		reset(w, far, host)
		w.Logs("node2", `direction="outbound"`, "dst.addr="+host.String(), `reason="NOT_IN_REGISTRY"`)
		if n := egressCount(w, "node2", "refused"); n != before+2 {
			t.Errorf("%v refused connections are counted, want %v", n, before+2)
		}
		w.MustGet(stranger, host) // not in the mesh

		// Services and pods, of the own namespace and of others, in the mesh or not.
		w.MustGet(far, netip.AddrPortFrom(w.Service("shop", "web", v6), 80))
		w.MustGet(digger, netip.AddrPortFrom(w.Service("shop", "web", v6), 80))
		w.MustGet(far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
		// The node, as the kubelet does; loopback.
		w.MustGet(lab.InNode("node1"), netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
		own := w.Listen(far, map[bool]string{false: "127.0.0.1:7070", true: "[::1]:7070"}[v6])
		go echoOnce(own)
		c := w.MustDial(far, netip.MustParseAddrPort(own.Addr().String()))
		sendAndGet(t, c)

		// The other family, an endpoint of which is listed.
		w.MustApply(entry("shop", "listed", "*", map[bool]string{false: "240.240.8.1", true: "2001:2::801"}[v6], lanAddr(v6)))
		t.Cleanup(func() { world.MustDelete("ServiceEntry", "shop", "listed") })
		w.BecomesAnswered(far, host)
		w.MustGet(far, at(map[bool]string{false: "240.240.8.1", true: "2001:2::801"}[v6], 7070))
		w.MustGet(digger, host)
		reset(w, far, netip.AddrPortFrom(lanAddr(!v6), 7070)) // the host's address of the other family
		reset(w, far, netip.AddrPortFrom(lanAddr(v6), 7071))  // another port of a known host
		reset(w, far, at(map[bool]string{false: "240.240.8.1", true: "2001:2::801"}[v6], 7071))
	})
	t.Run("hidden", func(t *testing.T) {
		w := world.For(t)
		for _, v6 := range []bool{false, true} {
			vip := map[bool]string{false: "240.240.8.2", true: "2001:2::802"}[v6]
			w.MustApply(entry("yard", "hidden", ".", vip, lanAddr(v6)))
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(lanAddr(v6), 7070), at(vip, 7070)} {
				w.BecomesAnswered(digger, to)
				reset(w, far, to)
			}
			w.MustDelete("ServiceEntry", "yard", "hidden")
			w.BecomesRefused(digger, at(vip, 7070))
		}
	})
	t.Run("control plane", func(t *testing.T) {
		w := world.For(t)
		c := tls.Client(w.MustDial(far, netip.AddrPortFrom(lanAddr(false), 15012)), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // who answers is not the question
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Errorf("ambitd does not answer: %v", err)
		}
	})
	t.Run("shown", func(t *testing.T) {
		w := world.For(t)
		host := netip.AddrPortFrom(lanAddr(false), 7070)
		out, err := w.Ambit("why", "pod/far.shop", host.String())
		if err == nil || !strings.Contains(out, "NOT_IN_REGISTRY") {
			t.Errorf("%v\n%s", err, out)
		}
		out, err = w.Ambit("describe pod", "far", "-n", "shop")
		if err != nil || contains(out, "Outbound", "REGISTRY_ONLY") != nil {
			t.Errorf("%v\n%s", err, out)
		}
		out, err = w.Ambit("ztunnel-config", "egress", "--node", "node2")
		if err != nil || contains(out, "shop", "far", "REGISTRY_ONLY") != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// TestOutboundSettings: a namespace's label replaces the setting of the mesh, a pod's
// annotation only makes it stricter, and all change while pods run. What is open when a
// policy comes is ended.
func TestOutboundSettings(t *testing.T) {
	settings := meshSettings(t, "ALLOW_ANY")
	world := rig.Start(t, lab.Config{YAML: confined, Args: map[string][]string{lab.Ambitd: {"--mesh-config", settings}}})
	outside(world)
	echo := world.Listen(lab.LAN, ":7072")
	go echoAll(echo)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		host := netip.AddrPortFrom(lanAddr(v6), 7070)
		w.BecomesAnswered(far, host)
		open := w.MustDial(far, netip.AddrPortFrom(lanAddr(v6), 7072))
		sendAndGet(t, open)
		kept := w.MustDial(far, netip.AddrPortFrom(w.Service("shop", "web", v6), 9000))
		sendAndGet(t, kept)

		w.MustApply(outbound("shop", "DRY_RUN"))
		w.Eventually("the connection is reported", func() error {
			w.MustGet(far, host)
			if egressCount(w, "node2", "reported") == 0 {
				return errors.New("none is counted")
			}
			return contains(w.Log("ztunnel/node2"), "REGISTRY_ONLY would refuse the connection", host.String(), "shop/far")
		})
		sendAndGet(t, open)

		w.MustApply(outbound("shop", "REGISTRY_ONLY"))
		w.BecomesRefused(far, host)
		_ = open.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection from before is open: %v", err)
		}
		w.Logs("node2", `src.workload="far"`, `reason="NOT_IN_REGISTRY"`, netip.AddrPortFrom(lanAddr(v6), 7072).String())
		sendAndGet(t, kept)
		w.MustGet(digger, host)

		// A pod cannot free itself.
		free := strings.Replace(rig.PodObject("shop", "free", "node2", ""), "metadata: {name: free", "metadata: {annotations: {ambit.mesh/outbound-traffic-policy: ALLOW_ANY}, name: free", 1)
		w.MustApply(free)
		w.BecomesRefused(lab.InPod("shop", "free"), host)
		w.MustDelete("Pod", "shop", "free")

		// What cannot be read opens nothing.
		w.MustApply(outbound("shop", "ALLOW_ANYTHING"))
		w.BecomesRefused(far, host)
		w.MustApply(outbound("shop", "ALLOW_ANY"))
		w.BecomesAnswered(far, host)
		strict := strings.Replace(rig.PodObject("shop", "strict", "node2", ""), "metadata: {name: strict", "metadata: {annotations: {ambit.mesh/outbound-traffic-policy: REGISTRY_ONLY}, name: strict", 1)
		w.MustApply(strict)
		w.BecomesRefused(lab.InPod("shop", "strict"), host)
		w.MustDelete("Pod", "shop", "strict")
		w.MustApply(rig.NamespaceObject("shop", true))
	})
	t.Run("mesh", func(t *testing.T) {
		w := world.For(t)
		host := netip.AddrPortFrom(lanAddr(false), 7070)
		setMesh(t, settings, "REGISTRY_ONLY")
		w.BecomesRefused(far, host)
		w.BecomesRefused(digger, host)
		// A broken file leaves the last good state.
		setMesh(t, settings, "ALLOW")
		w.Eventually("ambitd reports the file", func() error {
			return contains(w.Log(lab.Ambitd), "the last good one stays", "outboundTrafficPolicy")
		})
		w.Refused(far, host)
		// So does a control plane that is away.
		if err := w.Stop(t.Context(), lab.Ambitd, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.Refused(far, host)
		w.MustGet(far, netip.AddrPortFrom(w.Service("shop", "web", false), 80))
	})
}

// TestRegistryOnlyOnDemand: a proxy that asks for addresses when it meets them decides the
// same, and refuses what the control plane has no answer for.
func TestRegistryOnlyOnDemand(t *testing.T) {
	world := rig.Start(t, lab.Config{
		YAML: confined, Env: map[string][]string{"ztunnel": {"XDS_ON_DEMAND=true"}},
		Args: map[string][]string{lab.Ambitd: {"--mesh-config", meshSettings(t, "REGISTRY_ONLY")}},
	})
	outside(world)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		host := netip.AddrPortFrom(lanAddr(v6), 7070)
		vip := at(map[bool]string{false: "240.240.8.3", true: "2001:2::803"}[v6], 7070)
		reset(w, far, host)
		w.MustGet(far, netip.AddrPortFrom(w.Service("shop", "web", v6), 80))
		w.MustGet(far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))
		w.MustApply(entry("yard", "private", ".", vip.Addr().String(), lanAddr(v6)))
		w.BecomesAnswered(digger, host)
		w.BecomesAnswered(digger, vip)
		reset(w, far, host)
		reset(w, far, vip)
		reset(w, digger, netip.AddrPortFrom(lanAddr(v6), 7071))
		w.MustDelete("ServiceEntry", "yard", "private")
		w.BecomesRefused(digger, host)
	})
	if err := world.Stop(t.Context(), lab.Ambitd, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	world.Refused(far, netip.AddrPortFrom(lanAddr(false), 7071)) // no answer, and no way out
}

// echoOnce serves one connection of a listener, echoAll all of them.
func echoOnce(l net.Listener) {
	if c, err := l.Accept(); err == nil {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}
}

func echoAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

// sendAndGet checks that a connection carries bytes both ways.
func sendAndGet(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 5)
	if _, err := c.Write([]byte("ping\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping\n" {
		t.Fatalf("%q, %v", b, err)
	}
}
