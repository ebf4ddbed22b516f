package both

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/world"
)

// ownNames are names of the pod web that nothing but the mesh has.
const ownNames = `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ledger, namespace: $shop}
spec:
  hosts: [ledger.$shop.example]
  addresses: [240.240.7.1, "2001:2::701"]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  workloadSelector: {labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: $shop}
spec: {clusterIP: None, selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 8080}]}
`

// TestLookUps: pods whose look-ups are captured find the hosts of ServiceEntries, which no
// name server has, and pods of headless services by their own names. Their programs
// reach them through the mesh. The label of the namespace turns it on and off.
func TestLookUps(t *testing.T) {
	all := startShop(t)
	all.Apply(ownNames)
	const ledger = "ledger.$shop.example"
	all.Families(func(w *world.World, v6 bool) {
		family := map[bool]string{false: "4", true: "6"}[v6]
		finds := func(from world.Place, name, want string) error {
			out, err := w.Exec(from, "ECHO", "lookup", "-type", "ip"+family, "-name", w.Text(name))
			if want = w.Text(want); err != nil || strings.TrimSpace(out) != want {
				return fmt.Errorf("%s finds %q for %s, want %q, error %w", from, out, name, want, err)
			}
			return nil
		}
		nothing := func(from world.Place) error {
			if out, err := w.Exec(from, "ECHO", "lookup", "-type", "ip"+family, "-name", w.Text(ledger)); err == nil {
				return fmt.Errorf("%s finds %q", from, out)
			}
			return nil
		}
		for _, from := range []world.Place{near, far} {
			if err := nothing(from); err != nil {
				w.Error(err)
			}
		}
		w.Label("shop", "ambient.istio.io/dns-capture: \"true\"")
		pod := w.Pod(web, v6).String()
		vip := map[bool]string{false: "240.240.7.1", true: "2001:2::701"}[v6]
		for _, from := range []world.Place{near, far} {
			w.Eventually("look-ups are captured", func() error { return finds(from, ledger, vip) })
			for name, want := range map[string]string{
				strings.ToUpper("ledger") + ".$shop.example.": vip,
				"peers":                             pod,
				"peers.$shop.svc.cluster.local":     pod,
				"web.peers.$shop.svc.cluster.local": pod,
				"web.$shop":                         w.Service("shop", "web", 80, v6).Addr().String(),
			} {
				if err := finds(from, name, want); err != nil {
					w.Error(err)
				}
			}
			for _, url := range []string{"http://" + ledger + "/", "http://web/", "http://peers.$shop.svc.cluster.local:8080/"} {
				r, err := w.Call(1, from, url, "-ip", family)
				if err != nil {
					w.Fatal(err)
				}
				if a, err := r[0].Answer(); err != nil || a.Name != "web" || a.Caller != w.Pod(from, v6) {
					w.Errorf("%s from %s: %+v, error %v", url, from, a, err)
				}
			}
			w.ProxyLogs(from, `direction="outbound"`, `src.workload="`+from.Pod+`"`, `dst.service="`+ledger+`"`, `dst.identity="spiffe://cluster.local/ns/$shop/sa/web"`)
		}
		if err := nothing(stranger); err != nil {
			w.Error(err)
		}
		w.Label("shop", "")
		for _, from := range []world.Place{near, far} {
			w.Eventually("look-ups are captured no longer", func() error { return nothing(from) })
		}
	})
}
