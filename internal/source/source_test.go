package source

import "testing"

func TestEveryKindIsKnownByItsTypeAndName(t *testing.T) {
	for name, k := range Kinds() {
		obj := k.New()
		obj.SetName("n")
		obj.SetNamespace("ns")
		key, ok := KeyOf(obj)
		if !ok || key.Kind != name || name != k.Name || key.Name != "n" || (key.Namespace == "ns") != k.Namespaced {
			t.Errorf("%s: key %v %v", name, key, ok)
		}
		if k.APIVersion() == "" || len(k.Versions) == 0 {
			t.Errorf("%s has no version", name)
		}
	}
	if _, ok := KeyOf(nil); ok {
		t.Error("nil has a key")
	}
}
