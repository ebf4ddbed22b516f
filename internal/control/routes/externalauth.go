package routes

import (
	"fmt"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
)

// Gateway API has no fields for these: they are those of a provider of the mesh
// configuration without settings.
const (
	authTimeout = 2 * time.Second
	authStatus  = 403
)

// externalAuth reads a filter that has an authorizer asked.
func (r *rule) externalAuth(field string, f *gatewayv1.HTTPExternalAuthFilter) {
	p := &authzpb.Provider{TimeoutMs: uint32(authTimeout.Milliseconds()), StatusOnError: authStatus}
	if f.ForwardBody != nil && f.ForwardBody.MaxSize > 0 {
		p.Body = &authzpb.CheckBody{MaxBytes: uint32(f.ForwardBody.MaxSize)}
	}
	names := func(list string, all []string) []string {
		for i, n := range all {
			if strings.Contains(n, "*") { // a pattern of providers, and no name here
				r.fail(fmt.Sprintf("%s.%s[%d]: %q is no name of a header", field, list, i, n))
			}
		}
		return all
	}
	switch f.ExternalAuthProtocol {
	case gatewayv1.HTTPRouteExternalAuthHTTPProtocol:
		c := f.HTTPAuthConfig
		if c == nil {
			c = &gatewayv1.HTTPAuthConfig{}
		}
		p.Protocol = &authzpb.Provider_Http{Http: &authzpb.HTTPCheck{
			PathPrefix: prefix(c.Path), IncludeHeaders: names("http.allowedHeaders", c.AllowedRequestHeaders),
			ToUpstream: names("http.allowedResponseHeaders", c.AllowedResponseHeaders), AllToUpstream: len(c.AllowedResponseHeaders) == 0,
		}}
		if f.GRPCAuthConfig != nil {
			r.fail(fmt.Sprintf("%s.grpc: the protocol is HTTP", field))
		}
	case gatewayv1.HTTPRouteExternalAuthGRPCProtocol:
		g := &authzpb.GRPCCheck{}
		if f.GRPCAuthConfig != nil {
			g.IncludeHeaders = names("grpc.allowedHeaders", f.GRPCAuthConfig.AllowedRequestHeaders)
		}
		p.Protocol = &authzpb.Provider_Grpc{Grpc: g}
		if f.HTTPAuthConfig != nil {
			r.fail(fmt.Sprintf("%s.http: the protocol is GRPC", field))
		}
	default:
		r.fail(fmt.Sprintf("%s.protocol: %q is neither HTTP nor GRPC", field, f.ExternalAuthProtocol))
		return
	}
	r.auth = &authorizer{f.BackendRef, p}
	if _, err := r.auth.compile("any", route.PortKey{Namespace: "any", Hostname: "any", Port: 1}); err != nil {
		r.fail(fmt.Sprintf("%s: %v", field, err))
	}
}

// prefix returns a prefix of paths, which begin with a slash themselves.
func prefix(path string) string {
	if path = strings.Trim(path, "/"); path == "" {
		return ""
	}
	return "/" + path
}

// compile makes the authorizer one at a service. Its name is that of the rule.
func (a *authorizer) compile(name string, at route.PortKey) (*extauthz.Provider, error) {
	p := &authzpb.Provider{
		Name: name, Namespace: at.Namespace, Hostname: at.Hostname, Port: uint32(at.Port),
		TimeoutMs: a.how.TimeoutMs, StatusOnError: a.how.StatusOnError, Body: a.how.Body, Protocol: a.how.Protocol,
	}
	return extauthz.Compile(p)
}

// authorize resolves the authorizer of a rule. Without it the rule's requests fail.
func (t *Tables) authorize(r *collection.Reader, o *object, i int, w *wire.Rule, found *findings) {
	in := &o.rules[i]
	if in.auth == nil || in.dropped != "" || in.failing != "" {
		return
	}
	name, bad := t.lookUp(r, o, in.auth.ref)
	if bad != nil {
		found.refs = append(found.refs, issue{bad.reason, fmt.Sprintf("rule %d: externalAuth: %s", i, bad.text)})
		w.Rule.Filters = route.Filters{}
		w.Rule.Backends = []route.Backend{{Weight: 1, Invalid: "externalAuth: " + bad.text}}
		return
	}
	at, err := wire.ParseUpstream(name)
	if err == nil {
		w.Rule.Filters.ExternalAuth, err = in.auth.compile(w.Origin.String(), at)
	}
	if err != nil {
		found.partial = append(found.partial, fmt.Sprintf("Dropped Rule %d: externalAuth: %v; its %s are %s", i, err, o.what(), o.refusal()))
		found.broken++
		w.Rule.Filters, w.Rule.Backends = route.Filters{}, []route.Backend{{Weight: 1, Invalid: "externalAuth: " + err.Error()}}
	}
}
