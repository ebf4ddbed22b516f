package coverage

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/targets"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/source"
)

// packages are the folders of tests that entries name.
var packages = map[string]string{
	"scenario": "test/scenario", "both": "test/both", "parts": "test/parts", "policy": "internal/control/policy", "telemetry": "internal/control/telemetry", "targets": "internal/control/targets",
	"meshconfig": "internal/control/meshconfig", "admission": "internal/control/admission", "registry": "internal/control/registry", "coverage": "internal/control/coverage",
}

// sources returns the tests of a package, and the pages that they execute, as one text.
func sources(t *testing.T, name string) string {
	t.Helper()
	files, err := filepath.Glob("../../../" + packages[name] + "/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("package %s: %d files, error %v", name, len(files), err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
		for _, page := range regexp.MustCompile(`docs/[a-z-]+\.md`).FindAllString(string(b), -1) {
			text, err := os.ReadFile("../../../" + page)
			if err == nil {
				for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1) {
					all.Write(block[1])
				}
			}
		}
	}
	return all.String()
}

// TestEveryFieldIsCovered: every field of the types has one entry, every entry has a field
// and a test, and a test that it names has the field in what it applies.
func TestEveryFieldIsCovered(t *testing.T) {
	texts := map[string]string{}
	for _, o := range objects {
		used := map[string]bool{}
		for _, leaf := range leaves(o.spec.ProtoReflect().Descriptor(), "", nil) {
			var by []*field
			for i := range o.fields {
				if f := &o.fields[i]; f.covers(leaf) {
					by = append(by, f)
					for _, p := range f.paths {
						used[p] = used[p] || p == leaf || strings.HasSuffix(p, "*") && strings.HasPrefix(leaf, strings.TrimSuffix(p, "*"))
					}
				}
			}
			if len(by) != 1 {
				t.Errorf("%s: %s has %d entries: say what drives it, or how it is refused", o.name, leaf, len(by))
				continue
			}
			found := false
			for _, test := range strings.Fields(by[0].tests) {
				pkg, name, _ := strings.Cut(test, ".")
				if texts[pkg] == "" {
					texts[pkg] = sources(t, pkg)
				}
				if !strings.Contains(texts[pkg], "func "+name+"(t *testing.T)") {
					t.Errorf("%s: %s: there is no test %s", o.name, leaf, test)
				}
				found = found || slices.ContainsFunc(by[0].paths, func(p string) bool { return strings.HasSuffix(p, "*") }) || mentions(texts[pkg], leaf)
			}
			if !found {
				t.Errorf("%s: no test of %q has the field %s", o.name, by[0].tests, leaf)
			}
		}
		for _, f := range o.fields {
			for _, p := range f.paths {
				if !used[p] {
					t.Errorf("%s: there is no field %s", o.name, p)
				}
			}
			if all, _, _ := f.sorted(); f.handling == driven && len(all) == 0 {
				t.Errorf("%s: %s: no test drives it in the lab and on Kubernetes", o.name, f.paths)
			}
			if f.handling != driven && f.text == "" {
				t.Errorf("%s: %s: how is it reported?", o.name, f.paths)
			}
		}
	}
}

// mentions reports whether a text has the names of a field and of what holds it.
func mentions(text, leaf string) bool {
	parts := strings.Split(strings.NewReplacer("[]", "", "{}", "").Replace(leaf), ".")
	for _, p := range parts[max(0, len(parts)-2):] {
		if !regexp.MustCompile(`\b` + p + `\b`).MatchString(text) {
			return false
		}
	}
	return true
}

// TestPageIsCurrent: the page is what make generate writes.
func TestPageIsCurrent(t *testing.T) {
	b, err := os.ReadFile("../../../docs/reference/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != Page() {
		t.Error("docs/reference/policies.md is not what the code says: run make generate")
	}
}

// TestRefusedFieldsOfProviders: a provider of a kind that waypoints have not, and a field of
// a collector that they do not honour, are reported.
func TestRefusedFieldsOfProviders(t *testing.T) {
	entries := objects[len(objects)-1].fields
	tried := 0
	for _, f := range entries {
		if !strings.Contains(f.tests, "TestRefusedFieldsOfProviders") {
			continue
		}
		for _, p := range f.paths {
			names := strings.Split(strings.TrimSuffix(p, ".*"), ".")
			pb := &meshv1alpha1.MeshConfig_ExtensionProvider{Name: "x"}
			m := pb.ProtoReflect()
			for _, name := range names {
				fd := m.Descriptor().Fields().ByJSONName(name)
				switch {
				case fd.Message() != nil:
					m = m.Mutable(fd).Message()
				case fd.Enum() != nil:
					m.Set(fd, protoreflect.ValueOfEnum(1))
				default:
					m.Set(fd, protoreflect.ValueOfUint32(1))
				}
			}
			if o := pb.GetOpentelemetry(); o != nil {
				proto.Merge(o, &meshv1alpha1.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider{Service: "a.b.svc.cluster.local", Port: 4317})
			}
			got := strings.Join(telemetry.ReadMesh(&meshv1alpha1.MeshConfig{ExtensionProviders: []*meshv1alpha1.MeshConfig_ExtensionProvider{pb}}).Problems, "\n")
			if !strings.Contains(got, names[len(names)-1]) {
				t.Errorf("%s is not reported: %q", p, got)
			}
			tried++
		}
	}
	if tried != 13 {
		t.Errorf("%d were tried", tried)
	}
}

// TestTokenRules: fields of a rule change what gateways get.
func TestTokenRules(t *testing.T) {
	sent := func(jwtRules string) string {
		p := &securityv1.RequestAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}}
		if err := yaml.UnmarshalStrict([]byte("jwtRules: [{issuer: a, "+jwtRules+"}]"), &p.Spec); err != nil {
			t.Fatal(err)
		}
		tokens := policy.TranslateTokens(p, func(jwks.Source) *jwks.State { return nil })
		if len(tokens.Invalid) > 0 {
			t.Fatal(tokens.Invalid)
		}
		return string(tokens.For(nil))
	}
	plain := sent("jwksUri: 'https://a/keys'")
	for _, field := range []string{"forwardOriginalToken: true", "spaceDelimitedClaims: [groups]"} {
		if sent("jwksUri: 'https://a/keys', "+field) == plain {
			t.Errorf("%s changes nothing", field)
		}
	}
}

// TestSelectorOfTelemetry: an object with a selector is for node proxies alone, and one
// with targets too is honoured by none.
func TestSelectorOfTelemetry(t *testing.T) {
	conditions := func(spec string) []status.Condition {
		p := &telemetryv1.Telemetry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}}
		if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
			t.Fatal(err)
		}
		return targets.Observed(source.Ref{Namespace: "shop", Name: "a"}, p, telemetry.Check(p), "istio-system")
	}
	c := conditions("selector: {matchLabels: {app: web}}\naccessLogging: [{disabled: true}]")
	if len(c) != 1 || c[0].Type != status.ZtunnelAccepted || c[0].Status != "True" || !strings.Contains(c[0].Message, "for pods of namespace shop that the selector matches") {
		t.Errorf("%+v", c)
	}
	c = conditions("selector: {matchLabels: {app: web}}\ntargetRefs: [{group: '', kind: Service, name: web}]")
	if len(c) != 1 || c[0].Type != status.WaypointAccepted || c[0].Status != "False" || !strings.Contains(c[0].Message, "no proxy honours it") {
		t.Errorf("%+v", c)
	}
}

// TestOmitEmptyValues: with omitEmptyValues a field without a value is not written.
func TestOmitEmptyValues(t *testing.T) {
	layer := func(omitEmptyValues bool) string {
		m := telemetry.ReadMesh(&meshv1alpha1.MeshConfig{
			DefaultProviders: &meshv1alpha1.MeshConfig_DefaultProviders{AccessLogging: []string{"x"}},
			ExtensionProviders: []*meshv1alpha1.MeshConfig_ExtensionProvider{{Name: "x", Provider: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyFileAccessLog{
				EnvoyFileAccessLog: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider{Path: "/dev/stdout", OmitEmptyValues: omitEmptyValues}, // envoyFileAccessLog
			}}},
		})
		if len(m.Problems) > 0 {
			t.Fatal(m.Problems)
		}
		return fmt.Sprintf("%x", m.Layer(func(string) (string, bool) { return "", false }))
	}
	if layer(true) == layer(false) {
		t.Error("it changes nothing")
	}
}
