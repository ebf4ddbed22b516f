package scenario

import (
	"bufio"
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

// vague is a service whose port declares nothing, with a waypoint and a route.
const vague = `
---
apiVersion: v1
kind: Service
metadata: {name: vague, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {tier: server}, ipFamilyPolicy: PreferDualStack, ports: [{name: foo, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: vague, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: vague}]
  rules: [{backendRefs: [{name: v2, port: 80}]}]
`

// TestSilenceIsNoWayAround: at a port that declares nothing, a client that sends nothing for
// a while, or its request in pieces, gets around neither routes nor policies.
func TestSilenceIsNoWayAround(t *testing.T) {
	const pause = 300 * time.Millisecond // longer than a waypoint waits
	world := rig.Start(t, lab.Config{YAML: versions() + vague})
	denial := rig.PolicyObject("shop", "deny-x", "DENY", `targetRefs: [{group: "", kind: Service, name: vague}], rules: [{to: [{operation: {paths: ["/x"]}}]}]`)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		to := netip.AddrPortFrom(w.Service("shop", "vague", v6), 80)
		// sent returns what a client gets that sends parts, with pauses before each.
		sent := func(parts ...string) string {
			c := w.MustDial(far, to)
			defer c.Close() //nolint:errcheck // only closing
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			for _, p := range parts {
				time.Sleep(pause)
				if _, err := io.WriteString(c, p); err != nil {
					return ""
				}
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return ""
			}
			defer resp.Body.Close() //nolint:errcheck // read to the end
			b, _ := io.ReadAll(resp.Body)
			return fmt.Sprintf("%d %.3s", resp.StatusCode, b)
		}
		w.Eventually("the route is in effect", func() error {
			if status, body, err := fetch(w, far, to, "/"); status != 200 || err != nil || !strings.HasPrefix(body, "v2 ") {
				return fmt.Errorf("%d %q, error %w", status, body, err)
			}
			return nil
		})
		const end = " HTTP/1.1\r\nHost: vague\r\nConnection: close\r\n\r\n"
		for range 5 { // without the route, every other request would go to v1
			if got := sent("GET /" + end); got != "200 v2 " {
				t.Errorf("a client that begins late gets %q", got)
			}
		}
		if got := sent("GET /", "a"+end); got != "200 v2 " {
			t.Errorf("a request in pieces gets %q", got)
		}
		w.MustApply(denial)
		w.Eventually("the policy is in effect", func() error {
			if status, _, err := fetch(w, far, to, "/x"); status != 403 || err != nil {
				return fmt.Errorf("status %d, error %w", status, err)
			}
			return nil
		})
		for _, parts := range [][]string{{"GET /x" + end}, {"GET /", "x" + end}, {"G", "ET /x" + end}} {
			if got := sent(parts...); strings.HasPrefix(got, "200") {
				t.Errorf("%q gets %q", parts, got)
			}
		}
		w.MustDelete("AuthorizationPolicy", "shop", "deny-x")
		w.Eventually("the policy is gone", func() error {
			if status, _, err := fetch(w, far, to, "/x"); status != 200 || err != nil {
				return fmt.Errorf("status %d, error %w", status, err)
			}
			return nil
		})
	})
}
