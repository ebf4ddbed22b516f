package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Bounds of what a ConfigMap sets: who may write it may not be allowed to make pods.
const (
	maxReplicas = 1000
	maxGrace    = 3600 // seconds
)

// rule returns why a value is not permitted in a field. key is the last part of the
// field's path, and the value nil when the field is removed.
type rule func(key string, value any) error

// permitted are the fields that ConfigMaps may change, by the key of the ConfigMap.
// All other fields are refused: the control plane makes these objects with rights that
// the writer of a ConfigMap may not have. An entry is for all below it as well; * is any
// key. Containers and variables are named in brackets.
var permitted = map[string]map[string]rule{
	wellknown.OverlayDeployment:     deploymentFields(),
	wellknown.OverlayService:        serviceFields(),
	wellknown.OverlayServiceAccount: {"metadata.labels.*": ownKey, "imagePullSecrets": anything},
	wellknown.OverlayAutoscaler: {
		"metadata.labels.*": ownKey, "metadata.annotations.*": ownKey,
		"spec.minReplicas": atMost(maxReplicas), "spec.maxReplicas": atMost(maxReplicas),
		"spec.metrics": anything, "spec.behavior": anything,
	},
	wellknown.OverlayBudget: {
		"metadata.labels.*": ownKey, "metadata.annotations.*": ownKey,
		"spec.minAvailable": anything, "spec.maxUnavailable": anything, "spec.unhealthyPodEvictionPolicy": anything,
	},
}

func serviceFields() map[string]rule {
	return map[string]rule{
		"metadata.labels.*": ownKey, "metadata.annotations.*": ownKey,
		"spec.ipFamilies": anything, "spec.ipFamilyPolicy": anything,
		"spec.internalTrafficPolicy": anything, "spec.trafficDistribution": anything,
		"spec.sessionAffinity": anything, "spec.sessionAffinityConfig": anything,
	}
}

func deploymentFields() map[string]rule {
	const pod, proxy = "spec.template.spec.", "spec.template.spec.containers[" + Container + "]."
	f := map[string]rule{
		"metadata.labels.*": ownKey, "metadata.annotations.*": ownKey,
		"spec.replicas": atMost(maxReplicas), "spec.minReadySeconds": anything, "spec.progressDeadlineSeconds": anything,
		"spec.revisionHistoryLimit": anything, "spec.strategy": anything,
		"spec.template.metadata.labels.*": ownKey, "spec.template.metadata.annotations.*": ownKey,
		pod + "affinity": anything, pod + "nodeSelector": anything, pod + "tolerations": anything,
		pod + "topologySpreadConstraints": anything, pod + "imagePullSecrets": anything,
		pod + "priorityClassName":             ofUsers,
		pod + "terminationGracePeriodSeconds": atMost(maxGrace),
	}
	for _, r := range [...]string{"cpu", "memory", "ephemeral-storage"} {
		f[proxy+"resources.requests."+r], f[proxy+"resources.limits."+r] = anything, anything
	}
	for _, probe := range [...]string{"readinessProbe", "startupProbe"} {
		for _, n := range [...]string{"initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold"} {
			f[proxy+probe+"."+n] = anything
		}
	}
	for _, name := range Variables {
		f[proxy+"env["+name+"].value"] = anything
	}
	return f
}

// Variables are the settings of a proxy that ConfigMaps may change.
var Variables = []string{
	"ACCESS_LOG_CLIENT_FAILED_RATE", "ACCESS_LOG_CLIENT_RATE", "CONNECTION_TERMINATION_DEADLINE",
	"KEEPALIVE_ENABLED", "KEEPALIVE_INTERVAL", "KEEPALIVE_RETRIES", "KEEPALIVE_TIME",
	"LOG_FORMAT", "MINIMUM_DRAIN_DURATION", "POOL_MAX_STREAMS_PER_CONNECTION", "POOL_UNUSED_RELEASE_TIMEOUT",
	"RUST_LOG", "TUNNEL_SILENCE_TIMEOUT", "WAYPOINT_WORKER_THREADS",
}

func anything(string, any) error { return nil }

// atMost refuses larger numbers.
func atMost(most float64) rule {
	return func(_ string, value any) error {
		if n, ok := value.(float64); ok && n > most {
			return fmt.Errorf("%v is more than a ConfigMap may ask for, which is %v", n, most)
		}
		return nil
	}
}

// ofUsers refuses the priorities of the cluster's own pods: with these, a pod takes the
// place of any other on its node.
func ofUsers(_ string, value any) error {
	if s, _ := value.(string); strings.HasPrefix(s, "system-") {
		return fmt.Errorf("class %s is for the cluster's own pods (name another)", s)
	}
	return nil
}

// reservedDomains are those of labels and annotations that the mesh and Kubernetes give
// a meaning to, such as another security profile or network of the pod.
var reservedDomains = []string{"istio.io", "ambit.mesh", "kubernetes.io", "k8s.io", "cncf.io"}

// freeKeys are prefixes and keys of reserved domains that do no harm.
var freeKeys = []string{"app.kubernetes.io/", "cluster-autoscaler.kubernetes.io/safe-to-evict", wellknown.AnnotationTrafficDistribution}

// reserved reports whether a label or annotation is of one of some domains.
func reserved(key string, domains []string) bool {
	domain, _, some := strings.Cut(key, "/")
	if !some || slices.ContainsFunc(freeKeys, func(f string) bool { return key == f || strings.HasSuffix(f, "/") && strings.HasPrefix(key, f) }) {
		return false
	}
	domain = strings.ToLower(domain)
	return slices.ContainsFunc(domains, func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) })
}

// ownKey refuses labels and annotations that are not the writer's own.
func ownKey(key string, _ any) error {
	if reserved(key, reservedDomains) {
		return fmt.Errorf("the mesh or Kubernetes gives it a meaning (remove it)")
	}
	return nil
}

// confined returns an error when a ConfigMap's key has changed a field that it may not.
func confined(key string, before, after any) error {
	b, err := tree(before)
	if err != nil {
		return err
	}
	a, err := tree(after)
	if err != nil {
		return err
	}
	return compare(permitted[key], "", "", b, a)
}

// tree returns an object as maps and lists.
func tree(object any) (any, error) {
	body, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var out any
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, err
	}
	return withoutNull(out), nil
}

// withoutNull returns a value whose fields are all there: null is no field.
func withoutNull(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == nil {
				delete(v, k)
			} else {
				v[k] = withoutNull(e)
			}
		}
	case []any:
		for i := range v {
			v[i] = withoutNull(v[i])
		}
	}
	return v
}

// compare returns an error for the first field below a path that differs and is not
// among those permitted. star is the path with * in place of its last part.
func compare(fields map[string]rule, path, star string, before, after any) error {
	if reflect.DeepEqual(before, after) {
		return nil
	}
	check, ok := fields[path]
	if !ok {
		check, ok = fields[star]
	}
	if ok {
		if err := check(last(path), after); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	b, a, ok := members(before, after)
	if !ok {
		return fmt.Errorf("%s: a ConfigMap cannot change this field (remove it; docs/waypoints.md lists the fields that it can)", path)
	}
	names := map[string]any{}
	maps.Copy(names, b)
	maps.Copy(names, a)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		next, wild := path+name, ""
		if path != "" && !strings.HasPrefix(name, "[") {
			next, wild = path+"."+name, path+".*"
		}
		if err := compare(fields, next, wild, b[name], a[name]); err != nil {
			return err
		}
	}
	return nil
}

// last returns the last part of a path.
func last(path string) string {
	// Keys may have dots.
	for _, parent := range [...]string{"metadata.labels.", "metadata.annotations."} {
		if _, key, ok := strings.Cut(path, parent); ok {
			return key
		}
	}
	return path
}

// members returns the fields of two values that can be compared field by field: maps,
// and lists whose entries have names of their own. What is absent has no fields.
func members(before, after any) (b, a map[string]any, ok bool) {
	b, bok := fieldsOf(before)
	a, aok := fieldsOf(after)
	return b, a, bok && aok && len(a)+len(b) > 0
}

// fieldsOf returns the fields of a value by name; those of a list are its entries.
func fieldsOf(v any) (map[string]any, bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case map[string]any:
		return v, true
	case []any:
		out := map[string]any{}
		for _, e := range v {
			m, _ := e.(map[string]any)
			name, _ := m["name"].(string)
			if _, twice := out["["+name+"]"]; name == "" || twice {
				return nil, false
			}
			m = maps.Clone(m)
			delete(m, "name")
			out["["+name+"]"] = m
		}
		return out, true
	}
	return nil, false
}
