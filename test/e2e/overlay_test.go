package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// tenant may write ConfigMaps and Gateways of a namespace, and nothing else.
type tenant struct {
	api dynamic.Interface
	n   *kit.Namespace
	t   *testing.T
}

func newTenant(t *testing.T, n *kit.Namespace) *tenant {
	t.Helper()
	user := "tenant-of-" + n.Name
	n.MustApply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: tenant}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: ["*"]}
- {apiGroups: [gateway.networking.k8s.io], resources: [gateways], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: tenant}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: ` + user + `}]
`)
	config, err := clientcmd.BuildConfigFromFlags("", mesh.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	api, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return &tenant{api, n, t}
}

// put creates an object of the tenant, or replaces it.
func (u *tenant) put(resource schema.GroupVersionResource, o map[string]any) error {
	obj := &unstructured.Unstructured{Object: o}
	_, err := u.api.Resource(resource).Namespace(u.n.Name).Apply(u.t.Context(), obj.GetName(), obj, metav1.ApplyOptions{FieldManager: "tenant", Force: true})
	return err
}

// parameters writes the ConfigMap that the Gateway names.
func (u *tenant) parameters(key, text string) {
	u.t.Helper()
	err := u.put(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "parameters"}, "data": map[string]any{key: text},
	})
	if err != nil {
		u.t.Fatal(err)
	}
}

// gateway writes the Gateway, with annotations of its infrastructure.
func (u *tenant) gateway(annotations map[string]any) {
	u.t.Helper()
	err := u.put(gateways, map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": map[string]any{"name": waypoint},
		"spec": map[string]any{
			"gatewayClassName": "istio-waypoint",
			"listeners":        []any{map[string]any{"name": "mesh", "port": int64(15008), "protocol": "HBONE"}},
			"infrastructure": map[string]any{
				"annotations": annotations, "parametersRef": map[string]any{"group": "", "kind": "ConfigMap", "name": "parameters"},
			},
		},
	})
	if err != nil {
		u.t.Fatal(err)
	}
}

// TestOverlayOfATenant: a user who may write ConfigMaps and Gateways, and no pods,
// tries to have the control plane make pods of his own kind. What runs stays as it is,
// the Gateway says why, and the control plane goes on.
func TestOverlayOfATenant(t *testing.T) {
	n := mesh.Namespace(t, "tenant", kit.Ambient())
	u := newTenant(t, n)
	pod := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "p"}, "spec": map[string]any{"containers": []any{map[string]any{"name": "c", "image": "i"}}},
	}}
	if _, err := u.api.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace(n.Name).Create(t.Context(), pod, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("the tenant makes a pod: %v", err)
	}
	u.parameters("deployment", "spec: {template: {spec: {terminationGracePeriodSeconds: 31}}}")
	u.gateway(map[string]any{"example.org/a": "b"})
	gateway := written{n, t, gateways, waypoint}
	gateway.says("Accepted", "True Accepted")
	gateway.says("Programmed", "True Programmed")
	objects := func() string {
		var out []string
		for _, r := range []schema.GroupVersionResource{services, {Version: "v1", Resource: "serviceaccounts"}, {Group: "apps", Version: "v1", Resource: "deployments"}} {
			o, err := written{n, t, r, waypoint}.get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprint(r.Resource, " ", o.Object["spec"], o.GetLabels(), o.GetAnnotations()["example.org/a"]))
		}
		return strings.Join(out, "\n")
	}
	before, ended := objects(), endings(t)
	for _, attack := range []struct{ key, text, field string }{
		{"deployment", inPods("hostNetwork: true"), "hostNetwork"},
		{"deployment", inPods("serviceAccountName: default"), "serviceAccountName"},
		{"deployment", inPods("nodeName: elsewhere"), "nodeName"},
		{"deployment", inPods("volumes: [{name: host, hostPath: {path: /}}]"), "volumes[host]"},
		{"deployment", inPods("containers: [{name: own, image: own}]"), "containers[own]"},
		{"deployment", inPods("containers: [{name: istio-proxy, image: own}]"), "containers[istio-proxy].image"},
		{"deployment", inPods("containers: [{name: istio-proxy, command: [sh]}]"), "containers[istio-proxy].command"},
		{"deployment", inPods("containers: [{name: istio-proxy, securityContext: {privileged: true}}]"), "privileged"},
		{"deployment", inPods("containers: [{name: []}]"), "cannot be merged"},
		{"service", "spec: {externalIPs: [192.0.2.1]}", "spec.externalIPs"},
		{"horizontalPodAutoscaler", "spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: other}}", "spec.scaleTargetRef"},
	} {
		u.parameters(attack.key, attack.text)
		gateway.says("Accepted", "False InvalidParameters", "parameters, "+attack.key, attack.field)
		if after := objects(); after != before {
			t.Fatalf("%s changes what runs:\n%s\n%s", attack.text, before, after)
		}
	}
	u.parameters("deployment", "spec: {template: {spec: {terminationGracePeriodSeconds: 31}}}")
	u.gateway(map[string]any{"container.apparmor.security.beta.kubernetes.io/istio-proxy": "unconfined"})
	gateway.says("Accepted", "False InvalidParameters", "container.apparmor.security.beta.kubernetes.io/istio-proxy")
	if after := objects(); after != before {
		t.Fatalf("an annotation changes what runs:\n%s\n%s", before, after)
	}
	u.gateway(map[string]any{"example.org/a": "b"})
	gateway.says("Accepted", "True Accepted")
	if now := endings(t); now != ended {
		t.Errorf("the control plane has ended:\n%s\n%s", ended, now)
	}
	kit.Eventually(t, "the proxies have no token of the Kubernetes API", func(ctx context.Context) error {
		list, err := waypointPods(ctx, n, waypoint)
		if err != nil || len(list) == 0 {
			return fmt.Errorf("%d pods, error %w", len(list), err)
		}
		for _, p := range list {
			for _, v := range p.Spec.Volumes {
				if isAPIToken(v) {
					return fmt.Errorf("pod %s has the volume %s", p.Name, v.Name)
				}
			}
		}
		return nil
	})
}

// endings lists how often the containers of the control plane have ended.
func endings(t *testing.T) string {
	t.Helper()
	pods, err := mesh.Kube.CoreV1().Pods(kit.SystemNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("%d pods of the control plane, error %v", len(pods.Items), err)
	}
	var out []string
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			out = append(out, fmt.Sprint(p.Name, " ", c.Name, " ", c.RestartCount))
		}
	}
	return strings.Join(out, ", ")
}

// inPods is YAML that sets a field of pods.
func inPods(text string) string { return "spec: {template: {spec: {" + text + "}}}" }

func isAPIToken(v corev1.Volume) bool {
	if v.Projected == nil {
		return false
	}
	for _, s := range v.Projected.Sources {
		if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == "" {
			return true
		}
	}
	return false
}
