package routes

import (
	"fmt"
	"regexp"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/source"
)

func readHTTP(k source.Ref, o *gatewayv1.HTTPRoute) *object {
	out := &object{kind: source.HTTPRoute.Kind, ref: k, created: o.CreationTimestamp.UTC(), hostnames: len(o.Spec.Hostnames) > 0, parents: o.Spec.ParentRefs}
	rules := o.Spec.Rules
	if len(rules) == 0 {
		rules = []gatewayv1.HTTPRouteRule{{}} // what the API server fills in
	}
	for i := range rules {
		out.rules = append(out.rules, readHTTPRule(&rules[i]))
	}
	return out
}

func readHTTPRule(h *gatewayv1.HTTPRouteRule) rule {
	r := rule{name: string(value(h.Name))}
	matches := h.Matches
	if len(matches) == 0 {
		matches = []gatewayv1.HTTPRouteMatch{{}}
	}
	for i := range matches {
		r.base.Matches = append(r.base.Matches, r.httpMatch(fmt.Sprintf("matches[%d]", i), &matches[i]))
	}
	for i := range h.Filters {
		r.httpFilter(fmt.Sprintf("filters[%d]", i), &h.Filters[i])
	}
	for i := range h.BackendRefs {
		r.httpBackend(fmt.Sprintf("backendRefs[%d]", i), &h.BackendRefs[i])
	}
	r.timeouts(h.Timeouts)
	r.retry(h.Retry)
	r.session(h.SessionPersistence)
	return r
}

var pathKinds = map[gatewayv1.PathMatchType]route.Kind{
	gatewayv1.PathMatchExact: route.Exact, gatewayv1.PathMatchPathPrefix: route.Segments, gatewayv1.PathMatchRegularExpression: route.Regex,
}

// valueKinds are those of headers and of query parameters, which have the same
// names.
var valueKinds = map[string]route.Kind{
	string(gatewayv1.HeaderMatchExact): route.Exact, string(gatewayv1.HeaderMatchRegularExpression): route.Regex,
}

func (r *rule) httpMatch(field string, m *gatewayv1.HTTPRouteMatch) (out route.Match) {
	out.Method = string(value(m.Method))
	path := gatewayv1.HTTPPathMatch{}
	if m.Path != nil {
		path = *m.Path
	}
	kind := or(path.Type, gatewayv1.PathMatchPathPrefix)
	of, known := pathKinds[kind]
	if !known {
		r.drop(fmt.Sprintf("%s.path.type: %q is not supported", field, kind))
	}
	out.Path.Kind, out.Path.Value = of, or(path.Value, "/")
	for i, h := range m.Headers {
		at := fmt.Sprintf("%s.headers[%d]", field, i)
		out.Headers = append(out.Headers, r.valueMatch(at, string(h.Name), string(or(h.Type, gatewayv1.HeaderMatchExact)), h.Value))
	}
	for i, q := range m.QueryParams {
		at := fmt.Sprintf("%s.queryParams[%d]", field, i)
		out.Query = append(out.Query, r.valueMatch(at, string(q.Name), string(or(q.Type, gatewayv1.QueryParamMatchExact)), q.Value))
	}
	return out
}

func (r *rule) valueMatch(field, name, kind, v string) route.Value {
	k, known := valueKinds[kind]
	if !known {
		r.drop(fmt.Sprintf("%s.type: %q is not supported", field, kind))
	}
	return route.Value{Name: name, Kind: k, Value: v}
}

// httpFilter adds a filter of a rule. One that is not supported fails the rule's
// requests: it may be what protects the backend.
func (r *rule) httpFilter(field string, f *gatewayv1.HTTPRouteFilter) {
	to := &r.base.Filters
	once := func(given bool) bool {
		if given {
			r.fail(fmt.Sprintf("%s: a second filter of type %s", field, f.Type))
		}
		return !given
	}
	missing := func() { r.fail(fmt.Sprintf("%s: the type is %q, and the field for it is missing", field, f.Type)) }
	switch f.Type {
	case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
		if f.RequestHeaderModifier == nil {
			missing()
		} else if once(to.Request != nil) {
			to.Request = headerEdit(f.RequestHeaderModifier)
		}
	case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
		if f.ResponseHeaderModifier == nil {
			missing()
		} else if once(to.Response != nil) {
			to.Response = headerEdit(f.ResponseHeaderModifier)
		}
	case gatewayv1.HTTPRouteFilterRequestRedirect:
		if f.RequestRedirect == nil {
			missing()
		} else if once(to.Redirect != nil) {
			to.Redirect = r.redirect(field, f.RequestRedirect)
		}
	case gatewayv1.HTTPRouteFilterURLRewrite:
		if f.URLRewrite == nil {
			missing()
		} else if once(to.Rewrite != nil) {
			to.Rewrite = &route.Rewrite{Host: string(value(f.URLRewrite.Hostname)), Path: r.pathEdit(field+".urlRewrite.path", f.URLRewrite.Path)}
		}
	case gatewayv1.HTTPRouteFilterRequestMirror:
		if f.RequestMirror == nil {
			missing()
		} else {
			r.mirror(field, f.RequestMirror)
		}
	case gatewayv1.HTTPRouteFilterCORS:
		if f.CORS == nil {
			missing()
		} else if once(to.CORS != nil) {
			to.CORS = cors(f.CORS)
		}
	case gatewayv1.HTTPRouteFilterExternalAuth:
		r.base.Guarded = true
		if f.ExternalAuth == nil {
			missing()
		} else if once(r.auth != nil) {
			r.externalAuth(field+".externalAuth", f.ExternalAuth)
		}
	default:
		r.fail(fmt.Sprintf("%s: filters of type %s are not supported", field, f.Type))
	}
}

func headerEdit(m *gatewayv1.HTTPHeaderFilter) *route.HeaderEdit {
	fields := func(list []gatewayv1.HTTPHeader) (out []route.Field) {
		for _, h := range list {
			out = append(out, route.Field{Name: string(h.Name), Value: h.Value})
		}
		return out
	}
	return &route.HeaderEdit{Set: fields(m.Set), Add: fields(m.Add), Remove: m.Remove}
}

func (r *rule) redirect(field string, f *gatewayv1.HTTPRequestRedirectFilter) *route.Redirect {
	out := &route.Redirect{
		Scheme: value(f.Scheme), Host: string(value(f.Hostname)), Status: value(f.StatusCode),
		Path: r.pathEdit(field+".requestRedirect.path", f.Path),
	}
	if p := value(f.Port); p < 0 || p > 65535 {
		r.fail(fmt.Sprintf("%s.requestRedirect.port: %d is no port", field, p))
	} else {
		out.Port = uint16(p)
	}
	return out
}

func (r *rule) pathEdit(field string, m *gatewayv1.HTTPPathModifier) *route.PathEdit {
	switch {
	case m == nil:
		return nil
	case m.Type == gatewayv1.FullPathHTTPPathModifier && m.ReplaceFullPath != nil:
		return &route.PathEdit{Value: *m.ReplaceFullPath}
	case m.Type == gatewayv1.PrefixMatchHTTPPathModifier && m.ReplacePrefixMatch != nil:
		return &route.PathEdit{Prefix: true, Value: *m.ReplacePrefixMatch}
	}
	r.fail(fmt.Sprintf("%s: the type is %q, and the field for it is missing", field, m.Type))
	return nil
}

// mirror takes a share in percent, or as a fraction of 100 unless it says of
// what.
func (r *rule) mirror(field string, m *gatewayv1.HTTPRequestMirrorFilter) {
	n, of := int32(100), int32(100)
	if m.Percent != nil {
		n = *m.Percent
	}
	if m.Fraction != nil {
		n, of = m.Fraction.Numerator, or(m.Fraction.Denominator, 100)
	}
	if n < 0 || of <= 0 || n > of || m.Percent != nil && m.Fraction != nil {
		r.fail(fmt.Sprintf("%s.requestMirror: %d of %d is no share", field, n, of))
		return
	}
	r.mirrors = append(r.mirrors, mirror{m.BackendRef, uint32(n), uint32(of)})
}

// defaultMaxAge is what the API server fills in.
const defaultMaxAge = 5 * time.Second

func cors(f *gatewayv1.HTTPCORSFilter) *route.CORS {
	out := &route.CORS{Credentials: value(f.AllowCredentials), MaxAge: defaultMaxAge}
	if f.MaxAge > 0 {
		out.MaxAge = time.Duration(f.MaxAge) * time.Second
	}
	for _, o := range f.AllowOrigins {
		out.Origins = append(out.Origins, string(o))
	}
	for _, m := range f.AllowMethods {
		out.Methods = append(out.Methods, string(m))
	}
	for _, h := range f.AllowHeaders {
		out.Headers = append(out.Headers, string(h))
	}
	for _, h := range f.ExposeHeaders {
		out.Expose = append(out.Expose, string(h))
	}
	return out
}

func (r *rule) httpBackend(field string, b *gatewayv1.HTTPBackendRef) {
	out := backend{ref: b.BackendObjectReference, weight: weightOf(b.Weight)}
	for i := range b.Filters {
		f := &b.Filters[i]
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil && out.filters.Request == nil:
			out.filters.Request = headerEdit(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil && out.filters.Response == nil:
			out.filters.Response = headerEdit(f.ResponseHeaderModifier)
		default:
			out.failing = unsupportedAtBackend(field, i, string(f.Type))
		}
	}
	r.backends = append(r.backends, out)
}

func unsupportedAtBackend(field string, i int, kind string) string {
	return fmt.Sprintf("%s.filters[%d]: a filter of type %s is not supported here, or given twice", field, i, kind)
}

// durationText is what Gateway API takes for a duration (GEP-2257).
var durationText = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)

func (r *rule) duration(field string, d *gatewayv1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	v, err := time.ParseDuration(string(*d))
	if err != nil || !durationText.MatchString(string(*d)) {
		r.fail(fmt.Sprintf("%s: %q is no duration", field, *d))
	}
	return v
}

func (r *rule) timeouts(t *gatewayv1.HTTPRouteTimeouts) {
	if t == nil {
		return
	}
	to := &r.base.Timeouts
	to.Request, to.Try = r.duration("timeouts.request", t.Request), r.duration("timeouts.backendRequest", t.BackendRequest)
	if to.Request > 0 && to.Try > to.Request {
		r.fail(fmt.Sprintf("timeouts.backendRequest: %v is longer than timeouts.request, %v", to.Try, to.Request))
	}
}

// defaultAttempts is upstream's number of further tries.
const defaultAttempts = 2

func (r *rule) retry(h *gatewayv1.HTTPRouteRetry) {
	if h == nil {
		return
	}
	out := &route.Retry{Attempts: or(h.Attempts, defaultAttempts), Backoff: r.duration("retry.backoff", h.Backoff)}
	for _, c := range h.Codes {
		out.Codes = append(out.Codes, int(c))
	}
	r.base.Retry = out
}
