package attack

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/test/rig"
)

// caller is a client of the shop.
const caller = lab.Where("pod/shop/far")

// TestExplainIsForTheProxyItself: what proxies answer at /explain is an account of the
// mesh's policies. No pod and no node gets it over the network, neither from a node proxy
// nor from a waypoint, and no port but that of config_dump has it.
func TestExplainIsForTheProxyItself(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: rig.Shop + front(uses("waypoint", "")) + gatewayObject("waypoint", "service")})
	if out, err := w.Ambit("waypoint status", "-n", "shop", "--wait"); err != nil {
		t.Fatalf("%s, error %v", out, err)
	}
	st, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	victims := map[lab.Where][]string{}
	for _, p := range st.Pods {
		if p.Namespace == "shop" && strings.HasPrefix(p.Name, "waypoint-") {
			victims[lab.InPod(p.Namespace, p.Name)] = p.IPs
		}
	}
	for i, n := range st.Nodes {
		victims[lab.InZtunnel(n.Name)] = []string{fmt.Sprintf("10.88.%d.2", i+1)}
	}
	question := verdict.Path + "?" + (&verdict.Question{Direction: verdict.Outbound, Pod: "shop/far", To: "front"}).Values().Encode()
	tried := 0
	for of, ips := range victims {
		// The question itself is answered there, or this test shows nothing.
		b, err := w.Lab.Get(t.Context(), of, fmt.Sprintf("http://127.0.0.1:%d/config_dump", wellknown.PortAdmin))
		if err != nil || len(b) == 0 {
			t.Fatalf("%s: %v", of, err)
		}
		for _, port := range []int{wellknown.PortMetrics, wellknown.PortReady} {
			if _, err := w.Lab.Get(t.Context(), of, fmt.Sprintf("http://127.0.0.1:%d%s", port, question)); err == nil || !strings.Contains(err.Error(), "404") {
				t.Errorf("%s answers on port %d: %v", of, port, err)
			}
		}
		for _, ip := range ips {
			// It is there: its metrics are for all.
			if _, err := w.Lab.Get(t.Context(), lab.InNode("node1"), "http://"+net.JoinHostPort(ip, fmt.Sprint(wellknown.PortMetrics))+"/metrics"); err != nil {
				t.Fatalf("%s is not at %s: %v", of, ip, err)
			}
			for _, from := range []lab.Where{caller, lab.InPod("street", "stranger"), lab.InNode("node1"), lab.InNode("node2"), lab.LAN} {
				tried++
				at := net.JoinHostPort(ip, fmt.Sprint(wellknown.PortAdmin))
				if b, err := w.Lab.Get(t.Context(), from, "http://"+at+question); err == nil {
					t.Errorf("%s has the answer of %s at %s: %s", from, of, at, b)
				}
			}
		}
	}
	if len(victims) != 3 || tried < 12 {
		t.Fatalf("%d attempts at %v", tried, victims)
	}
}

// TestExplainHostile: whatever is asked, at once and in any number, the proxies go on and
// answer in bounds.
func TestExplainHostile(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: rig.Shop + front(uses("waypoint", "")) + gatewayObject("waypoint", "service")})
	if out, err := w.Ambit("waypoint status", "-n", "shop", "--wait"); err != nil {
		t.Fatalf("%s, error %v", out, err)
	}
	st, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	proxies := []lab.Where{lab.InZtunnel("node1"), lab.InZtunnel("node2")}
	for _, p := range st.Pods {
		if strings.HasPrefix(p.Name, "waypoint-") {
			proxies = append(proxies, lab.InPod(p.Namespace, p.Name))
		}
	}
	front := netip.AddrPortFrom(w.Service("shop", "front", false), 80)
	long := strings.Repeat("x", 8<<10)
	queries := []string{
		"", "direction=", "direction=sideways", "direction=outbound", "direction=inbound&pod=shop/web", "direction=outbound&pod=shop/far&to=" + long,
		"direction=outbound&pod=" + url.QueryEscape("shop/\x00\x1b[31m") + "&to=x", "direction=inbound&pod=shop/web&tunnel=true&authority=" + long,
		"authority=front:80&path=" + url.QueryEscape("/\r\nx: y"), "authority=" + front.String() + "&method=" + long, "authority=" + front.String() + "&header=" + url.QueryEscape("transfer-encoding:chunked"),
		"authority=" + front.String() + "&identity=spiffe://a/b", "authority=" + front.String() + "&source=::ffff:0:0%25eth0", "authority=[::1]:80&identity=spiffe://cluster.local/ns/shop/sa/far",
		strings.Repeat("header=a:b&", 1000), "%zz", "a;b",
	}
	load := w.StartLoad(caller, front, 50)
	for _, in := range proxies {
		var all sync.WaitGroup
		for i := range 16 {
			all.Go(func() {
				c := w.HTTP(in)
				defer c.CloseIdleConnections()
				for n := range 50 {
					resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d%s?%s", wellknown.PortAdmin, verdict.Path, queries[(n+i)%len(queries)])) //nolint:noctx // bounded by the client
					if err != nil {
						t.Errorf("%s: %v", in, err)
						return
					}
					b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
					_ = resp.Body.Close()
					if err != nil || len(b) > 64<<10 || resp.StatusCode >= 500 && resp.StatusCode != http.StatusServiceUnavailable {
						t.Errorf("%s: %s, %d bytes, error %v", in, resp.Status, len(b), err)
					}
				}
			})
		}
		all.Wait()
	}
	load.Seconds(1)
	load.Clean()
	if st, err = w.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Components {
		if c.Restarts > 0 {
			t.Errorf("%s has ended", c.Name)
		}
	}
}
