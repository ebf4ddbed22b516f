package scenario

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// hostGet makes a request that names a host, and returns the status and the body.
func hostGet(w *rig.World, from lab.Where, to netip.AddrPort, host, path string) (int, string, error) {
	c, err := w.Dial(w.T().Context(), from, "tcp", to.String())
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// throughWaypoint waits until a request is answered by the outside, which sees the waypoint.
func throughWaypoint(w *rig.World, from lab.Where, to netip.AddrPort, host string, v6 bool) {
	w.T().Helper()
	w.Eventually("the request goes through the waypoint", func() error {
		pod, err := gatewayPod(w)
		if err != nil {
			return err
		}
		code, body, err := hostGet(w, from, to, host, "/")
		name := strings.TrimPrefix(string(pod), "pod/shop/")
		if want := "lan answers " + w.Pod("shop", name, v6).String() + "\n"; err != nil || code != 200 || body != want {
			return fmt.Errorf("status %d, %q, want %q: %w", code, body, want, err)
		}
		return nil
	})
}

// TestHostsThroughWaypoint: what a pod calls of a ServiceEntry with a waypoint goes through the
// waypoint, by whatever resolution: to the address of the name that the waypoint looks up, or
// to the address that was called. Names that the entry does not have are refused there.
func TestHostsThroughWaypoint(t *testing.T) {
	w := rig.Start(t, lab.Config{
		YAML: confined + captured("looker", "") + managed +
			rig.PodObject("yard", "well", "node1", "app: well") + rig.ServiceObject("yard", "well", "well", "{name: http, port: 7070}"),
		Args: map[string][]string{lab.Ambitd: {"--mesh-config", meshSettings(t, "REGISTRY_ONLY")}},
		Env:  map[string][]string{"ztunnel": {"EGRESS_NAME_SERVERS=" + lanAddr(false).String() + "," + lanAddr(true).String()}},
	})
	pod := func(v6 bool) netip.Addr { return w.Pod("yard", "well", v6) }
	internet(w, map[string]func(bool) netip.Addr{
		"pod.partner.test.":     pod,
		"service.partner.test.": func(v6 bool) netip.Addr { return w.Service("yard", "well", v6) },
	})
	outside(w)
	well := w.Listen(lab.InPod("yard", "well"), ":7070")
	go func() {
		_ = http.Serve(well, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { //nolint:gosec // a test's
			_, _ = io.WriteString(rw, "the pod answers")
		}))
	}()
	w.Eventually("the waypoint uses the name server", func() error {
		pod, err := gatewayPod(w)
		if err != nil {
			return err
		}
		_, err = w.Run(t.Context(), pod, "/bin/sh", "-c", "echo nameserver "+lanAddr(false).String()+" > /etc/resolv.conf")
		return err
	})
	entry := func(name, rest string) string {
		return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  location: MESH_EXTERNAL
  ports: [{number: 7070, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, {number: 80, name: tcp, protocol: TCP}, {number: 7000, name: moved, protocol: HTTP, targetPort: 7070}]
  %s
`, name, rest)
	}
	policy := func(name string) string {
		return fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: door, namespace: shop}
spec:
  targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: %s}]
  action: DENY
  rules: [{to: [{operation: {paths: [/closed], ports: ["7070"]}}]}]
`, name)
	}
	for _, c := range []struct{ host, resolution string }{{"*.partner.test", "DYNAMIC_DNS"}, {"*.partner.test", "NONE"}, {"api.partner.test", "DYNAMIC_DNS"}} {
		t.Run(c.host+" "+c.resolution, func(t *testing.T) {
			rig.Families(t, func(t *testing.T, v6 bool) {
				world, w := w, w.For(t)
				w.MustApply(entry("partners", fmt.Sprintf("hosts: [%q]\n  resolution: %s", c.host, c.resolution)) + policy("partners"))
				t.Cleanup(func() {
					world.MustDelete("AuthorizationPolicy", "shop", "door")
					world.MustDelete("ServiceEntry", "shop", "partners")
				})
				knows(w, "node2", "shop", "partners", true)
				finds(w, looker, lanAddr(v6), "udp", "api.partner.test", v6, partner[v6])
				at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(partner[v6], port) }
				throughWaypoint(w, looker, at(7070), "api.partner.test", v6)
				throughWaypoint(w, looker, at(7000), "api.partner.test:7000", v6)
				w.Eventually("a policy of requests decides", func() error {
					if code, _, err := hostGet(w, looker, at(7070), "api.partner.test", "/closed"); err != nil || code != 403 {
						return fmt.Errorf("status %d: %w", code, err)
					}
					return nil
				})
				for _, host := range []string{"evil.test", partner[v6].String(), "partner.test.", "", "x", strings.Repeat("a.", 200) + "partner.test"} {
					if host == "partner.test." && c.host == "api.partner.test" {
						continue
					}
					if code, _, err := hostGet(w, looker, at(7070), host, "/"); err == nil && code < 400 {
						t.Errorf("host %q: status %d", host, code)
					}
				}
				// A name that leads into the mesh opens nothing there, with the gateway's identity or without.
				for _, host := range []string{"pod.partner.test", "service.partner.test"} {
					if c.host == "api.partner.test" {
						break
					}
					if code, body, err := hostGet(w, looker, at(7070), host, "/"); err != nil || code != 503 || strings.Contains(body, "pod answers") {
						t.Errorf("%s: status %d, %q, %v", host, code, body, err)
					}
				}
				if err := tlsTo(w, looker, at(443), "api.partner.test"); err != nil {
					t.Errorf("TLS: %v", err)
				}
				if err := tlsTo(w, looker, at(443), "evil.test"); !isReset(err) {
					t.Errorf("another name in TLS: %v", err)
				}
				if err := plainTo(w, looker, at(80)); err != nil {
					t.Errorf("TCP: %v", err)
				}
				w.Logs("node2", `src.workload="looker"`, fmt.Sprintf("dst.service=%q", c.host), `dst.hbone_addr=api.partner.test:80`)
				w.Eventually("it is explained", func() error {
					out, err := w.Ambit("why", "pod/looker.shop", at(80).String())
					return errors.Join(err, contains(out, "Gateway shop/waypoint"), contains(out, "for api.partner.test:80"), contains(out, partner[v6].String()))
				})
			})
		})
	}
	for _, c := range []struct{ name, rest string }{
		{"dns", "hosts: [api.partner.test]\n  resolution: DNS"},
		{"round robin", "hosts: [api.partner.test]\n  resolution: DNS_ROUND_ROBIN"},
		{"endpoint by name", "hosts: [vault.test]\n  resolution: DNS\n  endpoints: [{address: cdn.partner.test}]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig.Families(t, func(t *testing.T, v6 bool) {
				world, w := w, w.For(t)
				w.MustApply(entry("partners", c.rest))
				t.Cleanup(func() { world.MustDelete("ServiceEntry", "shop", "partners") })
				host := strings.TrimSuffix(strings.TrimPrefix(strings.SplitN(c.rest, "]", 2)[0], "hosts: ["), "]")
				vip := allocated(w, looker, host, v6)
				w.Eventually("it is answered", func() error {
					code, body, err := hostGet(w, looker, netip.AddrPortFrom(vip, 7070), host, "/")
					if err != nil || code != 200 || !strings.Contains(body, "lan answers") {
						return fmt.Errorf("status %d, %q: %w", code, body, err)
					}
					return nil
				})
				throughWaypoint(w, looker, netip.AddrPortFrom(vip, 7000), host, v6)
				if err := tlsTo(w, looker, netip.AddrPortFrom(vip, 443), host); err != nil {
					t.Errorf("TLS: %v", err)
				}
			})
		})
	}
	t.Run("an address of the entry, and the name of the request", func(t *testing.T) {
		rig.Families(t, func(t *testing.T, v6 bool) {
			world, w := w, w.For(t)
			vip := netip.MustParseAddr(map[bool]string{false: "240.240.9.9", true: "2001:2::909"}[v6])
			w.MustApply(entry("partners", fmt.Sprintf("hosts: [\"*.partner.test\"]\n  resolution: DYNAMIC_DNS\n  addresses: [%q]", vip)))
			t.Cleanup(func() { world.MustDelete("ServiceEntry", "shop", "partners") })
			throughWaypoint(w, looker, netip.AddrPortFrom(vip, 7070), "api.partner.test", v6)
			throughWaypoint(w, looker, netip.AddrPortFrom(vip, 7000), "cdn.partner.test", v6)
			if code, _, err := hostGet(w, looker, netip.AddrPortFrom(vip, 7070), "evil.test", "/"); err != nil || code != 404 {
				t.Errorf("another name: status %d, %v", code, err)
			}
			if err := plainTo(w, looker, netip.AddrPortFrom(vip, 80)); err == nil {
				t.Error("without a name a connection is made")
			}
		})
	})
	t.Run("the address that was called", func(t *testing.T) {
		rig.Families(t, func(t *testing.T, v6 bool) {
			world, w := w, w.For(t)
			w.MustApply(entry("partners", fmt.Sprintf("hosts: [block.test]\n  resolution: NONE\n  addresses: [%s/28, \"%s/124\"]", partner[false], partner[true])))
			t.Cleanup(func() { world.MustDelete("ServiceEntry", "shop", "partners") })
			throughWaypoint(w, looker, netip.AddrPortFrom(partner[v6], 7070), "block.test", v6)
			throughWaypoint(w, looker, netip.AddrPortFrom(partner[v6], 7000), "block.test", v6)
			if err := tlsTo(w, looker, netip.AddrPortFrom(partner[v6], 443), "anything.test"); err != nil {
				t.Errorf("TLS: %v", err)
			}
		})
	})
}

// allocated waits until a pod's look-up of a host leads to an address that the mesh has
// allocated, and returns it.
func allocated(w *rig.World, from lab.Where, host string, v6 bool) (a netip.Addr) {
	w.T().Helper()
	pool := map[bool]netip.Prefix{false: netip.MustParsePrefix("240.240.0.0/16"), true: netip.MustParsePrefix("2001:2::/48")}[v6]
	w.Eventually(host+" has an allocated address", func() error {
		m, err := look(w, from, lanAddr(v6), "udp", ask(host, map[bool]uint16{false: 1, true: 28}[v6]))
		if err != nil {
			return err
		}
		if all := found(m); len(all) != 1 {
			return fmt.Errorf("the answer has %q", all)
		} else if a, err = netip.ParseAddr(all[0]); err != nil || !pool.Contains(a) {
			return fmt.Errorf("the answer is %s: %w", all[0], err)
		}
		return nil
	})
	return a
}
