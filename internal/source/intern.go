package source

import (
	"hash/maphash"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Interner makes equal parts of objects one: names of nodes, accounts and
// namespaces repeat from object to object, and the pods of one workload differ
// in little but their names and addresses. What it returns is shared and never
// changed.
type Interner struct {
	strings    map[string]string
	maps       map[uint64]map[string]string
	lists      map[uint64][]corev1.Container
	owners     map[metav1.OwnerReference][]metav1.OwnerReference
	conditions map[corev1.ConditionStatus][]corev1.PodCondition
}

// maxInterned bounds every table; what is seen after one was emptied is shared
// anew.
const maxInterned = 10_000

// seed of the hashes of what has no order or does not compare.
var seed = maphash.MakeSeed()

// keep remembers a value in a table.
func keep[K comparable, V any](table *map[K]V, k K, v V) V {
	if *table == nil {
		*table = map[K]V{}
	}
	if len(*table) >= maxInterned {
		clear(*table)
	}
	(*table)[k] = v
	return v
}

func (in *Interner) get(s string) string {
	if t, ok := in.strings[s]; ok {
		return t
	}
	return keep(&in.strings, s, s)
}

// all returns the entries whose keys are wanted; nil wants all.
func (in *Interner) all(m map[string]string, wanted func(string) bool) map[string]string {
	var hash uint64
	n := 0
	for k, v := range m {
		if wanted == nil || wanted(k) {
			hash += maphash.Comparable(seed, [2]string{k, v})
			n++
		}
	}
	if n == 0 {
		return nil
	}
	if old := in.maps[hash]; len(old) == n && within(old, m) {
		return old
	}
	out := make(map[string]string, n)
	for k, v := range m {
		if wanted == nil || wanted(k) {
			out[in.get(k)] = in.get(v)
		}
	}
	return keep(&in.maps, hash, out)
}

// within reports whether m has every entry of part.
func within(part, m map[string]string) bool {
	for k, v := range part {
		if w, ok := m[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// owner is a list of one controller, cut down to what is read of it.
func (in *Interner) owner(c *metav1.OwnerReference) []metav1.OwnerReference {
	key := metav1.OwnerReference{APIVersion: c.APIVersion, Kind: c.Kind, Name: c.Name}
	if old, ok := in.owners[key]; ok {
		return old
	}
	yes := true
	return keep(&in.owners, key, []metav1.OwnerReference{{
		APIVersion: in.get(c.APIVersion), Kind: in.get(c.Kind), Name: c.Name, Controller: &yes,
	}})
}

// ready is a list of one condition.
func (in *Interner) ready(s corev1.ConditionStatus) []corev1.PodCondition {
	if old, ok := in.conditions[s]; ok {
		return old
	}
	return keep(&in.conditions, s, []corev1.PodCondition{{Type: corev1.PodReady, Status: s}})
}

// list shares a list of trimmed containers.
func (in *Interner) list(containers []corev1.Container) []corev1.Container {
	if len(containers) == 0 {
		return nil
	}
	var hash uint64
	for i := range containers {
		c := &containers[i]
		hash = hash*31 + maphash.String(seed, c.Name)
		for _, p := range c.Ports {
			hash = hash*31 + maphash.Comparable(seed, p)
		}
	}
	if old := in.lists[hash]; equality.Semantic.DeepEqual(old, containers) {
		return old
	}
	return keep(&in.lists, hash, slices.Clip(containers))
}
