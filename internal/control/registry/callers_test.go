package registry

import (
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/source"
)

// TestAccountsOfGateways: which service account is whose gateway's.
func TestAccountsOfGateways(t *testing.T) {
	gateway := func(name, class, annotations string) string {
		return `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ` + name + `, namespace: shop, annotations: {` + annotations + `}}
spec: {gatewayClassName: ` + class + `, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
`
	}
	r, _ := load(t, gateway("way", "istio-waypoint", "")+gateway("in", "istio", "")+gateway("foreign", "nginx", "")+
		gateway("named", "istio", "gateway.istio.io/name-override: other")+
		gateway("own", "istio-waypoint", "gateway.istio.io/name-override: other, gateway.istio.io/service-account: mine"))
	of := func(account string) []string {
		var out []string
		for _, g := range r.Gateways.Of(access.Account{Cluster: "Kubernetes", Namespace: "shop", Name: account}) {
			out = append(out, g.Namespace+"/"+g.Name)
		}
		return out
	}
	for account, want := range map[string][]string{
		"way": {"shop/way"}, "in-istio": {"shop/in"}, "in": nil, "foreign": nil, "foreign-nginx": nil,
		"other": {"shop/named"}, "mine": {"shop/own"}, "own": nil, "named-istio": nil,
	} {
		if got := of(account); !slices.Equal(got, want) {
			t.Errorf("account %s is of gateways %v, want %v", account, got, want)
		}
	}
	if got := r.Gateways.Of(access.Account{Cluster: "Kubernetes", Namespace: "market", Name: "way"}); got != nil {
		t.Errorf("an account of another namespace is of %v", got)
	}
	r.Apply([]source.Event{{Key: source.Key{Kind: source.Gateway.Kind, Namespace: "shop", Name: "way"}}})
	if got := of("way"); got != nil {
		t.Errorf("the account of a deleted gateway is of %v", got)
	}
}
