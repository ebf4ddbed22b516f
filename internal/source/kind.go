package source

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Kind describes one kind of object: its names, how it is read, and how the
// mesh treats it. There is one value per kind, and its address is the kind's
// identity: two kinds may share a name when their groups differ.
type Kind struct {
	Name   string // as manifests write it
	Group  string // of its API; empty for the core of Kubernetes
	Plural string // its resource in URLs and in roles
	// Versions are those that are read, the preferred one first.
	Versions   []string
	Namespaced bool
	// Builtin kinds are part of every Kubernetes, which validates them. All
	// others may be missing.
	Builtin bool
	// Shared kinds are those of APIs that other controllers use as well. Their
	// schema may be newer than the one here, so that admission and the command
	// line ignore fields that they cannot read.
	Shared bool
	// MetadataOnly kinds are read from the Kubernetes API without spec and
	// status.
	MetadataOnly bool
	// LabelName requires names that are DNS labels; others are DNS subdomains.
	LabelName bool
	// Revisioned objects may be meant for one revision of the control plane.
	Revisioned bool
	// Protects marks kinds whose objects restrict: without one, more would be
	// allowed. Their last good state outlives a restart.
	Protects bool
	// StatusWritten kinds get a status from the control plane in the Kubernetes
	// API. Package registry has what it says.
	StatusWritten bool

	// New returns an empty object.
	New func() metav1.Object
	// Messages returns the parts of an object that are protobuf messages, which
	// protobuf's strict reader must read. Nil for kinds of plain JSON.
	Messages func(metav1.Object) (spec, status proto.Message)
	// Finish completes an object whose spec was read from the JSON spec. Nil
	// for kinds that need nothing.
	Finish func(obj metav1.Object, spec []byte)
	// Default fills in what the API server would. Nil for kinds without
	// defaults.
	Default func(metav1.Object)
	// Close turns a spec that could not be read into the strictest one for the
	// same workloads, and reports whether it could. fields is the JSON of the
	// spec, read reads what Close left of it. Nil for kinds that do not protect.
	Close func(spec proto.Message, fields map[string]any, read func(map[string]any) error) bool
	// Trim returns the part of an object that programs of the mesh read. Nil
	// keeps all of it.
	Trim func(*Interner, metav1.Object) metav1.Object
	// Same reports whether two objects differ in nothing but their
	// resourceVersion. It reports false for protobuf messages, which do not
	// compare.
	Same func(a, b metav1.Object) bool
}

// Of is a kind whose objects have the type T.
type Of[T metav1.Object] struct{ *Kind }

// Key returns the key of an object of the kind.
func (o Of[T]) Key(namespace, name string) Key {
	return Key{Kind: o.Kind, Namespace: namespace, Name: name}
}

// registered are all kinds, by the identity that manifests have, and by the
// type of their objects.
var registered = struct {
	list   []*Kind
	byType map[reflect.Type]*Kind
}{byType: map[reflect.Type]*Kind{}}

// object is a pointer type *T that has metadata.
type object[T any] interface {
	*T
	metav1.Object
}

// register adds a kind whose objects are of type T to Kinds.
func register[T any, P object[T]](k Kind) Of[P] {
	if other, taken := KindOf(k.Group, k.Name); taken {
		panic(fmt.Sprintf("source: kind %s of group %q is registered twice", other.Name, other.Group))
	}
	k.New = func() metav1.Object { return P(new(T)) }
	k.Same = never
	if k.Messages == nil {
		k.Same = sameBut[T, P]
	}
	kind := &k
	registered.list = append(registered.list, kind)
	slices.SortFunc(registered.list, (*Kind).Compare)
	registered.byType[reflect.TypeFor[P]()] = kind
	return Of[P]{kind}
}

func never(_, _ metav1.Object) bool { return false }

// sameBut compares objects of one type but for their resourceVersion.
func sameBut[T any, P object[T]](a, b metav1.Object) bool {
	x, okA := a.(P)
	y, okB := b.(P)
	if !okA || !okB {
		return false
	}
	left, right := *x, *y
	P(&left).SetResourceVersion("")
	P(&right).SetResourceVersion("")
	return equality.Semantic.DeepEqual(left, right)
}

// messages makes a Kind.Messages of a function that needs no type assertion.
func messages[P metav1.Object](parts func(P) (spec, status proto.Message)) func(metav1.Object) (spec, status proto.Message) {
	return func(obj metav1.Object) (spec, status proto.Message) { return parts(obj.(P)) }
}

// trim makes a Kind.Trim of a function that needs no type assertion.
func trim[P, O metav1.Object](f func(*Interner, P) O) func(*Interner, metav1.Object) metav1.Object {
	return func(in *Interner, obj metav1.Object) metav1.Object { return f(in, obj.(P)) }
}

// trimMeta makes a Kind.Trim of a function that reads metadata only.
func trimMeta[O metav1.Object](f func(*Interner, *metav1.ObjectMeta) O) func(*Interner, metav1.Object) metav1.Object {
	return func(in *Interner, obj metav1.Object) metav1.Object { return f(in, Meta(obj)) }
}

// defaults makes a Kind.Default of a function that needs no type assertion.
func defaults[P metav1.Object](f func(P)) func(metav1.Object) {
	return func(obj metav1.Object) { f(obj.(P)) }
}

// Meta returns the metadata of an object, to be read into or read from.
func Meta(obj metav1.Object) *metav1.ObjectMeta {
	if a, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if m, ok := a.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return m
		}
	}
	return &metav1.ObjectMeta{}
}

// Kinds returns the kinds that the mesh reads, ordered by name and group. The
// slice is the caller's.
func Kinds() []*Kind { return slices.Clone(registered.list) }

// KindOf returns the kind of a group and name.
func KindOf(group, name string) (k *Kind, ok bool) {
	for _, k := range registered.list {
		if k.Name == name && k.Group == group {
			return k, true
		}
	}
	return nil, false
}

// KindFor returns the kind of an object by its Go type.
func KindFor(obj metav1.Object) (k *Kind, ok bool) {
	k, ok = registered.byType[reflect.TypeOf(obj)]
	return k, ok
}

// KeyOf returns the key of an object by its Go type; ok is false for a type
// that is not one of Kinds.
func KeyOf(obj metav1.Object) (key Key, ok bool) {
	k, ok := KindFor(obj)
	if !ok {
		return Key{}, false
	}
	key = Key{Kind: k, Name: obj.GetName()}
	if k.Namespaced {
		key.Namespace = obj.GetNamespace()
	}
	return key, true
}

// Compare orders kinds by name, then group.
func (k *Kind) Compare(o *Kind) int {
	return cmp.Or(strings.Compare(k.name(), o.name()), strings.Compare(k.group(), o.group()))
}

func (k *Kind) name() string {
	if k == nil {
		return ""
	}
	return k.Name
}

func (k *Kind) group() string {
	if k == nil {
		return ""
	}
	return k.Group
}

// String returns the name of the kind. Where a kind of Kinds has the same name,
// and the other one's group is the first of the two, a dot and the group follow.
func (k *Kind) String() string {
	if k == nil {
		return ""
	}
	for _, o := range registered.list {
		if o != k && o.Name == k.Name && o.Group < k.Group {
			return k.Name + "." + k.Group
		}
	}
	return k.Name
}

// MarshalText makes a kind its String in JSON.
func (k *Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// APIVersion returns group/version as manifests write it.
func (k *Kind) APIVersion() string {
	if k.Group == "" {
		return k.Versions[0]
	}
	return k.Group + "/" + k.Versions[0]
}

// Is reports whether a manifest's apiVersion and kind name this kind.
func (k *Kind) Is(apiVersion, name string) bool {
	group, version, found := strings.Cut(apiVersion, "/")
	if !found {
		group, version = "", apiVersion
	}
	return k.Name == name && k.Group == group && slices.Contains(k.Versions, version)
}
