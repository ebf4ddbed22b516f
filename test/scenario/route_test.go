package scenario

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// TestUncaptured: a program in the mesh reaches what is outside of it, and is
// reached from there, in plaintext and with the addresses as they are.
func TestUncaptured(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.ServerObject("street", "kiosk", "node1", "app: kiosk") +
		rig.ServiceObject("street", "kiosk", "kiosk", "{name: http, port: 80, targetPort: 8080}")})
	rig.Families(t, func(t *testing.T, v6 bool) {
		t.Run("server", func(t *testing.T) {
			w := world.For(t)
			pod := netip.AddrPortFrom(w.Pod("street", "kiosk", v6), 8080)
			vip := netip.AddrPortFrom(w.Service("street", "kiosk", v6), 80)
			for _, to := range []netip.AddrPort{pod, vip} {
				want(t, "answer", w.MustGet(far, to), traffic.Answer{Name: "kiosk", Caller: w.Pod("shop", "far", v6)})
			}
			w.Logs("node2", `direction="outbound"`, `src.workload="far"`, `dst.addr=`+pod.String(), `dst.workload="kiosk"`, `dst.service="kiosk.street.svc.cluster.local"`)
			for _, line := range w.AccessLines("node2", `dst.workload="kiosk"`, "identity=") {
				t.Errorf("plaintext proves no identity: %s", line)
			}
		})
		t.Run("client", func(t *testing.T) {
			w := world.For(t)
			pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
			want(t, "answer", w.MustGet(stranger, pod), traffic.Answer{Name: "web", Caller: w.Pod("street", "stranger", v6)})
			w.Logs("node1", `direction="inbound"`, `src.workload="stranger"`, `dst.workload="web"`, `dst.addr=`+pod.String())
			for _, line := range w.AccessLines("node1", `src.workload="stranger"`, "identity=") {
				t.Errorf("plaintext proves no identity: %s", line)
			}
		})
		t.Run("unknown", func(t *testing.T) {
			w := world.For(t)
			l := w.Listen(lab.LAN, ":7070")
			go func() {
				_ = http.Serve(l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { //nolint:gosec // a test's
					a := netip.MustParseAddrPort(r.RemoteAddr)
					_, _ = fmt.Fprintf(rw, "lan answers %s\n", a.Addr().Unmap())
				}))
			}()
			to := netip.AddrPortFrom(lanAddr(v6), 7070)
			want(t, "answer", w.MustGet(far, to), traffic.Answer{Name: "lan", Caller: w.Pod("shop", "far", v6)})
			w.Logs("node2", `direction="outbound"`, `src.workload="far"`, `dst.addr=`+to.String())
		})
	})
}

// lanAddr is the address of ambitd's machine.
func lanAddr(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fd88::1")
	}
	return netip.MustParseAddr("10.88.0.1")
}

// backends are pods and services of the shop for TestServices.
func backends() string {
	y := ""
	for i, node := range []string{"node1", "node2"} {
		// Each calls its port "web" another number.
		y += rig.ServerObject("shop", fmt.Sprintf("ready%d", i), node, "app: many", "-http", fmt.Sprintf(":808%d", i)) +
			fmt.Sprintf("    ports: [{name: web, containerPort: 808%d}]\n", i)
	}
	// Both are ready, and one has nobody who listens.
	y += rig.ServerObject("shop", "good", "node1", "app: flaky") + rig.PodObject("shop", "deaf", "node1", "app: flaky")
	y += rig.ServerObject("street", "good", "node1", "app: flaky") + rig.PodObject("street", "deaf", "node1", "app: flaky")
	return y + rig.ServiceObject("shop", "many", "many", "{name: http, port: 80, targetPort: web}") +
		rig.ServiceObject("shop", "flaky", "flaky", "{port: 80, targetPort: 8080}") +
		rig.ServiceObject("street", "flaky", "flaky", "{port: 80, targetPort: 8080}") +
		rig.ServiceObject("shop", "empty", "nobody", "{port: 80, targetPort: 8080}") +
		rig.ServiceObject("shop", "deaf", "deaf", "{port: 80}")
}

// TestServices: a service's connections are spread over its ready endpoints,
// on the port each has under the name, and one that refuses is skipped.
func TestServices(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + backends()})
	world.MustApplyUnready(rig.PodObject("shop", "unready", "node1", "app: many", "ECHO", "server") +
		"    ports: [{name: web, containerPort: 8080}]\n    readinessProbe: {tcpSocket: {port: 1}}\n")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		vip := func(ns, name string) netip.AddrPort { return netip.AddrPortFrom(w.Service(ns, name, v6), 80) }
		t.Run("balancing", func(t *testing.T) {
			got := world.For(t).Answers(far, vip("shop", "many"), 100)
			if len(got) != 2 || got["ready0"] < 10 || got["ready1"] < 10 {
				t.Errorf("of 100 requests, the endpoints answered %v", got)
			}
		})
		t.Run("retry", func(t *testing.T) {
			w := world.For(t)
			want(t, "answers in the mesh", w.Answers(far, vip("shop", "flaky"), 40), "map[good:40]")
			want(t, "answers in plaintext", w.Answers(far, vip("street", "flaky"), 40), "map[good:40]")
		})
		t.Run("nobody", func(t *testing.T) {
			w := world.For(t)
			to := vip("shop", "empty")
			w.Refused(far, to)
			w.Logs("node2", `dst.addr=`+to.String(), `reason="NO_HEALTHY_UPSTREAM"`)
		})
		t.Run("other port", func(t *testing.T) {
			w := world.For(t)
			w.Refused(far, netip.AddrPortFrom(w.Service("shop", "many", v6), 81))
		})
		t.Run("server speaks first", func(t *testing.T) {
			w := world.For(t)
			for _, from := range []lab.Where{near, far, stranger} {
				c := w.MustDial(from, netip.AddrPortFrom(w.Service("shop", "web", v6), 9100))
				hello := make([]byte, len("220 welcome\n"))
				if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "220 welcome\n" {
					t.Errorf("from %s: %q, %v", from, hello, err)
				}
			}
		})
	})
}
