package scenario

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// TestDedicated: a ztunnel of a pod's own, without agent and node proxy, joins
// it to the mesh as a client and as a server.
func TestDedicated(t *testing.T) {
	world := rig.Start(t, lab.Config{Args: map[string][]string{lab.Ambitd: {"--directory-reader", "shop/hermit"}}, YAML: shop + rig.ServerObject("shop", "hermit", "node2", ownTunnelOf("hermit")) + rig.ServerObject("street", "kiosk", "node1", "")})

	log := runDedicated(world, hermit, "shop", "hermit", "node2")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := func(ns, name string) netip.AddrPort { return netip.AddrPortFrom(w.Pod(ns, name, v6), 8080) }
		w.Eventually("hermit's ztunnel takes tunnels in", func() error { _, err := w.Get(far, at("shop", "hermit")); return err })
		t.Run("server", func(t *testing.T) {
			w := world.For(t)
			for name, from := range map[string]lab.Where{"far": far, "near": near} {
				want(t, "answer", w.MustGet(from, at("shop", "hermit")), traffic.Answer{Name: "hermit", Caller: w.Pod("shop", name, v6)})
				has(w, log, "\taccess\t", `direction="inbound"`, "spiffe://cluster.local/ns/shop/sa/"+name, `dst.hbone_addr=`+at("shop", "hermit").String())
			}
			want(t, "answer", w.MustGet(stranger, at("shop", "hermit")), traffic.Answer{Name: "hermit", Caller: w.Pod("street", "stranger", v6)})
			has(w, log, "\taccess\t", `direction="inbound"`, `src.workload="stranger"`, "dst.addr="+at("shop", "hermit").String())
		})
		t.Run("client", func(t *testing.T) {
			w := world.For(t)
			want(t, "answer", w.MustGet(hermit, at("shop", "web")), traffic.Answer{Name: "web", Caller: w.Pod("shop", "hermit", v6)})
			want(t, "answer", w.MustGet(hermit, netip.AddrPortFrom(w.Service("shop", "web", v6), 80)).Name, "web")
			w.Logs("node1", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/hermit"`, `dst.hbone_addr=`+at("shop", "web").String())
			want(t, "answer", w.MustGet(hermit, at("street", "kiosk")), traffic.Answer{Name: "kiosk", Caller: w.Pod("shop", "hermit", v6)})
		})
	})
}

// runDedicated starts a ztunnel in a pod, which captures the pod, and returns
// its log. env is set besides.
func runDedicated(w *rig.World, in lab.Where, namespace, name, node string, env ...string) string {
	t := w.T()
	t.Helper()
	dir := t.TempDir()
	token, log := filepath.Join(dir, "token"), filepath.Join(dir, "log")
	s, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, _ := s.Pod(namespace, name)
	state := filepath.Join(w.StateDir(), "ambitd")
	if out, err := exec.Command(rig.Bin("ambit"), "token", "create", "--state-dir", state, "--output", token, "--node", node, //nolint:gosec // a program of this project
		"--namespace", namespace, "--service-account", name, "--pod-name", name, "--pod-uid", p.UID).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // the child has it
	// The pod is captured before: the mark lets the proxy's own connections to
	// the control plane out.
	ns := w.Netns(in)
	if err := nft.Apply(ns, nft.Config{IPv6: true}); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(state, "root-cert.pem")
	const address = "https://10.88.0.1:15012"
	_, err = w.Exec(t.Context(), in, lab.ExecOptions{Stdout: out, Stderr: out, Env: append([]string{
		"PROXY_MODE=dedicated", fmt.Sprintf("PROXY_WORKLOAD_INFO=%s/%s/%s", namespace, name, name), "PACKET_MARK=1337", "NODE_NAME=" + node,
		"XDS_ADDRESS=" + address, "CA_ADDRESS=" + address, "XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root, "AUTH_TOKEN=" + token,
		"CLUSTER_ID=Kubernetes", "POD_NAME=" + name, "POD_NAMESPACE=" + namespace, "INSTANCE_IP=" + p.IPs[0],
	}, env...)}, rig.Bin("ztunnel"), "proxy", "ztunnel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("---- ztunnel of %s\n%s", name, b)
		}
	})
	w.Eventually("the ztunnel of "+name+" has its certificate", func() error {
		b, err := w.Lab.Get(t.Context(), in, "http://127.0.0.1:15000/config_dump")
		if err == nil {
			err = contains(string(b), `"Available"`)
		}
		return err
	})
	return log
}

// has waits for a line of a log file that has all parts.
func has(w *rig.World, log string, parts ...string) {
	w.T().Helper()
	w.Eventually("the log", func() error {
		b, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		return contains(string(b), parts...)
	})
}
