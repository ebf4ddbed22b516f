package install

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// kind is one that charts may contain: how it is addressed.
type kind struct {
	schema.GroupVersionResource
	Kind       string
	Namespaced bool
}

func core(resource, name string, namespaced bool) kind {
	return kind{schema.GroupVersionResource{Version: "v1", Resource: resource}, name, namespaced}
}

func grouped(group, version, resource, name string, namespaced bool) kind {
	return kind{schema.GroupVersionResource{Group: group, Version: version, Resource: resource}, name, namespaced}
}

// kinds are all kinds that are installed, in the order in which they are
// applied; they are removed in the opposite one. A list, not discovery: what
// may be deleted by label is written down.
var kinds = []kind{
	core("namespaces", "Namespace", false),
	grouped("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", false),
	core("resourcequotas", "ResourceQuota", true),
	grouped("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", true),
	core("serviceaccounts", "ServiceAccount", true),
	grouped("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", false),
	grouped("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", false),
	grouped("rbac.authorization.k8s.io", "v1", "roles", "Role", true),
	grouped("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", true),
	grouped("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", false),
	grouped("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", false),
	core("configmaps", "ConfigMap", true),
	core("services", "Service", true),
	grouped("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true),
	grouped("apps", "v1", "deployments", "Deployment", true),
	grouped("apps", "v1", "daemonsets", "DaemonSet", true),
	grouped("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true),
	grouped("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", false),
	grouped(operatorGroup, "v1", "podmonitors", "PodMonitor", true),
	grouped(operatorGroup, "v1", "prometheusrules", "PrometheusRule", true),
}

// operatorGroup is the group of the Prometheus operator's kinds, which its owner installs.
const operatorGroup = "monitoring.coreos.com"

// rank is the place of an object's kind in the order of application.
func rank(obj *unstructured.Unstructured) int {
	gvk := obj.GroupVersionKind()
	for i, k := range kinds {
		if k.Kind == gvk.Kind && k.Group == gvk.Group && k.Version == gvk.Version {
			return i
		}
	}
	return len(kinds)
}

func kindOf(obj *unstructured.Unstructured) (kind, bool) {
	if i := rank(obj); i < len(kinds) {
		return kinds[i], true
	}
	return kind{}, false
}

// named finds a kind by its name.
func named(name string) kind {
	for _, k := range kinds {
		if k.Kind == name {
			return k
		}
	}
	panic("no kind " + name)
}

// title is how people are told of an object.
func title(obj *unstructured.Unstructured) string {
	if ns := obj.GetNamespace(); ns != "" {
		return fmt.Sprintf("%s %s/%s", obj.GetKind(), ns, obj.GetName())
	}
	return fmt.Sprintf("%s %s", obj.GetKind(), obj.GetName())
}
