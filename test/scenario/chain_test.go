package scenario

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab"
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
