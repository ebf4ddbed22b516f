package source

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestEveryKindIsFoundByItsTypeAndName(t *testing.T) {
	for _, k := range Kinds() {
		obj := k.New()
		obj.SetName("n")
		obj.SetNamespace("ns")
		key, ok := KeyOf(obj)
		if !ok || key.Kind != k || key.Name != "n" || (key.Namespace == "ns") != k.Namespaced {
			t.Errorf("%s: key %v %v", k, key, ok)
		}
		if same, ok := KindOf(k.Group, k.Name); !ok || same != k {
			t.Errorf("%s is not found by its name", k)
		}
		if k.APIVersion() == "" || len(k.Versions) == 0 || !k.Is(k.APIVersion(), k.Name) || k.Is("other/v1", k.Name) {
			t.Errorf("%s: versions %v", k, k.Versions)
		}
		if Meta(obj).Name != "n" {
			t.Errorf("%s: its metadata cannot be read into", k)
		}
	}
	if _, ok := KeyOf(nil); ok {
		t.Error("nil has a key")
	}
}

// What one field of a kind promises, others must allow.
func TestDeclarationsAreComplete(t *testing.T) {
	for _, k := range Kinds() {
		if k.Plural == "" || k.Plural != strings.ToLower(k.Plural) {
			t.Errorf("%s: plural %q", k, k.Plural)
		}
		if k.Builtin != (k.Group == "" || strings.HasSuffix(k.Group, ".k8s.io") && !k.Shared) {
			t.Errorf("%s of group %q: builtin %v", k, k.Group, k.Builtin)
		}
		// The clients of built-in kinds return whole objects, which are large.
		if k.Builtin && k.Trim == nil {
			t.Errorf("%s is kept whole", k)
		}
		if k.Protects && (k.Messages == nil || k.Close == nil) {
			t.Errorf("%s protects, and one that cannot be read is not closed", k)
		}
		if k.Messages == nil {
			continue
		}
		spec, status := k.Messages(k.New())
		if spec == nil || status == nil || reflect.TypeOf(spec) == reflect.TypeOf(status) {
			t.Errorf("%s: its messages are %T and %T", k, spec, status)
		}
	}
}

// Two kinds may share a name, as the Gateways of Istio and of the Gateway API do.
func TestKindsOfOneName(t *testing.T) {
	istio := &Kind{Name: "Gateway", Group: "networking.istio.io"}
	if istio.String() != "Gateway.networking.istio.io" || Gateway.String() != "Gateway" {
		t.Errorf("%s, %s", istio, Gateway)
	}
	a, b := Key{Kind: istio, Namespace: "ns", Name: "n"}, Gateway.Key("ns", "n")
	twin := a
	if a == b || a.Compare(b) <= 0 || b.Compare(a) >= 0 || a.Compare(twin) != 0 {
		t.Errorf("%v and %v", a, b)
	}
	if (Key{}).String() != "/" || (Key{}).Compare(b) >= 0 {
		t.Errorf("the empty key: %v", Key{})
	}
}

func TestTrimLeavesItsArgument(t *testing.T) {
	for _, k := range Kinds() {
		if k.Trim == nil {
			continue
		}
		obj := k.New()
		if p, ok := obj.(*corev1.Pod); ok {
			p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
		}
		obj.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "m"}})
		out := k.Trim(new(Interner), obj)
		if reflect.TypeOf(out) != reflect.TypeOf(obj) || len(out.GetManagedFields()) > 0 || len(obj.GetManagedFields()) != 1 {
			t.Errorf("%s: %T of %T", k, out, obj)
		}
	}
}
