package egress

import (
	"testing"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for m, name := range names {
		if got, err := Parse(name); err != nil || got != Mode(m) || got.String() != name {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "registry_only", "REGISTRY-ONLY", " ALLOW_ANY", "ALLOW_ANY ", "0"} {
		if got, err := Parse(bad); err == nil || got != RegistryOnly {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	if Mode(99).String() != "REGISTRY_ONLY" {
		t.Error("a mode outside the set is not the strictest")
	}
}

func TestEffective(t *testing.T) {
	set := func(s string) Setting { return Setting{s, true} }
	for _, c := range []struct {
		mesh           Mode
		namespace, pod Setting
		want           Mode
	}{
		{AllowAny, Setting{}, Setting{}, AllowAny},
		{RegistryOnly, Setting{}, Setting{}, RegistryOnly},
		{RegistryOnly, set("ALLOW_ANY"), Setting{}, AllowAny},
		{RegistryOnly, set("DRY_RUN"), Setting{}, DryRun},
		{AllowAny, set("REGISTRY_ONLY"), Setting{}, RegistryOnly},
		{AllowAny, set("registry-only"), Setting{}, RegistryOnly},
		{AllowAny, set(""), Setting{}, RegistryOnly},
		{AllowAny, Setting{}, set("REGISTRY_ONLY"), RegistryOnly},
		{AllowAny, Setting{}, set("DRY_RUN"), DryRun},
		{AllowAny, Setting{}, set("nonsense"), RegistryOnly},
		{RegistryOnly, Setting{}, set("ALLOW_ANY"), RegistryOnly},
		{RegistryOnly, set("DRY_RUN"), set("ALLOW_ANY"), DryRun},
		{AllowAny, set("ALLOW_ANY"), set("REGISTRY_ONLY"), RegistryOnly},
	} {
		if got := Effective(c.mesh, c.namespace, c.pod); got != c.want {
			t.Errorf("%v: %v", c, got)
		}
	}
}

// TestPodNeverLoosens: whatever a pod has for a setting, it gets no weaker mode than its
// namespace gives it.
func TestPodNeverLoosens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mesh := Mode(rapid.IntRange(0, 2).Draw(t, "mesh"))
		text := rapid.OneOf(rapid.SampledFrom(names[:]), rapid.String())
		setting := rapid.Custom(func(t *rapid.T) Setting { return Setting{text.Draw(t, "text"), rapid.Bool().Draw(t, "set")} })
		ns, pod := setting.Draw(t, "namespace"), setting.Draw(t, "pod")
		if with, without := Effective(mesh, ns, pod), Effective(mesh, ns, Setting{}); with < without {
			t.Fatalf("%v with the pod's setting, %v without", with, without)
		}
	})
}
