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
	corev1 "k8s.io/api/core/v1"

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
			if parts[0] == "node" {
				continue // TestLayersOfNodes
			}
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
	for name, want := range map[string][]string{"selects": {"ZtunnelAccepted"}, "all": {"WaypointAccepted", "ZtunnelAccepted"}} {
		at := source.Ref{Namespace: "shop", Name: name}
		o, _ := w.telemetry.Get(at)
		m, _ := w.tables.in.Layers.Get(at)
		var got []string
		for _, c := range Observed(at, o, m, "istio-system") {
			if c.Status == "True" && c.Reason == "Accepted" {
				got = append(got, c.Type)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestLayersOfNodes: a node proxy gets what is for pods of its node, and nothing else. An
// object of one namespace is never for pods of another, whatever it selects.
func TestLayersOfNodes(t *testing.T) {
	w := newWorld(t)
	w.mesh.Set(struct{}{}, telemetry.ReadMesh(&meshv1alpha1.MeshConfig{}))
	pod := func(ns, name, node, labels string) {
		p := &corev1.Pod{}
		p.Namespace, p.Name, p.Spec.NodeName = ns, name, node
		if k, v, ok := strings.Cut(labels, "="); ok {
			p.Labels = map[string]string{k: v}
		}
		w.pods.Set(source.Ref{Namespace: ns, Name: name}, p)
	}
	pod("shop", "web", "n1", "app=web")
	pod("shop", "db", "n1", "app=db")
	pod("market", "web", "n2", "app=web")
	pod("shop", "waits", "", "app=web")
	selector := func(labels map[string]string) func(*apitelemetry.Telemetry) {
		return func(t *apitelemetry.Telemetry) { t.Selector = &typev1beta1.WorkloadSelector{MatchLabels: labels} }
	}
	web := map[string]string{"app": "web"}
	w.observe("istio-system", "root", nil)
	w.observe("istio-system", "picks", selector(web)) // pods of its own namespace, which has none here
	w.observe("shop", "all", nil)
	w.observe("shop", "web", selector(web))
	w.observe("thieves", "all", nil)
	w.observe("thieves", "web", selector(web))
	w.observe("shop", "gateway", target("Gateway", "wp"))
	w.observe("market", "nothing", func(t *apitelemetry.Telemetry) { t.Tracing = nil })
	w.observe("market", "clients", func(t *apitelemetry.Telemetry) {
		t.Tracing[0].Match = &apitelemetry.Tracing_TracingSelector{Mode: apitelemetry.WorkloadMode_CLIENT}
	})
	nodes := func() (out []string) {
		w.g.Settle()
		for _, c := range w.tables.Layers {
			for name, r := range c.All() {
				if !strings.HasPrefix(name, "node/") {
					continue
				}
				var l telemetrypb.Layer
				if err := proto.Unmarshal(r.Body, &l); err != nil {
					t.Error(err)
				}
				node := strings.Split(name, "/")[2]
				if len(r.Groups) != 1 || string(r.Groups[0]) != "node/Kubernetes/"+node {
					t.Errorf("%s is for %v", name, r.Groups)
				}
				out = append(out, fmt.Sprintf("%s %s/%s %s %s %v", node, l.Namespace, l.Name, l.Scope, l.Side, l.Workloads))
			}
		}
		slices.Sort(out)
		return out
	}
	want := []string{
		"n1 / MESH BOTH []", "n1 istio-system/root ROOT BOTH []", "n1 shop/all NAMESPACE BOTH []", "n1 shop/web WORKLOAD BOTH [Kubernetes//Pod/shop/web]",
		"n2 / MESH BOTH []", "n2 istio-system/root ROOT BOTH []", "n2 market/clients NAMESPACE CLIENT []",
	}
	if got := nodes(); !slices.Equal(got, want) {
		t.Errorf("\ngot  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
	// A pod moves, another one gets the label.
	pod("shop", "web", "n2", "app=web")
	pod("shop", "db", "n1", "app=web")
	if got := nodes(); !slices.Contains(got, "n1 shop/web WORKLOAD BOTH [Kubernetes//Pod/shop/db]") || !slices.Contains(got, "n2 shop/web WORKLOAD BOTH [Kubernetes//Pod/shop/web]") {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}
