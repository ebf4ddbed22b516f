package telemetry

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/observe/requests"
)

const settings = `
accessLogFile: /dev/stdout
accessLogEncoding: JSON
accessLogFormat: '{"a": "%REQ(:PATH)%"}'
defaultConfig: {tracing: {sampling: 20}}
extensionProviders:
- {name: otel, opentelemetry: {service: otel.obs.svc.cluster.local, port: 4317, maxTagLength: 3, grpc: {initialMetadata: [{name: X-Key, value: v}]}}}
- {name: entry, opentelemetry: {service: otel.example, port: 4318, http: {path: /x, timeout: 3s}}}
- {name: named, opentelemetry: {service: obs/otel.example, port: 4317}}
- {name: both, opentelemetry: {service: a/b, port: 1, http: {path: /}, grpc: {timeout: 1s}}}
- {name: noport, opentelemetry: {service: a/b}}
- {name: secret, opentelemetry: {service: a/b, port: 1, http: {path: /, headers: [{name: a, envName: TOKEN}]}}}
- {name: zipkin, zipkin: {service: a/b, port: 9411}}
- {name: text, envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "%REQ(x-a)%"}}}
- {name: bad, envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "%NOTHING%"}}}
- {name: prometheus, prometheus: {}}
- {name: als, envoyOtelAls: {service: otel.example, port: 4317, logName: x, logFormat: {labels: {a: "%PROTOCOL%"}}}}
- {name: badals, envoyOtelAls: {service: otel.example, port: 4317, logFormat: {labels: {a: 3}}}}
- {name: otel, prometheus: {}}
defaultProviders: {tracing: [otel, entry], accessLogging: [text, zipkin]}
`

func mesh(t *testing.T, text string) *Mesh {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m := &meshv1alpha1.MeshConfig{}
	if err := protojson.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return ReadMesh(m)
}

func owner(host string) (string, bool) { return "entries", host == "otel.example" }

// TestReadMesh: providers that can be used are, and each problem is named by its field.
func TestReadMesh(t *testing.T) {
	m := mesh(t, settings)
	all := strings.Join(m.Problems, "\n")
	for _, want := range []string{
		"extensionProviders[0].opentelemetry.maxTagLength: ", "extensionProviders[3].opentelemetry: it has http and grpc", "extensionProviders[4].opentelemetry: ", "envName",
		"extensionProviders[6]: ", "zipkin", "extensionProviders[8].envoyFileAccessLog: ", "%NOTHING%", `extensionProviders[12]: there is another provider named "otel"`, "extensionProviders[10].envoyOtelAls.logName", "extensionProviders[11].envoyOtelAls: ",
		"defaultProviders.tracing: only the first", "defaultProviders.accessLogging[1]: ",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in\n%s", want, all)
		}
	}
	var l telemetrypb.Layer
	if err := proto.Unmarshal(m.Layer(owner), &l); err != nil {
		t.Fatal(err)
	}
	if l.Tracing.GetSampling() != 20 || l.Tracing.Collector.Service.Namespace != "obs" || l.Tracing.Collector.Headers[0].Value != "v" || len(l.AccessLogging) != 1 || l.AccessLogging[0].Providers[0].Name != "text" {
		t.Errorf("%v", &l)
	}
	for name, ns := range map[string]string{"otel": "obs", "entry": "entries", "named": "obs", "both": "", "nothing": ""} {
		c, err := m.traced(name, owner)
		if (err == nil) != (ns != "") || err == nil && c.Service.Namespace != ns {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if err := proto.Unmarshal((*Mesh)(nil).Layer(owner), &l); err != nil || l.Tracing.GetSampling() != DefaultSampling || l.Tracing.Collector != nil || l.AccessLogging != nil {
		t.Errorf("%v %v", &l, err)
	}
	if own := m.providers["envoy"].log; !own.Json || own.Labels[0].Format != "%REQ(:PATH)%" {
		t.Errorf("%v", own)
	}
}

func object(t *testing.T, spec string) *telemetryv1.Telemetry {
	t.Helper()
	o := &telemetryv1.Telemetry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "t"}}
	b, err := yaml.YAMLToJSON([]byte(spec))
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(b, &o.Spec); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestTranslate: each field is in effect, or is named as refused or invalid. What gateways
// get, they accept.
func TestTranslate(t *testing.T) {
	m := mesh(t, settings)
	for _, tt := range []struct{ spec, refused, invalid, says string }{
		{"{}", "", "", ""},
		{"tracing: [{randomSamplingPercentage: 5}]", "", "", "sampling:5"},
		{"tracing: [{randomSamplingPercentage: 101}]", "", "spec.tracing[0].randomSamplingPercentage", ""},
		{"tracing: [{providers: [{name: otel}]}]", "", "", "otel.obs.svc.cluster.local"},
		{"tracing: [{providers: [{name: entry}, {name: otel}]}]", "spec.tracing[0].providers", "", "otel.example"},
		{"tracing: [{providers: [{name: nothing}], randomSamplingPercentage: 5}]", "", "spec.tracing[0].providers[0]", "sampling:5"},
		{"tracing: [{match: {mode: CLIENT}, randomSamplingPercentage: 5}]", "spec.tracing[0].match.mode", "", ""},
		{"tracing: [{match: {mode: CLIENT}}, {match: {mode: SERVER}, randomSamplingPercentage: 5}]", "spec.tracing[0].match.mode", "", "sampling:5"},
		{"tracing: [{randomSamplingPercentage: 5}, {randomSamplingPercentage: 6}]", "spec.tracing[1]", "", "sampling:5"},
		{"tracing: [{disableSpanReporting: true, disableContextPropagation: true, enableIstioTags: false}]", "", "", "reporting_disabled:true"},
		{"tracing: [{useRequestIdForTraceSampling: true}]", "useRequestIdForTraceSampling", "", ""},
		{"tracing: [{useRequestIdForTraceSampling: false, randomSamplingPercentage: 5}]", "", "", "sampling:5"},
		{"tracing: [{customTags: {a: {literal: {value: b}}, c: {formatter: {value: '%X%'}}, d: {header: {name: 'x y'}}}}]", "spec.tracing[0].customTags[c].formatter", "spec.tracing[0].customTags[d]", `literal:"b"`},
		{"accessLogging: [{disabled: true}]", "", "", "disabled:true"},
		{"accessLogging: [{providers: [{name: text}], filter: {expression: 'response.code >= 400'}}]", "", "", "response.code"},
		{"accessLogging: [{providers: [{name: als}]}]", "", "", `namespace:"entries"`},
		{"accessLogging: [{providers: [{name: badals}]}]", "", "spec.accessLogging[0].providers[0]", ""},
		{"accessLogging: [{providers: [{name: otel}]}]", "", "spec.accessLogging[0].providers[0]", ""},
		{"accessLogging: [{filter: {expression: 'response.code >'}}]", "", "spec.accessLogging[0].filter.expression", ""},
		{"accessLogging: [{match: {mode: CLIENT}, disabled: true}]", "spec.accessLogging[0].match.mode", "", ""},
		{"metrics: [{overrides: [{match: {metric: REQUEST_SIZE}, disabled: true}]}]", "", "", "REQUEST_SIZE"},
		{"metrics: [{overrides: [{tagOverrides: {a: {value: \"'x'\"}, destination_app: {operation: REMOVE}}}]}]", "", "", `value:"x"`},
		{"metrics: [{overrides: [{tagOverrides: {a: {value: request.host}}}]}]", "", "", `expression:"request.host"`},
		{"metrics: [{overrides: [{tagOverrides: {a: {value: \"has(request.id) ? 'y' : 'n'\"}}}]}]", "", "", `expression:"has(request.id)`},
		{"metrics: [{overrides: [{match: {mode: CLIENT_AND_SERVER}, disabled: false}]}]", "", "", "disabled:false"},
		{"metrics: [{overrides: [{tagOverrides: {a-b: {value: \"'x'\"}}}]}]", "", "tagOverrides[a-b]", ""},
		{"metrics: [{overrides: [{tagOverrides: {le: {value: \"'x'\"}}}]}]", "", "tagOverrides[le]", ""},
		{"metrics: [{overrides: [{tagOverrides: {__name__: {value: \"'x'\"}}}]}]", "", "tagOverrides[__name__]", ""},
		{"metrics: [{overrides: [{tagOverrides: {a: {value: istio_operationId}}}]}]", "", "tagOverrides[a]: value", ""},
		{"metrics: [{overrides: [{tagOverrides: {a: {value: ''}}}]}]", "", "tagOverrides[a]", ""},
		{"metrics: [{providers: [{name: prometheus}], reportingInterval: 3s, overrides: [{match: {mode: CLIENT}, disabled: true}, {match: {customMetric: x}, disabled: true}]}]", "spec.metrics[0].reportingInterval", "", ""},
		{"metrics: [{providers: [{name: zipkin}], overrides: [{disabled: true}]}]", "spec.metrics[0].providers[0]", "", ""},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			made := Translate(object(t, tt.spec), m, owner)
			for what, of := range map[string]struct {
				list []string
				want string
			}{"refused": {made.Refused, tt.refused}, "invalid": {made.Invalid, tt.invalid}} {
				if got := strings.Join(of.list, "\n"); (of.want == "") != (got == "") || !strings.Contains(got, of.want) {
					t.Errorf("%s: %q, want %q", what, got, of.want)
				}
			}
			text := strings.ReplaceAll(fmt.Sprint(made.layer), " ", "")
			if !strings.Contains(text, tt.says) {
				t.Errorf("%s does not have %s", text, tt.says)
			}
			for scope, body := range map[telemetrypb.Scope][]byte{
				telemetrypb.Scope_GATEWAY: made.For(nil), telemetrypb.Scope_SERVICE: made.For([]authz.Service{{Namespace: "shop", Hostname: "web"}}),
				telemetrypb.Scope_CLASS: made.ForClass(), telemetrypb.Scope_NAMESPACE: made.ForNamespace(false), telemetrypb.Scope_ROOT: made.ForNamespace(true),
			} {
				var l telemetrypb.Layer
				if err := proto.Unmarshal(body, &l); err != nil || l.Scope != scope {
					t.Errorf("%v: %v, %v", scope, &l, err)
				}
				if _, err := requests.Language.Decode(body, nil, nil); err != nil {
					t.Errorf("gateways reject it: %v", err)
				}
			}
		})
	}
	if made := Translate(object(t, `{tracing: [{randomSamplingPercentage: 5}], metrics: [{overrides: [{disabled: true}, {tagOverrides: {a: {value: "'x'"}, b: {value: 'request.'}}}, {disabled: false}]}]}`), m, owner); len(made.layer.Metrics) > 0 || made.layer.Tracing == nil || len(made.Invalid) != 1 || !strings.HasSuffix(made.Invalid[0], "no override of the object is in effect)") || !strings.Contains(made.Invalid[0], "spec.metrics[0].overrides[1]") {
		t.Errorf("with a mistake in one label, %v is in effect: %q", made.layer, made.Invalid)
	}
	if made := Check(object(t, "tracing: [{providers: [{name: any}]}]\naccessLogging: [{providers: [{name: any}]}]")); len(made.Invalid)+len(made.Refused) > 0 {
		t.Errorf("%v %v", made.Invalid, made.Refused)
	}
}
