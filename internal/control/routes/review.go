package routes

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Effect is what becomes of a rule that is not executed as it is written.
type Effect uint8

// The effects.
const (
	Dropped Effect = iota // it fits no request
	Failing               // its requests, or the share of a backend, are answered with 500
	Without               // it is executed without a part
)

// Problem is what is wrong with a rule, whatever other objects there are.
type Problem struct {
	Rule   int
	Effect Effect
	Text   string
}

// Review is what can be said of a route by itself.
type Review struct {
	Problems []Problem
	// Mesh reports that a parent is a Service or a ServiceEntry, and Only that all
	// are.
	Mesh, Only bool
	Hostnames  bool // the route has some, which have no meaning for such a parent
	// Refusal is what becomes of the requests or connections of a rule that is not executed.
	Refusal string
}

// Check reviews a route. It reports false for other objects.
func Check(obj metav1.Object) (Review, bool) {
	ref := source.Ref{Namespace: obj.GetNamespace(), Name: obj.GetName()}
	var o *object
	switch r := obj.(type) {
	case *gatewayv1.HTTPRoute:
		o = readHTTP(ref, r)
	case *gatewayv1.GRPCRoute:
		o = readGRPC(ref, r)
	case *gatewayv1.TLSRoute:
		o = readTLS(ref, r)
	case *gatewayv1.TCPRoute:
		o = readTCP(ref, r)
	default:
		return Review{}, false
	}
	out := Review{Refusal: o.what() + " are " + o.refusal(), Hostnames: o.hostnames, Only: len(o.parents) > 0}
	for _, p := range o.parents {
		kind, _ := source.KindOf(string(or(p.Group, gatewayv1.GroupName)), string(or(p.Kind, "Gateway")))
		service := kind == source.Service.Kind || kind == source.ServiceEntry.Kind
		out.Mesh, out.Only = out.Mesh || service, out.Only && service
	}
	for i := range o.rules {
		out.Problems = slices.Concat(out.Problems, o.review(i))
	}
	return out, true
}

// review returns the problems of one rule, whose references all exist.
func (o *object) review(i int) (out []Problem) {
	in := &o.rules[i]
	w := &wire.Rule{Origin: o.origin(i), Rule: in.base}
	for _, b := range in.backends {
		to := route.Backend{Name: someUpstream, Weight: b.weight, Filters: b.filters}
		if b.failing != "" {
			to = route.Backend{Weight: b.weight, Invalid: b.failing}
			out = append(out, Problem{i, Failing, b.failing})
		}
		w.Rule.Backends = append(w.Rule.Backends, to)
	}
	for _, text := range in.without {
		out = append(out, Problem{i, Without, text})
	}
	if effect, why := settle(w, in); why != "" {
		out = append(out, Problem{i, effect, why})
	}
	return out
}

// someUpstream stands for one that exists.
var someUpstream = route.PortKey{Namespace: "any", Hostname: "any", Port: 1}.UpstreamName()
