package scenario

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// nameServer answers in a pod, on loopback, for the names that it is given, and
// says of all others that they do not exist. It counts the questions.
func nameServer(w *rig.World, in lab.Where, names map[string][]netip.Addr) *atomic.Int64 {
	w.T().Helper()
	return nameServerAt(w, in, "127.0.0.1", names)
}

// nameServerAt does so on an address that the pod has.
func nameServerAt(w *rig.World, in lab.Where, at string, names map[string][]netip.Addr) *atomic.Int64 {
	w.T().Helper()
	var c net.PacketConn
	err := w.Netns(in).Do(func() (err error) {
		c, err = net.ListenPacket("udp", net.JoinHostPort(at, "53"))
		return err
	})
	if err != nil {
		w.T().Fatal(err)
	}
	w.T().Cleanup(func() { _ = c.Close() })
	asked := &atomic.Int64{}
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			asked.Add(1)
			q := m.Questions[0]
			m.Response, m.Additionals = true, nil
			addrs, known := names[strings.TrimSuffix(q.Name.String(), ".")]
			if !known {
				m.RCode = dnsmessage.RCodeNameError
			}
			h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}
			for _, a := range addrs {
				switch {
				case a.Is4() && q.Type == dnsmessage.TypeA:
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
				case a.Is6() && q.Type == dnsmessage.TypeAAAA:
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
				}
			}
			if out, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(out, from)
			}
		}
	}()
	return asked
}

// TestNames: an endpoint that has a name and no address is looked up when a
// program calls it, by the proxy's own name servers. Where the name has no address of the
// family that the program has dialled, one of the other family is used.
func TestNames(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.ServerObject("shop", "hermit", "node2", ownTunnelOf("hermit")) + rig.ServerObject("street", "kiosk", "node1", "")})
	kiosk := []netip.Addr{world.Pod("street", "kiosk", false), world.Pod("street", "kiosk", true)}
	asked := nameServer(world, hermit, map[string][]netip.Addr{"db.test": kiosk, "v4.test": kiosk[:1], "v6.test": kiosk[1:], "more.test": append([]netip.Addr{netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd88::1")}, kiosk...)})
	world.MustRun(hermit, "/bin/sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf")
	mesh := fmt.Sprintf("workloads:\n- {uid: hermit, name: hermit, namespace: shop, serviceAccount: hermit, node: node2, workloadIps: [%s, \"%s\"], protocol: TCP, workloadName: hermit}\n",
		world.Pod("shop", "hermit", false), world.Pod("shop", "hermit", true))
	services := "services:\n"
	for i, name := range []string{"db.test", "v4.test", "v6.test", "gone.test", "more.test"} {
		mesh += fmt.Sprintf("- {uid: %s, name: %[1]s, namespace: shop, hostname: %[1]s, protocol: TCP, services: {shop/%[1]s: {80: 8080}}}\n", name)
		services += fmt.Sprintf("- {name: %s, namespace: shop, hostname: %[1]s, vips: [/10.99.0.%d, \"/fd99::%[2]d\"], ports: {80: 8080}}\n", name, i+1)
	}
	log := runDedicated(world, hermit, "shop", "hermit", "node2", "LOCAL_XDS="+mesh+services)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		for range 5 {
			want(t, "answer", w.MustGet(hermit, across(1, v6)).Name, "kiosk")
		}
		has(w, log, "\taccess\t", "connection complete", "dst.addr="+netip.AddrPortFrom(w.Pod("street", "kiosk", v6), 8080).String(), `dst.workload="db.test"`)
		only, other := 2, 3
		if v6 {
			only, other = 3, 2
		}
		want(t, "answer", w.MustGet(hermit, across(only, v6)).Name, "kiosk")
		want(t, "answer", w.MustGet(hermit, across(other, v6)).Name, "kiosk")
		has(w, log, "\taccess\t", "connection complete", "dst.addr="+netip.AddrPortFrom(w.Pod("street", "kiosk", !v6), 8080).String(), fmt.Sprintf(`dst.workload="%s.test"`, map[bool]string{false: "v6", true: "v4"}[v6]))
		// Two addresses of each family, of which one refuses.
		for range 4 {
			want(t, "answer", w.MustGet(hermit, across(5, v6)).Name, "kiosk")
		}
		w.Refused(hermit, across(4, v6))
		has(w, log, "\taccess\t", `reason="NO_HEALTHY_UPSTREAM"`, across(4, v6).String(), "resolving gone.test", "no such host")
	})
	// Both families of a name are asked for at once, and its answer holds.
	if n := asked.Load(); n > 2*4+4*2 {
		t.Errorf("the name server was asked %d times", n)
	}
	b, err := world.Lab.Get(t.Context(), hermit, "http://127.0.0.1:15020/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if err := contains(string(b), "istio_on_demand_dns_total{", `hostname="db.test"`, `source_workload="hermit"`, "} 10"); err != nil {
		t.Error(err)
	}
}
