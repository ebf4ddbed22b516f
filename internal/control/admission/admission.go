// Package admission judges configuration before it is stored: what cannot mean
// what its author wrote is refused, and what is enforced otherwise than written
// is stored with a warning that says how. It knows one object at a time; what
// is wrong between objects is for package analysis.
package admission

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// Class is what kind of thing a Finding says.
type Class uint8

// The classes. The first two are mistakes; the others are not, but somebody
// who reads only the object would be wrong about what happens.
const (
	Malformed   Class = iota // an unknown field, or a value of the wrong type
	Invalid                  // a value that means nothing
	Unread                   // a kind of object that has no effect here
	Ignored                  // a part that has no effect, or the object as a whole
	Narrowed                 // rules that allow less than written
	Widened                  // rules that deny more than written
	DeniesAll                // a DENY rule that refuses every connection
	Elsewhere                // enforced only by a waypoint
	Ineffectual              // an object that is valid and decides nothing
	Failing                  // a rule of a route whose requests are answered with an error
)

// Refuses reports whether an object with such a finding is not stored.
func (c Class) Refuses() bool { return c <= Invalid }

// Finding is one thing to say about an object.
type Finding struct {
	Class   Class
	Field   string // path from the top of the object; empty for all of it
	Message string
	Next    string // what to do
}

// String renders field: message; next.
func (f Finding) String() string {
	s := f.Message
	if f.Field != "" {
		s = f.Field + ": " + s
	}
	if f.Next != "" {
		s += "; " + f.Next
	}
	return s
}

// Result is the answer to the API server.
type Result struct {
	Allowed  bool
	Message  string // why not; empty when allowed
	Warnings []string
}

// Bounds of an answer. The API server cuts warnings that are longer, and drops
// those beyond 4 KiB.
const (
	maxMistakes = 10
	maxWarnings = 12
	maxWarning  = 256
)

// Reviewer judges. The zero value has the defaults of an installation.
type Reviewer struct {
	RootNamespace string // default istio-system
	// Addresses has what the mesh knows of addresses; nil warns of none.
	Addresses AddressBook
}

// AddressBook has who owns which address.
type AddressBook interface {
	// Clashes returns what other namespaces have in an address or range, for
	// people: at most a few, and the number of the others.
	Clashes(namespace string, p netip.Prefix) (owners []string, more int)
}

// Review judges an object with the defaults of an installation.
func Review(obj []byte, gvk schema.GroupVersionKind) Result { return Reviewer{}.Review(obj, gvk) }

// Review judges one object, as JSON. Kinds that the mesh knows nothing about
// are allowed.
func (r Reviewer) Review(obj []byte, gvk schema.GroupVersionKind) Result {
	name, findings := r.review(obj, gvk)
	return result(name, findings)
}

// ReviewUpdate judges a change. What was stored before with the same mistakes
// (by an older version, or while nobody was asked) may still be labelled,
// finalized and deleted.
func (r Reviewer) ReviewUpdate(old, obj []byte, gvk schema.GroupVersionKind) Result {
	name, findings := r.review(obj, gvk)
	out := result(name, findings)
	if out.Allowed || !sameMeaning(old, obj) {
		return out
	}
	for i := range findings {
		if findings[i].Class.Refuses() {
			findings[i].Class = Ignored
			findings[i].Message = "was stored before and would be refused now: " + findings[i].Message
		}
	}
	return result(name, findings)
}

func (r Reviewer) review(data []byte, gvk schema.GroupVersionKind) (name string, findings []Finding) {
	if f, known := unread(gvk.Group, gvk.Kind); known {
		return "", []Finding{f}
	}
	kind, known := source.KindOf(gvk.Group, gvk.Kind)
	if !known || kind.Builtin {
		return "", nil
	}
	if kind.Shared {
		shared := kind.New()
		if json.Unmarshal(data, shared) != nil {
			return "", nil
		}
		return title(kind, shared), r.Check(shared)
	}
	obj, problems := file.DecodeJSON(kind, data)
	if obj == nil {
		for _, p := range problems {
			findings = append(findings, Finding{Malformed, p.Field, p.Message, ""})
		}
		var named metav1.PartialObjectMetadata
		_ = json.Unmarshal(data, &named) // as far as it can be read
		return title(kind, &named), findings
	}
	return title(kind, obj), r.Check(obj)
}

func title(kind *source.Kind, obj metav1.Object) string {
	return kind.Name + " " + obj.GetNamespace() + "/" + cmp.Or(obj.GetName(), obj.GetGenerateName())
}

// checks judge what the schema of a kind leaves open. A kind that is not here is
// only read, strictly.
var checks = map[*source.Kind]func(*checker, metav1.Object){
	source.AuthorizationPolicy.Kind:   check((*checker).authorizationPolicy),
	source.PeerAuthentication.Kind:    check((*checker).peerAuthentication),
	source.RequestAuthentication.Kind: check((*checker).requestAuthentication),
	source.Telemetry.Kind:             check((*checker).telemetry),
	source.DestinationRule.Kind:       check((*checker).destinationRule),
	source.RateLimit.Kind:             check((*checker).rateLimit),
	source.EgressPolicy.Kind:          check((*checker).egressPolicy),
	source.ServiceEntry.Kind:          check((*checker).serviceEntry),
	source.WorkloadEntry.Kind:         check((*checker).workloadEntry),
	source.Gateway.Kind:               check((*checker).gateway),
	source.HTTPRoute.Kind:             (*checker).route,
	source.GRPCRoute.Kind:             (*checker).route,
	source.TLSRoute.Kind:              (*checker).route,
	source.TCPRoute.Kind:              (*checker).route,
}

func check[P metav1.Object](f func(*checker, P)) func(*checker, metav1.Object) {
	return func(c *checker, obj metav1.Object) { f(c, obj.(P)) }
}

// Check judges an object that has been read already.
func (r Reviewer) Check(obj metav1.Object) []Finding {
	c := &checker{root: cmp.Or(r.RootNamespace, wellknown.SystemNamespace), book: r.Addresses}
	if kind, known := source.KindFor(obj); known && checks[kind] != nil {
		checks[kind](c, obj)
	}
	return c.findings
}

// checker collects what there is to say about one object.
type checker struct {
	root     string
	book     AddressBook // may be nil
	findings []Finding
}

func (c *checker) say(class Class, field, next, format string, args ...any) {
	c.findings = append(c.findings, Finding{class, field, fmt.Sprintf(format, args...), next})
}

func (c *checker) invalid(field, format string, args ...any) {
	c.say(Invalid, field, "", format, args...)
}

func result(name string, findings []Finding) Result {
	var mistakes []string
	out := Result{}
	for _, f := range findings {
		if f.Class.Refuses() {
			mistakes = append(mistakes, f.String())
		} else {
			out.Warnings = append(out.Warnings, cut(f.String(), maxWarning))
		}
	}
	out.Warnings = bounded(out.Warnings, maxWarnings)
	if len(mistakes) == 0 {
		out.Allowed = true
		return out
	}
	out.Message = name + ": " + strings.Join(bounded(mistakes, maxMistakes), "; ")
	return out
}

func bounded(list []string, most int) []string {
	if len(list) <= most {
		return list
	}
	return append(list[:most-1:most-1], fmt.Sprintf("and %d more", len(list)-most+1))
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len("…")], "") + "…"
}

// sameMeaning reports whether two versions of an object ask for the same.
func sameMeaning(a, b []byte) bool {
	type meaning struct {
		Spec     any `json:"spec"`
		Metadata struct {
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	var x, y meaning
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return reflect.DeepEqual(x.Spec, y.Spec) &&
		x.Metadata.Annotations[wellknown.AnnotationDryRun] == y.Metadata.Annotations[wellknown.AnnotationDryRun]
}
