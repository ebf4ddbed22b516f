package attack

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// circle is two namespaces with a waypoint each, whose routes lead to each other. The
// other paths lead to the namespace's own server. In inner everybody but the waypoint of
// the shop is refused.
func circle() string {
	y := ""
	for _, n := range []struct{ own, other string }{{"outer", "inner"}, {"inner", "outer"}} {
		y += rig.NamespaceObject(n.own, true) + rig.ServerObject(n.own, "web", "node1", "app: web") + strings.NewReplacer("OWN", n.own, "OTHER", n.other).Replace(`
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: OWN}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: OWN, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: all, namespace: OWN}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: OTHER}]
  to: [{group: "", kind: Service}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: OWN}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /circle}}]
    retry: {codes: [508], attempts: 1}
    backendRefs: [{namespace: OTHER, name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /to-OTHER}}]
    backendRefs: [{namespace: OTHER, name: web, port: 80}]
  - backendRefs: [{name: web, port: 80}]
`)
	}
	return y + rig.PodObject("outer", "client", "node2", "") + `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: waypoints, namespace: inner}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/outer/sa/waypoint"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret, namespace: inner}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/to-inner/secret"]}}]}]
`
}

var circleClient = lab.InPod("outer", "client")

// status makes a request from a pod and returns the status and the body of its answer.
func statusOf(w *rig.World, from lab.Where, to netip.AddrPort, target string, header ...string) (int, string, error) {
	c := w.HTTP(from)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.T().Context(), http.MethodGet, "http://"+to.String()+target, nil)
	if err != nil {
		return 0, "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// is returns an error unless a request is answered with a status.
func is(w *rig.World, to netip.AddrPort, target string, want int, header ...string) error {
	if got, body, err := statusOf(w, circleClient, to, target, header...); got != want || err != nil {
		return fmt.Errorf("%s: %d %q, want %d, error %w", target, got, body, want, err)
	}
	return nil
}

// TestCircleOfWaypoints: routes that lead in a circle end with an answer, whatever
// number of passed waypoints a client sends. A client that speaks to a waypoint
// itself cannot count backwards.
func TestCircleOfWaypoints(t *testing.T) {
	t.Parallel()
	world := start(t, circle())
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		outer := netip.AddrPortFrom(w.Service("outer", "web", v6), 80)
		w.Eventually("a request passes both waypoints", func() error { return is(w, outer, "/to-inner", 200) })
		w.Eventually("the circle ends", func() error { return is(w, outer, "/circle", 508) })
		for _, forged := range [][]string{
			{"X-Ambit-Hops", "0"}, {"X-Ambit-Hops", "-1"}, {"X-Ambit-Hops", "255"}, {"x-ambit-hops", "1", "x-ambit-hops", "x"},
		} {
			if err := is(w, outer, "/circle", 508, forged...); err != nil {
				t.Errorf("%v: %v", forged, err)
			}
			// It is a header of a request, and no hop: it ends nothing either.
			if err := is(w, outer, "/to-inner", 200, forged...); err != nil {
				t.Errorf("%v: %v", forged, err)
			}
		}
		// Each waypoint has a rule that tries again: the tries do not multiply.
		once := fmt.Sprintf("/circle/once-%v", v6)
		if err := is(w, outer, once, 508); err != nil {
			t.Error(err)
		}
		passes := func() (n int) {
			for _, ns := range []string{"outer", "inner"} {
				n += strings.Count(w.Log("pod/"+ns+"/"+proxyName(w, ns)+"/"+deploy.Container), once)
			}
			return n
		}
		w.Eventually("both waypoints have logged it", func() error {
			if n := passes(); n < 5 {
				return fmt.Errorf("%d passes", n)
			}
			return nil
		})
		w.Always("passes of one request", func() error {
			if n := passes(); n != 5 {
				return fmt.Errorf("one request has passed waypoints %d times, want 5", n)
			}
			return nil
		})
		out, err := w.Ambit("why", "client.outer", outer.String(), "--path", "/circle")
		if err == nil || !strings.Contains(out, reason.WaypointLoop.String()) || !strings.Contains(out, "(the client gets 508)") {
			t.Errorf("%s, error %v", out, err)
		}
		// With a certificate of the mesh, at the waypoint's own port.
		var at netip.Addr
		w.Eventually("the waypoint has a pod", func() (err error) { at, err = proxyOf(w, "outer", v6); return err })
		tun := w.MustTunnel(circleClient, netip.AddrPortFrom(at, wellknown.PortHBONE), w.Bundle("spiffe://cluster.local/ns/outer/sa/client"), "spiffe://cluster.local/ns/outer/sa/waypoint")
		for _, tc := range []struct {
			name    string
			hops    []string
			status  int // of the CONNECT
			circle  string
			through string
		}{
			{"none", nil, 200, "508", "200"},
			{"few", []string{"1"}, 200, "508", "200"},
			{"as many as there may be", []string{"4"}, 200, "508", "508"},
			{"more", []string{"5"}, 508, "", ""},
			{"the largest", []string{"255"}, 508, "", ""},
			{"too large", []string{"256"}, 400, "", ""},
			{"nothing counted", []string{"0"}, 400, "", ""},
			{"backwards", []string{"-1"}, 400, "", ""},
			{"a sign", []string{"+1"}, 400, "", ""},
			{"a zero in front", []string{"01"}, 400, "", ""},
			{"twice", []string{"1", "1"}, 400, "", ""},
			{"a word", []string{"few"}, 400, "", ""},
		} {
			var head http.Header
			if tc.hops != nil {
				head = http.Header{"X-Ambit-Hops": tc.hops}
			}
			for path, want := range map[string]string{"/circle": tc.circle, "/to-inner": tc.through} {
				s, status, err := tun.Open(http.MethodConnect, outer.String(), head)
				if err != nil || status != tc.status {
					t.Errorf("%s: CONNECT %d, want %d, error %v", tc.name, status, tc.status, err)
					continue
				}
				if s == nil {
					continue
				}
				_, err = fmt.Fprintf(s, "GET %s HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n", path)
				b, _ := io.ReadAll(s)
				if got, _, _ := strings.Cut(string(b), "\r\n"); err != nil || !strings.HasPrefix(got, "HTTP/1.1 "+want) {
					t.Errorf("%s, %s: %q, want %s, error %v", tc.name, path, got, want, err)
				}
				_ = s.CloseWrite()
			}
		}
	})
}

// proxyName returns the name of a waypoint's only pod, "" without one.
func proxyName(w *rig.World, namespace string) string {
	s, err := w.Status(w.T().Context())
	if err != nil {
		return ""
	}
	for _, p := range s.Pods {
		if p.Namespace == namespace && strings.HasPrefix(p.Name, "waypoint-") {
			return p.Name
		}
	}
	return ""
}

// killProxy kills the only proxy of a waypoint whenever it runs, until stop is called.
func killProxy(w *rig.World, namespace string) (stop func()) {
	ctx, cancel := context.WithCancel(w.T().Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if name := proxyName(w, namespace); name != "" {
				if s, err := w.Status(ctx); err == nil {
					p, _ := s.Pod(namespace, name)
					for _, pid := range p.PIDs {
						_, _ = w.Run(ctx, lab.InPod(namespace, name), "/bin/sh", "-c", "kill -9 "+strconv.Itoa(pid)) // it may have ended meanwhile
					}
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return sync.OnceFunc(func() { cancel(); <-done })
}

// proxyOf returns the address of a waypoint's only pod.
func proxyOf(w *rig.World, namespace string, v6 bool) (netip.Addr, error) {
	if name := proxyName(w, namespace); name != "" {
		return w.Pod(namespace, name, v6), nil
	}
	return netip.Addr{}, fmt.Errorf("the waypoint of %s has no pod", namespace)
}

// TestWithoutTheSecondWaypoint: a route that leads behind another waypoint never goes
// around it: not while its proxies are gone, and not without its Gateway.
func TestWithoutTheSecondWaypoint(t *testing.T) {
	t.Parallel()
	world := start(t, circle())
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		outer := netip.AddrPortFrom(w.Service("outer", "web", v6), 80)
		w.Eventually("a request passes both waypoints", func() error { return is(w, outer, "/to-inner", 200) })
		w.Eventually("the second one refuses", func() error { return is(w, outer, "/to-inner/secret", 403) })
		gone := func(how string) {
			t.Helper()
			w.Eventually(how+": requests fail", func() error { return is(w, outer, "/to-inner", 503) })
			w.Always(how+": none goes around it", func() error { return is(w, outer, "/to-inner/secret", 503) })
			if err := is(w, outer, "/own", 200); err != nil {
				t.Errorf("%s: another route: %v", how, err)
			}
			out, err := w.Ambit("why", "client.outer", outer.String(), "--path", "/to-inner")
			if err == nil || !strings.Contains(out, reason.WaypointUnavailable.String()) {
				t.Errorf("%s: %s, error %v", how, out, err)
			}
		}
		stop := killProxy(w, "inner")
		w.Eventually("its proxy is killed again and again: requests fail", func() error { return is(w, outer, "/to-inner", 503) })
		w.Always("none goes around the proxy that is killed", func() error {
			if status, body, err := statusOf(w, circleClient, outer, "/to-inner/secret"); err == nil && status == http.StatusOK {
				return fmt.Errorf("%d %q", status, body)
			}
			return nil
		})
		stop()
		w.Eventually("the proxy is back", func() error { return is(w, outer, "/to-inner", 200) })
		w.MustDelete("Gateway", "inner", "waypoint")
		gone("without its Gateway")
		w.MustApply(circle())
		w.Eventually("it is back", func() error { return is(w, outer, "/to-inner", 200) })
		if err := is(w, outer, "/to-inner/secret", 403); err != nil {
			t.Error(err)
		}
	})
}
