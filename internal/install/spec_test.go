package install

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	s, err := Parse([][]byte{[]byte("profile: minimal\nvalues:\n  global: {hub: a, tag: b}\n"), []byte("kind: IstioOperator\nspec: {tag: 1.2}\n"), nil},
		[]string{"profile=ambient", "values.global.hub=c", "components.cni.enabled=false", "values.pilot.autoscaleMin=2"})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Enabled(); !slices.Equal(got, []Component{Base, Ambitd, Ztunnel}) {
		t.Errorf("enabled: %v", got)
	}
	v := s.chartValues(Ambitd)
	global := v["global"].(map[string]any)
	if global["hub"] != "c" || global["tag"] != "1.2" {
		t.Errorf("global: %v", global)
	}
	if pilot := v["pilot"].(map[string]any); pilot["autoscaleMin"] != float64(2) {
		t.Errorf("pilot: %v", pilot)
	}
	if _, ok := s.chartValues(Ztunnel)["pilot"]; ok {
		t.Error("the values of the control plane are given to the node proxy")
	}
}

// What is not understood is refused, in words that say what to write.
func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		name, file string
		set        []string
		want       string
	}{
		{"unknown field", "global: {hub: x}", nil, "values.global"},
		{"profile with sidecars", "profile: demo", nil, "there are ambient, empty, minimal"},
		{"overlay", "components: {pilot: {k8s: {resources: {}}}}", nil, "values.pilot.resources"},
		{"foreign component", "components: {ingressGateways: {enabled: true}}", nil, "no such component"},
		{"unknown component", "components: {galley: {enabled: true}}", nil, "is not known"},
		{"another namespace", "components: {cni: {namespace: kube-system}}", nil, "one namespace"},
		{"another kind", "kind: ConfigMap", nil, "it is a ConfigMap"},
		{"two documents", "profile: ambient\n---\nprofile: minimal\n", nil, "more than one document"},
		{"duplicate key", "hub: a\nhub: b\n", nil, "hub"},
		{"bad setting", "", []string{"profile"}, "path=value"},
		{"bad revision", "", []string{"revision=Not_A_Name"}, "revision"},
		{"bad namespace", "", []string{"namespace=a/b"}, "namespace"},
		{"bad type", "", []string{"components=3"}, "components"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([][]byte{[]byte(c.file)}, c.set)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q in it", err, c.want)
			}
		})
	}
}

func TestUnknownPlatformIsRefused(t *testing.T) {
	s, err := Parse(nil, []string{"values.global.platform=mars"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Render(withoutBase(s), RenderOptions{}); err == nil || !strings.Contains(err.Error(), "mars") || !strings.Contains(err.Error(), "openshift") {
		t.Error(err)
	}
}

func TestCheckVersions(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     string // in the error
	}{
		{"", "v1.2.0", ""},
		{"v1.2.0", "v1.2.0", ""},
		{"v1.2.0", "v1.2.3", ""},
		{"v1.2.9", "v1.3.0", ""},
		{"dev", "v1.3.0", ""},
		{"v1.2.0", "dev", ""},
		{"v1.2.1", "v1.2.0", "going back"},
		{"v1.3.0", "v1.2.9", "going back"},
		{"v2.0.0", "v1.9.0", "going back"},
		{"v1.2.0", "v1.4.0", "v1.3"},
		{"v1.2.0", "v2.0.0", "skipped"},
	} {
		err := CheckVersions(c.from, c.to)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s to %s: %v, want %q", c.from, c.to, err, c.want)
		}
	}
}

func TestIgnoredValues(t *testing.T) {
	for _, c := range []struct {
		settings []string
		want     []string
	}{
		{nil, nil},
		{[]string{"values.ztunnel.terminationGracePeriodSecond=5"}, []string{"values.ztunnel.terminationGracePeriodSecond"}},
		{[]string{"values.ztunnel.terminationGracePeriodSeconds=5", "values.terminationGracePeriodSeconds=5"}, nil},
		{[]string{"values.cni.ambient.dnsCaptures=true", "values.cni.ambient.dnsCapture=true"}, []string{"values.cni.ambient.dnsCaptures"}},
		{[]string{"values.pilot.env.ANY=x", "values.pilot.nodeSelector.any=x", "values.ztunnel.resources.limits.cpu=1", "values.meshConfig.any=x"}, nil},
		{[]string{"values.global.waypoint.nodeSelectors.a=b", "values.global.waypoint.nodeSelector.a=b"}, []string{"values.global.waypoint.nodeSelectors"}},
		{[]string{"values.base.validationFailurePolicy=Fail", "values.base.enableCRDTemplates=false", "values.revisionTags={a}"}, nil},
		{[]string{"values.nothing.at.all=1"}, []string{"values.nothing"}},
	} {
		s, err := Parse(nil, c.settings)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Ignored(); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, %v; want %v", c.settings, got, err, c.want)
		}
	}
}
