package both

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// fourObject is a server whose pod has its IPv6 switched off, once it has its network and
// before its program starts.
func fourObject(labels string) string {
	return server("four", labels) + `  initContainers:
  - name: switch
    command: [ECHO, sysctl, net.ipv6.conf.all.disable_ipv6=1]
    securityContext: {privileged: true}
`
}

// TestPodWithoutIPv6: a pod whose IPv6 is switched off is in the mesh by IPv4, as client and as
// server: where it was switched off after the pod was enrolled, where it was off before, and
// under a proxy that has taken over.
func TestPodWithoutIPv6(t *testing.T) {
	start(t, world.Options{}).Families(func(w *world.World, v6 bool) {
		if !v6 { // with IPv6 alone, the pod would have no network
			withoutIPv6(w)
		}
	})
}

func withoutIPv6(w *world.World) {
	w.Namespace("street", false)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + rig.PodObject("$street", "stranger", "node2", "") + server("web", "app: web") + fourObject("app: four") +
		rig.ServiceObject("$shop", "web", "web", "{name: http, port: 80, targetPort: 8080}") + rig.ServiceObject("$shop", "four", "four", "{name: http, port: 80, targetPort: 8080}"))
	four := world.Place{Namespace: "shop", Pod: "four"}
	if out, err := w.Exec(four, "ECHO", "get", "-url", "http://[::1]:8080/"); err == nil {
		w.Fatalf("the pod has IPv6: %s", out)
	}
	calls := func(from world.Place, to netip.AddrPort, name string) error {
		a, err := w.Request(from, to, "/").Answer()
		if err == nil && (a.Name != name || a.Caller != w.Pod(from, false)) {
			err = fmt.Errorf("%s gets %+v", from, a)
		}
		return err
	}
	service := w.Service("shop", "four", 80, false)
	inbound := func() int {
		return len(w.ProxyLines(four, `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/$shop/sa/far"`, `dst.workload="four"`))
	}
	outbound := func() int {
		return len(w.ProxyLines(four, `direction="outbound"`, `src.workload="four"`, `dst.identity="spiffe://cluster.local/ns/$shop/sa/web"`))
	}
	works := func(when string) {
		w.Helper()
		in, out := inbound(), outbound()
		w.Eventually(when+": connections to the pod and of it are in tunnels", func() error {
			err := errors.Join(calls(far, service, "four"), calls(four, w.Service("shop", "web", 80, false), "web"))
			if inbound() == in || outbound() == out {
				err = errors.Join(err, errors.New("they are not"))
			}
			return err
		})
		for range 5 {
			for _, from := range []world.Place{far, stranger} {
				for _, to := range []netip.AddrPort{service, netip.AddrPortFrom(w.Pod(four, false), 8080)} {
					if err := calls(from, to, "four"); err != nil {
						w.Errorf("%s: from %s to %s: %v", when, from, to, err)
					}
				}
			}
			if err := calls(four, w.Service("shop", "web", 80, false), "web"); err != nil {
				w.Errorf("%s: %v", when, err)
			}
		}
	}
	works("switched off in the mesh")
	w.ReplaceProxies()
	works("under a proxy that has taken over")
	w.Apply(fourObject("app: four, istio.io/dataplane-mode: none"))
	w.Eventually("the pod has left the mesh", func() error {
		in, out := inbound(), outbound()
		var err error
		for range 3 {
			err = errors.Join(err, calls(far, service, "four"), calls(four, w.Service("shop", "web", 80, false), "web"))
		}
		if inbound() != in || outbound() != out {
			err = errors.Join(err, errors.New("it has not"))
		}
		return err
	})
	w.Apply(fourObject("app: four, istio.io/dataplane-mode: ambient"))
	works("switched off before the pod was enrolled")
}
