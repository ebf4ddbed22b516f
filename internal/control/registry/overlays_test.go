package registry

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/source"
)

// TestOverlays: the oldest ConfigMap of a class in the root namespace comes before
// that of the Gateway. One that is missing or wrong is an error, until it is mended.
func TestOverlays(t *testing.T) {
	r := New(tables.Options{WriteBack: true, RootNamespace: "root"}, newRecorder())
	put := func(namespace, name string, age int, class string, deployment string) {
		c := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(int64(1000-age), 0)},
			Data:       map[string]string{"deployment": deployment},
		}
		if class != "" {
			c.Labels = map[string]string{"gateway.istio.io/defaults-for-class": class}
		}
		r.Apply([]source.Event{{Key: source.ConfigMap.Key(namespace, name), Object: c}})
	}
	g := &gatewayv1.Gateway{Spec: gatewayv1.GatewaySpec{
		GatewayClassName: "istio-waypoint",
		Infrastructure:   &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Kind: "ConfigMap", Name: "own"}},
	}}
	g.Namespace, g.Name, g.CreationTimestamp = "shop", "w", metav1.NewTime(time.Unix(0, 0))
	r.Apply([]source.Event{{Key: source.Gateway.Key("shop", "w"), Object: g}})
	is := func(want string, froms ...string) {
		t.Helper()
		list := r.Deployments.List(false)
		if len(list) != 1 {
			t.Fatalf("%d Gateways", len(list))
		}
		p := list[0]
		if want == "" != (p.Err == nil) || p.Err != nil && !strings.Contains(p.Err.Error(), want) {
			t.Errorf("error %v, want %q", p.Err, want)
		}
		var got []string
		for _, o := range p.Overlays {
			got = append(got, o.From)
		}
		if strings.Join(got, " ") != strings.Join(froms, " ") {
			t.Errorf("overlays %v, want %v", got, froms)
		}
	}
	is("shop/own of spec.infrastructure.parametersRef does not exist")
	put("elsewhere", "own", 0, "", "")
	is("does not exist")
	put("shop", "own", 0, "", "spec: {replicas: 2}")
	is("", "ConfigMap shop/own")
	put("root", "young", 1, "istio-waypoint", "spec: {replicas: 3}")
	put("root", "old", 9, "istio-waypoint", "spec: {replicas: 4}")
	put("root", "other", 99, "istio", "spec: {replicas: 5}")
	put("shop", "not-root", 99, "istio-waypoint", "spec: {replicas: 5}")
	is("", "ConfigMap root/old", "ConfigMap shop/own")
	put("root", "old", 9, "istio-waypoint", "spec: {replica: 4}")
	is("ConfigMap root/old, deployment", "ConfigMap root/old", "ConfigMap shop/own")
	r.Apply([]source.Event{{Key: source.ConfigMap.Key("root", "old")}})
	is("", "ConfigMap root/young", "ConfigMap shop/own")
}
