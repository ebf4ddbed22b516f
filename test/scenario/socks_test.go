package scenario

import (
	"encoding/binary"
	"errors"
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
		"outside.test": {lanAddr(false), lanAddr(true)}, "six.test": {lanAddr(true)}, "rebound.test": {netip.MustParseAddr("127.0.0.1")},
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
	t.Run("codes", func(t *testing.T) {
		w := world.For(t)
		vip, pod := w.Service("shop", "web", false), w.Pod("shop", "web", false)
		for to, code := range map[string]socks5.Code{
			netip.AddrPortFrom(vip, 80).String():     socks5.Succeeded,
			netip.AddrPortFrom(vip, 81).String():     socks5.HostUnreachable,   // no such port
			netip.AddrPortFrom(pod, 1).String():      socks5.ConnectionRefused, // nothing listens
			"10.88.0.1:1":                            socks5.ConnectionRefused, // nor outside of the mesh
			"web:9000":                               socks5.Succeeded,
			"rebound.test:15000":                     socks5.NotAllowed,
			"nothing.example:80":                     socks5.HostUnreachable,
			"127.0.0.1:15000":                        socks5.NotAllowed,
			"[::1]:15001":                            socks5.NotAllowed,
			"[::ffff:127.0.0.1]:80":                  socks5.NotAllowed,
			"0.0.0.0:15053":                          socks5.NotAllowed,
			"[::]:15053":                             socks5.NotAllowed,
			"224.0.0.1:80":                           socks5.NotAllowed,
			"127.1:80":                               socks5.HostUnreachable, // a name, that no server has
			"bad name:80":                            socks5.GeneralFailure,
			netip.AddrPortFrom(vip, 0).String():      socks5.GeneralFailure,
			strings.Repeat("a.", 124) + "example:80": socks5.GeneralFailure,
			strings.Repeat("a", 64) + ".example:80":  socks5.GeneralFailure,
		} {
			if got, err := socksAsk(w, far, to); err != nil || got != code {
				t.Errorf("%.40s: code %d, %v, want %d", to, got, err, code)
			}
		}
	})
	t.Run("policy", func(t *testing.T) {
		w := world.For(t)
		w.MustApply(rig.PolicyObject("shop", "not-far", "DENY", `selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/far"]}}]}]`))
		web := netip.AddrPortFrom(w.Service("shop", "web", false), 80)
		w.BecomesRefused(far, web)
		if got, err := socksAsk(w, far, web.String()); err != nil || got != socks5.NotAllowed {
			t.Errorf("denied by a policy: code %d, %v", got, err)
		}
		w.MustDelete("AuthorizationPolicy", "shop", "not-far")
		w.MustApply(outbound("shop", "REGISTRY_ONLY"))
		host := netip.AddrPortFrom(lanAddr(false), 7070)
		w.BecomesRefused(far, host)
		if got, err := socksAsk(w, far, host.String()); err != nil || got != socks5.NotAllowed {
			t.Errorf("in no registry: code %d, %v", got, err)
		}
		if got, err := socksAsk(w, far, "outside.test:7070"); err != nil || got != socks5.NotAllowed {
			t.Errorf("a name of what is in no registry: code %d, %v", got, err)
		}
		w.Logs("node2", `reason="NOT_IN_REGISTRY"`, "src.addr="+w.Pod("shop", "far", false).String(), host.String())
		if out, err := curl(w, far, false, "http://web/"); err != nil || !strings.HasPrefix(out, "web answers ") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// TestSOCKSHostile: what is not SOCKS5 gets no connection; commands that would open
// something else are refused; clients that do not ask are bounded, and end.
func TestSOCKSHostile(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: confined, Env: socksEnv})
	web := netip.AddrPortFrom(w.Service("shop", "web", false), 9000)
	a := web.Addr().As4()
	connect := append([]byte{5, 1, 0, 1}, a[0], a[1], a[2], a[3], byte(web.Port()>>8), byte(web.Port()))
	command := func(cmd byte) []byte { b := append([]byte{}, connect...); b[1] = cmd; return b }
	for name, tt := range map[string]struct{ send, want []byte }{
		"version 4":           {[]byte{4, 1, 0, 80, 1, 2, 3, 4, 0}, nil},
		"HTTP":                {[]byte("GET / HTTP/1.1\r\n\r\n"), nil},
		"no method":           {[]byte{5, 0}, []byte{5, 0xff}},
		"password alone":      {[]byte{5, 2, 1, 2}, []byte{5, 0xff}},
		"BIND":                {append([]byte{5, 1, 0}, command(2)...), []byte{5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0}},
		"UDP ASSOCIATE":       {append([]byte{5, 1, 0}, command(3)...), []byte{5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0}},
		"another address":     {[]byte{5, 1, 0, 5, 1, 0, 9, 1, 2, 3}, []byte{5, 0, 5, 8, 0, 1, 0, 0, 0, 0, 0, 0}},
		"empty name":          {[]byte{5, 1, 0, 5, 1, 0, 3, 0, 0, 80}, []byte{5, 0, 5, 1, 0, 1, 0, 0, 0, 0, 0, 0}},
		"another version":     {append([]byte{5, 1, 0, 4}, connect[1:]...), []byte{5, 0, 5, 1, 0, 1, 0, 0, 0, 0, 0, 0}},
		"several, one usable": {append(append([]byte{5, 3, 2, 1, 0}, connect...), "ping\n"...), append([]byte{5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "ping\n"...)}, // and bytes that did not wait
	} {
		t.Run(name, func(t *testing.T) {
			w := w.For(t)
			c := w.MustDial(far, socksAt(false))
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Write(tt.send); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(tt.want))
			if n, err := io.ReadFull(c, got); err != nil || string(got) != string(tt.want) {
				t.Fatalf("%v %v", got[:n], err)
			}
			if strings.HasSuffix(string(tt.want), "ping\n") {
				return
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "timeout") {
				t.Errorf("the connection goes on: %d, %v", n, err)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		w := w.For(t)
		var all []net.Conn
		for range 300 { // 256 are taken
			c, err := w.Dial(t.Context(), far, "tcp", socksAt(false).String())
			if err != nil {
				continue // too many already
			}
			defer func() { _ = c.Close() }()
			_, _ = c.Write([]byte{5, 1}) // and then nothing
			all = append(all, c)
		}
		w.Logs("node2", `reason="RESOURCE_EXHAUSTED"`, "have not asked")
		w.MustGet(far, netip.AddrPortFrom(w.Service("shop", "web", false), 80)) // others go on
		for _, c := range all {
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Fatalf("a silent client stays: %v", err)
			}
		}
		if got, err := socksAsk(w, far, web.String()); err != nil || got != socks5.Succeeded {
			t.Errorf("afterwards: code %d, %v", got, err)
		}
	})
	t.Run("from outside", func(t *testing.T) {
		w := w.For(t)
		for _, from := range []lab.Where{near, stranger, lab.InNode("node2")} {
			if c, err := w.Dial(t.Context(), from, "tcp", netip.AddrPortFrom(w.Pod("shop", "far", false), 15080).String()); err == nil {
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = c.Write([]byte{5, 1, 0})
				if n, err := c.Read(make([]byte, 2)); err == nil {
					t.Errorf("%s is answered with %d bytes", from, n)
				}
				_ = c.Close()
			}
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
