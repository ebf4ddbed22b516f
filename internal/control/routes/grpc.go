package routes

import (
	"fmt"
	"regexp"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/source"
)

func readGRPC(k source.Ref, o *gatewayv1.GRPCRoute) *object {
	out := &object{kind: source.GRPCRoute.Kind, ref: k, created: o.CreationTimestamp.UTC(), hostnames: len(o.Spec.Hostnames) > 0, parents: o.Spec.ParentRefs}
	for i := range o.Spec.Rules {
		out.rules = append(out.rules, readGRPCRule(&o.Spec.Rules[i]))
	}
	return out
}

func readGRPCRule(g *gatewayv1.GRPCRouteRule) rule {
	r := rule{name: string(value(g.Name)), base: route.Rule{GRPC: true}}
	matches := g.Matches
	if len(matches) == 0 {
		matches = []gatewayv1.GRPCRouteMatch{{}}
	}
	for i, m := range matches {
		r.base.Matches = append(r.base.Matches, r.grpcMatch(fmt.Sprintf("matches[%d]", i), &m))
	}
	for i := range g.Filters {
		f, known := asHTTP(&g.Filters[i])
		if !known {
			r.fail(fmt.Sprintf("filters[%d]: filters of type %s are not supported", i, f.Type))
			continue
		}
		r.httpFilter(fmt.Sprintf("filters[%d]", i), &f)
	}
	for i := range g.BackendRefs {
		b := &g.BackendRefs[i]
		h := gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef}
		for j := range b.Filters {
			f, _ := asHTTP(&b.Filters[j])
			h.Filters = append(h.Filters, f)
		}
		r.httpBackend(fmt.Sprintf("backendRefs[%d]", i), &h)
	}
	r.session(g.SessionPersistence)
	return r
}

// asHTTP returns the filter of an HTTPRoute that does the same. It reports false
// for types that only have the name in common.
func asHTTP(f *gatewayv1.GRPCRouteFilter) (gatewayv1.HTTPRouteFilter, bool) {
	out := gatewayv1.HTTPRouteFilter{
		Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
		ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror,
	}
	switch f.Type {
	case gatewayv1.GRPCRouteFilterRequestHeaderModifier, gatewayv1.GRPCRouteFilterResponseHeaderModifier, gatewayv1.GRPCRouteFilterRequestMirror:
		return out, true
	case gatewayv1.GRPCRouteFilterExtensionRef: // is another type of another name
	}
	return out, false
}

// anySegment fits a service or a method of any name.
const anySegment = `[^/]+`

// grpcMatch makes a condition on the path of a call, /service/method. More
// characters of the service come first, then of the method: an exact path
// precedes a prefix, and a prefix a regular expression.
func (r *rule) grpcMatch(field string, m *gatewayv1.GRPCRouteMatch) (out route.Match) {
	for i, h := range m.Headers {
		at := fmt.Sprintf("%s.headers[%d]", field, i)
		out.Headers = append(out.Headers, r.valueMatch(at, string(h.Name), string(or(h.Type, gatewayv1.GRPCHeaderMatchExact)), h.Value))
	}
	if m.Method == nil {
		out.Path = route.Path{Kind: route.Segments, Value: "/"}
		return out
	}
	service, method := value(m.Method.Service), value(m.Method.Method)
	switch kind := or(m.Method.Type, gatewayv1.GRPCMethodMatchExact); {
	case service == "" && method == "":
		r.drop(field + ".method: neither service nor method")
	case kind == gatewayv1.GRPCMethodMatchRegularExpression:
		out.Path = route.Path{Kind: route.Regex, Value: "/" + r.part(field+".method.service", service) + "/" + r.part(field+".method.method", method)}
	case kind != gatewayv1.GRPCMethodMatchExact:
		r.drop(fmt.Sprintf("%s.method.type: %q is not supported", field, kind))
	case method == "":
		out.Path = route.Path{Kind: route.Segments, Value: "/" + service}
	case service == "":
		out.Path = route.Path{Kind: route.Regex, Value: "/" + anySegment + "/" + regexp.QuoteMeta(method)}
	default:
		out.Path = route.Path{Kind: route.Exact, Value: "/" + service + "/" + method}
	}
	return out
}

// part returns an expression for one part of the path, any for an empty one. Its
// alternatives stay within the part.
func (r *rule) part(field, expr string) string {
	if expr == "" {
		return anySegment
	}
	if _, err := regexp.Compile(expr); err != nil {
		r.drop(fmt.Sprintf("%s: %v", field, err))
	}
	return "(?:" + expr + ")"
}
