package meshconfig_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
)

func TestParse(t *testing.T) {
	got, unread, err := meshconfig.Parse([]byte(`
accessLogFile: /dev/stdout
trustDomain: example.org
defaultConfig: {proxyMetadata: {ISTIO_META_ENABLE_HBONE: "true"}}
rootNamespace: mesh
discoverySelectors:
- matchLabels: {mesh: "yes"}
- matchExpressions: [{key: team, operator: In, values: [a, b]}]
`))
	want := meshconfig.Config{
		TrustDomain: "example.org", RootNamespace: "mesh",
		DiscoverySelectors: []metav1.LabelSelector{
			{MatchLabels: map[string]string{"mesh": "yes"}},
			{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: metav1.LabelSelectorOpIn, Values: []string{"a", "b"}}}},
		},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
	if d := cmp.Diff([]string{"accessLogFile", "defaultConfig"}, unread); d != "" {
		t.Error(d)
	}
	if got, unread, err := meshconfig.Parse(nil); err != nil || unread != nil || !cmp.Equal(got, meshconfig.Config{}) {
		t.Errorf("empty: %+v %v %v", got, unread, err)
	}
	for _, bad := range []string{"- a", "trustDomain: [", "discoverySelectors: 3", "discoverySelectors: [{matchExpressions: [{key: a, operator: Near}]}]"} {
		if c, _, err := meshconfig.Parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}
