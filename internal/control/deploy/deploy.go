// Package deploy computes what is made for a Gateway: the Deployment, Service and
// ServiceAccount of its proxies. It is values in, values out; others apply them. The
// names, labels and ports are Istio's, so that what selects them keeps working.
package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Annotations of a Gateway that name what is made for it.
const (
	annotationName    = "gateway.istio.io/name-override"
	annotationAccount = "gateway.istio.io/service-account"
)

// Labels of what is made for a Gateway.
const (
	LabelManaged   = "gateway.istio.io/managed"
	labelClass     = "gateway.networking.k8s.io/gateway-class-name"
	labelInject    = "sidecar.istio.io/inject"
	gatewayPrefix  = "gateway.networking.k8s.io/"
	kubectlApplied = "kubectl.kubernetes.io/last-applied-configuration"
)

// class is what is known of one class of Gateways.
type class struct {
	controller string // value of LabelManaged
	suffix     bool   // names end with the class
	deployed   bool   // Ambit has a proxy for it
}

// classes are those whose names Ambit knows.
var classes = map[gatewayv1.ObjectName]class{
	wellknown.ClassWaypoint: {controller: "istio.io-mesh-controller", deployed: true},
	"istio":                 {controller: "istio.io-gateway-controller", suffix: true},
	"istio-east-west":       {controller: "istio.io-eastwest-controller", suffix: true},
}

// Name returns the name of what is made for a Gateway. Classes of other projects
// have none that is known.
func Name(g *gatewayv1.Gateway) (string, bool) {
	c, ok := classes[g.Spec.GatewayClassName]
	if !ok {
		return "", false
	}
	name := g.Name
	if c.suffix {
		name += "-" + string(g.Spec.GatewayClassName)
	}
	return cmp.Or(g.Annotations[annotationName], name), true
}

// Account returns the service account that the proxies of a Gateway run as.
func Account(g *gatewayv1.Gateway) (string, bool) {
	name, ok := Name(g)
	return cmp.Or(g.Annotations[annotationAccount], name), ok
}

// Managed reports whether the proxies of a Gateway are made for it: Ambit has a
// proxy of the class, and the user names no Service of his own.
func Managed(g *gatewayv1.Gateway) bool {
	return classes[g.Spec.GatewayClassName].deployed && len(g.Spec.Addresses) == 0
}

// Settings are those of an installation.
type Settings struct {
	Image string
	// XDS is the address of the control plane and its CA, host:port.
	XDS         string
	ClusterID   string
	Network     string
	TrustDomain string
	Domain      string
	Revision    string
	LogLevel    string
	// Deployment is merged into each Deployment, before any overlay; may be empty.
	Deployment string
	// Resources of a proxy; nil takes the defaults.
	Resources *corev1.ResourceRequirements
}

// Objects are what is made for one Gateway.
type Objects struct {
	ServiceAccount *corev1.ServiceAccount
	Deployment     *appsv1.Deployment
	Service        *corev1.Service
	// Autoscaler and Budget are nil unless an overlay asks for them.
	Autoscaler *autoscalingv2.HorizontalPodAutoscaler
	Budget     *policyv1.PodDisruptionBudget
}

// For returns the objects of a Gateway, and false for one that is not managed. Later
// overlays win.
func For(g *gatewayv1.Gateway, s Settings, overlays ...Overlay) (*Objects, bool, error) {
	if !Managed(g) {
		return nil, false, nil
	}
	b := builder{g: g, s: s, class: classes[g.Spec.GatewayClassName]}
	b.name, _ = Name(g)
	b.account, _ = Account(g)
	var err error
	if b.labels, b.annotations, err = infrastructure(g); err != nil {
		return nil, true, err
	}
	o := &Objects{ServiceAccount: b.serviceAccount(), Deployment: b.deployment(), Service: b.service()}
	if s.Deployment != "" {
		overlays = append([]Overlay{{trusted: true, From: "the installation", Data: map[string]string{wellknown.OverlayDeployment: s.Deployment}}}, overlays...)
	}
	for _, l := range overlays {
		if err := o.lay(&b, l); err != nil {
			return nil, true, err
		}
	}
	o.finish(&b)
	return o, true, nil
}

// podDomains are those of annotations by which Kubernetes and its plugins change how a
// pod runs: its security profile, or its networks.
var podDomains = []string{"kubernetes.io", "k8s.io", "cncf.io"}

// infrastructure returns the labels and annotations that a Gateway gives to what is
// made for it. Those of spec.infrastructure come in place of the Gateway's own. The
// writer of a Gateway may not be allowed to make pods, so that annotations that change
// how pods run are left out, and are an error where they can only be meant for pods.
func infrastructure(g *gatewayv1.Gateway) (labels, annotations map[string]string, err error) {
	labels, annotations = maps.Clone(g.Labels), maps.Clone(g.Annotations)
	if i := g.Spec.Infrastructure; i != nil {
		labels, annotations = map[string]string{}, map[string]string{}
		for k, v := range i.Labels {
			labels[string(k)] = string(v)
		}
		for k, v := range i.Annotations {
			annotations[string(k)] = string(v)
		}
	}
	own := func(k, _ string) bool { return strings.HasPrefix(k, gatewayPrefix) || k == kubectlApplied }
	maps.DeleteFunc(labels, own)
	maps.DeleteFunc(annotations, own)
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		if !reserved(k, podDomains) {
			continue
		}
		if g.Spec.Infrastructure != nil {
			return nil, nil, fmt.Errorf("spec.infrastructure.annotations, %s: Kubernetes gives it a meaning for pods (remove it)", k)
		}
		delete(annotations, k)
	}
	return labels, annotations, nil
}

// builder makes the objects of one Gateway.
type builder struct {
	g                   *gatewayv1.Gateway
	s                   Settings
	class               class
	name, account       string
	labels, annotations map[string]string // of the infrastructure
}

// meta is of an object; more wins over what the user gives.
func (b *builder) meta(name string, more map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Namespace: b.g.Namespace,
		Labels: with(b.labels, b.selector(), map[string]string{
			LabelManaged: b.class.controller, labelClass: string(b.g.Spec.GatewayClassName),
		}),
		Annotations: with(b.annotations, more),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Name: b.g.Name, UID: b.g.UID,
		}},
	}
}

// with merges maps; the later win. It returns nil for nothing.
func with(all ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range all {
		maps.Copy(out, m)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func (b *builder) selector() map[string]string {
	return map[string]string{wellknown.LabelGatewayName: b.g.Name}
}

func (b *builder) serviceAccount() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: b.meta(b.account, nil)}
}

func (b *builder) service() *corev1.Service {
	tcp, dual := "tcp", corev1.IPFamilyPolicyPreferDualStack
	s := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		// Clients use the waypoint of their zone, while there is one.
		ObjectMeta: b.meta(b.name, map[string]string{wellknown.AnnotationTrafficDistribution: "PreferClose"}),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, IPFamilyPolicy: &dual, Selector: b.selector(),
			Ports: []corev1.ServicePort{{Name: "status-port", Port: wellknown.PortReady, Protocol: corev1.ProtocolTCP, AppProtocol: &tcp}},
		},
	}
	seen := map[gatewayv1.PortNumber]bool{wellknown.PortReady: true}
	for _, l := range b.g.Spec.Listeners {
		if seen[l.Port] {
			continue
		}
		seen[l.Port] = true
		app := strings.ToLower(string(l.Protocol))
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: string(l.Name), Port: l.Port, Protocol: corev1.ProtocolTCP, AppProtocol: &app})
	}
	return s
}

func (b *builder) deployment() *appsv1.Deployment {
	one, none := intstr.FromInt32(1), intstr.FromInt32(0)
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: b.meta(b.name, nil),
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: b.selector()},
			// The old pod serves until the new one does.
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &one, MaxUnavailable: &none},
			},
			Template: b.template(),
		},
	}
}

// Addresses returns those of a Gateway whose Service has the given ones. The name
// comes first: it stays when addresses change, and has those of both families.
func Addresses(g *gatewayv1.Gateway, domain string, ips []string) []gatewayv1.GatewayStatusAddress {
	name, ok := Name(g)
	if !ok {
		return nil
	}
	host, ip := gatewayv1.HostnameAddressType, gatewayv1.IPAddressType
	out := []gatewayv1.GatewayStatusAddress{{Type: &host, Value: name + "." + g.Namespace + ".svc." + domain}}
	for _, a := range ips {
		out = append(out, gatewayv1.GatewayStatusAddress{Type: &ip, Value: a})
	}
	return out
}

// Ours reports whether the value of LabelManaged is that of a class whose proxies
// Ambit runs.
func Ours(managed string) bool {
	for _, c := range classes {
		if c.deployed && c.controller == managed {
			return true
		}
	}
	return false
}
