package scenario

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// hostEntry is a ServiceEntry whose hosts are found by look-ups.
func hostEntry(namespace, name, host, resolution, rest string) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  hosts: [%[3]q]
  location: MESH_EXTERNAL
  resolution: %[4]s
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}, {number: 25, name: smtp, protocol: TCP}, {number: 81, name: moved, protocol: TCP, targetPort: 80}]%[5]s
`, namespace, name, host, resolution, rest)
}

// knows waits until a node's proxy has a service.
func knows(w *rig.World, node, namespace, name string, yes bool) {
	w.T().Helper()
	w.Eventually("the proxy has the service, or not", func() error {
		out, err := w.Ambit("ztunnel-config", "service", "--node", node, "--service-namespace", namespace)
		if err != nil || strings.Contains(out, name) != yes {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

// TestHostsByLookUps: with REGISTRY_ONLY, a connection to an address that a look-up of a
// wildcard's name, or of a host of DYNAMIC_DNS, has led to is one to the ServiceEntry. No
// answer of a name server that pods choose opens anything, nor does a name in TLS.
func TestHostsByLookUps(t *testing.T) {
	w := rig.Start(t, lab.Config{
		YAML: confined + strings.ReplaceAll(captured("visitor", ""), "namespace: shop", "namespace: yard"),
		Args: map[string][]string{lab.Ambitd: {"--mesh-config", meshSettings(t, "REGISTRY_ONLY")}},
		Env:  map[string][]string{"ztunnel": {"EGRESS_NAME_SERVERS=" + lanAddr(false).String() + "," + lanAddr(true).String()}},
	})
	internet(w)
	for _, c := range []struct{ host, resolution string }{{"*.partner.test", "DYNAMIC_DNS"}, {"*.test", "NONE"}, {"api.partner.test", "DYNAMIC_DNS"}, {"api.partner.test", "NONE"}} {
		t.Run(c.host+" "+c.resolution, func(t *testing.T) {
			rig.Families(t, func(t *testing.T, v6 bool) { lookedUp(t, w, c.host, c.resolution, v6) })
		})
	}
}

// lookedUp has a pod call one host by look-ups, and in ways that are none.
func lookedUp(t *testing.T, world *rig.World, host, resolution string, v6 bool) {
	w := world.For(t)
	// Each run has a pod of its own, which has looked nothing up.
	name := fmt.Sprintf("looker%d", time.Now().UnixNano())
	w.MustApply(captured(name, ""))
	t.Cleanup(func() { world.MustDelete("Pod", "shop", name) })
	pod := lab.InPod("shop", name)
	resolver := lanAddr(v6)
	api := netip.AddrPortFrom(partner[v6], 443)
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(partner[v6], n) }
	w.MustApply(hostEntry("shop", "partners", host, resolution, "\n  exportTo: [\".\"]"))
	t.Cleanup(func() { world.MustDelete("ServiceEntry", "shop", "partners") })
	knows(w, "node2", "shop", "partners", true)
	refused := func(what string, to netip.AddrPort, sni string) {
		t.Helper()
		if err := tlsTo(w, pod, to, sni); !isReset(err) {
			t.Errorf("%s: %v, want a reset", what, err)
		}
	}
	w.Eventually("the policy is enforced", func() error {
		if err := tlsTo(w, pod, api, "api.partner.test"); !isReset(err) {
			return fmt.Errorf("a hard-coded address: %w", errors.Join(err, errors.New("not refused")))
		}
		return nil
	})
	w.Logs("node2", "dst.addr="+api.String(), `reason="NOT_IN_REGISTRY"`)
	if out, err := w.Ambit("why", "pod/"+name+".shop", "api.partner.test:443"); err == nil || !strings.Contains(out+err.Error(), "no look-up of pod") {
		t.Errorf("without a look-up: %v\n%s", err, out)
	}

	// Answers of a server of the attacker's, and for names that no entry has.
	finds(w, pod, attacker[v6], "udp", "api.partner.test", v6, attacker[v6])
	refused("an answer of a server that is not trusted", netip.AddrPortFrom(attacker[v6], 443), "api.partner.test")
	if host != "*.test" {
		finds(w, pod, resolver, "udp", "evil.test", v6, partner[v6])
		refused("a name in TLS that was not looked up", api, "api.partner.test")
	}

	finds(w, pod, resolver, "udp", "api.partner.test", v6, partner[v6])
	if err := tlsTo(w, pod, api, "API.partner.test"); err != nil {
		t.Fatalf("the host: %v", err)
	}
	w.Logs("node2", fmt.Sprintf("src.workload=%q", name), "dst.addr="+api.String(), fmt.Sprintf("dst.service=%q", host))
	refused("another name in TLS", api, "other.example")
	refused("no name in TLS", api, "")
	refused("another port", port(8443), "api.partner.test")
	if err := plainTo(w, pod, port(80)); err != nil {
		t.Errorf("a port without TLS: %v", err)
	}
	if err := plainTo(w, pod, port(81)); err != nil {
		t.Errorf("a port with another target port: %v", err)
	}
	c := w.MustDial(pod, port(25))
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 6)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello\n" {
		t.Errorf("a server that speaks first: %q, %v", b, err)
	}

	// It is shown, and counted.
	out, err := w.Ambit("why", "pod/"+name+".shop", "api.partner.test:443")
	if err := errors.Join(err, contains(out, "an answer to a look-up of the pod for api.partner.test"), contains(out, "ServiceEntry shop/partners"), contains(out, "allows what is in a registry")); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = w.Ambit("why", "pod/"+name+".shop", api.String(), "--sni", "other.example")
	if err == nil || contains(out, "NOT_IN_REGISTRY") != nil {
		t.Errorf("%v\n%s", err, out)
	}
	w.Eventually("the connections are counted", func() error {
		for _, s := range w.Metrics("node2", "istio_tcp_connections_opened_total") {
			if s.Labels["source_workload"] == name && s.Labels["destination_service"] == host && s.Labels["destination_service_namespace"] == "shop" {
				return nil
			}
		}
		return errors.New("not under the host's name")
	})

	// A namespace that does not see the entry.
	visitor := lab.InPod("yard", "visitor")
	finds(w, visitor, resolver, "udp", "api.partner.test", v6, partner[v6])
	if err := tlsTo(w, visitor, api, "api.partner.test"); !isReset(err) {
		t.Errorf("another namespace: %v", err)
	}
	// A pod whose look-ups are not captured.
	if err := tlsTo(w, far, api, "api.partner.test"); !isReset(err) {
		t.Errorf("a pod without the capture of look-ups: %v", err)
	}

	w.MustApply(hostEntry("shop", "partners", host, resolution, ""))
	w.Eventually("the other namespace sees the entry", func() error {
		finds(w, visitor, resolver, "udp", "api.partner.test", v6, partner[v6])
		return tlsTo(w, visitor, api, "api.partner.test")
	})
}

// TestHostsOfOpenConnections: a pod that comes under REGISTRY_ONLY keeps its connections to hosts
// that a look-up has led from, by the name in TLS that each has begun with. One that named another
// host ends, although a look-up of the entry's host has led to its address.
func TestHostsOfOpenConnections(t *testing.T) {
	world := policied(t)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		api := netip.AddrPortFrom(partner[v6], 443)
		w.MustApply(outbound("shop", "ALLOW_ANY"))
		w.Eventually("nothing confines the pod", func() error { return tlsTo(w, looker, api, "evil.test") })
		w.MustApply(hostEntry("shop", "partners", "*.partner.test", "DYNAMIC_DNS", ""))
		t.Cleanup(func() { world.MustDelete("ServiceEntry", "shop", "partners") })
		knows(w, "node2", "shop", "partners", true)
		finds(w, looker, lanAddr(v6), "udp", "api.partner.test", v6, partner[v6])
		begun := func(sni string) (raw net.Conn, over *tls.Conn) {
			t.Helper()
			raw = w.MustDial(looker, api)
			over = tls.Client(raw, &tls.Config{ServerName: sni, InsecureSkipVerify: true}) //nolint:gosec // who answers is not the question
			sendAndGet(t, over)
			return raw, over
		}
		_, good := begun("api.partner.test")
		evil, _ := begun("evil.test")
		plain := w.MustDial(looker, netip.AddrPortFrom(partner[v6], 80))
		sendAndGet(t, plain)

		w.MustApply(outbound("shop", "REGISTRY_ONLY"))
		_ = evil.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := evil.Read(make([]byte, 1)); n != 0 || !isReset(err) {
			t.Errorf("a connection that has named another host is open: %v", err)
		}
		w.Logs("node2", `src.workload="looker"`, "dst.addr="+api.String(), `reason="NOT_IN_REGISTRY"`)
		sendAndGet(t, good)
		sendAndGet(t, plain)
		if err := tlsTo(w, looker, api, "evil.test"); !isReset(err) {
			t.Errorf("a new one: %v, want a reset", err)
		}
	})
}
