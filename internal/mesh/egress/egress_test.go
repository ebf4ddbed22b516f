package egress

import (
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
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

// TestExtensions: each mode survives the wire; what cannot be read opens nothing.
func TestExtensions(t *testing.T) {
	for m := AllowAny; m <= RegistryOnly; m++ {
		if got := FromExtensions(m.Extensions()); got != m {
			t.Errorf("%v arrives as %v", m, got)
		}
	}
	if AllowAny.Extensions() != nil {
		t.Error("a workload without a policy has an extension")
	}
	name := RegistryOnly.Extensions()[0].Name
	text := func(s string) *anypb.Any { a, _ := anypb.New(wrapperspb.String(s)); return a }
	number, _ := anypb.New(wrapperspb.UInt32(1))
	for what, all := range map[string][]*workloadpb.Extension{
		"no configuration":  {{Name: name}},
		"another type":      {{Name: name, Config: number}},
		"garbage":           {{Name: name, Config: &anypb.Any{TypeUrl: text("").TypeUrl, Value: []byte{0xff}}}},
		"the future":        {{Name: name, Config: text("DENY_ALL")}},
		"empty":             {{Name: name, Config: text("")}},
		"two, of which one": {{Name: name, Config: text("ALLOW_ANY")}, {Name: name, Config: text("REGISTRY_ONLY")}},
	} {
		if got := FromExtensions(all); got != RegistryOnly {
			t.Errorf("%s: %v", what, got)
		}
	}
	if got := FromExtensions([]*workloadpb.Extension{nil, {Name: "another"}}); got != AllowAny {
		t.Errorf("extensions of others: %v", got)
	}
}
