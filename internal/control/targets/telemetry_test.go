package targets

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	apitelemetry "istio.io/api/telemetry/v1alpha1"
	typev1beta1 "istio.io/api/type/v1beta1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/control/routes"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/source"
)

// observe adds a Telemetry.
func (w *world) observe(ns, name string, edit func(*apitelemetry.Telemetry)) {
	o := &telemetryv1.Telemetry{}
	o.Namespace, o.Name = ns, name
	o.Spec.Tracing = []*apitelemetry.Tracing{{RandomSamplingPercentage: wrapperspb.Double(5)}}
	if edit != nil {
		edit(&o.Spec)
	}
	w.telemetry.Set(source.Ref{Namespace: ns, Name: name}, o)
}

// layers returns what gateways are sent of Telemetry objects: gateway, object and scope.
func (w *world) layers() (out []string) {
	w.t.Helper()
	w.g.Settle()
	for _, c := range w.tables.Layers {
		for name, r := range c.All() {
			var l telemetrypb.Layer
			if err := proto.Unmarshal(r.Body, &l); err != nil {
				w.t.Error(err)
			}
			parts := strings.Split(name, "/")
			if want := "gateway/Kubernetes/" + strings.Join(parts[:2], "/"); len(r.Groups) != 1 || string(r.Groups[0]) != want {
				w.t.Errorf("%s is for %v", name, r.Groups)
			}
			text := fmt.Sprintf("%s %s/%s %s", strings.Join(parts[:2], "/"), l.Namespace, l.Name, l.Scope)
			for _, s := range l.Services {
				text += " " + s.Namespace + "/" + s.Hostname
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return out
}

func target(kind, name string) func(*apitelemetry.Telemetry) {
	return func(t *apitelemetry.Telemetry) {
		t.TargetRefs = []*typev1beta1.PolicyTargetReference{{Kind: kind, Name: name}}
	}
}

// TestLayersOfGateways: a gateway gets what is for it, its namespace, the namespaces of
// its services, the root namespace and its class, and nothing else.
func TestLayersOfGateways(t *testing.T) {
	w := newWorld(t)
	w.mesh.Set(struct{}{}, telemetry.ReadMesh(&meshv1alpha1.MeshConfig{}))
	w.observe("istio-system", "root", nil)
	w.observe("istio-system", "class", target("GatewayClass", "istio-waypoint"))
	w.observe("shop", "all", nil)
	w.observe("market", "all", nil)
	w.observe("far", "all", nil)
	w.observe("shop", "web", target("Service", "web"))
	w.observe("shop", "wp", target("Gateway", "wp"))
	w.observe("shop", "selects", func(t *apitelemetry.Telemetry) {
		t.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"a": "b"}}
	})
	w.observe("market", "nothing", func(t *apitelemetry.Telemetry) { t.Tracing = nil })
	common := func(ns string) []string {
		return []string{ns + "/wp / MESH", ns + "/wp istio-system/class CLASS", ns + "/wp istio-system/root ROOT"}
	}
	want := slices.Concat(common("market"), common("shop"), []string{
		"market/wp market/all NAMESPACE", "shop/wp shop/all NAMESPACE", "shop/wp shop/web SERVICE shop/web.shop.svc", "shop/wp shop/wp GATEWAY",
	})
	slices.Sort(want)
	if got := w.layers(); !slices.Equal(got, want) {
		t.Errorf("\ngot  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
	// A service of another namespace begins to use the waypoint of shop, and stops.
	w.dests.Set(routes.Target{Kind: source.Service.Kind, Ref: source.Ref{Namespace: "far", Name: "x"}}, &routes.Destination{
		Hosts: []string{"x.far.svc"}, Gateway: source.Ref{Namespace: "shop", Name: "wp"}, Ready: true,
	})
	if got := w.layers(); !slices.Contains(got, "shop/wp far/all NAMESPACE") || len(got) != len(want)+1 {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	w.dests.Delete(routes.Target{Kind: source.Service.Kind, Ref: source.Ref{Namespace: "far", Name: "x"}})
	if got := w.layers(); !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	if res, _ := w.tables.Telemetry.Get(source.Ref{Namespace: "shop", Name: "web"}); res.Conditions[0].Status != "True" {
		t.Errorf("%+v", res)
	}
	for name, reason := range map[string]string{"selects": "UnsupportedValue", "all": "Accepted"} {
		at := source.Ref{Namespace: "shop", Name: name}
		o, _ := w.telemetry.Get(at)
		m, _ := w.tables.in.Layers.Get(at)
		if c := Observed(at, o, m, "istio-system"); c.Reason != reason {
			t.Errorf("%s: %+v", name, c)
		}
	}
}
