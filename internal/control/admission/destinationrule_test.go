package admission

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestDestinationRule: what cannot be used is refused, and each field that does not act is
// named in a warning.
func TestDestinationRule(t *testing.T) {
	for spec, want := range map[string]struct {
		allowed bool
		says    string
	}{
		`{"host":"web","trafficPolicy":{"connectionPool":{"tcp":{"maxConnections":1}}}}`: {true, ""},
		`{"host":"web","trafficPolicy":{"connectionPool":{"http":{"maxRetries":1}}}}`:    {true, "trafficPolicy.connectionPool.http"},
		`{"host":"web","subsets":[{"name":"v1"}]}`:                                       {true, "subsets"},
		`{"host":"web","workloadSelector":{"matchLabels":{"a":"b"}}}`:                    {true, "the whole rule has no effect"},
		`{"host":"web","trafficPolicy":{"outlierDetection":{"maxEjectionPercent":200}}}`: {false, "200 is not from 0 to 100"},
		`{"host":"a.*"}`: {false, "is no host"},
		`{"host":"web","trafficPolicy":{"portLevelSettings":[{"port":{"number":80}},{"port":{"number":80}}]}}`: {false, "has settings already"},
		`{"host":"web","nonsense":1}`: {false, "nonsense"},
	} {
		got := Review([]byte(`{"metadata":{"name":"web","namespace":"shop"},"spec":`+spec+`}`), schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "DestinationRule"})
		text := got.Message + strings.Join(got.Warnings, " ")
		if got.Allowed != want.allowed || !strings.Contains(text, want.says) || want.says == "" && text != "" {
			t.Errorf("%s: %+v", spec, got)
		}
	}
}
