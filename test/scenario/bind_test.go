package scenario

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// frontUses is the service front of versions with the waypoint that it uses; none if
// empty.
func frontUses(waypoint string) string {
	labels := ""
	if waypoint != "" {
		labels = "istio.io/use-waypoint: " + waypoint
	}
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, labels: {%s}}
spec: {selector: {tier: server}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`, labels)
}

// TestBindingUnderLoad: a service gets a waypoint and loses it again, and changes from
// one to another, while clients make requests, on kept connections and on new ones, and
// to the address of a pod. None fails. Every change takes effect.
func TestBindingUnderLoad(t *testing.T) {
	second := `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: second, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`
	yaml, _, _ := strings.Cut(versions(), "---\napiVersion: v1\nkind: Service\nmetadata: {name: front")
	world := rig.Start(t, lab.Config{YAML: yaml + second + frontUses("")})
	for _, name := range []string{"waypoint", "second"} {
		if out, err := world.Ambit("waypoint status", "-n", "shop", name, "--wait"); err != nil {
			t.Fatalf("%s, error %v", out, err)
		}
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		to := netip.AddrPortFrom(w.Service("shop", "front", v6), 80)
		w.BecomesAnswered(far, to)
		kept, fresh := w.StartLoad(far, to, 200), w.StartConnections(far, to, 100)
		pod := w.StartConnections(far, netip.AddrPortFrom(w.Pod("shop", "v1", v6), 8080), 50)
		for range 3 {
			for _, name := range []string{"waypoint", "second", ""} {
				w.MustApply(frontUses(name))
				w.Eventually("the change to waypoint "+name, func() error { return calledBy(w, to, name) })
				kept.Seconds(1)
			}
		}
		kept.Clean()
		fresh.Clean()
		pod.Clean()
	})
}

// calledBy returns an error unless servers are called by a proxy of a waypoint, or by
// the client itself for none.
func calledBy(w *rig.World, to netip.AddrPort, waypoint string) error {
	a, err := w.Get(far, to)
	if err != nil {
		return err
	}
	s, err := w.Status(w.T().Context())
	if err != nil {
		return err
	}
	for _, p := range s.Pods {
		for _, ip := range p.IPs {
			if ip != a.Caller.String() {
				continue
			}
			if own := p.Name == "far"; own != (waypoint == "") || !own && !strings.HasPrefix(p.Name, waypoint+"-") {
				return fmt.Errorf("the server was called by %s", p.Name)
			}
			return nil
		}
	}
	return fmt.Errorf("the server was called by %s", a.Caller)
}
