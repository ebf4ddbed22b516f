package attack

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// routedShops are two namespaces, each with a waypoint and a route of its own.
var routedShops = strings.ReplaceAll(routedShop, "NS", "shop") + strings.ReplaceAll(routedShop, "NS", "market")

const routedShop = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: NS}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: "10.0.0.77"}]}
---
apiVersion: v1
kind: Service
metadata: {name: routed, namespace: NS, labels: {istio.io/use-waypoint: waypoint}}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: secret, namespace: NS}
spec: {parentRefs: [{group: "", kind: Service, name: routed}], rules: [{backendRefs: [{name: routed, port: 80}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret, namespace: NS}
spec: {targetRefs: [{group: "", kind: Service, name: routed}], rules: [{to: [{operation: {paths: [/NS]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: secret, namespace: NS}
spec: {targetRefs: [{group: "", kind: Service, name: routed}], jwtRules: [{issuer: NS, jwksUri: "https://keys.example/NS"}]}
`

// TestRoutesAreForTheirGateway: in every way that the protocol has of asking, a
// waypoint is sent the routes, the policies and the keys of the services that are bound to it,
// and none of another waypoint. A node proxy is sent none. A pod and a certificate are
// refused.
func TestRoutesAreForTheirGateway(t *testing.T) {
	t.Parallel()
	world := start(t, routedShops)
	for _, typ := range []string{wellknown.TypeRoute, wellknown.TypePolicy, wellknown.TypeAuthentication} {
		t.Run(path.Base(typ), func(t *testing.T) { forTheirGateway(t, world.For(t), typ) })
	}
}

func forTheirGateway(t *testing.T, w *rig.World, typ string) {
	cc := connect(t, w, dialer(w.Netns(thief1)), frontDoor(false))
	t.Cleanup(func() { _ = cc.Close() })
	own := map[string][]string{}
	all := known{typ: map[string]*discovery.Resource{}}
	waypoint := func(ns string) string {
		return tokenOf(w, auth.Caller{Namespace: ns, ServiceAccount: "waypoint", Node: "node1"})
	}
	for _, ns := range []string{"shop", "market"} {
		v := visit(t.Context(), t, cc, waypoint(ns))
		v.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: typ})
		own[ns] = v.names()
		if len(own[ns]) != 1 || v.err != nil {
			t.Fatalf("the waypoint of %s is sent %v: %v", ns, own[ns], v.err)
		}
		maps.Copy(all[typ], v.got[typ])
	}
	for way, req := range all.asks(typ) {
		req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, "gateway/Kubernetes/market/waypoint")
		for ns, want := range own {
			got, err := once(t, cc, waypoint(ns), req)
			for _, name := range got {
				if !slices.Contains(want, name) {
					t.Errorf("by %s, the waypoint of %s is sent %s", way, ns, name)
				}
			}
			if err != nil || way == "name" && len(got) != 1 {
				t.Errorf("by %s, the waypoint of %s is sent %v: %v", way, ns, got, err)
			}
		}
		proxy := tokenOf(w, auth.Caller{Namespace: wellknown.SystemNamespace, ServiceAccount: "ztunnel", Node: "node2"})
		if got, err := once(t, cc, proxy, req); len(got) > 0 || err != nil {
			t.Errorf("by %s, a node proxy is sent %v: %v", way, got, err)
		}
		pod := tokenOf(w, auth.Caller{Namespace: "market", ServiceAccount: "thief1", PodName: "thief1", PodUID: "1", Node: "node1"})
		if got, err := once(t, cc, pod, req); status.Code(err) != codes.PermissionDenied || len(got) > 0 {
			t.Errorf("by %s, a pod is sent %v, and ends with %v", way, got, err)
		}
		cert := withCertificate(w, thief1, frontDoor(false), "spiffe://cluster.local/ns/shop/sa/waypoint")
		if got, err := once(t, cert, "", req); status.Code(err) != codes.PermissionDenied || len(got) > 0 {
			t.Errorf("by %s, a waypoint's certificate is sent %v, and ends with %v", way, got, err)
		}
	}
	if typ != wellknown.TypeRoute {
		return
	}
	// A change of a route reaches its own waypoint alone.
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	shop, market := visit(ctx, t, cc, waypoint("shop")), visit(ctx, t, cc, waypoint("market"))
	for _, v := range []*visitor{shop, market} {
		v.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: typ})
	}
	before := shop.got[typ][own["shop"][0]].GetVersion()
	w.MustApply(strings.ReplaceAll(strings.ReplaceAll(routedShop, "NS", "shop"), "name: routed, port: 80}]", "name: routed, port: 80, weight: 7}]"))
	w.Eventually("the waypoint is sent the change", func() error {
		if shop.settle(typ); shop.err != nil {
			t.Fatal(shop.err)
		}
		if shop.got[typ][own["shop"][0]].GetVersion() == before {
			return errors.New("the version is as before")
		}
		return nil
	})
	if market.settle(typ); !slices.Equal(market.names(), own["market"]) || market.err != nil {
		t.Errorf("the other waypoint was sent %v: %v", market.names(), market.err)
	}
}
