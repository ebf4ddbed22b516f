package routes

import (
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/source"
)

// readTCP reads a route of connections that carry anything.
func readTCP(k source.Ref, o *gatewayv1.TCPRoute) *object {
	out := &object{kind: source.TCPRoute.Kind, ref: k, created: o.CreationTimestamp.UTC(), parents: o.Spec.ParentRefs, carries: route.Anything}
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		out.rules = append(out.rules, connectionRule(string(value(r.Name)), r.BackendRefs, route.Rule{Carries: route.Anything}))
	}
	return out.single()
}

// readTLS reads a route of connections of TLS, which are passed on as they are.
func readTLS(k source.Ref, o *gatewayv1.TLSRoute) *object {
	out := &object{kind: source.TLSRoute.Kind, ref: k, created: o.CreationTimestamp.UTC(), parents: o.Spec.ParentRefs, carries: route.TLS}
	for _, h := range o.Spec.Hostnames {
		out.names = append(out.names, strings.ToLower(string(h)))
	}
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		out.rules = append(out.rules, connectionRule(string(value(r.Name)), r.BackendRefs, route.Rule{Carries: route.TLS, Hosts: out.names}))
	}
	return out.single()
}

func connectionRule(name string, backends []gatewayv1.BackendRef, base route.Rule) rule {
	r := rule{name: name, base: base}
	for _, b := range backends {
		r.backends = append(r.backends, backend{ref: b.BackendObjectReference, weight: weightOf(b.Weight)})
	}
	return r
}

// single has the route have one rule, as the API does. Others fit no connection. Without
// any, connections are refused.
func (o *object) single() *object {
	if len(o.rules) == 0 {
		o.rules = []rule{connectionRule("", nil, route.Rule{Carries: o.carries, Hosts: o.names})}
	}
	for i := 1; i < len(o.rules); i++ {
		o.rules[i].drop(fmt.Sprintf("a %s has one rule", o.kind.Name))
	}
	return o
}

// targets are the Services and ServiceEntries that a route names as parents.
func (o *object) targets() (out []Target) {
	for _, p := range o.parents {
		if at, ok := o.target(p); ok && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// target returns what a parent reference names. It reports false for other kinds.
func (o *object) target(p gatewayv1.ParentReference) (Target, bool) {
	kind, known := source.KindOf(string(or(p.Group, gatewayv1.GroupName)), string(or(p.Kind, "Gateway")))
	at := Target{kind, o.ref.At(string(or(p.Namespace, gatewayv1.Namespace(o.ref.Namespace))), string(p.Name))}
	return at, known && (kind == source.Service.Kind || kind == source.ServiceEntry.Kind)
}

// names reports whether a parent reference means a port.
func names(ref *gatewayv1.ParentReference, p Port) bool {
	return (ref.Port == nil || int(*ref.Port) == int(p.Number)) && (ref.SectionName == nil || string(*ref.SectionName) == p.Name)
}

// before reports whether a route has precedence over another one.
func (o *object) before(other *object) bool {
	if c := o.created.Compare(other.created); c != 0 {
		return c < 0
	}
	return o.ref.Namespace+"/"+o.ref.Name < other.ref.Namespace+"/"+other.ref.Name
}

// takes reports whether a route takes the connections to a port of a target, for clients
// of the same namespaces as another route does.
func (o *object) takes(at Target, p Port, consumers bool, namespace string) bool {
	if own := at.Ref.Namespace != o.ref.Namespace; own != consumers || own && o.ref.Namespace != namespace {
		return false
	}
	return slices.ContainsFunc(o.parents, func(ref gatewayv1.ParentReference) bool {
		t, ok := o.target(ref)
		return ok && t == at && names(&ref, p)
	})
}

// inEffect reports whether the rule of a route of connections fits any.
func (o *object) inEffect() bool {
	return !slices.ContainsFunc(o.review(0), func(p Problem) bool { return p.Effect == Dropped })
}

// conflict is a part of what a route asks for that an older one has.
type conflict struct {
	port  Port
	names []string // of TLS; none is all of the port
	with  *object
}

// conflicts finds what older routes of the same kind have of an attachment, and whether
// that is all of it.
func (t *Tables) conflicts(r *collection.Reader, o *object, a *attachment) (out []conflict, all bool) {
	index := t.rivals[o.kind]
	if index == nil || a.dest == nil {
		return nil, false
	}
	var older []*object
	for _, rival := range collection.Lookup(r, index, a.target) {
		if rival.ref != o.ref && rival.before(o) && rival.inEffect() {
			older = append(older, rival)
		}
	}
	slices.SortFunc(older, func(x, y *object) int {
		if x.before(y) {
			return -1
		}
		return 1
	})
	all = true
	for _, p := range a.named {
		if p.Requests {
			continue
		}
		left := slices.Clone(o.names)
		whole := false
		for _, rival := range older {
			if whole || !rival.takes(a.target, p, a.consumer(o), o.ref.Namespace) {
				continue
			}
			c := conflict{port: p, with: rival}
			switch {
			case o.carries == route.Anything, len(o.names) == 0 && len(rival.names) == 0:
				whole = true
			default:
				for _, n := range rival.names {
					if i := slices.Index(left, n); i >= 0 {
						c.names, left = append(c.names, n), slices.Delete(left, i, i+1)
					}
				}
				if len(c.names) == 0 {
					continue
				}
				whole = len(left) == 0
			}
			out = append(out, c)
		}
		all = all && whole
	}
	return out, all && len(out) > 0
}

// text renders what another route has.
func (c *conflict) text() string {
	what := fmt.Sprintf("port %d", c.port.Number)
	if len(c.names) > 0 {
		what = fmt.Sprintf("%s of port %d", some(c.names), c.port.Number)
	}
	return fmt.Sprintf("%s %s, which is older, has %s", c.with.kind.Name, c.with.ref, what)
}

// conflictTexts renders conflicts, for a message.
func conflictTexts(all []conflict) string {
	texts := make([]string, 0, len(all))
	for i := range all {
		texts = append(texts, all[i].text())
	}
	return some(texts)
}
