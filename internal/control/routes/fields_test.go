package routes

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/source"
)

// TestEveryFieldIsHandled: every field of the types of Gateway API has one entry, and every
// entry has a field. A field that a newer Gateway API has fails the test.
func TestEveryFieldIsHandled(t *testing.T) {
	used := map[string]bool{}
	for _, k := range kinds {
		for _, leaf := range leaves(k.spec, "") {
			var by []string
			for i := range fields {
				if fields[i].covers(k.name, leaf) {
					by = append(by, fields[i].path)
					used[fields[i].only+fields[i].path] = true
				}
			}
			if len(by) != 1 {
				t.Errorf("%s %s is handled by %q", k.name, leaf, by)
			}
		}
	}
	for _, f := range fields {
		if !used[f.only+f.path] {
			t.Errorf("no route has %s", f.path)
		}
		if strings.HasSuffix(f.path, "*") && f.handling == executed {
			t.Errorf("%s: only single fields are executed", f.path)
		}
	}
}

// TestFieldPageIsCurrent: the page is what make generate writes.
func TestFieldPageIsCurrent(t *testing.T) {
	b, err := os.ReadFile("../../../docs/reference/routes.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != FieldPage() {
		t.Error("docs/reference/routes.md is not what the code says: run make generate")
	}
}

func TestExpand(t *testing.T) {
	for in, want := range map[string]string{"a": "a", "a.{b,c}": "a.b a.c", "{a,b.{c,d}}[]": "a[] b.c[] b.d[]", "a.{b[].{c,d},e}.*": "a.b[].c.* a.b[].d.* a.e.*"} {
		if got := strings.Join(expand(in), " "); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// everything are routes that together have every field.
var everything = map[string]string{
	"HTTPRoute": `
parentRefs: [{group: "", kind: Service, namespace: shop, name: web, sectionName: http, port: 80}]
useDefaultGateways: All
hostnames: [a.example]
rules:
- name: first
  matches: [{path: {type: Exact, value: /a}, method: PUT, headers: [{type: RegularExpression, name: x-a, value: "1"}], queryParams: [{type: RegularExpression, name: q, value: "1"}]}]
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}}
  - {type: RequestMirror, requestMirror: {percent: 5, backendRef: {group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: one, port: 443}}}
  - {type: RequestMirror, requestMirror: {fraction: {numerator: 1, denominator: 3}, backendRef: {name: v1, port: 80}}}
  - {type: URLRewrite, urlRewrite: {hostname: b.example, path: {type: ReplaceFullPath, replaceFullPath: /b}}}
  - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: one, port: 443}, http: {path: /check, allowedHeaders: [x-a], allowedResponseHeaders: [x-b]}, forwardBody: {maxSize: 100}}}
  - {type: CORS, cors: {allowOrigins: ["https://a.example"], allowCredentials: true, allowMethods: [GET], allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 7}}
  backendRefs:
  - {group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: one, port: 443, weight: 3, filters: [
      {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}},
      {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}}]}
  timeouts: {request: 5s, backendRequest: 2s}
  retry: {codes: [503], attempts: 3, backoff: 1s}
  sessionPersistence: {sessionName: s, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
- matches: [{path: {type: PathPrefix, value: /p}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: c.example, port: 8443, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /q}}}]
- matches: [{path: {type: PathPrefix, value: /g}}]
  filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: v1, port: 80}, grpc: {allowedHeaders: [x-a]}}}]
- matches: [{path: {type: PathPrefix, value: /r}}]
  filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /q}}}]
- matches: [{path: {type: PathPrefix, value: /s}}]
  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /q}}}]
  sessionPersistence: {type: Header, sessionName: x-s}
`,
	"GRPCRoute": `
parentRefs: [{group: "", kind: Service, namespace: shop, name: web, sectionName: http, port: 80}]
useDefaultGateways: All
hostnames: [a.example]
rules:
- name: first
  matches: [{method: {type: RegularExpression, service: a, method: b}, headers: [{type: RegularExpression, name: x-a, value: "1"}]}]
  filters:
  - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}}
  - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}}
  - {type: RequestMirror, requestMirror: {percent: 5, backendRef: {group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: one, port: 443}}}
  - {type: RequestMirror, requestMirror: {fraction: {numerator: 1, denominator: 3}, backendRef: {name: v1, port: 80}}}
  backendRefs:
  - {group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: one, port: 443, weight: 3, filters: [
      {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}},
      {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-a, value: "1"}], add: [{name: x-b, value: "2"}], remove: [x-c]}}]}
  sessionPersistence: {sessionName: s, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
- sessionPersistence: {type: Header, sessionName: x-s}
`,
	"TLSRoute": `
parentRefs: [{group: "", kind: Service, namespace: shop, name: web, sectionName: http, port: 80}]
useDefaultGateways: All
hostnames: [a.example]
rules: [{name: first, backendRefs: [{group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: one, port: 443, weight: 3}]}]
`,
	"TCPRoute": `
parentRefs: [{group: "", kind: Service, namespace: shop, name: web, sectionName: http, port: 80}]
useDefaultGateways: All
rules: [{name: first, backendRefs: [{group: networking.istio.io, kind: ServiceEntry, namespace: shop, name: one, port: 443, weight: 3}]}]
`,
}

// read is what a route is to the control plane, as text.
func read(t *testing.T, kind string, spec reflect.Value) string {
	t.Helper()
	var o *object
	ref := source.Ref{Namespace: "market", Name: "r"}
	switch s := spec.Interface().(type) {
	case *gatewayv1.HTTPRouteSpec:
		o = readHTTP(ref, &gatewayv1.HTTPRoute{Spec: *s})
	case *gatewayv1.GRPCRouteSpec:
		o = readGRPC(ref, &gatewayv1.GRPCRoute{Spec: *s})
	case *gatewayv1.TLSRouteSpec:
		o = readTLS(ref, &gatewayv1.TLSRoute{Spec: *s})
	case *gatewayv1.TCPRouteSpec:
		o = readTCP(ref, &gatewayv1.TCPRoute{Spec: *s})
	}
	parents, err := yaml.Marshal(o.parents)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%s %v %v\n%s", kind, o.hostnames, o.names, parents)
	for i := range o.rules {
		b, err := yaml.Marshal(map[string]any{
			"name": o.rules[i].name, "base": o.rules[i].base, "backends": fmt.Sprintf("%#v", backendTexts(&o.rules[i])),
			"problems": o.review(i),
		})
		if err != nil {
			t.Fatal(err)
		}
		text += string(b)
	}
	return text
}

// backendTexts shows what the references of a rule point to.
func backendTexts(r *rule) (out []string) {
	show := func(v any) string {
		b, _ := yaml.Marshal(v)
		return string(b)
	}
	for _, b := range r.backends {
		out = append(out, show(b.ref), fmt.Sprint(b.weight), show(b.filters), b.failing)
	}
	if a := r.auth; a != nil {
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(a.how)
		out = append(out, show(a.ref), fmt.Sprintf("%x", b))
	}
	for _, m := range r.mirrors {
		out = append(out, show(m.ref), fmt.Sprint(m.numerator, m.denominator))
	}
	return out
}

// without sets every field of a path to nothing, and reports whether one had a value.
func without(v reflect.Value, path []string) (had bool) {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return false
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			had = without(v.Index(i), path) || had
		}
		return had
	}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		switch {
		case name == "": // inline
			had = without(v.Field(i), path) || had
		case name != strings.TrimSuffix(path[0], "[]"):
		case len(path) == 1:
			had = !v.Field(i).IsZero()
			v.Field(i).SetZero()
		default:
			had = without(v.Field(i), path[1:]) || had
		}
	}
	return had
}

// TestExecutedFieldsMatter: of a route that has every field, each field that is executed
// changes what the control plane makes of it, and each other does not, or is a problem.
func TestExecutedFieldsMatter(t *testing.T) {
	for _, k := range kinds {
		whole := func() reflect.Value {
			v := reflect.New(k.spec)
			if err := yaml.UnmarshalStrict([]byte(everything[k.name]), v.Interface()); err != nil {
				t.Fatal(err)
			}
			return v
		}
		all := read(t, k.name, whole())
		for _, leaf := range leaves(k.spec, "") {
			i := slices.IndexFunc(fields, func(f field) bool { return f.covers(k.name, leaf) })
			if fields[i].handling == refused {
				continue // see TestRefusedFieldsAreReported
			}
			v := whole()
			if !without(v, strings.Split(leaf, ".")) {
				t.Errorf("%s: the route of the test has no %s", k.name, leaf)
				continue
			}
			if changes := read(t, k.name, v) != all; changes == (fields[i].handling == pointless && !strings.HasPrefix(leaf, "hostnames")) {
				t.Errorf("%s %s: handled as %q, and it changes something: %v", k.name, leaf, handlings[fields[i].handling], changes)
			}
		}
	}
}

// TestRefusedFieldsAreReported: a route with a field that is not executed has a problem.
func TestRefusedFieldsAreReported(t *testing.T) {
	filters := map[string]string{
		"externalAuth": "ExternalAuth", "extensionRef": "ExtensionRef", "requestMirror": "RequestMirror", "requestRedirect": "RequestRedirect", "urlRewrite": "URLRewrite", "cors": "CORS",
	}
	for _, k := range kinds {
		for _, leaf := range leaves(k.spec, "") {
			i := slices.IndexFunc(fields, func(f field) bool { return f.covers(k.name, leaf) })
			if fields[i].handling != refused {
				continue
			}
			before, rest, _ := strings.Cut(leaf, "filters[].")
			name, _, _ := strings.Cut(rest, ".")
			filter := fmt.Sprintf("[{type: %s, %s: {}}]", filters[name], name)
			spec := fmt.Sprintf("rules: [{filters: %s}]", filter)
			if strings.Contains(before, "backendRefs") {
				spec = fmt.Sprintf("rules: [{backendRefs: [{name: v1, port: 80, filters: %s}]}]", filter)
			}
			v := reflect.New(k.spec)
			if err := yaml.UnmarshalStrict([]byte(spec), v.Interface()); err != nil {
				t.Fatal(err)
			}
			if text := read(t, k.name, v); !strings.Contains(text, "Text: ") || !strings.Contains(text, "not supported") {
				t.Errorf("%s %s is not reported:\n%s", k.name, leaf, text)
			}
		}
	}
}
