package deploy

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func gateway(class string, change func(*gatewayv1.Gateway)) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Name: "w", Namespace: "shop", UID: "u-1"},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: gatewayv1.ObjectName(class),
			Listeners:        []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}},
		},
	}
	if change != nil {
		change(g)
	}
	return g
}

var settings = Settings{Image: "hub/waypoint:v1", XDS: "istiod.istio-system.svc:15012", ClusterID: "east", Domain: "cluster.local"}

func must(t *testing.T, g *gatewayv1.Gateway) *Objects {
	t.Helper()
	o, ok, err := For(g, settings)
	if !ok || err != nil {
		t.Fatalf("a Gateway of class %s: managed %v, error %v", g.Spec.GatewayClassName, ok, err)
	}
	return o
}

// TestManaged: proxies are made for classes that Ambit has a proxy for, unless the
// user names a Service of his own.
func TestManaged(t *testing.T) {
	for _, tt := range []struct {
		name string
		g    *gatewayv1.Gateway
		want bool
	}{
		{"a waypoint", gateway("istio-waypoint", nil), true},
		{"another class", gateway("nginx", nil), false},
		{"a class without a proxy yet", gateway("istio", nil), false},
		{"a Service of the user", gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
			g.Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Value: "mine.shop.svc"}}
		}), false},
	} {
		if _, ok, _ := For(tt.g, settings); ok != tt.want || Managed(tt.g) != tt.want {
			t.Errorf("%s: %v", tt.name, ok)
		}
	}
}

// TestNames are Istio's: the Gateway's own name for waypoints, with the class for
// others; annotations come first.
func TestNames(t *testing.T) {
	for _, tt := range []struct {
		class         string
		annotations   map[string]string
		name, account string
	}{
		{"istio-waypoint", nil, "w", "w"},
		{"istio", nil, "w-istio", "w-istio"},
		{"istio-waypoint", map[string]string{annotationName: "n"}, "n", "n"},
		{"istio-waypoint", map[string]string{annotationName: "n", annotationAccount: "a"}, "n", "a"},
		{"nginx", nil, "", ""},
	} {
		g := gateway(tt.class, func(g *gatewayv1.Gateway) { g.Annotations = tt.annotations })
		name, _ := Name(g)
		account, ok := Account(g)
		if name != tt.name || account != tt.account || ok != (tt.name != "") {
			t.Errorf("%s %v: %q, %q", tt.class, tt.annotations, name, account)
		}
	}
}

// TestObjects: what selects a waypoint's pods, and what the proxy needs, is there.
func TestObjects(t *testing.T) {
	o := must(t, gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
		g.Labels = map[string]string{"istio.io/waypoint-for": "all", "istio.io/dataplane-mode": "ambient", "gateway.networking.k8s.io/gateway-name": "forged"}
		g.Annotations = map[string]string{kubectlApplied: "x", "a": "b"}
	}))
	for _, m := range []metav1.ObjectMeta{o.ServiceAccount.ObjectMeta, o.Deployment.ObjectMeta, o.Service.ObjectMeta} {
		if m.Name != "w" || m.Namespace != "shop" || len(m.OwnerReferences) != 1 || m.OwnerReferences[0].UID != "u-1" || m.OwnerReferences[0].Kind != "Gateway" ||
			m.Labels["gateway.networking.k8s.io/gateway-name"] != "w" || m.Labels[LabelManaged] != "istio.io-mesh-controller" || m.Labels["istio.io/waypoint-for"] != "all" ||
			m.Annotations["a"] != "b" || m.Annotations[kubectlApplied] != "" {
			t.Errorf("%+v", m)
		}
	}
	pod := o.Deployment.Spec.Template
	for k, want := range map[string]string{
		"istio.io/dataplane-mode": "none", "sidecar.istio.io/inject": "false", "gateway.networking.k8s.io/gateway-name": "w",
		"gateway.networking.k8s.io/gateway-class-name": "istio-waypoint", "service.istio.io/canonical-name": "w",
	} {
		if pod.Labels[k] != want {
			t.Errorf("label %s of the pod is %q, want %q", k, pod.Labels[k], want)
		}
	}
	for _, sel := range []map[string]string{o.Service.Spec.Selector, o.Deployment.Spec.Selector.MatchLabels} {
		if !maps.Equal(sel, map[string]string{"gateway.networking.k8s.io/gateway-name": "w"}) {
			t.Errorf("selector %v", sel)
		}
	}
	var ports []int32
	for _, p := range o.Service.Spec.Ports {
		ports = append(ports, p.Port)
	}
	if !slices.Equal(ports, []int32{15021, 15008}) || o.Service.Spec.Ports[1].Name != "mesh" || *o.Service.Spec.Ports[1].AppProtocol != "hbone" {
		t.Errorf("%+v", o.Service.Spec.Ports)
	}
	if o.Deployment.Spec.Replicas != nil {
		t.Error("a number of replicas is set, which undoes scaling by hand")
	}
	c := pod.Spec.Containers[0]
	if pod.Spec.ServiceAccountName != "w" || c.Image != settings.Image || c.ReadinessProbe.HTTPGet.Path != "/healthz/ready" || c.ReadinessProbe.HTTPGet.Port.IntVal != 15021 {
		t.Errorf("%+v", pod.Spec)
	}
	s := c.SecurityContext
	if !*s.RunAsNonRoot || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || len(s.Capabilities.Add) > 0 || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%+v", s)
	}
	env := map[string]corev1.EnvVar{}
	for _, e := range c.Env {
		env[e.Name] = e
	}
	if env["XDS_ADDRESS"].Value != settings.XDS || env["CA_ADDRESS"].Value != settings.XDS || env["CLUSTER_ID"].Value != "east" ||
		env["INSTANCE_IP"].ValueFrom.FieldRef.FieldPath != "status.podIP" || env["GOMEMLIMIT"].ValueFrom.ResourceFieldRef.Resource != "limits.memory" {
		t.Errorf("%+v", c.Env)
	}
	// Every volume that is mounted exists.
	for _, m := range c.VolumeMounts {
		if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			t.Errorf("no volume %s", m.Name)
		}
	}
}

// TestInfrastructure: labels of spec.infrastructure come in place of the Gateway's.
func TestInfrastructure(t *testing.T) {
	o := must(t, gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
		g.Labels = map[string]string{"own": "1"}
		g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{Labels: map[gatewayv1.LabelKey]gatewayv1.LabelValue{"infra": "1", "gateway.networking.k8s.io/x": "1"}}
	}))
	l := o.Deployment.Spec.Template.Labels
	if l["infra"] != "1" || l["own"] != "" || l["gateway.networking.k8s.io/x"] != "" {
		t.Errorf("%v", l)
	}
}

// TestGatewayStays: what is made does not change the Gateway, which others read.
func TestGatewayStays(t *testing.T) {
	g := gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
		g.Labels = map[string]string{"gateway.networking.k8s.io/x": "1"}
		g.Annotations = map[string]string{kubectlApplied: "x"}
	})
	before := g.DeepCopy()
	must(t, g)
	if !maps.Equal(g.Labels, before.Labels) || !maps.Equal(g.Annotations, before.Annotations) {
		t.Errorf("%+v", g.ObjectMeta)
	}
}

// TestAddresses: the name comes first.
func TestAddresses(t *testing.T) {
	a := Addresses(gateway("istio-waypoint", nil), "cluster.local", []string{"10.0.0.1", "fd00::1"})
	if len(a) != 3 || a[0].Value != "w.shop.svc.cluster.local" || *a[0].Type != gatewayv1.HostnameAddressType || *a[2].Type != gatewayv1.IPAddressType {
		t.Errorf("%+v", a)
	}
}

// TestClientIdentity: the annotation has programs get the client's identity.
func TestClientIdentity(t *testing.T) {
	for _, value := range []string{"", "true", "false"} {
		o := must(t, gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
			g.Annotations = map[string]string{"ambient.istio.io/xfcc-include-client-identity": value}
		}))
		env := o.Deployment.Spec.Template.Spec.Containers[0].Env
		has := slices.ContainsFunc(env, func(e corev1.EnvVar) bool { return e.Name == "XFCC_INCLUDE_CLIENT_IDENTITY" && e.Value == "true" })
		if has != (value == "true") {
			t.Errorf("%q: %v", value, env)
		}
	}
}
