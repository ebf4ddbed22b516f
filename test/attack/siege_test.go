package attack

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

const (
	webID = "spiffe://cluster.local/ns/shop/sa/web"
	farID = "spiffe://cluster.local/ns/shop/sa/far"
)

// siege runs test/load's attacker in a pod for the length of the test, and
// returns when each of its connections was tried once.
func siege(w *rig.World, from lab.Where, to netip.AddrPort, conns int, say string) {
	w.T().Helper()
	program(w, from, "besiege", "-conns", fmt.Sprint(conns), "-say", say, to.String())
}

// program runs a mode of test/load until the end of the test, and returns when it
// has written its line.
func program(w *rig.World, from lab.Where, args ...string) {
	t := w.T()
	t.Helper()
	in, stop, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, said, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := w.Exec(t.Context(), from, lab.ExecOptions{Stdin: in, Stdout: said, Stderr: os.Stderr}, slices.Concat(yielding(), []string{rig.Bin("load")}, args)...)
	_ = in.Close()
	_ = said.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stop.Close()
		_, _ = cmd.Wait() // the context of the test may have ended it
		_ = out.Close()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %q %v", args, line, err)
	}
	t.Logf("%v: %s", args, strings.TrimSpace(line))
}

// TestSlowloris: anybody who reaches a pod's port 15008, without an identity, opens
// connections and does not go on with them. New tunnels of others are made, and
// the load of another tenant has no failed request.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	world := start(t, "")
	rig.Families(t, func(t *testing.T, v6 bool) {
		for _, say := range []string{"silent", "dribble", "stall"} {
			t.Run(say, func(t *testing.T) {
				w := world.For(t)
				web := w.Pod("shop", "web", v6)
				load := w.StartLoad(rig.Far, netip.AddrPortFrom(web, 8080), 200)
				at := netip.AddrPortFrom(web, wellknown.PortHBONE)
				siege(w, rig.Stranger, at, 600, say)
				for range 5 {
					tun := w.MustTunnel(rig.Stranger, at, w.Bundle(farID), webID)
					s, status, err := tun.Open(http.MethodConnect, netip.AddrPortFrom(web, 9000).String(), nil)
					if err != nil || status != http.StatusOK {
						t.Fatalf("a new tunnel: status %d, %v", status, err)
					}
					if err := s.Exchange("hello"); err != nil {
						t.Error(err)
					}
				}
				load.Clean()
			})
		}
		w := world.For(t)
		for _, node := range []string{"node1", "node2"} {
			if lines := w.AccessLines(node, "NetworkPolicy"); len(lines) > 0 {
				t.Errorf("%s blames a NetworkPolicy: %s", node, lines[0])
			}
		}
		if err := w.ExpectLines("node1", `reason="TUNNEL_HANDSHAKE"`); err != nil {
			t.Error(err)
		}
	})
}

// TestDescriptors: two pods open as many connections as they can. The pods of
// other tenants on their node make new ones, and the proxy stays ready.
func TestDescriptors(t *testing.T) {
	world := start(t, rig.PodObject("market", "thief3", "node1", "app: thief3"))
	w := world.For(t)
	stall := netip.AddrPortFrom(w.Pod("market", "stall", false), 9000)
	web := netip.AddrPortFrom(w.Pod("shop", "web", false), 8080)
	siege(w, thief1, stall, 9000, "silent")
	siege(w, lab.InPod("market", "thief3"), stall, 6000, "silent")
	load := w.StartLoad(rig.Near, web, 100)
	for range 5 {
		w.MustGet(rig.Near, web)
		w.MustGet(rig.Far, web)
		if b, err := w.Lab.Get(t.Context(), lab.InZtunnel("node1"), "http://127.0.0.1:15021/healthz/ready"); err != nil {
			t.Errorf("readiness: %v %s", err, b)
		}
	}
	load.Seconds(2)
	load.Clean()
	w.Logs("node1", `reason="RESOURCE_EXHAUSTED"`, "pod market/", "share of this node's descriptors")
}

// TestBaggage: a peer with a mesh identity says, in each request, that it is
// another workload of another network. It makes no series in the metrics, whether
// it is let in or not.
func TestBaggage(t *testing.T) {
	t.Parallel()
	w := start(t, rig.PolicyObject("shop", "no-thief", "DENY", `rules: [{from: [{source: {namespaces: [market]}}]}]`))
	forge := func(to netip.Addr, id string, want int) {
		t.Helper()
		tun := w.MustTunnel(rig.Stranger, netip.AddrPortFrom(to, wellknown.PortHBONE), w.Bundle("spiffe://cluster.local/ns/market/sa/thief2"), id)
		for i := range 50 {
			_, status, err := tun.Open(http.MethodConnect, netip.AddrPortFrom(to, 9000).String(), http.Header{
				"X-Forwarded-Network": {"other"},
				"Baggage":             {fmt.Sprintf("k8s.cluster.name=c%d,k8s.namespace.name=%s,k8s.pod.name=forged%d,service.name=forged", i, []string{"market", "shop"}[i%2], i)},
			})
			if err != nil || status != want {
				t.Fatalf("request %d: status %d, %v", i, status, err)
			}
		}
	}
	forge(w.Pod("market", "stall", false), "spiffe://cluster.local/ns/market/sa/stall", http.StatusOK)
	forge(w.Pod("shop", "web", false), webID, http.StatusUnauthorized)
	seen := 0
	for _, m := range w.Metrics("node1", "istio_tcp_connections_opened_total") {
		if strings.HasPrefix(m.Labels["source_workload"], "forged") {
			t.Errorf("a series has the source %q", m.Labels["source_workload"])
		}
		if strings.HasSuffix(m.Labels["source_principal"], "/sa/thief2") {
			seen++
		}
	}
	if seen == 0 {
		t.Error("the attacker's connections are not counted at all")
	}
}

// TestLogFlood: a pod makes more failing connections than anybody reads. The lines
// of others are all there, and the log says how many of the pod's are not.
func TestLogFlood(t *testing.T) {
	t.Parallel()
	const rate = 5 // a second; ten times as many at once
	w := rig.Start(t, lab.Config{YAML: rig.Shop + strict + market(), Env: map[string][]string{"ztunnel": {fmt.Sprintf("ACCESS_LOG_POD_FAILED_RATE=%d", rate)}}})
	closed := netip.AddrPortFrom(w.Pod("street", "stranger", false), 1)
	for range 200 {
		c, err := w.Dial(t.Context(), thief1, "tcp", closed.String())
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}
	w.Refused(rig.Near, closed)
	w.Logs("node1", "src.workload=\"near\"", closed.String())
	w.MustGet(rig.Near, netip.AddrPortFrom(w.Pod("shop", "web", false), 8080))
	w.Logs("node1", "src.workload=\"near\"", "connection complete", `dst.workload="web"`)
	w.Logs("node1", "suppressed", `pod="market/thief1"`)
	if n := len(w.AccessLines("node1", closed.String(), `src.workload="thief1"`)); n == 0 || n >= 200 {
		t.Errorf("%d of 200 failures of one pod are in the log", n)
	}
}
