package both

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// entryOf is a ServiceEntry of the shop, without addresses, for a server outside of the mesh.
func entryOf(name, labels, rest string) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s, namespace: $shop, labels: {%[2]s}}
spec:
  hosts: [%[1]s.example]
  location: MESH_EXTERNAL
  %[3]s
`, name, labels, rest)
}

// virtual waits until the proxy of a pod's node has an address of a host, and returns it.
func virtual(w *world.World, of world.Place, host string, v6 bool) (a netip.Addr) {
	w.Helper()
	w.Eventually(host+" has an address", func() error {
		out, err := w.Ambit("ztunnel-config", "service", "--node", w.Node(of), "-o", "json")
		if err != nil {
			return err
		}
		var all []admin.Service
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		for i := range all {
			for _, vip := range all[i].VIPs {
				at, err := netip.ParseAddr(vip[strings.IndexByte(vip, '/')+1:])
				if all[i].Hostname == host && err == nil && at.Is6() == v6 {
					a = at
					return nil
				}
			}
		}
		return errors.New("the proxy has none")
	})
	return a
}

// TestEntriesByName: a ServiceEntry without addresses gets one of each family, and leads to the
// address of a name, which the node proxy looks up, by DNS and by DNS_ROUND_ROBIN. Through a
// waypoint it does so too, and the waypoint's policies decide.
func TestEntriesByName(t *testing.T) {
	w := start(t, world.Options{Names: true})
	w.Namespace("street", false)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + rig.ServerObject("$street", "outside", "node1", "app: outside", "-name", "outside") +
		rig.ServiceObject("$street", "outside", "outside", "{name: http, port: 80, targetPort: 8080}") + world.Waypoint("shop", 1, ""))
	w.ProxiesBecome("shop", 1)
	w.Families(func(w *world.World, v6 bool) {
		for _, resolution := range []string{"DNS", "DNS_ROUND_ROBIN"} {
			name := strings.ToLower(strings.ReplaceAll(resolution, "_", "-")) + map[bool]string{false: "-v4", true: "-v6"}[v6]
			spec := "resolution: " + resolution + "\n  ports: [{number: 8000, targetPort: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: outside.$street.svc.cluster.local}]"
			w.Apply(entryOf(name, "", spec))
			to := netip.AddrPortFrom(virtual(w, far, name+".example", v6), 8000)
			w.Eventually(name+" is answered", func() error { return w.AnsweredBy("outside", 3, far, to, "/") })
			w.ProxyLogs(far, `src.workload="far"`, fmt.Sprintf("dst.service=%q", name+".example"))
			w.Condition("ServiceEntry", "shop", name, "Accepted", "True", name+".example")

			w.Apply(entryOf(name, "istio.io/use-waypoint: waypoint", spec))
			w.Eventually(name+" is answered through the waypoint", func() error {
				a, err := w.Request(far, to, "/").Answer()
				if err != nil {
					return err
				}
				return w.Through("shop", a.Caller)
			})
			if again := virtual(w, far, name+".example", v6); again != to.Addr() {
				w.Errorf("the address was %s and is %s", to.Addr(), again)
			}
			policy := fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: door, namespace: $shop}
spec:
  targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: %s}]
  action: DENY
  rules: [{to: [{operation: {paths: [/closed]}}]}]
`, name)
			w.Apply(policy)
			w.Becomes(403, far, to, "/closed")
			w.Becomes(200, far, to, "/")
			w.Delete(policy + entryOf(name, "", spec))
		}
	})
}

// TestTLSRouteOfEntry: a TLSRoute that has a ServiceEntry as its parent divides the
// connections to it by the name of TLS, without a waypoint.
func TestTLSRouteOfEntry(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(secureVersions())
	entry := entryOf("secure", "", "resolution: STATIC\n  ports: [{number: 443, targetPort: 8443, name: tls, protocol: TLS}]\n  workloadSelector: {labels: {version: v1}}")
	route := `
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: named, namespace: $shop}
spec:
  parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: secure}]
  hostnames: [b.example.org]
  rules: [{backendRefs: [{name: v2, port: 443}]}]
`
	w.Apply(entry)
	w.Families(func(w *world.World, v6 bool) {
		to := netip.AddrPortFrom(virtual(w, far, "secure.example", v6), 443)
		w.Eventually("the endpoints of the entry answer", func() error { return reaches(w, 5, far, to, "a.example.org", "", "v1") })
		w.Apply(route)
		w.Eventually("the name decides", func() error { return reaches(w, 5, far, to, "b.example.org", "", "v2") })
		if err := reaches(w, 3, far, to, "a.example.org", "", ""); err != nil {
			w.Error(err)
		}
		w.Condition("TLSRoute", "shop", "named", "Accepted", "True")
		w.Delete(route)
		w.Eventually("the route is gone", func() error { return reaches(w, 5, far, to, "b.example.org", "", "v1") })
	})
}

// TestEntrySelects: a workloadSelector selects pods and WorkloadEntries of its namespace, and
// both get connections, as they come and go.
func TestEntrySelects(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("street", false)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + server("inside", "app: mixed") + rig.ServerObject("$street", "outside", "node1", "app: outside", "-name", "outside") +
		entryOf("mixed", "", "resolution: STATIC\n  ports: [{number: 80, targetPort: 8080, name: http, protocol: HTTP}]\n  workloadSelector: {labels: {app: mixed}}"))
	outside := world.Place{Namespace: "street", Pod: "outside"}
	w.Families(func(w *world.World, v6 bool) {
		to := netip.AddrPortFrom(virtual(w, far, "mixed.example", v6), 80)
		w.Eventually("the pod answers", func() error { return w.AnsweredBy("inside", 5, far, to, "/") })
		machine := fmt.Sprintf("\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: machine, namespace: $shop}\nspec: {address: %q, labels: {app: mixed}}\n", w.Pod(outside, v6))
		w.Apply(machine)
		w.Eventually("both answer", func() error {
			count, err := answers(w, 20, far, to)
			if err != nil || count["inside"] == 0 || count["outside"] == 0 || count[""] > 0 {
				return fmt.Errorf("%v, error %w", count, err)
			}
			return nil
		})
		w.Delete(machine)
		w.Eventually("the pod answers alone", func() error { return w.AnsweredBy("inside", 10, far, to, "/") })
	})
}
