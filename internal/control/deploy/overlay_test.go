package deploy

import (
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func laid(t *testing.T, data ...map[string]string) *Objects {
	t.Helper()
	var overlays []Overlay
	for _, d := range data {
		overlays = append(overlays, Overlay{From: "ConfigMap shop/o", Data: d})
	}
	o, ok, err := For(gateway("istio-waypoint", nil), settings, overlays...)
	if err != nil || !ok {
		t.Fatalf("managed %v, error %v", ok, err)
	}
	return o
}

// TestOverlay: an overlay is merged by the names of list entries, a later one wins,
// and what it does not name stays.
func TestOverlay(t *testing.T) {
	o := laid(t,
		map[string]string{
			"deployment": `
spec:
  replicas: 2
  template:
    spec:
      nodeSelector: {pool: mesh}
      containers:
      - name: istio-proxy
        resources: {limits: {memory: 2Gi}}
        env: [{name: LOG_FORMAT, value: json}]
`,
			"service": "metadata: {annotations: {a: b}}\nspec: {internalTrafficPolicy: Local}",
		},
		map[string]string{"deployment": "spec: {replicas: 3}"})
	spec := o.Deployment.Spec.Template.Spec
	if *o.Deployment.Spec.Replicas != 3 || spec.NodeSelector["pool"] != "mesh" || len(spec.Containers) != 1 {
		t.Errorf("%+v", o.Deployment.Spec)
	}
	c := spec.Containers[0]
	if c.Image != settings.Image || c.Resources.Limits.Memory().String() != "2Gi" || c.Resources.Limits.Cpu().String() != "2" {
		t.Errorf("%+v", c)
	}
	if n := len(c.Env); c.Env[0].Name != "LOG_FORMAT" && c.Env[n-1].Name != "LOG_FORMAT" || n < 10 {
		t.Errorf("%+v", c.Env)
	}
	if *o.Service.Spec.InternalTrafficPolicy != "Local" || o.Service.Annotations["a"] != "b" || len(o.Service.Spec.Ports) != 2 {
		t.Errorf("%+v", o.Service)
	}
	if o.Autoscaler != nil {
		t.Error("an autoscaler is made without an overlay for it")
	}
}

// TestAutoscalerAndBudget: what an overlay leaves open has a useful value, and an
// autoscaler alone sets the number of pods.
func TestAutoscalerAndBudget(t *testing.T) {
	if o := laid(t, map[string]string{"deployment": "spec: {replicas: 1}"}); o.Budget != nil {
		t.Error("one pod has a budget, which would keep its node from being drained")
	}
	o := laid(t, map[string]string{
		"deployment": "spec: {replicas: 2}", "horizontalPodAutoscaler": "spec: {minReplicas: 2}", "podDisruptionBudget": "",
	})
	if a := o.Autoscaler; a == nil || a.Spec.ScaleTargetRef.Name != "w" || *a.Spec.MinReplicas != 2 || a.Spec.MaxReplicas != 5 || len(a.Spec.Metrics) != 1 {
		t.Errorf("%+v", a)
	}
	if o.Deployment.Spec.Replicas != nil {
		t.Error("the number of replicas is set beside an autoscaler")
	}
	if b := o.Budget; b == nil || b.Spec.MaxUnavailable.IntVal != 1 || b.Spec.MinAvailable != nil || b.Spec.Selector.MatchLabels["gateway.networking.k8s.io/gateway-name"] != "w" {
		t.Errorf("%+v", b)
	}
	o = laid(t, map[string]string{"horizontalPodAutoscaler": "spec: {minReplicas: 9}", "podDisruptionBudget": "spec: {minAvailable: 1}"})
	if o.Autoscaler.Spec.MaxReplicas < 9 || o.Budget.Spec.MaxUnavailable != nil || o.Budget.Spec.MinAvailable.IntVal != 1 {
		t.Errorf("%+v %+v", o.Autoscaler.Spec, o.Budget.Spec)
	}
}

// TestOverlayErrors: an overlay that cannot be applied names its ConfigMap and its key.
func TestOverlayErrors(t *testing.T) {
	for _, tt := range []struct{ key, text, want string }{
		{"ingress", "{}", "there is no such key"},
		{"deployment", "metadata: {name: other}", "metadata.name"},
		{"service", "metadata: {namespace: other}", "metadata.namespace"},
		{"deployment", "metadata: {ownerReferences: [{uid: x, name: y, kind: Z, apiVersion: v1}]}", "metadata.ownerReferences"},
		{"deployment", "metadata: {labels: {gateway.istio.io/managed: x}}", "gateway.istio.io/managed"},
		{"deployment", "spec: {replica: 3}", "replica"},
		{"deployment", "spec: {template: {spec: {volume: [{name: x}]}}}", "volume"},
		{"deployment", "spec: {replicas: many}", "replicas"},
		{"deployment", "spec: [", "yaml"},
		{"deployment", "text", "deployment"},
	} {
		g := gateway("istio-waypoint", nil)
		err := Check(g, []Overlay{{From: "ConfigMap shop/o", Data: map[string]string{tt.key: tt.text}}})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "ConfigMap shop/o, "+tt.key) {
			t.Errorf("%s %q: %v", tt.key, tt.text, err)
		}
	}
	if err := Check(gateway("istio-waypoint", nil), nil); err != nil {
		t.Error(err)
	}
}

// TestParameters: only ConfigMaps are read.
func TestParameters(t *testing.T) {
	ref := func(group gatewayv1.Group, kind gatewayv1.Kind) *gatewayv1.Gateway {
		return gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
			g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{ParametersRef: &gatewayv1.LocalParametersReference{Group: group, Kind: kind, Name: "p"}}
		})
	}
	if name, err := Parameters(ref("", "ConfigMap")); name != "p" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
	if _, err := Parameters(ref("example.org", "Parameters")); err == nil || !strings.Contains(err.Error(), "Parameters") {
		t.Error(err)
	}
	if name, err := Parameters(gateway("istio-waypoint", nil)); name != "" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
}

// TestInstallationDeployment: what the installation changes comes before ConfigMaps,
// and several pods have a budget.
func TestInstallationDeployment(t *testing.T) {
	s := settings
	s.Deployment = `{"spec": {"replicas": 2, "template": {"spec": {"tolerations": [{"key": "mesh"}], "nodeSelector": {"pool": "a"}}}}}`
	o, _, err := For(gateway("istio-waypoint", nil), s, Overlay{From: "ConfigMap shop/o", Data: map[string]string{"deployment": "spec: {template: {spec: {nodeSelector: {pool: b}}}}"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := o.Deployment.Spec
	if *spec.Replicas != 2 || len(spec.Template.Spec.Tolerations) != 1 || spec.Template.Spec.NodeSelector["pool"] != "b" || o.Budget == nil {
		t.Errorf("%+v, budget %+v", spec, o.Budget)
	}
	if err := CheckDeployment(s.Deployment); err != nil {
		t.Error(err)
	}
	if err := CheckDeployment(`{"spec": {"replica": 2}}`); err == nil || !strings.Contains(err.Error(), "the installation, deployment") {
		t.Error(err)
	}
}
