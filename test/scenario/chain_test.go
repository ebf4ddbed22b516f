package scenario

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
)

// bank is a namespace with a waypoint of its own. A route of the shop's service front
// leads there. The bank's waypoint rewrites, admits the shop's waypoint alone, and refuses
// one path.
func bank() string {
	return rig.NamespaceObject("bank", true) +
		rig.ServerObject("bank", "vault", "node1", "app: vault") +
		strings.ReplaceAll(managed, "namespace: shop", "namespace: bank") + `
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: bank, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: vault}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: shop, namespace: bank}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: "", kind: Service, name: vault}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /bank}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{namespace: bank, name: vault, port: 80}]
  - backendRefs: [{name: v1, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: vault, namespace: bank}
spec:
  parentRefs: [{group: "", kind: Service, name: vault}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /safe}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /inside}}}]
    backendRefs: [{name: vault, port: 80}]
  - backendRefs: [{name: vault, port: 80}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: shop-only, namespace: bank}
spec:
  targetRefs: [{group: "", kind: Service, name: vault}]
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/waypoint"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: bank}
spec:
  targetRefs: [{group: "", kind: Service, name: vault}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/secret"]}}]}]
`
}

// podsOf returns the proxies of a namespace's waypoint.
func podsOf(w *rig.World, namespace string) (names []string, err error) {
	s, err := w.Status(w.T().Context())
	if err != nil {
		return nil, err
	}
	for _, p := range s.Pods {
		if p.Namespace == namespace && strings.HasPrefix(p.Name, "waypoint-") {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		err = fmt.Errorf("the waypoint of %s has no pod", namespace)
	}
	return names, err
}

// fetch makes a request from a pod, and returns status and body.
func fetch(w *rig.World, from lab.Where, to netip.AddrPort, target string) (int, string, error) {
	c := w.HTTP(from)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.T().Context(), http.MethodGet, "http://"+to.String()+target, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// TestChain: a route leads to a service with another waypoint. Its requests pass both, and
// each decides by its own routes and policies. `ambit why` follows.
func TestChain(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: versions() + bank()})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		front, vault := netip.AddrPortFrom(w.Service("shop", "front", v6), 80), netip.AddrPortFrom(w.Service("bank", "vault", v6), 80)
		var second []string
		w.Eventually("the bank's waypoint runs", func() (err error) { second, err = podsOf(w, "bank"); return err })
		w.Eventually("a request passes both waypoints", func() error {
			status, body, err := fetch(w, far, front, "/bank/safe/x")
			if err != nil || status != 200 || !strings.HasSuffix(body, "GET /inside/x\n") {
				return fmt.Errorf("%d %q, error %w", status, body, err)
			}
			f := strings.Fields(body)
			caller, err := netip.ParseAddr(f[2])
			if f[0] != "vault" || err != nil || caller.Unmap() != w.Pod("bank", second[0], caller.Unmap().Is6()) {
				return fmt.Errorf("%q: it was not the bank's waypoint that called", body)
			}
			return nil
		})
		// Keep-alive connections between the waypoints are shared; each request is judged.
		for range 20 {
			if status, body, err := fetch(w, far, front, "/bank/y"); status != 200 || err != nil {
				t.Fatalf("%d %q, error %v", status, body, err)
			}
			if status, body, err := fetch(w, far, front, "/bank/secret"); status != 403 || err != nil {
				t.Fatalf("%d %q, error %v", status, body, err)
			}
		}
		if status, body, err := fetch(w, far, front, "/"); status != 200 || !strings.HasPrefix(body, "v1") || err != nil {
			t.Errorf("%d %q, error %v", status, body, err)
		}
		// The second waypoint's policy sees the first one, and no client of the first.
		if status, body, err := fetch(w, far, vault, "/y"); status != 403 || err != nil {
			t.Errorf("the client itself: %d %q, error %v", status, body, err)
		}
		for _, tt := range []struct {
			path   string
			want   reason.Reason
			hops   int
			status int
			by     string
		}{
			{"/bank/safe/x", reason.OK, 4, 0, ""},
			{"/bank/secret", reason.PolicyDenied, 3, 403, "AuthorizationPolicy bank/no-secrets, rule 0"},
			{"/", reason.OK, 3, 0, ""},
		} {
			w.Eventually("why follows "+tt.path, func() error {
				r, _, err := why(w, "far.shop", front.String(), "--path", tt.path)
				if err == nil && (r.Reason != tt.want.String() || len(r.Hops) != tt.hops || r.Status != tt.status || tt.by != "" && r.decided() != tt.by) {
					err = errors.New("another answer")
				}
				if err != nil {
					return fmt.Errorf("%+v: %w", r, err)
				}
				return nil
			})
		}
		// The log of the second waypoint names the first as the client.
		w.Eventually("the log of the second waypoint", func() error {
			return contains(w.Log("pod/bank/"+second[0]+"/"+deploy.Container), `src.identity="`+waypointID+`"`)
		})
	})
}
