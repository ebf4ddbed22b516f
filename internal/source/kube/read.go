package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/internal/source"
)

// reader turns what clients return into what is kept. It belongs to one feed.
type reader struct {
	kind    *source.Kind
	strings *source.Interner
}

// item reads one object. The error is one of the conversation, not of the
// object.
func (r reader) item(o runtime.Object) (item, error) {
	m, ok := o.(metav1.Object)
	if !ok {
		return item{}, fmt.Errorf("%s: the Kubernetes API sent a %T", r.kind, o)
	}
	it := item{name: name{m.GetNamespace(), m.GetName()}, rv: m.GetResourceVersion()}
	if u, ok := o.(*unstructured.Unstructured); ok {
		it.obj, it.err = r.custom(u)
	} else if r.kind.Trim == nil || !r.expects(m) {
		return item{}, fmt.Errorf("%s: the Kubernetes API sent a %T", r.kind, o)
	} else {
		it.obj = r.kind.Trim(r.strings, m)
	}
	if it.obj != nil { // one string for both
		it.name = name{it.obj.GetNamespace(), it.obj.GetName()}
	}
	return it, nil
}

// expects reports whether an object has the type that the clients of its kind
// return.
func (r reader) expects(m metav1.Object) bool {
	if r.kind.MetadataOnly {
		_, ok := m.(*metav1.PartialObjectMetadata)
		return ok
	}
	kind, ok := source.KindFor(m)
	return ok && kind == r.kind
}

// annotationLastApplied is kubectl's copy of the object in itself.
const annotationLastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// custom reads an object of a custom kind. With an error the object is what
// stands in for it, or nil.
func (r reader) custom(u *unstructured.Unstructured) (metav1.Object, error) {
	unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
	unstructured.RemoveNestedField(u.Object, "metadata", "annotations", annotationLastApplied)
	obj := r.kind.New()
	if r.kind.Messages == nil {
		return obj, decode(u.Object, obj)
	}
	if err := decode(u.Object["metadata"], source.Meta(obj)); err != nil {
		return nil, err
	}
	spec, status := r.kind.Messages(obj)
	// Written by controllers, read leniently: a newer one must not invalidate
	// the object.
	_, _ = decodeProto(u.Object["status"], status, true)
	data, err := decodeProto(u.Object["spec"], spec, false)
	if err == nil {
		if r.kind.Finish != nil {
			r.kind.Finish(obj, data)
		}
		return obj, nil
	}
	if !r.closed(spec, u.Object["spec"]) {
		return nil, err
	}
	return obj, err
}

func decode(from, into any) error {
	data, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	return err
}

// decodeProto reads a message strictly, or leniently, and returns its JSON.
func decodeProto(from any, into proto.Message, lenient bool) ([]byte, error) {
	if from == nil {
		return nil, nil
	}
	data, err := json.Marshal(from)
	if err != nil {
		return nil, err
	}
	if problem, ok := source.ReadMessage(data, into, lenient); !ok {
		return nil, errors.New("spec: " + strings.TrimPrefix(problem, "proto: "))
	}
	return data, nil
}

// closed replaces a spec that cannot be read by the strictest one of its kind,
// and reports whether it could.
func (r reader) closed(spec proto.Message, from any) bool {
	fields, ok := from.(map[string]any)
	if !ok || r.kind.Close == nil {
		return false
	}
	proto.Reset(spec)
	return r.kind.Close(spec, maps.Clone(fields), func(left map[string]any) error {
		_, err := decodeProto(left, spec, false)
		return err
	})
}
