package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func lay(key, text string) (*Objects, error) {
	o, _, err := For(gateway("istio-waypoint", nil), settings, Overlay{From: "ConfigMap shop/o", Data: map[string]string{key: text}})
	return o, err
}

// inPod is YAML that sets a field of the pods.
func inPod(text string) string { return "spec: {template: {spec: {" + text + "}}}" }

// inProxy is YAML that sets a field of the proxy's container.
func inProxy(text string) string {
	return inPod("containers: [{name: " + Container + ", " + text + "}]")
}

// TestForbidden: who may write ConfigMaps and Gateways, and no pods, does not get the
// control plane to make pods of his own kind. The error names the field.
func TestForbidden(t *testing.T) {
	for _, tt := range []struct{ key, text, want string }{
		{"deployment", inPod("serviceAccountName: admin"), "serviceAccountName"},
		{"deployment", inPod("serviceAccount: admin"), "serviceAccount"},
		{"deployment", inPod("automountServiceAccountToken: true"), "automountServiceAccountToken"},
		{"deployment", inPod("nodeName: control-plane"), "nodeName"},
		{"deployment", inPod("hostNetwork: true"), "hostNetwork"},
		{"deployment", inPod("hostPID: true"), "hostPID"},
		{"deployment", inPod("hostIPC: true"), "hostIPC"},
		{"deployment", inPod("hostUsers: true"), "hostUsers"},
		{"deployment", inPod("shareProcessNamespace: true"), "shareProcessNamespace"},
		{"deployment", inPod("hostAliases: [{ip: 10.0.0.1, hostnames: [istiod.istio-system.svc]}]"), "hostAliases"},
		{"deployment", inPod("dnsPolicy: None"), "dnsPolicy"},
		{"deployment", inPod("dnsConfig: {nameservers: [10.0.0.1]}"), "dnsConfig"},
		{"deployment", inPod("runtimeClassName: loose"), "runtimeClassName"},
		{"deployment", inPod("schedulerName: own"), "schedulerName"},
		{"deployment", inPod("securityContext: {runAsUser: 0}"), "securityContext"},
		{"deployment", inPod("securityContext: {sysctls: [{name: a, value: b}]}"), "securityContext"},
		{"deployment", inPod("priorityClassName: system-node-critical"), "system-node-critical"},
		{"deployment", inPod("priority: 2000001000"), "priority"},
		{"deployment", inPod("terminationGracePeriodSeconds: 100000000"), "terminationGracePeriodSeconds"},
		{"deployment", inPod("resourceClaims: [{name: device}]"), "resourceClaims"},
		{"deployment", inPod("volumes: [{name: host, hostPath: {path: /}}]"), "volumes[host]"},
		{"deployment", inPod("volumes: [{name: secret, secret: {secretName: s}}]"), "volumes[secret]"},
		{"deployment", inPod("volumes: [{name: istio-token, projected: {sources: [{serviceAccountToken: {audience: https://kubernetes.default.svc, path: t}}]}}]"), "volumes[istio-token]"},
		{"deployment", inPod("volumes: [{name: istiod-ca-cert, configMap: {name: forged}}]"), "volumes[istiod-ca-cert]"},
		{"deployment", inPod("volumes: [{name: tmp, $patch: delete}]"), "volumes[tmp]"},
		{"deployment", inPod("volumes: [{$patch: replace}]"), "volumes"},
		{"deployment", inPod("initContainers: [{name: i, image: evil}]"), "initContainers[i]"},
		{"deployment", inPod("ephemeralContainers: [{name: i, image: evil}]"), "ephemeralContainers[i]"},
		{"deployment", inPod("containers: [{name: evil, image: evil}]"), "containers[evil]"},
		{"deployment", inPod("containers: [{name: evil}]"), "containers[evil]"},
		{"deployment", inPod("containers: [{name: " + Container + ", $patch: delete}]"), "containers"},
		{"deployment", inPod("containers: [{name: " + Container + ", image: evil, $patch: replace}]"), "containers"},
		{"deployment", inPod("$patch: replace"), "spec.template.spec."},
		{"deployment", inPod("containers: [{name: []}]"), "cannot be merged"},
		{"deployment", inPod("evictionResponders: [{name: x}]"), "evictionResponders"},
		{"deployment", inPod("$patch: delete"), "spec.template.spec"},
		{"deployment", "spec: {$patch: replace, replicas: 1}", "spec."},
		{"deployment", "$patch: replace", ""},
		{"deployment", "$patch: delete", ""},
		{"deployment", inProxy("image: evil"), "image"},
		{"deployment", inProxy("command: [sh]"), "command"},
		{"deployment", inProxy("args: [sh]"), "args"},
		{"deployment", inProxy("workingDir: /"), "workingDir"},
		{"deployment", inProxy("stdin: true"), "stdin"},
		{"deployment", inProxy("securityContext: {privileged: true}"), "privileged"},
		{"deployment", inProxy("securityContext: {runAsUser: 0}"), "runAsUser"},
		{"deployment", inProxy("securityContext: {capabilities: {add: [SYS_ADMIN]}}"), "capabilities"},
		{"deployment", inProxy("securityContext: null"), "securityContext"},
		{"deployment", inProxy("volumeMounts: [{name: tmp, mountPath: /etc}]"), "volumeMounts"},
		{"deployment", inProxy("volumeDevices: [{name: tmp, devicePath: /dev/a}]"), "volumeDevices"},
		{"deployment", inProxy("lifecycle: {preStop: {exec: {command: [sh]}}}"), "lifecycle"},
		{"deployment", inProxy("livenessProbe: {exec: {command: [sh]}}"), "livenessProbe"},
		{"deployment", inProxy("readinessProbe: {httpGet: {host: 169.254.169.254}}"), "httpGet.host"},
		{"deployment", inProxy("readinessProbe: {httpGet: null, exec: {command: [sh]}}"), "readinessProbe.exec"},
		{"deployment", inProxy("readinessProbe: null"), "readinessProbe.httpGet"},
		{"deployment", inProxy("ports: [{containerPort: 15008, hostPort: 15008}]"), "ports"},
		{"deployment", inProxy("resources: {limits: {example.com/device: 1}}"), "example.com/device"},
		{"deployment", inProxy("resources: {claims: [{name: device}]}"), "resources.claims"},
		{"deployment", inProxy("envFrom: [{secretRef: {name: s}}]"), "envFrom"},
		{"deployment", inProxy("env: [{name: LOG_FORMAT, valueFrom: {secretKeyRef: {name: s, key: k}}}]"), "env[LOG_FORMAT].valueFrom"},
		{"deployment", inProxy("env: [{name: EXTRA, value: x}]"), "env[EXTRA]"},
		{"deployment", inProxy("env: [{name: XDS_ADDRESS, value: evil:15012}]"), "env[XDS_ADDRESS]"},
		{"deployment", inProxy("env: [{name: CA_ADDRESS, value: evil:15012}]"), "env[CA_ADDRESS]"},
		{"deployment", inProxy("env: [{name: TRUST_DOMAIN, value: evil}]"), "env[TRUST_DOMAIN]"},
		{"deployment", inProxy("env: [{name: XFCC_INCLUDE_CLIENT_IDENTITY, value: 'true'}]"), "env[XFCC_INCLUDE_CLIENT_IDENTITY]"},
		{"deployment", inProxy("env: [{name: SERVICE_ACCOUNT, value: admin, valueFrom: null}]"), "env[SERVICE_ACCOUNT]"},
		{"deployment", inProxy("env: [{name: XDS_ADDRESS, $patch: delete}]"), "env[XDS_ADDRESS]"},
		{"deployment", "spec: {replicas: 100000}", "spec.replicas"},
		{"deployment", "spec: {paused: true}", "spec.paused"},
		{"deployment", "spec: {selector: {matchLabels: {app: other}}}", "spec.selector"},
		{"deployment", "kind: DaemonSet", "kind"},
		{"deployment", "apiVersion: batch/v1", "apiVersion"},
		{"deployment", "status: {replicas: 3}", "status"},
		{"deployment", "metadata: {finalizers: [a/b]}", "metadata.finalizers"},
		{"deployment", "metadata: {generateName: a}", "metadata.generateName"},
		{"deployment", "metadata: {annotations: {gateway.istio.io/name-override: x}}", "gateway.istio.io/name-override"},
		{"deployment", "spec: {template: {metadata: {labels: {istio.io/dataplane-mode: ambient}}}}", "istio.io/dataplane-mode"},
		{"deployment", "spec: {template: {metadata: {labels: {istio.io/dataplane-mode: null}}}}", "istio.io/dataplane-mode"},
		{"deployment", "spec: {template: {metadata: {labels: {topology.istio.io/network: far}}}}", "topology.istio.io/network"},
		{"deployment", "spec: {template: {metadata: {labels: {gateway.networking.k8s.io/gateway-name: other}}}}", "gateway-name"},
		{"deployment", "spec: {template: {metadata: {labels: null}}}", "labels"},
		{"deployment", "spec: {template: {metadata: {annotations: {container.apparmor.security.beta.kubernetes.io/istio-proxy: unconfined}}}}", "apparmor"},
		{"deployment", "spec: {template: {metadata: {annotations: {k8s.v1.cni.cncf.io/networks: other}}}}", "cncf.io"},
		{"deployment", "spec: {template: {metadata: {annotations: {Ambient.Istio.io/redirection: x}}}}", "edirection"},
		{"deployment", "spec: {template: {metadata: {name: other}}}", "spec.template.metadata.name"},
		{"service", "spec: {externalIPs: [1.2.3.4]}", "spec.externalIPs"},
		{"service", "spec: {type: LoadBalancer}", "spec.type"},
		{"service", "spec: {type: ExternalName, externalName: evil.example}", "spec.externalName"},
		{"service", "spec: {selector: {app: victim}}", "spec.selector"},
		{"service", "spec: {selector: null}", "spec.selector"},
		{"service", "spec: {ports: [{port: 80}]}", "spec.ports"},
		{"service", "spec: {clusterIP: 10.96.0.10}", "spec.clusterIP"},
		{"service", "spec: {loadBalancerIP: 1.2.3.4}", "spec.loadBalancerIP"},
		{"service", "spec: {publishNotReadyAddresses: true}", "spec.publishNotReadyAddresses"},
		{"service", "metadata: {annotations: {external-dns.alpha.kubernetes.io/hostname: bank.example}}", "external-dns"},
		{"service", "metadata: {labels: {istio.io/use-waypoint: other}}", "istio.io/use-waypoint"},
		{"serviceAccount", "secrets: [{name: s}]", "secrets"},
		{"serviceAccount", "automountServiceAccountToken: true", "automountServiceAccountToken"},
		{"serviceAccount", "metadata: {annotations: {eks.amazonaws.com/role-arn: admin}}", "eks.amazonaws.com/role-arn"},
		{"horizontalPodAutoscaler", "spec: {scaleTargetRef: {kind: Deployment, name: victim, apiVersion: apps/v1}}", "spec.scaleTargetRef"},
		{"horizontalPodAutoscaler", "spec: {maxReplicas: 100000}", "spec.maxReplicas"},
		{"podDisruptionBudget", "spec: {selector: {matchLabels: {app: victim}}}", "spec.selector"},
		{"podDisruptionBudget", "spec: {selector: {}, minAvailable: 1}", "spec.selector"},
	} {
		_, err := lay(tt.key, tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "ConfigMap shop/o, "+tt.key) {
			t.Errorf("%s %q: %v", tt.key, tt.text, err)
		}
	}
}

// TestInstallationIsTrusted: whoever installs the mesh may change every field.
func TestInstallationIsTrusted(t *testing.T) {
	s := settings
	s.Deployment = inProxy("env: [{name: EXTRA, value: x}]")
	if _, _, err := For(gateway("istio-waypoint", nil), s); err != nil {
		t.Error(err)
	}
	s.Deployment = "metadata: {name: other}"
	if _, _, err := For(gateway("istio-waypoint", nil), s); err == nil {
		t.Error("another name is accepted")
	}
}

// TestGrace: the proxy is given the time that its pod has for ending.
func TestGrace(t *testing.T) {
	o := laid(t, map[string]string{"deployment": inPod("terminationGracePeriodSeconds: 120")})
	env := o.Deployment.Spec.Template.Spec.Containers[0].Env
	if !slices.ContainsFunc(env, func(e corev1.EnvVar) bool { return e.Name == variableGrace && e.Value == "120" }) {
		t.Errorf("%v", env)
	}
}

// TestInfrastructureAnnotations: the annotations of a Gateway do not change how pods run.
func TestInfrastructureAnnotations(t *testing.T) {
	const profile = "container.apparmor.security.beta.kubernetes.io/istio-proxy"
	own := must(t, gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
		g.Annotations = map[string]string{profile: "unconfined", "k8s.v1.cni.cncf.io/networks": "x", "example.org/a": "b", "app.kubernetes.io/x": "y"}
	}))
	a := own.Deployment.Spec.Template.Annotations
	if a[profile] != "" || a["k8s.v1.cni.cncf.io/networks"] != "" || a["example.org/a"] != "b" || a["app.kubernetes.io/x"] != "y" {
		t.Errorf("%v", a)
	}
	g := gateway("istio-waypoint", func(g *gatewayv1.Gateway) {
		g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{Annotations: map[gatewayv1.AnnotationKey]gatewayv1.AnnotationValue{profile: "unconfined"}}
	})
	if err := Check(g, nil); err == nil || !strings.Contains(err.Error(), profile) {
		t.Error(err)
	}
}

// TestPodWithoutAPIToken: a proxy has no token of the Kubernetes API.
func TestPodWithoutAPIToken(t *testing.T) {
	if a := must(t, gateway("istio-waypoint", nil)).Deployment.Spec.Template.Spec.AutomountServiceAccountToken; a == nil || *a {
		t.Error("the pods of a waypoint mount a token of the Kubernetes API")
	}
}

// free are the fields that docs/waypoints.md lists, with the part of a path that is a
// list's entry left out.
var free = map[string][]string{
	"deployment": {
		"metadata.labels", "metadata.annotations", "spec.replicas", "spec.minReadySeconds", "spec.progressDeadlineSeconds", "spec.revisionHistoryLimit", "spec.strategy",
		"spec.template.metadata.labels", "spec.template.metadata.annotations",
		"spec.template.spec.affinity", "spec.template.spec.nodeSelector", "spec.template.spec.tolerations", "spec.template.spec.topologySpreadConstraints",
		"spec.template.spec.imagePullSecrets", "spec.template.spec.priorityClassName", "spec.template.spec.terminationGracePeriodSeconds",
		"spec.template.spec.containers.resources.limits", "spec.template.spec.containers.resources.requests",
		"spec.template.spec.containers.readinessProbe.initialDelaySeconds", "spec.template.spec.containers.readinessProbe.periodSeconds",
		"spec.template.spec.containers.readinessProbe.timeoutSeconds", "spec.template.spec.containers.readinessProbe.failureThreshold",
		"spec.template.spec.containers.readinessProbe.successThreshold",
		"spec.template.spec.containers.startupProbe.initialDelaySeconds", "spec.template.spec.containers.startupProbe.periodSeconds",
		"spec.template.spec.containers.startupProbe.timeoutSeconds", "spec.template.spec.containers.startupProbe.failureThreshold",
		"spec.template.spec.containers.startupProbe.successThreshold",
		"spec.template.spec.containers.env.value",
	},
	"service": {
		"metadata.labels", "metadata.annotations", "spec.ipFamilies", "spec.ipFamilyPolicy", "spec.internalTrafficPolicy", "spec.trafficDistribution",
		"spec.sessionAffinity", "spec.sessionAffinityConfig",
	},
	"serviceAccount":          {"metadata.labels", "imagePullSecrets"},
	"horizontalPodAutoscaler": {"metadata.labels", "metadata.annotations", "spec.minReplicas", "spec.maxReplicas", "spec.metrics", "spec.behavior"},
	"podDisruptionBudget":     {"metadata.labels", "metadata.annotations", "spec.minAvailable", "spec.maxUnavailable", "spec.unhealthyPodEvictionPolicy"},
}

// leaf is one field of an object, and a patch that sets it.
type leaf struct {
	key, path string
	patch     map[string]any
}

// leaves lists every field of every object that overlays are merged into.
func leaves() (out []leaf) {
	for key, typ := range map[string]reflect.Type{
		"deployment": reflect.TypeFor[appsv1.Deployment](), "service": reflect.TypeFor[corev1.Service](), "serviceAccount": reflect.TypeFor[corev1.ServiceAccount](),
		"horizontalPodAutoscaler": reflect.TypeFor[autoscalingv2.HorizontalPodAutoscaler](), "podDisruptionBudget": reflect.TypeFor[policyv1.PodDisruptionBudget](),
	} {
		walk(typ, "", 0, func(path string, value any) {
			if m, ok := value.(map[string]any); ok {
				out = append(out, leaf{key, path, m})
			}
		})
	}
	slices.SortFunc(out, func(a, b leaf) int { return strings.Compare(a.key+a.path, b.key+b.path) })
	return out
}

// walk calls f with each field below a type, and with a value of the type that has it.
func walk(typ reflect.Type, path string, depth int, f func(path string, value any)) {
	if depth > 14 {
		return
	}
	switch typ {
	case reflect.TypeFor[intstr.IntOrString]():
		f(path, 7)
		return
	case reflect.TypeFor[resource.Quantity]():
		f(path, "7")
		return
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		f(path, "2026-01-01T00:00:00Z")
		return
	case reflect.TypeFor[metav1.FieldsV1]():
		f(path, map[string]any{"f:x": map[string]any{}})
		return
	}
	switch typ.Kind() {
	case reflect.Pointer:
		walk(typ.Elem(), path, depth, f)
	case reflect.String:
		f(path, "seven")
	case reflect.Bool:
		f(path, true)
		f(path, false)
	case reflect.Int32, reflect.Int64:
		f(path, 7)
	case reflect.Map:
		for _, key := range []string{"cpu", "seven"} {
			walk(typ.Elem(), path, depth+1, func(path string, v any) { f(path, map[string]any{key: v}) })
		}
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			f(path, "c2V2ZW4=")
			return
		}
		walk(typ.Elem(), path, depth+1, func(path string, v any) { f(path, []any{v}) })
		if typ.Elem() == reflect.TypeFor[corev1.Container]() || typ.Elem() == reflect.TypeFor[corev1.EnvVar]() {
			name := Container
			if typ.Elem() == reflect.TypeFor[corev1.EnvVar]() {
				name = "LOG_FORMAT"
			}
			walk(typ.Elem(), path, depth+1, func(path string, v any) {
				if m, ok := v.(map[string]any); ok && m["name"] == nil {
					m = maps.Clone(m)
					m["name"] = name
					f(path, []any{m})
				}
			})
		}
	case reflect.Struct:
		for i := range typ.NumField() {
			field := typ.Field(i)
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "" || name == "-" {
				walk(field.Type, path, depth, f)
				continue
			}
			walk(field.Type, strings.TrimPrefix(path+"."+name, "."), depth+1, func(path string, v any) { f(path, map[string]any{name: v}) })
		}
	}
}

func isFree(l leaf) bool {
	return slices.ContainsFunc(free[l.key], func(p string) bool { return l.path == p || strings.HasPrefix(l.path, p+".") })
}

func text(t interface{ Fatal(...any) }, patch any) string {
	b, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestEveryField sets each field of each object by itself: those outside of the list
// stay as they are, and each of the list can be set.
func TestEveryField(t *testing.T) {
	set := map[string]bool{}
	base := laid(t, map[string]string{"horizontalPodAutoscaler": "", "podDisruptionBudget": ""})
	all := leaves()
	for _, l := range all {
		o, err := lay(l.key, text(t, l.patch))
		if err != nil {
			continue
		}
		if isFree(l) {
			for _, p := range free[l.key] {
				set[l.key+" "+p] = set[l.key+" "+p] || l.path == p || strings.HasPrefix(l.path, p+".")
			}
			continue
		}
		if !equality.Semantic.DeepEqual(o.Deployment, laid(t).Deployment) && l.key == "deployment" ||
			!equality.Semantic.DeepEqual(o.Service, base.Service) || !equality.Semantic.DeepEqual(o.ServiceAccount, base.ServiceAccount) ||
			l.key == "horizontalPodAutoscaler" && !equality.Semantic.DeepEqual(o.Autoscaler, base.Autoscaler) ||
			l.key == "podDisruptionBudget" && !equality.Semantic.DeepEqual(o.Budget, base.Budget) {
			t.Errorf("%s: %s is set by %s", l.key, l.path, text(t, l.patch))
		}
	}
	if len(all) < 1000 {
		t.Errorf("only %d fields were found", len(all))
	}
	for key, list := range free {
		for _, p := range list {
			if !set[key+" "+p] {
				t.Errorf("%s: %s cannot be set", key, p)
			}
		}
	}
}

// scrub takes out of objects what ConfigMaps may change, and what follows from it.
func scrub(o *Objects) {
	labels := func(m *metav1.ObjectMeta, annotations bool) {
		own := func(k, _ string) bool { return !strings.Contains(k, "istio.io/") && !strings.Contains(k, "k8s.io/") }
		maps.DeleteFunc(m.Labels, own)
		if annotations {
			maps.DeleteFunc(m.Annotations, own)
			delete(m.Annotations, wellknown.AnnotationTrafficDistribution)
		}
		if len(m.Annotations) == 0 {
			m.Annotations = nil
		}
	}
	d := &o.Deployment.Spec
	labels(&o.Deployment.ObjectMeta, true)
	labels(&d.Template.ObjectMeta, true)
	labels(&o.Service.ObjectMeta, true)
	labels(&o.ServiceAccount.ObjectMeta, false)
	d.Replicas, d.ProgressDeadlineSeconds, d.RevisionHistoryLimit, d.MinReadySeconds, d.Strategy = nil, nil, nil, 0, appsv1.DeploymentStrategy{}
	p := &d.Template.Spec
	p.Affinity, p.NodeSelector, p.Tolerations, p.TopologySpreadConstraints, p.ImagePullSecrets, p.PriorityClassName, p.TerminationGracePeriodSeconds = nil, nil, nil, nil, nil, "", nil
	for i := range p.Containers {
		c := &p.Containers[i]
		for _, r := range []corev1.ResourceName{"cpu", "memory", "ephemeral-storage"} {
			delete(c.Resources.Limits, r)
			delete(c.Resources.Requests, r)
		}
		for _, probe := range []*corev1.Probe{c.ReadinessProbe, c.StartupProbe} {
			if probe != nil {
				probe.InitialDelaySeconds, probe.PeriodSeconds, probe.TimeoutSeconds, probe.FailureThreshold, probe.SuccessThreshold = 0, 0, 0, 0, 0
			}
		}
		c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool {
			return e.ValueFrom == nil && slices.Contains(append([]string{variableGrace}, Variables...), e.Name)
		})
		slices.SortFunc(c.Env, func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) })
	}
	s := &o.Service.Spec
	s.IPFamilies, s.IPFamilyPolicy, s.InternalTrafficPolicy, s.TrafficDistribution, s.SessionAffinity, s.SessionAffinityConfig = nil, nil, nil, nil, "", nil
	o.ServiceAccount.ImagePullSecrets = nil
	if a := o.Autoscaler; a != nil {
		labels(&a.ObjectMeta, true)
		a.Spec.MinReplicas, a.Spec.MaxReplicas, a.Spec.Metrics, a.Spec.Behavior = nil, 0, nil, nil
	}
	if b := o.Budget; b != nil {
		labels(&b.ObjectMeta, true)
		b.Spec.MinAvailable, b.Spec.MaxUnavailable, b.Spec.UnhealthyPodEvictionPolicy = nil, nil, nil
	}
}

// onlyFree returns an error when an overlay has been accepted that changes a field
// outside of the list.
func onlyFree(key, text string) error {
	o, err := lay(key, text)
	if err != nil {
		return nil //nolint:nilerr // a refused overlay changes nothing
	}
	data := map[string]string{}
	if o.Autoscaler != nil {
		data["horizontalPodAutoscaler"] = ""
	}
	if o.Budget != nil {
		data["podDisruptionBudget"] = ""
	}
	base, _, err := For(gateway("istio-waypoint", nil), settings, Overlay{From: "base", Data: data})
	if err != nil {
		return err
	}
	scrub(o)
	scrub(base)
	if !equality.Semantic.DeepEqual(o, base) {
		got, _ := json.Marshal(o)
		want, _ := json.Marshal(base)
		return fmt.Errorf("%s %q:\n%s\n%s", key, text, got, want)
	}
	return nil
}

// TestOnlyFreeFields: no combination of patches, with the directives that merging has,
// changes a field outside of the list.
func TestOnlyFreeFields(t *testing.T) {
	all := leaves()
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.SampledFrom(all).Draw(t, "first")
		patch := map[string]any{}
		merge(patch, first.patch)
		for range rapid.IntRange(0, 3).Draw(t, "more") {
			if l := rapid.SampledFrom(all).Draw(t, "leaf"); l.key == first.key {
				merge(patch, l.patch)
			}
		}
		if d := rapid.SampledFrom([]string{"", "", "replace", "delete", "merge", "x"}).Draw(t, "directive"); d != "" {
			direct(t, patch, d)
		}
		if err := onlyFree(first.key, text(t, patch)); err != nil {
			t.Fatal(err)
		}
	})
}

func merge(into, from map[string]any) {
	for k, v := range from {
		a, ok := into[k].(map[string]any)
		b, also := v.(map[string]any)
		if ok && also {
			a = maps.Clone(a)
			merge(a, b)
			into[k] = a
		} else {
			into[k] = v
		}
	}
}

// direct puts a directive somewhere into a patch.
func direct(t *rapid.T, patch map[string]any, d string) {
	for {
		keys := slices.Sorted(maps.Keys(patch))
		k := rapid.SampledFrom(append(keys, "here")).Draw(t, "where")
		next, ok := patch[k].(map[string]any)
		if list, is := patch[k].([]any); is && len(list) > 0 {
			next, ok = list[0].(map[string]any)
		}
		if !ok {
			patch["$patch"] = d
			return
		}
		patch = next
	}
}

func FuzzOverlay(f *testing.F) {
	for _, s := range [][2]string{
		{"deployment", "spec: {replicas: 2}"}, {"deployment", inPod("hostNetwork: true")}, {"deployment", inPod("$patch: replace")},
		{"deployment", inProxy("env: [{name: LOG_FORMAT, value: json}]")}, {"deployment", inProxy("$setElementOrder/env: [{name: LOG_FORMAT}]")},
		{"deployment", inPod("$retainKeys: [containers]")}, {"deployment", "spec: {template: {spec: {$deleteFromPrimitiveList/x: [1]}}}"},
		{"service", "spec: {ports: [{$patch: replace}]}"}, {"serviceAccount", "metadata: {labels: {a: b}}"},
		{"horizontalPodAutoscaler", "spec: {minReplicas: 2}"}, {"podDisruptionBudget", "spec: {selector: null}"}, {"deployment", inPod("containers: [{name: []}]")}, {"deployment", "[]"}, {"deployment", "a: &a [*a]"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, key, text string) {
		if err := onlyFree(key, text); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDocsListFields: docs/waypoints.md lists every field and variable that a ConfigMap
// may change.
func TestDocsListFields(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/waypoints.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "## Changing what runs")
	section, _, _ = strings.Cut(section, "\n## ")
	names := slices.Clone(Variables)
	for _, fields := range permitted {
		for path := range fields {
			if strings.HasSuffix(path, ".*") || strings.Contains(path, "env[") || strings.Contains(path, "Probe.") {
				continue // named as a whole
			}
			names = append(names, path[strings.LastIndex(path, ".")+1:])
		}
	}
	for _, n := range append(names, "metadata.labels", "metadata.annotations", "readinessProbe", "startupProbe") {
		if !strings.Contains(section, "`"+n+"`") {
			t.Errorf("docs/waypoints.md does not list %s", n)
		}
	}
}
