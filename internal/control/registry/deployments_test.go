package registry

import (
	"slices"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/source"
)

// TestDeployments: Gateways of waypoint classes are to run, by the control plane of
// their label. A change of status is none for their proxies.
func TestDeployments(t *testing.T) {
	r := New(tables.Options{WriteBack: true, Revisions: []string{"blue"}}, newRecorder())
	changed := r.Deployments.Changed()
	put := func(cluster source.Cluster, name string, change func(*gatewayv1.Gateway)) {
		g := &gatewayv1.Gateway{Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio-waypoint"}}
		g.Namespace, g.Name = "shop", name
		if change != nil {
			change(g)
		}
		k := source.Gateway.Key("shop", name)
		k.Cluster = cluster
		r.Apply([]source.Event{{Key: k, Object: g}})
	}
	label := func(revision string) func(*gatewayv1.Gateway) {
		return func(g *gatewayv1.Gateway) { g.Labels = map[string]string{"istio.io/rev": revision} }
	}
	signal := func() bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	put(source.Cluster{}, "plain", nil)
	put(source.Cluster{}, "blue", label("blue"))
	put(source.Cluster{}, "green", label("green"))
	put(source.Cluster{}, "other", func(g *gatewayv1.Gateway) { g.Spec.GatewayClassName = "nginx" })
	put(source.ClusterOf("west"), "far", nil)
	for _, tt := range []struct {
		named bool
		want  []string
	}{{false, []string{"plain"}}, {true, []string{"blue"}}} {
		var got []string
		for _, g := range r.Deployments.List(tt.named) {
			got = append(got, g.Gateway.Name)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("named %v: %v, want %v", tt.named, got, tt.want)
		}
	}
	if !signal() {
		t.Error("nothing says that there are Gateways")
	}
	before := r.Deployments.List(false)[0]
	put(source.Cluster{}, "plain", func(g *gatewayv1.Gateway) {
		g.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: "10.0.0.1"}}
	})
	if signal() || r.Deployments.List(false)[0] != before {
		t.Error("a change of status counts")
	}
	put(source.Cluster{}, "plain", func(g *gatewayv1.Gateway) { g.Spec.GatewayClassName = "nginx" })
	if !signal() || len(r.Deployments.List(false)) != 0 {
		t.Error("a Gateway of another class is to run")
	}
}
