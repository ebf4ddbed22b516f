package admission

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/source"
)

// TestTelemetry: a mistake refuses the object, and a field that is not honoured is a
// warning. Providers are of the mesh's settings, and are not looked for.
func TestTelemetry(t *testing.T) {
	for _, tt := range []struct {
		spec    string
		allowed bool
		named   string // in the message or the only warning; "" for none
	}{
		{`{tracing: [{providers: [{name: any}], randomSamplingPercentage: 3}]}`, true, ""},
		{`{targetRefs: [{kind: Service, group: "", name: web}], accessLogging: [{disabled: true}]}`, true, ""},
		{`{tracing: [{randomSamplingPercentage: 300}]}`, false, "randomSamplingPercentage"},
		{`{accessLogging: [{filter: {expression: "response.kode == 1"}}]}`, false, "filter.expression"},
		{`{tracing: [{match: {mode: CLIENT}}]}`, true, "match.mode"},
		{`{selector: {matchLabels: {a: b}}, accessLogging: [{disabled: true}]}`, true, ""},
		{`{selector: {matchLabels: {a: b}}, tracing: [{match: {mode: CLIENT}}]}`, true, ""},
		{`{selector: {matchLabels: {a: b}}, accessLogging: [{filter: {expression: "response.code == 1"}}]}`, true, "node proxies carry connections"},
		{`{targetRefs: [{kind: Pod, name: web}]}`, false, "cannot be a target"},
	} {
		data, gvk := object(t, source.Telemetry.Kind, "shop", tt.spec)
		got := Review(data, gvk)
		text := got.Message + strings.Join(got.Warnings, "\n")
		if got.Allowed != tt.allowed || (tt.named == "") != (text == "") || !strings.Contains(text, tt.named) {
			t.Errorf("%s: %+v", tt.spec, got)
		}
	}
}
