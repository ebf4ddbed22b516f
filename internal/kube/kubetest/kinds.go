package kubetest

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// kindInfo is what discovery says about a kind.
type kindInfo struct {
	group, kind, plural string
	namespaced          bool
	custom              bool // defined by a CustomResourceDefinition
	versions            []string
}

func (k kindInfo) apiVersion(version string) string {
	if k.group == "" {
		return version
	}
	return k.group + "/" + version
}

// clusterScoped are the built-in kinds outside namespaces.
var clusterScoped = map[string]bool{
	"Namespace": true, "Node": true, "PersistentVolume": true, "ComponentStatus": true,
	"ClusterRole": true, "ClusterRoleBinding": true, "StorageClass": true, "VolumeAttachment": true,
	"CSIDriver": true, "CSINode": true, "VolumeAttributesClass": true, "PriorityClass": true,
	"RuntimeClass": true, "IngressClass": true, "FlowSchema": true, "PriorityLevelConfiguration": true,
	"ValidatingWebhookConfiguration": true, "MutatingWebhookConfiguration": true,
	"ValidatingAdmissionPolicy": true, "ValidatingAdmissionPolicyBinding": true,
	"MutatingAdmissionPolicy": true, "MutatingAdmissionPolicyBinding": true,
	"CertificateSigningRequest": true, "ClusterTrustBundle": true,
	"TokenReview": true, "SelfSubjectReview": true, "SubjectAccessReview": true,
	"SelfSubjectAccessReview": true, "SelfSubjectRulesReview": true,
	"StorageVersion": true, "StorageVersionMigration": true, "ServiceCIDR": true, "IPAddress": true,
	"DeviceClass": true, "ResourceSlice": true, "DeviceTaintRule": true,
}

// customKinds are there without a CustomResourceDefinition.
var customKinds = []kindInfo{
	{"networking.istio.io", "ServiceEntry", "serviceentries", true, true, []string{"v1", "v1beta1", "v1alpha3"}},
	{"networking.istio.io", "WorkloadEntry", "workloadentries", true, true, []string{"v1", "v1beta1", "v1alpha3"}},
	{"networking.istio.io", "WorkloadGroup", "workloadgroups", true, true, []string{"v1", "v1beta1", "v1alpha3"}},
	{"networking.istio.io", "DestinationRule", "destinationrules", true, true, []string{"v1", "v1beta1", "v1alpha3"}},
	{"networking.istio.io", "VirtualService", "virtualservices", true, true, []string{"v1", "v1beta1", "v1alpha3"}},
	{"networking.istio.io", "Sidecar", "sidecars", true, true, []string{"v1", "v1beta1", "v1alpha3"}},
	{"security.istio.io", "AuthorizationPolicy", "authorizationpolicies", true, true, []string{"v1", "v1beta1"}},
	{"security.istio.io", "PeerAuthentication", "peerauthentications", true, true, []string{"v1", "v1beta1"}},
	{"security.istio.io", "RequestAuthentication", "requestauthentications", true, true, []string{"v1", "v1beta1"}},
	{"ambit.mesh", "RateLimit", "ratelimits", true, true, []string{"v1alpha1"}},
	{"telemetry.istio.io", "Telemetry", "telemetries", true, true, []string{"v1", "v1alpha1"}},
	{"ambit.mesh", "EgressPolicy", "egresspolicies", true, true, []string{"v1alpha1"}},
	{"gateway.networking.k8s.io", "GatewayClass", "gatewayclasses", false, true, []string{"v1", "v1beta1"}},
	{"gateway.networking.k8s.io", "Gateway", "gateways", true, true, []string{"v1", "v1beta1"}},
	{"gateway.networking.k8s.io", "HTTPRoute", "httproutes", true, true, []string{"v1", "v1beta1"}},
	{"gateway.networking.k8s.io", "GRPCRoute", "grpcroutes", true, true, []string{"v1"}},
	{"gateway.networking.k8s.io", "TLSRoute", "tlsroutes", true, true, []string{"v1", "v1alpha3", "v1alpha2"}},
	{"gateway.networking.k8s.io", "TCPRoute", "tcproutes", true, true, []string{"v1", "v1alpha2"}},
	{"gateway.networking.k8s.io", "ReferenceGrant", "referencegrants", true, true, []string{"v1", "v1beta1"}},
	{"apiextensions.k8s.io", "CustomResourceDefinition", crdPlural, false, false, []string{"v1"}},
}

const crdPlural = "customresourcedefinitions"

// builtinKinds are those of client-go.
func builtinKinds() []kindInfo {
	var out []kindInfo
	byKind := map[[2]string]int{}
	for _, gv := range scheme.Scheme.PrioritizedVersionsAllGroups() {
		if gv.Version == runtime.APIVersionInternal {
			continue
		}
		for kind := range scheme.Scheme.KnownTypes(gv) {
			obj, err := scheme.Scheme.New(gv.WithKind(kind))
			if _, ok := obj.(metav1.Object); err != nil || !ok || strings.HasSuffix(kind, "List") {
				continue
			}
			at := [2]string{gv.Group, kind}
			if i, ok := byKind[at]; ok {
				out[i].versions = append(out[i].versions, gv.Version)
				continue
			}
			plural, _ := meta.UnsafeGuessKindToResource(gv.WithKind(kind))
			byKind[at] = len(out)
			out = append(out, kindInfo{gv.Group, kind, plural.Resource, !clusterScoped[kind], false, []string{gv.Version}})
		}
	}
	return out
}

// readCRD returns the kind that a CustomResourceDefinition defines.
func readCRD(o object) kindInfo {
	spec := o.sub("spec")
	names := spec.sub("names")
	k := kindInfo{group: spec.text("group"), kind: names.text("kind"), plural: names.text("plural"), namespaced: spec.text("scope") != "Cluster", custom: true}
	list, _ := spec["versions"].([]any)
	for _, v := range list {
		if v, ok := v.(map[string]any); ok && v["served"] == true {
			k.versions = append(k.versions, object(v).text("name"))
		}
	}
	// Stable versions are preferred to beta and alpha ones.
	slices.SortStableFunc(k.versions, func(a, b string) int { return len(a) - len(b) })
	return k
}

// establish is the status of a CustomResourceDefinition that is served.
func establish(o object) object {
	condition := func(kind string) any {
		return map[string]any{"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": now()}
	}
	out := o.clone()
	out["status"] = map[string]any{
		"acceptedNames":  map[string]any(o.sub("spec").sub("names")),
		"storedVersions": []any{},
		"conditions":     []any{condition("NamesAccepted"), condition("Established")},
	}
	return out
}
