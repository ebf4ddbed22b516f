package scenario

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/ztunnel/socks5"
	"github.com/ambit-mesh/ambit/test/rig"
)

// socksEnv turns SOCKS5 on.
var socksEnv = map[string][]string{"ztunnel": {"UNSTABLE_ENABLE_SOCKS5=true"}}

// socksAt is where the proxy listens in a pod.
func socksAt(v6 bool) netip.AddrPort {
	return netip.MustParseAddrPort(map[bool]string{false: "127.0.0.1:15080", true: "[::1]:15080"}[v6])
}

// curl requests a URL in a pod through SOCKS5.
func curl(w *rig.World, from lab.Where, v6 bool, url string) (string, error) {
	return w.Run(w.T().Context(), from, "curl", "-sS", "--noproxy", "", "--max-time", "20", "--socks5-hostname", socksAt(v6).String(), url)
}

// TestSOCKS: a real client reaches services by name and by address, pods, and hosts
// outside by name; the server sees the pod, and the mesh who it is.
func TestSOCKS(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal(err)
	}
	world := rig.Start(t, lab.Config{YAML: confined, Env: socksEnv})
	outside(world)
	asked := ownServer(t, world, far, map[string][]netip.Addr{
		"outside.test": {lanAddr(false), lanAddr(true)}, "six.test": {lanAddr(true)},
		"web.shop.svc.cluster.local": {lanAddr(false)}, // the mesh has this name
	})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		for _, to := range []string{
			"web", "web.shop", "web.shop.svc.cluster.local", "WEB.shop.svc.cluster.local.",
			netip.AddrPortFrom(w.Service("shop", "web", v6), 80).String(), pod.String(),
		} {
			out, err := curl(w, far, v6, "http://"+to+"/")
			if err != nil || !strings.HasPrefix(out, "web answers ") {
				t.Errorf("%s: %v\n%s", to, err, out)
			}
		}
		out, err := curl(w, far, v6, "http://"+pod.String()+"/")
		if err != nil || !strings.HasPrefix(out, "web answers "+w.Pod("shop", "far", v6).String()+" ") {
			t.Errorf("the server does not see the pod: %v\n%s", err, out)
		}
		w.Logs("node2", `direction="outbound"`, "src.addr="+map[bool]string{true: "["}[v6]+w.Pod("shop", "far", v6).String(), `src.workload="far"`, `dst.workload="web"`)
		w.Logs("node1", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/far"`, "dst.hbone_addr="+pod.String())
		if out, err := curl(w, far, v6, "http://"+netip.AddrPortFrom(lanAddr(v6), 7070).String()+"/"); err != nil || !strings.HasPrefix(out, "lan answers ") {
			t.Errorf("outside: %v\n%s", err, out)
		}
		before := asked.Load()
		for _, host := range []string{"outside.test", "six.test", "OUTSIDE.test."} {
			if out, err := curl(w, far, v6, "http://"+host+":7070/"); err != nil || !strings.HasPrefix(out, "lan answers ") {
				t.Errorf("outside by the name %s: %v\n%s", host, err, out)
			}
		}
		if asked.Load() == before {
			t.Error("the name server was not asked from the pod's network")
		}
	})
}

// TestSOCKSFromNode: the node of a pod does not reach the port; other pods do not either (TestSOCKS5Hostile of test/both).
func TestSOCKSFromNode(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop, Env: socksEnv})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		if got, err := socksAsk(w, far, "web:80"); err != nil || got != socks5.Succeeded {
			t.Fatalf("from the pod: code %d, %v", got, err)
		}
		c, err := w.Dial(t.Context(), lab.InNode("node2"), "tcp", netip.AddrPortFrom(w.Pod("shop", "far", v6), 15080).String())
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = c.Write([]byte{5, 1, 0})
		if n, err := c.Read(make([]byte, 2)); err == nil {
			t.Errorf("the node is answered with %d bytes", n)
		}
	})
}

// TestSOCKSOnDemand: a proxy that asks for what it meets finds names of the mesh, and goes
// on to serve after it was replaced.
func TestSOCKSOnDemand(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop, Env: map[string][]string{"ztunnel": {"UNSTABLE_ENABLE_SOCKS5=true", "XDS_ON_DEMAND=true"}}})
	for _, to := range []string{"web:80", "web.shop.svc.cluster.local:9000", netip.AddrPortFrom(w.Pod("shop", "web", true), 8080).String()} {
		if got, err := socksAsk(w, far, to); err != nil || got != socks5.Succeeded {
			t.Errorf("%s: code %d, %v", to, got, err)
		}
	}
	if err := w.Restart(t.Context(), "ztunnel/node2", lab.RestartGraceful); err != nil {
		t.Fatal(err)
	}
	w.Settled()
	w.Eventually("SOCKS5 is served again", func() error {
		got, err := socksAsk(w, far, "web:80")
		if err == nil && got != socks5.Succeeded {
			err = fmt.Errorf("code %d", got)
		}
		return err
	})
}

// ownServer answers for names in a pod, at the address of the first name server of this
// machine, which is that of the lab's proxies.
func ownServer(t *testing.T, w *rig.World, in lab.Where, names map[string][]netip.Addr) *atomic.Int64 {
	t.Helper()
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() {
				addresses(t, w, in, f[1])
			}
			return nameServerAt(w, in, f[1], names)
		}
	}
	return nameServer(w, in, names) // what Go asks without a file
}

// TestSOCKSOff: without the setting nothing listens.
func TestSOCKSOff(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop})
	if c, err := w.Dial(t.Context(), far, "tcp", socksAt(false).String()); err == nil {
		_ = c.Close()
		t.Error("SOCKS5 is served")
	}
}

// socksAsk asks for a connection to host:port, and returns the code of the reply.
func socksAsk(w *rig.World, from lab.Where, to string) (socks5.Code, error) {
	c, err := w.Dial(w.T().Context(), from, "tcp", socksAt(false).String())
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		return 0, err
	}
	var n uint16
	if _, err := fmt.Sscan(port, &n); err != nil {
		return 0, err
	}
	b := []byte{5, 1, 0, 5, 1, 0}
	if a, err := netip.ParseAddr(host); err != nil {
		b = append(append(b, 3, byte(len(host))), host...)
	} else if a.Is4() {
		b = append(append(b, 1), a.AsSlice()...)
	} else {
		b = append(append(b, 4), a.AsSlice()...)
	}
	if _, err := c.Write(binary.BigEndian.AppendUint16(b, n)); err != nil {
		return 0, err
	}
	var reply [12]byte
	if _, err := io.ReadFull(c, reply[:]); err != nil {
		return 0, err
	}
	return socks5.Code(reply[3]), nil
}
