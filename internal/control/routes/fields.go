package routes

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// handling is what becomes of a field of a route.
type handling uint8

const (
	executed  handling = iota // it does what Gateway API says
	refused                   // it is not executed, and neither is what it restricts
	pointless                 // it has no meaning for a parent that is a service
	label                     // it is for people
)

var handlings = [...]string{executed: "yes", refused: "no", pointless: "no meaning", label: "for people"}

// field is how fields of routes are handled. The path may have {a,b} for several, and
// end in * for all below: then nothing of it is executed.
type field struct {
	path     string
	handling handling
	text     string // limits, and how the status reports what is refused
	only     string // kind of route; "" is all that have the field
}

const (
	edits      = ".{set[].{name,value},add[].{name,value},remove[]}"
	references = ".{group,kind,namespace,name,port}"
	wrongRef   = "`ResolvedRefs` is False: `InvalidKind`, `RefNotPermitted` or `BackendNotFound`"
	dropped    = "a value that is not known takes the rule away: `PartiallyInvalid`, or `Accepted` is False when no rule is left"
	fails      = "the requests of the rule are answered with 500: `PartiallyInvalid`, or `Accepted` is False when no rule is left"
	badEdit    = "a field that frames a message or ends at a proxy: " + fails
)

// fields has every field of the routes that are read. A test walks the types of Gateway
// API, and another takes each field away from a route that has all.
var fields = []field{
	{path: "parentRefs[].{group,kind,namespace,name}", text: "a Service or a ServiceEntry; `Accepted` is False for others that the mesh answers for: `NoMatchingParent`, `NotAllowedByListeners`"},
	{path: "parentRefs[].{sectionName,port}", text: "the name of a port, its number; without both, all ports; `Accepted` is False: `NoMatchingParent`"},
	{path: "useDefaultGateways", handling: pointless, text: "a service is always named"},
	{path: "hostnames[]", handling: pointless, only: "HTTPRoute", text: "`Accepted` says so"},
	{path: "hostnames[]", handling: pointless, only: "GRPCRoute", text: "`Accepted` says so"},
	{path: "hostnames[]", only: "TLSRoute", text: "the name that the client sends (SNI): a whole name, or `*.` and a suffix; none is every name. `Accepted` is False for what is no name (`UnsupportedValue`), and for names that an older route has (`Conflicted`)"},
	{path: "rules[].name", handling: label, text: "in `ambit waypoint-config routes`"},

	{path: "rules[].matches[].path.{type,value}", text: "`Exact`, `PathPrefix`, `RegularExpression` (RE2, the whole path); " + dropped},
	{path: "rules[].matches[].headers[].{type,name,value}", text: "`Exact`, `RegularExpression` (RE2, the whole value); " + dropped},
	{path: "rules[].matches[].queryParams[].{type,name,value}", text: "as headers"},
	{path: "rules[].matches[].method", only: "HTTPRoute", text: "what is no token takes the rule away"},
	{path: "rules[].matches[].method.{type,service,method}", only: "GRPCRoute", text: "`Exact`, `RegularExpression`; " + dropped},

	{path: "rules[].filters[].type", text: "a type that is not known, and one that is given twice: " + fails},
	{path: "rules[].filters[].requestHeaderModifier" + edits, text: badEdit},
	{path: "rules[].filters[].responseHeaderModifier" + edits, text: badEdit},
	{path: "rules[].filters[].requestMirror.backendRef" + references, text: "no copies are sent to a reference that is refused; " + wrongRef},
	{path: "rules[].filters[].requestMirror.{percent,fraction.{numerator,denominator}}", text: "what is no share: " + fails},
	{path: "rules[].filters[].requestRedirect.{scheme,hostname,port,statusCode,path.{type,replaceFullPath,replacePrefixMatch}}", text: "301, 302, 303, 307, 308; other values: " + fails},
	{path: "rules[].filters[].urlRewrite.{hostname,path.{type,replaceFullPath,replacePrefixMatch}}", text: "what is no host name or path: " + fails},
	{path: "rules[].filters[].cors.{allowOrigins[],allowCredentials,allowMethods[],allowHeaders[],exposeHeaders[],maxAge}", text: "what is no origin or token: " + fails},
	{path: "rules[].filters[].externalAuth.protocol", text: "`HTTP`, `GRPC`; others: " + fails},
	{path: "rules[].filters[].externalAuth.backendRef" + references, text: "a reference that is refused: the requests of the rule are answered with 500; " + wrongRef},
	{path: "rules[].filters[].externalAuth.{http.{path,allowedHeaders[],allowedResponseHeaders[]},grpc.allowedHeaders[]}", text: "those of the protocol; what is no path or name, and those of the other protocol: " + fails},
	{path: "rules[].filters[].externalAuth.forwardBody.maxSize", text: "a larger body is answered with 413, and the authorizer is not asked"},
	{path: "rules[].filters[].extensionRef.*", handling: refused, text: fails},

	{path: "rules[].backendRefs[]" + references, text: "a Service, or a ServiceEntry of one host; its share is refused otherwise (requests: 500); " + wrongRef},
	{path: "rules[].backendRefs[].weight", text: "0 is none; a rule whose weights are all 0 is refused (requests: 500)"},
	{path: "rules[].backendRefs[].filters[].type", text: "the two below; with others the share of the backend is answered with 500: `PartiallyInvalid`"},
	{path: "rules[].backendRefs[].filters[].requestHeaderModifier" + edits, text: badEdit},
	{path: "rules[].backendRefs[].filters[].responseHeaderModifier" + edits, text: badEdit},
	{path: "rules[].backendRefs[].filters[].{requestMirror,requestRedirect,urlRewrite,cors,externalAuth,extensionRef}.*", handling: refused, text: "the share of the backend is answered with 500: `PartiallyInvalid`"},

	{path: "rules[].timeouts.{request,backendRequest}", text: "what is no duration: " + fails},
	{path: "rules[].retry.{codes[],attempts,backoff}", text: "at most 100 attempts, 2 by default; other values: " + fails},
	{path: "rules[].sessionPersistence.{sessionName,absoluteTimeout,type,cookieConfig.lifetimeType}", text: "`Cookie` and `Header`; with a value that is not known the rule is executed without sessions: `PartiallyInvalid`"},
}

// kinds are the routes that are read, with the types of what their authors write.
var kinds = []struct {
	name string
	spec reflect.Type
}{
	{"HTTPRoute", reflect.TypeFor[gatewayv1.HTTPRouteSpec]()}, {"GRPCRoute", reflect.TypeFor[gatewayv1.GRPCRouteSpec]()},
	{"TLSRoute", reflect.TypeFor[gatewayv1.TLSRouteSpec]()}, {"TCPRoute", reflect.TypeFor[gatewayv1.TCPRouteSpec]()},
}

// leaves returns the paths of the fields of a type that have no fields themselves.
// Elements of a list are written as [].
func leaves(t reflect.Type, path string) (out []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		if t.Kind() == reflect.Slice {
			path += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return []string{path}
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, leaves(f.Type, strings.Trim(path+"."+name, "."))...)
	}
	return out
}

// expand replaces {a,b} by each of its members.
func expand(path string) []string {
	open := strings.IndexByte(path, '{')
	if open < 0 {
		return []string{path}
	}
	var members []string
	depth, from := 0, open+1
	end := open
	for ; end < len(path); end++ {
		switch c := path[end]; {
		case c == '{':
			depth++
		case c == '}':
			depth--
		case c == ',' && depth == 1:
			members, from = append(members, path[from:end]), end+1
		}
		if depth == 0 {
			break
		}
	}
	members = append(members, path[from:end])
	var out []string
	for _, m := range members {
		out = append(out, expand(path[:open]+m+path[end+1:])...)
	}
	return out
}

// covers reports whether an entry is about a field of a kind of route.
func (f *field) covers(kind, leaf string) bool {
	return (f.only == "" || f.only == kind) && slices.ContainsFunc(expand(f.path), func(p string) bool {
		below, all := strings.CutSuffix(p, "*")
		return p == leaf || all && strings.HasPrefix(leaf, below)
	})
}

// FieldPage returns the page of the reference that says of every field of every kind of
// route whether it is executed.
func FieldPage() string {
	var b strings.Builder
	b.WriteString("# Fields of routes\n\n" +
		"Generated by `make generate` from `internal/control/routes/fields.go`. Do not edit.\n\n" +
		"Each field of the routes of Gateway API, for a parent that is a Service or a ServiceEntry: whether a waypoint executes it, and\n" +
		"how the status of the route reports what it does not. [Routing](../routing.md) explains the fields.\n")
	for _, k := range kinds {
		all := leaves(k.spec, "")
		fmt.Fprintf(&b, "\n## %s\n\n| field | executed | limits, and what is reported |\n|---|---|---|\n", k.name)
		for i := range fields {
			f := &fields[i]
			if slices.ContainsFunc(all, func(leaf string) bool { return f.covers(k.name, leaf) }) {
				fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.path, handlings[f.handling], f.text)
			}
		}
	}
	return b.String()
}
