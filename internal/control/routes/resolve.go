package routes

import (
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// attachment is what a route is at one of its parents.
type attachment struct {
	ref    gatewayv1.ParentReference
	target Target
	dest   *Destination  // nil when it is not attached
	ports  []wire.Parent // whose requests it is for
	named  []Port        // of the destination
	// taken is what older routes have of it.
	taken []conflict
	// refused is why it is not attached.
	refused *status.Condition
}

// attach finds what a parent reference means. It reports false for what other
// controllers answer for: Gateways of other classes, and kinds that the mesh
// does not have.
func (t *Tables) attach(r *collection.Reader, o *object, ref gatewayv1.ParentReference) (attachment, bool) {
	kind, known := source.KindOf(string(or(ref.Group, gatewayv1.GroupName)), string(or(ref.Kind, "Gateway")))
	if !known {
		return attachment{}, false
	}
	// The API server gives both to references without them.
	group, name := gatewayv1.Group(kind.Group), gatewayv1.Kind(kind.Name)
	ref.Group, ref.Kind = &group, &name
	at := Target{kind, o.ref.At(string(or(ref.Namespace, gatewayv1.Namespace(o.ref.Namespace))), string(ref.Name))}
	a := attachment{ref: ref, target: at}
	switch kind {
	case source.Gateway.Kind:
		a.refuse(status.ReasonNotAllowedByListeners, "the listener of a waypoint admits no routes: name as the parent the Service or the ServiceEntry whose requests the route is for")
		return a, t.in.Waypoint(r, at.Ref)
	case source.Service.Kind, source.ServiceEntry.Kind:
	default:
		return a, false
	}
	d, there := collection.Fetch(r, t.in.Destinations, at)
	if !there {
		a.refuse(status.ReasonNoMatchingParent, "there is no %s", at)
		return a, true
	}
	a.bind(o, d)
	return a, !d.Foreign
}

func (a *attachment) refuse(reason, format string, args ...any) {
	c := status.No(status.Accepted, reason, format, args...)
	a.refused = &c
}

// bind attaches the route to the ports that it names, all by default.
func (a *attachment) bind(o *object, d *Destination) {
	for _, p := range d.Ports {
		if names(&a.ref, p) {
			a.named = append(a.named, p)
		}
	}
	if len(a.named) == 0 {
		a.refuse(status.ReasonNoMatchingParent, "%s has no such port: its TCP ports are %s", a.target, portList(d.Ports))
		return
	}
	a.dest = d
	clients := ""
	if a.consumer(o) {
		clients = o.ref.Namespace
	}
	for _, h := range d.Hosts {
		for _, p := range a.named {
			a.ports = append(a.ports, wire.Parent{Port: route.PortKey{Namespace: a.target.Ref.Namespace, Hostname: h, Port: p.Number}, Clients: clients})
		}
	}
}

// consumer reports whether a route changes what clients of its own namespace
// send to a service of another (GEP-1294).
func (a *attachment) consumer(o *object) bool { return a.target.Ref.Namespace != o.ref.Namespace }

func portList(ports []Port) string {
	if len(ports) == 0 {
		return "none"
	}
	var out []string
	for _, p := range ports {
		out = append(out, fmt.Sprint(p.Number))
	}
	return strings.Join(out, ", ")
}

// issue is what is wrong with a reference to a backend.
type issue struct{ reason, text string }

// findings are what a route's author has to know of its rules.
type findings struct {
	refs    []issue
	partial []string // of rules that are not executed as they are written
	broken  int      // rules of which no request reaches a backend as it is written
}

func (o *object) origin(i int) wire.Origin {
	return wire.Origin{Kind: o.kind.Name, Namespace: o.ref.Namespace, Name: o.ref.Name, Rule: i, RuleName: o.rules[i].name, Created: o.created}
}

// finish resolves the references of a rule. The rule has no parents yet.
func (t *Tables) finish(r *collection.Reader, o *object, i int, found *findings) *wire.Rule {
	in := &o.rules[i]
	w := &wire.Rule{
		Origin: o.origin(i),
		Rule:   in.base,
	}
	for _, b := range in.backends {
		w.Rule.Backends = append(w.Rule.Backends, t.backend(r, o, i, b, found))
	}
	w.Rule.Filters.Mirrors = nil
	for _, m := range in.mirrors {
		name, bad := t.lookUp(r, o, m.ref)
		if bad != nil {
			found.refs = append(found.refs, issue{bad.reason, fmt.Sprintf("rule %d: no copies are sent to a mirror: %s", i, bad.text)})
			continue
		}
		w.Rule.Filters.Mirrors = append(w.Rule.Filters.Mirrors, route.Mirror{Backend: route.Backend{Name: name}, Numerator: m.numerator, Denominator: m.denominator})
	}
	t.authorize(r, o, i, w, found)
	switch effect, why := settle(w, in); {
	case why == "":
		for _, b := range in.backends {
			if b.failing != "" {
				found.partial = append(found.partial, fmt.Sprintf("Rule %d: %s; the share of this backend is %s", i, b.failing, o.refusal()))
			}
		}
		for _, text := range in.without {
			found.partial = append(found.partial, fmt.Sprintf("Rule %d: %s", i, text))
		}
	case effect == Dropped:
		found.partial = append(found.partial, fmt.Sprintf("Dropped Rule %d: %s; %s", i, why, o.otherwise()))
		found.broken++
	default:
		found.partial = append(found.partial, fmt.Sprintf("Dropped Rule %d: %s; its %s are %s", i, why, o.what(), o.refusal()))
		found.broken++
	}
	return w
}

// settle makes a rule that gateways accept of one that they would not, and
// returns why: without the matches it fits no request, without the rest it fails
// those that it fits.
func settle(w *wire.Rule, in *rule) (e Effect, why string) {
	contents := w.Rule
	why = in.dropped
	if why == "" {
		w.Rule = route.Rule{Guarded: contents.Guarded, GRPC: contents.GRPC, Matches: contents.Matches, Carries: contents.Carries, Hosts: contents.Hosts}
		why = fault(w)
	}
	if why != "" {
		w.Dropped, w.Rule = why, route.Rule{Guarded: contents.Guarded, GRPC: contents.GRPC, Carries: contents.Carries}
		return Dropped, why
	}
	w.Rule = contents
	why = in.failing
	if why == "" {
		why = fault(w)
	}
	if why != "" {
		w.Rule = route.Rule{Guarded: contents.Guarded, GRPC: contents.GRPC, Matches: contents.Matches, Carries: contents.Carries, Hosts: contents.Hosts, Backends: []route.Backend{{Weight: 1, Invalid: why}}}
	}
	return Failing, why
}

// fault returns why gateways do not execute a rule that has no parents yet.
func fault(w *wire.Rule) string {
	try := *w
	try.Parents = []wire.Parent{{Port: route.PortKey{Namespace: "any", Hostname: "any", Port: 1}}}
	if err := try.Check(); err != nil {
		return err.Error()
	}
	return ""
}

// backend resolves a reference. One that is refused keeps its share, which is
// answered with 500.
func (t *Tables) backend(r *collection.Reader, o *object, i int, b backend, found *findings) route.Backend {
	out := route.Backend{Weight: b.weight, Filters: b.filters}
	if b.failing != "" {
		out.Invalid, out.Filters = b.failing, route.Filters{}
		return out
	}
	name, bad := t.lookUp(r, o, b.ref)
	if bad != nil {
		out.Invalid = bad.text
		found.refs = append(found.refs, issue{bad.reason, fmt.Sprintf("rule %d: %s", i, bad.text)})
		return out
	}
	out.Name = name
	return out
}

// lookUp returns the name of the upstream that a reference names, or what is
// wrong with the reference.
func (t *Tables) lookUp(r *collection.Reader, o *object, ref gatewayv1.BackendObjectReference) (string, *issue) {
	no := func(reason, format string, args ...any) (string, *issue) {
		return "", &issue{reason, fmt.Sprintf(format, args...)}
	}
	group, name := string(value(ref.Group)), string(or(ref.Kind, "Service"))
	kind, _ := source.KindOf(group, name)
	if kind != source.Service.Kind && kind != source.ServiceEntry.Kind {
		return no(status.ReasonInvalidKind, "kind %s of group %q is no backend: name a Service or a ServiceEntry", name, group)
	}
	at := Target{kind, o.ref.At(string(or(ref.Namespace, gatewayv1.Namespace(o.ref.Namespace))), string(ref.Name))}
	if !t.permitted(r, o, at) { // before the look-up: whether it exists is not the author's business
		return no(status.ReasonRefNotPermitted, "%s is of another namespace, which does not permit it: create a ReferenceGrant there, from %s of namespace %s", at, o.kind.Name, o.ref.Namespace)
	}
	d, there := collection.Fetch(r, t.in.Destinations, at)
	switch {
	case !there:
		return no(status.ReasonBackendNotFound, "there is no %s", at)
	case ref.Port == nil:
		return no(status.ReasonBackendNotFound, "%s: no port is given", at)
	case !slices.ContainsFunc(d.Ports, func(p Port) bool { return int(p.Number) == int(*ref.Port) }):
		return no(status.ReasonBackendNotFound, "%s has no port %d: its TCP ports are %s", at, *ref.Port, portList(d.Ports))
	case len(d.Hosts) != 1 || strings.Contains(d.Hosts[0], "*"):
		return no(status.ReasonBackendNotFound, "%s has the hosts %s: a backend has one, without a wildcard", at, strings.Join(d.Hosts, ", "))
	}
	return route.PortKey{Namespace: at.Ref.Namespace, Hostname: d.Hosts[0], Port: uint16(*ref.Port)}.UpstreamName(), nil
}

// permitted reports whether a route may send to a backend: to its own namespace,
// back to the service that the client called, and where a ReferenceGrant says
// so. A gateway sends with its own identity, so that a route could reach what
// its author could not.
func (t *Tables) permitted(r *collection.Reader, o *object, to Target) bool {
	if to.Ref.Namespace == o.ref.Namespace {
		return true
	}
	for _, p := range o.parents {
		kind, _ := source.KindOf(string(or(p.Group, gatewayv1.GroupName)), string(or(p.Kind, "Gateway")))
		if kind == to.Kind && string(value(p.Namespace)) == to.Ref.Namespace && string(p.Name) == to.Ref.Name {
			return true
		}
	}
	granted := false
	for _, g := range collection.Lookup(r, t.grants, to.Ref.Namespace) {
		granted = granted || grants(&g.Spec, o, to)
	}
	return granted
}

func grants(g *gatewayv1.ReferenceGrantSpec, o *object, to Target) bool {
	from := slices.ContainsFunc(g.From, func(f gatewayv1.ReferenceGrantFrom) bool {
		return string(f.Group) == o.kind.Group && string(f.Kind) == o.kind.Name && string(f.Namespace) == o.ref.Namespace
	})
	return from && slices.ContainsFunc(g.To, func(t gatewayv1.ReferenceGrantTo) bool {
		return string(t.Group) == to.Kind.Group && string(t.Kind) == to.Kind.Name && (value(t.Name) == "" || string(*t.Name) == to.Ref.Name)
	})
}

// result decides about one route: its rules for each gateway, and its status.
func (t *Tables) result(r *collection.Reader, o *object) *Result {
	var found findings
	rules := make([]*wire.Rule, 0, len(o.rules))
	for i := range o.rules {
		rules = append(rules, t.finish(r, o, i, &found))
	}
	var attached []attachment
	parents := map[source.Ref][]wire.Parent{}
	for _, ref := range o.parents {
		a, ours := t.attach(r, o, ref)
		if !ours {
			continue
		}
		taken, all := t.conflicts(r, o, &a)
		if a.taken = taken; all {
			a.refuse(status.ReasonConflicted, "%s", conflictTexts(taken))
		}
		attached = append(attached, a)
		if a.dest == nil {
			continue
		}
		for _, gateway := range a.dest.Gateways() {
			list := parents[gateway]
			for _, p := range a.ports {
				if !slices.Contains(list, p) {
					list = append(list, p)
				}
			}
			parents[gateway] = list
		}
	}
	out := &Result{}
	send := func(list []wire.Parent, resource func(*wire.Rule) (*xds.Resource, error)) {
		for _, rule := range rules {
			w := *rule
			w.Parents = list
			res, err := resource(&w)
			if err != nil { // too many parents: all else was checked
				found.partial = append(found.partial, fmt.Sprintf("Dropped Rule %d: %v", w.Origin.Rule, err))
				continue
			}
			out.resources = append(out.resources, res)
		}
	}
	for gateway, list := range parents {
		send(list, func(w *wire.Rule) (*xds.Resource, error) { return t.resource(gateway, w) })
	}
	t.toNodes(r, o, attached, send)
	for i := range attached {
		out.Parents = append(out.Parents, Parent{attached[i].ref, o.conditions(&attached[i], &found)})
	}
	return out
}
