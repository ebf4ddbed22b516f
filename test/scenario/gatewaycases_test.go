package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestGatewayServerFirst: a program that speaks first is reached through a waypoint,
// at a port whose protocol nothing declares.
func TestGatewayServerFirst(t *testing.T) {
	y := strings.Replace(shop, "metadata: {name: web, namespace: shop}\nspec:\n  selector", "metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}\nspec:\n  selector", 1)
	if y == shop {
		t.Fatal("the shop has no service web")
	}
	world := rig.Start(t, lab.Config{YAML: y + managed})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		to := netip.AddrPortFrom(w.Service("shop", "web", v6), 9100)
		w.Eventually("connections pass through the waypoint", func() error {
			if _, err := greet(w, far, to); err != nil {
				return err
			}
			return w.ExpectLines("node2", `direction="outbound"`, `dst.workload="waypoint-`, "dst.hbone_addr="+to.String())
		})
		at, err := gatewayPod(w)
		if err != nil {
			t.Fatal(err)
		}
		spoke := func() (n float64) {
			for _, s := range w.MetricsIn(at, "ambit_undeclared_connections_total") {
				if s.Labels["decided_by"] == "server" {
					n += s.Value
				}
			}
			return n
		}
		before := spoke()
		const greetings = 20
		for range greetings {
			if _, err := greet(w, far, to); err != nil {
				t.Fatal(err)
			}
		}
		// On a machine that is held up for 100 ms, silence decides.
		if n := spoke() - before; n < 1 || n > greetings {
			t.Errorf("the server has decided about %v connections of %d", n, greetings)
		}
	})
}

// greet connects and returns what the server says first.
func greet(w *rig.World, from lab.Where, to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(w.T().Context(), 20*time.Second)
	defer cancel()
	c, err := w.Dial(ctx, from, "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // only closing
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	return bufio.NewReader(c).ReadString('\n')
}

// headerRoute is a route of front that sets a header of the request.
func headerRoute(name, path, value string) string {
	return fmt.Sprintf(`
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front}]
  rules:
  - matches: [{path: {type: Exact, value: %s}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: "%s"}]}}]
    backendRefs: [{name: v1, port: 80}]
`, name, path, value)
}

// TestGatewayOneBadRoute: a route that cannot be served costs that route alone. The
// routes beside it work, and a change of another one takes effect.
func TestGatewayOneBadRoute(t *testing.T) {
	y := versions() + split
	for i := range 100 {
		y += headerRoute(fmt.Sprintf("r%d", i), fmt.Sprintf("/r%d", i), "good")
	}
	world := rig.Start(t, lab.Config{YAML: y})
	rig.Families(t, func(t *testing.T, v6 bool) { oneBadRoute(world.For(t), v6) })
}

func oneBadRoute(w *rig.World, v6 bool) {
	w.MustApply(split)
	a := newAsker(w, v6)
	w.Eventually("the routes are in effect", func() error {
		if got, err := a.ask("x-version", "2"); err != nil || got != "v2" {
			return fmt.Errorf("%s answered, error %w", got, err)
		}
		return nil
	})
	w.MustApply(headerRoute("bad", "/bad", `\u0001`))
	w.Eventually("the bad route has a status", func() error {
		out, err := w.Ambit("status", "-n", "shop")
		if err != nil {
			return err
		}
		seen := false
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != "HTTPRoute" {
				continue
			}
			accepted := strings.Contains(line, "Accepted") && strings.Contains(line, "True")
			switch {
			case f[2] == "bad" && strings.Contains(line, "Accepted"):
				seen = !accepted
			case f[2] != "bad" && strings.Contains(line, "Accepted") && !accepted:
				return errors.New(line)
			}
		}
		if !seen {
			return errors.New(out)
		}
		return nil
	})
	// An unrelated change, in the opposite direction.
	w.MustApply(strings.Replace(split, "backendRefs: [{name: v2, port: 80}]", "backendRefs: [{name: v1, port: 80}]", 1))
	w.Eventually("the change is in effect", func() error {
		if got, err := a.ask("x-version", "2"); err != nil || got != "v1" {
			return fmt.Errorf("%s answered, error %w", got, err)
		}
		return nil
	})
	w.MustDelete("HTTPRoute", "shop", "bad")
}

// fillNode adds pods to a node until it has n: the lab chooses the node of a waypoint's pod.
func fillNode(w *rig.World, node string, n int) {
	w.T().Helper()
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	for i := range s.Pods {
		if s.Pods[i].Node == node {
			n--
		}
	}
	for i := range n {
		w.MustApply(rig.PodObject("shop", fmt.Sprintf("filler%d", i), node, ""))
	}
}

// TestGatewayAddressGivenAway: when the address of a pod goes to another workload, the
// waypoint's connections of before do not reach it, and no request fails.
func TestGatewayAddressGivenAway(t *testing.T) {
	y := rig.NamespaceObject("shop", true) + rig.PodObject("shop", "far", "node2", "") + managed + `
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {tier: server}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
` + rig.ServerObject("shop", "stays", "node1", "tier: server")
	goes := rig.ServerObject("shop", "goes", "node1", "tier: server")
	other := rig.ServerObject("shop", "other", "node1", "tier: none")
	// So few addresses that one which becomes free is the next to be given.
	world := rig.Start(t, lab.Config{YAML: y, PodAddresses: 3})
	fillNode(world, "node1", 2)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		for range 3 {
			w.MustApply(goes)
			w.Settled()
			a := newAsker(w, v6)
			w.Eventually("both servers answer", func() error {
				seen := map[string]bool{}
				for range 30 {
					got, err := a.ask()
					if err != nil {
						return err
					}
					seen[got] = true
				}
				if !seen["stays"] || !seen["goes"] {
					return fmt.Errorf("%v answer", seen)
				}
				return nil
			})
			was := w.Pod("shop", "goes", v6)
			load := w.StartKept(far, netip.AddrPortFrom(w.Service("shop", "front", v6), 80), 100, "http1")
			w.MustDelete("Pod", "shop", "goes")
			w.MustApply(other)
			if got := w.Pod("shop", "other", v6); got != was {
				t.Fatalf("the other workload has %s and not %s: this test is none", got, was)
			}
			for range 200 {
				if got, err := a.ask(); err != nil || got != "stays" {
					t.Fatalf("%s answered, error %v", got, err)
				}
			}
			load.Stop()
			w.MustDelete("Pod", "shop", "other")
		}
	})
}
