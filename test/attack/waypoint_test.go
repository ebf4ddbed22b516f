package attack

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// gatewayObject is a waypoint of the shop, whose proxies the mesh runs.
func gatewayObject(name, traffic string) string {
	return `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ` + name + `, namespace: shop, labels: {istio.io/waypoint-for: ` + traffic + `}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`
}

// front is a service before the server web, with one of its ports. Metadata is the
// inside of a YAML map.
func front(metadata string) string {
	return `
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, ` + metadata + `}
spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`
}

// uses is the metadata of what uses a waypoint, with annotations.
func uses(waypoint, annotations string) string {
	return "labels: {istio.io/use-waypoint: " + waypoint + "}, annotations: {" + annotations + "}"
}

const (
	serverID = "spiffe://cluster.local/ns/shop/sa/web"
	clientID = "spiffe://cluster.local/ns/shop/sa/far"
	// other is a port of the server that front does not lead to.
	other = 9000
)

// waypointWorld is the shop with the service front, the market, and two waypoints:
// one for a kind of traffic, and one for workloads.
func waypointWorld(t *testing.T, traffic string) *rig.World {
	t.Helper()
	w := rig.Start(t, lab.Config{YAML: rig.Shop + front("labels: {}") + market() + gatewayObject("waypoint", traffic) + gatewayObject("workloads", "workload")})
	if out, err := w.Ambit("waypoint status", "-n", "shop", "--wait"); err != nil {
		t.Fatalf("%s, error %v", out, err)
	}
	return w
}

// throughWaypoint waits until a client of the shop is answered by a server that was
// called by another.
func throughWaypoint(w *rig.World, client string, to netip.AddrPort) {
	w.T().Helper()
	w.Eventually(to.String()+" is called by the waypoint for "+client, func() error {
		a, err := w.Get(lab.InPod("shop", client), to)
		if err == nil && a.Caller == w.Pod("shop", client, a.Caller.Is6()) {
			err = fmt.Errorf("it was called by %s itself", client)
		}
		return err
	})
}

// behindWaypoint waits until a client is answered by the server web, which a proxy of the
// shop's waypoint has called.
func behindWaypoint(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("the waypoint calls %s for %s", to, from), func() error {
		a, err := w.Get(from, to)
		if err != nil {
			return err
		}
		s, err := w.Status(w.T().Context())
		if err != nil {
			return err
		}
		for _, p := range s.Pods {
			if p.Namespace == "shop" && strings.HasPrefix(p.Name, "waypoint-") && slices.Contains(p.IPs, a.Caller.String()) {
				return nil
			}
		}
		return fmt.Errorf("the server was called by %s", a.Caller)
	})
}

// denied is a policy of front: its waypoint refuses the account thief1.
const denied = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/market/sa/thief1]}}]}]
`

// echoes makes one exchange with the server's other port.
func echoes(w *rig.World, from lab.Where, pod netip.Addr) error {
	c, err := w.Dial(w.T().Context(), from, "tcp", netip.AddrPortFrom(pod, other).String())
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // read
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return err
	}
	_, err = bufio.NewReader(c).ReadString('\n')
	return err
}

// steal opens a tunnel to a pod as a stolen node proxy would, with the identity of a
// client, and fails unless its request is refused.
func steal(w *rig.World, pod netip.AddrPort, identity string) {
	t := w.T()
	t.Helper()
	tun := w.MustTunnel(rig.Stranger, netip.AddrPortFrom(pod.Addr(), wellknown.PortHBONE), w.Bundle(identity), serverID)
	for _, head := range []http.Header{nil, {"Forwarded": {"for=10.0.0.1;host=front.shop.svc.cluster.local"}}} {
		if _, status, err := tun.Open(http.MethodConnect, pod.String(), head); err != nil || status != http.StatusUnauthorized {
			t.Errorf("%s is answered %d at %s: %v", identity, status, pod, err)
		}
	}
}

// TestAroundTheWaypointOfAService: a service is bound to a waypoint, and the attacker
// calls its pod: as a pod of the mesh on both nodes, through another service, from
// outside the mesh in plaintext, and as a stolen node proxy. The former reach the pod
// through the waypoint, by the policies of the service; the pod's node proxy refuses the
// latter. The pod's other ports are open as before, and not through the waypoint.
func TestAroundTheWaypointOfAService(t *testing.T) {
	t.Parallel()
	world := waypointWorld(t, "service")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		vip := netip.AddrPortFrom(w.Service("shop", "front", v6), 80)
		web := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		w.BecomesAnswered(rig.Stranger, pod)
		w.MustApply(front(uses("waypoint", "")))
		throughWaypoint(w, "far", vip)
		w.BecomesRefused(rig.Stranger, pod)
		for _, from := range []lab.Where{rig.Near, rig.Far, thief1, thief2} {
			for _, to := range []netip.AddrPort{pod, web} { // its port is front's
				behindWaypoint(w, from, to)
			}
		}
		w.MustApply(denied)
		for _, to := range []netip.AddrPort{vip, pod, web} {
			w.Eventually("the policy of front holds for thief1 at "+to.String(), func() error {
				_, err := w.Get(thief1, to)
				if err == nil || !strings.Contains(err.Error(), "403") && !strings.Contains(err.Error(), "RBAC") {
					return fmt.Errorf("it is answered, error %w", err)
				}
				return nil
			})
		}
		behindWaypoint(w, thief2, pod)
		w.MustDelete("AuthorizationPolicy", "shop", "denied")
		for _, id := range []string{clientID, serverID, "spiffe://cluster.local/ns/market/sa/thief2", "spiffe://cluster.local/ns/market/sa/waypoint"} {
			steal(w, pod, id)
		}
		w.Logs("node1", `direction="inbound"`, `dst.addr=`+pod.String(), `src.addr=`, `reason="WAYPOINT_REQUIRED"`, "only the waypoint of the destination is admitted")
		w.Logs("node1", `direction="inbound"`, `dst.hbone_addr=`+pod.String(), `reason="WAYPOINT_REQUIRED"`, `src.identity="`+clientID)
		for _, from := range []lab.Where{rig.Stranger, rig.Far} {
			if err := echoes(w, from, pod.Addr()); err != nil {
				t.Errorf("%s at the server's other port: %v", from, err)
			}
		}
		for _, says := range [][]string{
			{"the waypoint is required", "describe pod", "web", "-n", "shop"},
			{"port 8080 admits only cluster.local/ns/shop/sa/waypoint", "status"},
			{wellknown.DerivedWaypointPolicy, "ztunnel-config policy", "--node", "node1"},
		} {
			if out, err := w.Ambit(says[1], says[2:]...); err != nil || !strings.Contains(out, says[0]) {
				t.Errorf("ambit %v does not say %q: %s %v", says[1:], says[0], out, err)
			}
		}
		// The exception is for accounts, which prove who they are.
		w.MustApply(front(uses("waypoint", `ambit.mesh/waypoint-exempt: "market/thief2"`)))
		w.Eventually("thief2 calls the pod itself", func() error {
			a, err := w.Get(thief2, pod)
			if err == nil && a.Caller != w.Pod("market", "thief2", v6) {
				err = fmt.Errorf("it was called by %s", a.Caller)
			}
			return err
		})
		behindWaypoint(w, thief1, pod)
		w.Refused(rig.Stranger, pod)
		// Istio's way.
		w.MustApply(front(uses("waypoint", "ambit.mesh/waypoint-bypass: allow")))
		w.BecomesAnswered(rig.Stranger, pod)
		throughWaypoint(w, "far", vip)
		w.MustApply(front("labels: {}"))
		w.BecomesAnswered(rig.Far, vip)
		w.BecomesAnswered(rig.Stranger, pod)
	})
}

// TestAroundTheWaypointOfAPod: a pod is bound to a waypoint, and the attacker calls it,
// on every port. Clients of a service in front of it, which has no waypoint, go through
// the pod's.
func TestAroundTheWaypointOfAPod(t *testing.T) {
	t.Parallel()
	world := waypointWorld(t, "all")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		vip := netip.AddrPortFrom(w.Service("shop", "front", v6), 80)
		w.BecomesAnswered(rig.Stranger, pod)
		name := "waypoint"
		use := func(name *string) {
			if err := w.Label(t.Context(), "pod", "shop", "web", map[string]*string{wellknown.LabelUseWaypoint: name}); err != nil {
				t.Fatal(err)
			}
		}
		use(&name)
		throughWaypoint(w, "far", pod)
		throughWaypoint(w, "near", vip)
		w.BecomesRefused(rig.Stranger, pod)
		if err := echoes(w, rig.Stranger, pod.Addr()); err == nil {
			t.Error("the stranger is served at the other port")
		}
		steal(w, pod, clientID)
		steal(w, netip.AddrPortFrom(pod.Addr(), other), clientID)
		use(nil)
		w.BecomesAnswered(rig.Stranger, pod)
	})
}

// TestWithoutTheWaypoint: the waypoint that a service is bound to does not exist, has
// no address, is not for services, does not admit the namespace, or was deleted.
// Clients are refused, for a reason of its own, and so is who goes around.
func TestWithoutTheWaypoint(t *testing.T) {
	t.Parallel()
	world := waypointWorld(t, "service")
	// No proxies are made for it: the user says that a Service of his own leads to some.
	world.MustApply(strings.Replace(gatewayObject("unready", "service"), "listeners:", "addresses: [{type: Hostname, value: nobody.shop.svc.cluster.local}], listeners:", 1))
	world.MustApply(strings.ReplaceAll(gatewayObject("foreign", "service"), "namespace: shop", "namespace: market"))
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		vip := netip.AddrPortFrom(w.Service("shop", "front", v6), 80)
		w.BecomesAnswered(rig.Stranger, pod)
		refused := func(name, why string) {
			t.Helper()
			w.BecomesRefused(rig.Far, vip)
			w.BecomesRefused(rig.Stranger, pod)
			w.Refused(thief1, pod)
			steal(w, pod, clientID)
			steal(w, pod, "spiffe://cluster.local/ns/shop/sa/waypoint")
			// At first a waypoint that was deleted is one that does not answer.
			w.Eventually("the node proxy says why", func() error {
				w.Refused(rig.Far, vip)
				return w.ExpectLines("node2", vip.String(), `reason="WAYPOINT_UNAVAILABLE"`, "waypoint "+name+"."+why)
			})
		}
		for _, c := range []struct{ label, name, why string }{
			{"nobody", "nobody.shop", "TargetNotFound"},
			{"unready", "unready.shop", "WaypointIsNotReady"},
			{"workloads", "workloads.shop", "UnsupportedTrafficType"},
			{"foreign, istio.io/use-waypoint-namespace: market", "foreign.market", "AttachmentDenied"},
		} {
			w.MustApply(front(uses(c.label, "")))
			refused(c.name, c.why)
			w.MustApply(front(uses(c.label, "ambit.mesh/waypoint-bypass: allow")))
			w.BecomesAnswered(rig.Far, vip)
			w.BecomesAnswered(rig.Stranger, pod)
		}
		w.MustApply(gatewayObject("doomed", "service"))
		if out, err := w.Ambit("waypoint status", "-n", "shop", "doomed", "--wait"); err != nil {
			t.Fatalf("%s, error %v", out, err)
		}
		w.MustApply(front(uses("doomed", "")))
		throughWaypoint(w, "far", vip)
		w.MustDelete("Gateway", "shop", "doomed")
		refused("doomed.shop", "TargetNotFound")
		w.MustApply(front("labels: {}"))
		w.BecomesAnswered(rig.Far, vip)
	})
}
