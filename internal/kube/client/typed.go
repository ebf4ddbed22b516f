package client

import (
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// Scheme has the built-in kinds that the mesh deals with, in the one version
// that it uses.
var Scheme = runtime.NewScheme()

// ParameterCodec writes options as parameters of a request.
var ParameterCodec = runtime.NewParameterCodec(Scheme)

var codecs = serializer.NewCodecFactory(Scheme).WithoutConversion()

// groups are those that Typed has clients for.
var groups = []struct {
	schema.GroupVersion
	add func(*runtime.Scheme) error
}{
	{admissionregistrationv1.SchemeGroupVersion, admissionregistrationv1.AddToScheme},
	{appsv1.SchemeGroupVersion, appsv1.AddToScheme},
	{authenticationv1.SchemeGroupVersion, authenticationv1.AddToScheme},
	{authorizationv1.SchemeGroupVersion, authorizationv1.AddToScheme},
	{autoscalingv2.SchemeGroupVersion, autoscalingv2.AddToScheme},
	{batchv1.SchemeGroupVersion, batchv1.AddToScheme},
	{coordinationv1.SchemeGroupVersion, coordinationv1.AddToScheme},
	{corev1.SchemeGroupVersion, corev1.AddToScheme},
	{discoveryv1.SchemeGroupVersion, discoveryv1.AddToScheme},
	{networkingv1.SchemeGroupVersion, networkingv1.AddToScheme},
	{policyv1.SchemeGroupVersion, policyv1.AddToScheme},
}

func init() {
	metav1.AddToGroupVersion(Scheme, schema.GroupVersion{Version: "v1"})
	for _, g := range groups {
		utilruntime.Must(g.add(Scheme)) // fails only for a kind that is there twice
	}
}

// Typed has clients for built-in kinds, in the shape of client-go's clientset.
// That one brings every kind of Kubernetes in every version that it had, with
// an informer, a lister and a way to apply each: half of a program's size, and
// several MiB of resident memory on every node, for the dozen kinds below.
type Typed struct {
	clients map[schema.GroupVersion]rest.Interface
}

// newTyped makes the clients of a configuration. They share its connections
// and its limit.
func newTyped(cfg *rest.Config) (*Typed, error) {
	cfg = rest.CopyConfig(cfg)
	if cfg.RateLimiter == nil && cfg.QPS > 0 {
		cfg.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(cfg.QPS, cfg.Burst)
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	cfg.NegotiatedSerializer = codecs
	http, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	t := &Typed{clients: map[schema.GroupVersion]rest.Interface{}}
	for _, g := range groups {
		of := rest.CopyConfig(cfg)
		of.GroupVersion, of.APIPath = &g.GroupVersion, "/apis"
		if g.Group == "" {
			of.APIPath = "/api"
		}
		if t.clients[g.GroupVersion], err = rest.RESTClientForConfigAndClient(of, http); err != nil {
			return nil, fmt.Errorf("%s: %w", g.GroupVersion, err)
		}
	}
	return t, nil
}

// Resource is a client for the objects of a kind, in one namespace or in all.
type Resource[T Object, L runtime.Object] = *gentype.ClientWithList[T, L]

// Object is a pointer to a built-in kind.
type Object interface {
	runtime.Object
	metav1.Object
}

func resource[T any, L any, PT interface {
	*T
	Object
}, PL interface {
	*L
	runtime.Object
}](c rest.Interface, plural, namespace string) Resource[PT, PL] {
	return gentype.NewClientWithList(plural, c, ParameterCodec, namespace,
		func() PT { return new(T) }, func() PL { return new(L) }, gentype.PrefersProtobuf[PT]())
}

// CoreV1 is the core group.
func (t *Typed) CoreV1() CoreV1 { return CoreV1{t.clients[corev1.SchemeGroupVersion]} }

// CoreV1 has the kinds of the core group.
type CoreV1 struct{ rest rest.Interface }

// RESTClient is for requests of any other form.
func (g CoreV1) RESTClient() rest.Interface { return g.rest }

// Pods are those of a namespace; of all when it is empty, here and below.
func (g CoreV1) Pods(namespace string) Pods {
	return Pods{resource[corev1.Pod, corev1.PodList](g.rest, "pods", namespace)}
}

// Pods is a client for pods.
type Pods struct {
	Resource[*corev1.Pod, *corev1.PodList]
}

// GetLogs asks for a container's log.
func (p Pods) GetLogs(name string, o *corev1.PodLogOptions) *rest.Request {
	return p.GetClient().Get().Namespace(p.GetNamespace()).Resource("pods").Name(name).SubResource("log").VersionedParams(o, ParameterCodec)
}

// Services are services.
func (g CoreV1) Services(namespace string) Resource[*corev1.Service, *corev1.ServiceList] {
	return resource[corev1.Service, corev1.ServiceList](g.rest, "services", namespace)
}

// ConfigMaps are config maps.
func (g CoreV1) ConfigMaps(namespace string) Resource[*corev1.ConfigMap, *corev1.ConfigMapList] {
	return resource[corev1.ConfigMap, corev1.ConfigMapList](g.rest, "configmaps", namespace)
}

// Secrets are secrets.
func (g CoreV1) Secrets(namespace string) Resource[*corev1.Secret, *corev1.SecretList] {
	return resource[corev1.Secret, corev1.SecretList](g.rest, "secrets", namespace)
}

// Events are events.
func (g CoreV1) Events(namespace string) Resource[*corev1.Event, *corev1.EventList] {
	return resource[corev1.Event, corev1.EventList](g.rest, "events", namespace)
}

// Namespaces are namespaces.
func (g CoreV1) Namespaces() Resource[*corev1.Namespace, *corev1.NamespaceList] {
	return resource[corev1.Namespace, corev1.NamespaceList](g.rest, "namespaces", "")
}

// Nodes are nodes.
func (g CoreV1) Nodes() Resource[*corev1.Node, *corev1.NodeList] {
	return resource[corev1.Node, corev1.NodeList](g.rest, "nodes", "")
}

// ServiceAccounts are service accounts.
func (g CoreV1) ServiceAccounts(namespace string) ServiceAccounts {
	return ServiceAccounts{resource[corev1.ServiceAccount, corev1.ServiceAccountList](g.rest, "serviceaccounts", namespace)}
}

// ServiceAccounts is a client for service accounts.
type ServiceAccounts struct {
	Resource[*corev1.ServiceAccount, *corev1.ServiceAccountList]
}

// CreateToken has the API server sign a token of an account.
func (s ServiceAccounts) CreateToken(ctx context.Context, account string, req *authenticationv1.TokenRequest, o metav1.CreateOptions) (*authenticationv1.TokenRequest, error) {
	out := &authenticationv1.TokenRequest{}
	err := s.GetClient().Post().Namespace(s.GetNamespace()).Resource("serviceaccounts").Name(account).SubResource("token").
		VersionedParams(&o, ParameterCodec).Body(req).Do(ctx).Into(out)
	return out, err
}

// AppsV1 is the group apps.
func (t *Typed) AppsV1() AppsV1 { return AppsV1{t.clients[appsv1.SchemeGroupVersion]} }

// AppsV1 has the kinds of the group apps.
type AppsV1 struct{ rest rest.Interface }

// RESTClient is for requests of any other form.
func (g AppsV1) RESTClient() rest.Interface { return g.rest }

// DaemonSets are daemon sets.
func (g AppsV1) DaemonSets(namespace string) Resource[*appsv1.DaemonSet, *appsv1.DaemonSetList] {
	return resource[appsv1.DaemonSet, appsv1.DaemonSetList](g.rest, "daemonsets", namespace)
}

// Deployments are deployments.
func (g AppsV1) Deployments(namespace string) Resource[*appsv1.Deployment, *appsv1.DeploymentList] {
	return resource[appsv1.Deployment, appsv1.DeploymentList](g.rest, "deployments", namespace)
}

// StatefulSets are stateful sets.
func (g AppsV1) StatefulSets(namespace string) Resource[*appsv1.StatefulSet, *appsv1.StatefulSetList] {
	return resource[appsv1.StatefulSet, appsv1.StatefulSetList](g.rest, "statefulsets", namespace)
}

// AutoscalingV2 is the group autoscaling.
func (t *Typed) AutoscalingV2() AutoscalingV2 {
	return AutoscalingV2{t.clients[autoscalingv2.SchemeGroupVersion]}
}

// AutoscalingV2 has the kinds of the group autoscaling.
type AutoscalingV2 struct{ rest rest.Interface }

// HorizontalPodAutoscalers are autoscalers.
func (g AutoscalingV2) HorizontalPodAutoscalers(namespace string) Resource[*autoscalingv2.HorizontalPodAutoscaler, *autoscalingv2.HorizontalPodAutoscalerList] {
	return resource[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](g.rest, "horizontalpodautoscalers", namespace)
}

// PolicyV1 is the group policy.
func (t *Typed) PolicyV1() PolicyV1 { return PolicyV1{t.clients[policyv1.SchemeGroupVersion]} }

// PolicyV1 has the kinds of the group policy.
type PolicyV1 struct{ rest rest.Interface }

// PodDisruptionBudgets are budgets of disruptions.
func (g PolicyV1) PodDisruptionBudgets(namespace string) Resource[*policyv1.PodDisruptionBudget, *policyv1.PodDisruptionBudgetList] {
	return resource[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](g.rest, "poddisruptionbudgets", namespace)
}

// BatchV1 is the group batch.
func (t *Typed) BatchV1() BatchV1 { return BatchV1{t.clients[batchv1.SchemeGroupVersion]} }

// BatchV1 has the kinds of the group batch.
type BatchV1 struct{ rest rest.Interface }

// Jobs are jobs.
func (g BatchV1) Jobs(namespace string) Resource[*batchv1.Job, *batchv1.JobList] {
	return resource[batchv1.Job, batchv1.JobList](g.rest, "jobs", namespace)
}

// CoordinationV1 is the group coordination.k8s.io.
func (t *Typed) CoordinationV1() CoordinationV1 {
	return CoordinationV1{t.clients[coordinationv1.SchemeGroupVersion]}
}

// CoordinationV1 has the kinds of the group coordination.k8s.io.
type CoordinationV1 struct{ rest rest.Interface }

// Leases are leases.
func (g CoordinationV1) Leases(namespace string) Resource[*coordinationv1.Lease, *coordinationv1.LeaseList] {
	return resource[coordinationv1.Lease, coordinationv1.LeaseList](g.rest, "leases", namespace)
}

// DiscoveryV1 is the group discovery.k8s.io.
func (t *Typed) DiscoveryV1() DiscoveryV1 {
	return DiscoveryV1{t.clients[discoveryv1.SchemeGroupVersion]}
}

// DiscoveryV1 has the kinds of the group discovery.k8s.io.
type DiscoveryV1 struct{ rest rest.Interface }

// EndpointSlices are endpoint slices.
func (g DiscoveryV1) EndpointSlices(namespace string) Resource[*discoveryv1.EndpointSlice, *discoveryv1.EndpointSliceList] {
	return resource[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](g.rest, "endpointslices", namespace)
}

// NetworkingV1 is the group networking.k8s.io.
func (t *Typed) NetworkingV1() NetworkingV1 {
	return NetworkingV1{t.clients[networkingv1.SchemeGroupVersion]}
}

// NetworkingV1 has the kinds of the group networking.k8s.io.
type NetworkingV1 struct{ rest rest.Interface }

// NetworkPolicies are network policies.
func (g NetworkingV1) NetworkPolicies(namespace string) Resource[*networkingv1.NetworkPolicy, *networkingv1.NetworkPolicyList] {
	return resource[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](g.rest, "networkpolicies", namespace)
}

// AdmissionregistrationV1 is the group admissionregistration.k8s.io.
func (t *Typed) AdmissionregistrationV1() AdmissionregistrationV1 {
	return AdmissionregistrationV1{t.clients[admissionregistrationv1.SchemeGroupVersion]}
}

// AdmissionregistrationV1 has the kinds of the group
// admissionregistration.k8s.io.
type AdmissionregistrationV1 struct{ rest rest.Interface }

// ValidatingWebhookConfigurations are configurations of validating webhooks.
func (g AdmissionregistrationV1) ValidatingWebhookConfigurations() Resource[*admissionregistrationv1.ValidatingWebhookConfiguration, *admissionregistrationv1.ValidatingWebhookConfigurationList] {
	return resource[admissionregistrationv1.ValidatingWebhookConfiguration, admissionregistrationv1.ValidatingWebhookConfigurationList](g.rest, "validatingwebhookconfigurations", "")
}

// AuthenticationV1 is the group authentication.k8s.io.
func (t *Typed) AuthenticationV1() AuthenticationV1 {
	return AuthenticationV1{t.clients[authenticationv1.SchemeGroupVersion]}
}

// AuthenticationV1 has the questions of the group authentication.k8s.io.
type AuthenticationV1 struct{ rest rest.Interface }

// TokenReviews ask whose a token is.
func (g AuthenticationV1) TokenReviews() *gentype.Client[*authenticationv1.TokenReview] {
	return gentype.NewClient("tokenreviews", g.rest, ParameterCodec, "",
		func() *authenticationv1.TokenReview { return &authenticationv1.TokenReview{} }, gentype.PrefersProtobuf[*authenticationv1.TokenReview]())
}

// AuthorizationV1 is the group authorization.k8s.io.
func (t *Typed) AuthorizationV1() AuthorizationV1 {
	return AuthorizationV1{t.clients[authorizationv1.SchemeGroupVersion]}
}

// AuthorizationV1 has the questions of the group authorization.k8s.io.
type AuthorizationV1 struct{ rest rest.Interface }

// SelfSubjectAccessReviews ask what the caller may do.
func (g AuthorizationV1) SelfSubjectAccessReviews() *gentype.Client[*authorizationv1.SelfSubjectAccessReview] {
	return gentype.NewClient("selfsubjectaccessreviews", g.rest, ParameterCodec, "",
		func() *authorizationv1.SelfSubjectAccessReview {
			return &authorizationv1.SelfSubjectAccessReview{}
		}, gentype.PrefersProtobuf[*authorizationv1.SelfSubjectAccessReview]())
}
