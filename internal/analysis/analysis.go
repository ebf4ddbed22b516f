// Package analysis finds what is wrong, or not what it seems, in a set of
// objects: files that are not applied yet, or all that a cluster has. It says
// what admission says about single objects, what the control plane says about
// them together, and what neither looks at, such as network policies. It is
// pure: the same objects give the same findings.
package analysis

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	networkingk8s "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/admission"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// Severity says how much a finding matters.
type Severity string

// The severities.
const (
	Error   Severity = "Error"   // something does not work, or is not protected
	Warning Severity = "Warning" // something is other than it reads
	Info    Severity = "Info"    // worth knowing
)

// AtLeast reports whether s is as grave as o.
func (s Severity) AtLeast(o Severity) bool { return s.rank() >= o.rank() }

func (s Severity) rank() int {
	switch s {
	case Error:
		return 2
	case Warning:
		return 1
	case Info:
	}
	return 0
}

// Finding is one thing to say about one object.
type Finding struct {
	Code     string     `json:"code"`
	Istio    string     `json:"istioCode,omitempty"` // of the same finding of istioctl
	Severity Severity   `json:"severity"`
	Object   source.Key `json:"-"` // see MarshalJSON
	File     string     `json:"file,omitempty"`
	Line     int        `json:"line,omitempty"`
	Field    string     `json:"field,omitempty"`
	Message  string     `json:"message"`
	Next     string     `json:"next,omitempty"`
}

// MarshalJSON writes the object with the names that manifests have.
func (f Finding) MarshalJSON() ([]byte, error) {
	type object struct {
		Kind      string `json:"kind"`
		Namespace string `json:"namespace,omitempty"`
		Name      string `json:"name"`
	}
	type plain Finding // without this method
	out := struct {
		plain
		Object *object `json:"object,omitempty"`
	}{plain: plain(f)}
	if f.Object != (source.Key{}) {
		out.Object = &object{f.Object.Kind.String(), f.Object.Namespace, f.Object.Name}
	}
	return json.Marshal(out)
}

// Options describe the mesh; zero values mean the defaults.
type Options struct {
	RootNamespace string // default istio-system
	TrustDomain   string // default cluster.local
	// TrustDomainAliases stand for TrustDomain in policies.
	TrustDomainAliases []string
	ClusterDomain      string   // default cluster.local
	ExcludeNamespaces  []string // never enrolled; default kube-system
	// DiscoverySelectors choose, by their labels, the namespaces that the
	// control plane looks at beside the root namespace; none of them: all.
	DiscoverySelectors []metav1.LabelSelector
	// Authorizers returns why no external authorizer of this name can be asked; nil when
	// the mesh's settings are not known.
	Authorizers func(name string) error
	// Partial tells that there are other objects beside these (files that are
	// to be applied to a cluster): what is missing is not held against them
	// unless there are others of its kind.
	Partial bool
}

func (o Options) withDefaults() Options {
	o.RootNamespace = cmp.Or(o.RootNamespace, wellknown.SystemNamespace)
	o.TrustDomain = cmp.Or(o.TrustDomain, identity.DefaultTrustDomain)
	o.ClusterDomain = cmp.Or(o.ClusterDomain, wellknown.DefaultDomain)
	if o.ExcludeNamespaces == nil {
		o.ExcludeNamespaces = []string{"kube-system"}
	}
	return o
}

// Unread is an object of a kind that the mesh knows and does not read.
type Unread struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   map[string]any `json:"spec,omitempty"`
	Status map[string]any `json:"status,omitempty"`
}

// NetworkPolicy is a kind that analysis reads in addition to source.Kinds.
var NetworkPolicy = &source.Kind{
	Name: "NetworkPolicy", Group: networkingk8s.GroupName, Plural: "networkpolicies", Versions: []string{"v1"}, Namespaced: true, Builtin: true,
	New: func() metav1.Object { return &networkingk8s.NetworkPolicy{} },
}

// kinds are read in addition to source.Kinds: network policies, and what has no
// effect in the mesh.
var kinds = func() []*source.Kind {
	all := []*source.Kind{NetworkPolicy}
	for _, gk := range admission.UnreadKinds() {
		plural, _ := meta.UnsafeGuessKindToResource(gk.WithVersion("v1"))
		all = append(all, &source.Kind{Name: gk.Kind, Group: gk.Group, Plural: plural.Resource, Versions: []string{"v1", "v1beta1", "v1alpha3", "v1alpha1"}, Namespaced: true, Shared: true,
			New: func() metav1.Object { return &Unread{} }})
	}
	slices.SortFunc(all, (*source.Kind).Compare)
	return all
}()

// Kinds returns the kinds to give to Analyze in addition to source.Kinds,
// ordered by name.
func Kinds() []*source.Kind { return slices.Clone(kinds) }

// Problem turns what file.Load could not read into a finding; ok is false for
// a file's objects that are nobody's business.
func Problem(p file.Problem) (f Finding, ok bool) {
	if p.Ignored {
		return Finding{}, false
	}
	f = codeMalformed.finding(source.Key{}, p.Field, p.Message, "correct it; until then the object is not what you meant, or not there")
	f.File, f.Line = p.File, p.Line
	return f, true
}

// Analyze returns what there is to say about objects, the gravest first, then
// by object. Events without an object are skipped.
func Analyze(events []source.Event, opts Options) []Finding {
	m := newMesh(events, opts.withDefaults())
	for _, analyzer := range []func(*mesh){
		(*mesh).judged, (*mesh).verdicts, (*mesh).enrolment, (*mesh).outbound, (*mesh).egressHosts, (*mesh).lookedUpHosts, (*mesh).ports,
		(*mesh).selectors, (*mesh).names, (*mesh).targets, (*mesh).keys, (*mesh).authorizers, (*mesh).hosts, (*mesh).ranges, (*mesh).endpoints, (*mesh).strict, (*mesh).networkPolicies,
		(*mesh).revisions,
	} {
		analyzer(m)
	}
	m.dropRepeated()
	slices.SortStableFunc(m.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity.rank(), a.Severity.rank()), a.Object.Compare(b.Object),
			strings.Compare(a.Code, b.Code), strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(m.findings, func(a, b Finding) bool { return a == b })
}

// dropRepeated removes the remark that only a waypoint enforces a policy from
// those of which it was found that none does.
func (m *mesh) dropRepeated() {
	nowhere := map[source.Key]bool{}
	for _, f := range m.findings {
		if f.Code == codeEnforcedNowhere.id || f.Code == codeNoTarget.id {
			nowhere[f.Object] = true
		}
	}
	m.findings = slices.DeleteFunc(m.findings, func(f Finding) bool { return f.Code == codeElsewhere.id && nowhere[f.Object] })
}

// report adds a finding about an object.
func (m *mesh) report(c code, key source.Key, field, message, next string) {
	f := c.finding(key, field, message, next)
	if origin := m.origins[key]; origin != "" {
		f.File = origin
		if i := strings.LastIndexByte(origin, ':'); i >= 0 {
			if n, err := strconv.Atoi(origin[i+1:]); err == nil {
				f.File, f.Line = origin[:i], n
			}
		}
	}
	m.findings = append(m.findings, f)
}
