package deploy

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

const (
	// Container is the name of the proxy's container.
	Container = "istio-proxy"
	// user is what the proxy runs as.
	user = 1337
	// tokenLife is that of the proxy's token, in seconds; the kubelet renews it.
	tokenLife = 43200
	// grace is how long a proxy may take to end, in seconds: its drain, and more.
	grace = 30
	// variableGrace gives that time to the proxy.
	variableGrace = "TERMINATION_GRACE_PERIOD_SECONDS"
)

// defaultResources are upstream's.
func defaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi")},
	}
}

// template is that of the proxy's pods. What says that the pod is a gateway, and no
// workload to redirect, wins over what the user gives.
func (b *builder) template() corev1.PodTemplateSpec {
	seconds, no := int64(grace), false
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{
			Labels: with(b.labels, b.selector(), map[string]string{
				LabelManaged: b.class.controller, labelClass: string(b.g.Spec.GatewayClassName),
				labelInject: "false", wellknown.LabelDataplaneMode: wellknown.DataplaneModeNone,
				wellknown.LabelCanonicalName: b.name, wellknown.LabelCanonicalRevision: "latest",
			}),
			Annotations: with(b.annotations, map[string]string{
				wellknown.LabelRevision: b.revision(),
				"prometheus.io/scrape":  "true", "prometheus.io/path": "/stats/prometheus",
				"prometheus.io/port": strconv.Itoa(wellknown.PortMetrics),
			}),
		},
		Spec: corev1.PodSpec{
			ServiceAccountName:            b.account,
			AutomountServiceAccountToken:  &no, // it does not call the Kubernetes API
			TerminationGracePeriodSeconds: &seconds,
			Containers:                    []corev1.Container{b.container()},
			Volumes:                       volumes(),
		},
	}
}

func (b *builder) revision() string {
	if b.s.Revision == "" {
		return wellknown.DefaultRevision
	}
	return b.s.Revision
}

func (b *builder) container() corev1.Container {
	yes, no, id := true, false, int64(user)
	resources := defaultResources()
	if b.s.Resources != nil {
		resources = *b.s.Resources
	}
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(wellknown.PortReady)}}
	return corev1.Container{
		Name: Container, Image: b.s.Image, Args: []string{"proxy", "waypoint"},
		Ports: []corev1.ContainerPort{
			{Name: "metrics", ContainerPort: wellknown.PortMetrics, Protocol: corev1.ProtocolTCP},
			{Name: "status-port", ContainerPort: wellknown.PortReady, Protocol: corev1.ProtocolTCP},
		},
		StartupProbe:   &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, FailureThreshold: 30, TimeoutSeconds: 1, SuccessThreshold: 1},
		ReadinessProbe: &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 15, FailureThreshold: 4, TimeoutSeconds: 1, SuccessThreshold: 1},
		Resources:      resources,
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: &id, RunAsGroup: &id, RunAsNonRoot: &yes, ReadOnlyRootFilesystem: &yes,
			AllowPrivilegeEscalation: &no, Privileged: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		Env: b.env(resources),
		VolumeMounts: []corev1.VolumeMount{
			{Name: volumeRoots, MountPath: "/var/run/secrets/istio", ReadOnly: true},
			{Name: volumeToken, MountPath: "/var/run/secrets/tokens", ReadOnly: true},
			{Name: volumeTmp, MountPath: "/tmp"},
		},
	}
}

func (b *builder) env(resources corev1.ResourceRequirements) []corev1.EnvVar {
	out := []corev1.EnvVar{
		{Name: "XDS_ADDRESS", Value: b.s.XDS},
		{Name: "CA_ADDRESS", Value: b.s.XDS},
		{Name: "CLUSTER_ID", Value: b.s.ClusterID},
		{Name: "CLUSTER_DOMAIN", Value: b.s.Domain},
		{Name: "TRUST_DOMAIN", Value: b.s.TrustDomain},
		{Name: "NETWORK", Value: b.s.Network},
		{Name: "RUST_LOG", Value: b.s.LogLevel},
		{Name: variableGrace, Value: strconv.Itoa(grace)},
		field("POD_NAME", "metadata.name"),
		field("POD_NAMESPACE", "metadata.namespace"),
		field("NODE_NAME", "spec.nodeName"),
		field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		field("INSTANCE_IP", "status.podIP"),
		{Name: "ISTIO_META_WORKLOAD_NAME", Value: b.name},
		{Name: "ISTIO_META_OWNER", Value: "kubernetes://apis/apps/v1/namespaces/" + b.g.Namespace + "/deployments/" + b.name},
	}
	if b.annotations[wellknown.AnnotationClientIdentity] == "true" {
		out = append(out, corev1.EnvVar{Name: "XFCC_INCLUDE_CLIENT_IDENTITY", Value: "true"})
	}
	if !resources.Limits.Cpu().IsZero() {
		out = append(out, limit("WAYPOINT_RESOURCE_CPU_LIMIT", "limits.cpu"))
	}
	if !resources.Limits.Memory().IsZero() {
		out = append(out, limit("GOMEMLIMIT", "limits.memory"))
	}
	return out
}

func field(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

func limit(name, of string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: of, Divisor: resource.MustParse("0")}}}
}

// Names of volumes.
const (
	volumeRoots = "istiod-ca-cert"
	volumeToken = "istio-token"
	volumeTmp   = "tmp"
)

func volumes() []corev1.Volume {
	life, size := int64(tokenLife), resource.MustParse("16Mi")
	return []corev1.Volume{
		{Name: volumeRoots, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: wellknown.RootsConfigMap},
		}}},
		{Name: volumeToken, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Path: "istio-token", Audience: wellknown.TokenAudience, ExpirationSeconds: &life,
			}}},
		}}},
		{Name: volumeTmp, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}},
	}
}
