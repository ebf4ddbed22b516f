package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	apisecurity "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/internal/source"
)

// reader turns what clients return into what is kept. It belongs to one feed.
type reader struct {
	kind    source.Kind
	strings *interner
}

// item reads one object. The error is one of the conversation, not of the
// object.
func (r reader) item(o runtime.Object) (item, error) {
	m, ok := o.(metav1.Object)
	if !ok {
		return item{}, fmt.Errorf("%s: the Kubernetes API sent a %T", r.kind.Name, o)
	}
	it := item{name: name{m.GetNamespace(), m.GetName()}, rv: m.GetResourceVersion()}
	if u, ok := o.(*unstructured.Unstructured); ok {
		it.obj, it.err = r.custom(u)
	} else if it.obj = r.builtin(o); it.obj == nil {
		return item{}, fmt.Errorf("%s: the Kubernetes API sent a %T", r.kind.Name, o)
	}
	if it.obj != nil { // one string for both
		it.name = name{it.obj.GetNamespace(), it.obj.GetName()}
	}
	return it, nil
}

func (r reader) builtin(o runtime.Object) metav1.Object {
	switch o := o.(type) {
	case *corev1.Pod:
		return r.strings.pod(o)
	case *corev1.Service:
		return r.strings.service(o)
	case *discoveryv1.EndpointSlice:
		return r.strings.endpointSlice(o)
	case *metav1.PartialObjectMetadata:
		switch r.kind.Name {
		case source.KindNamespace:
			return r.strings.namespace(&o.ObjectMeta)
		case source.KindNode:
			return r.strings.node(&o.ObjectMeta)
		case source.KindServiceAccount:
			return r.strings.account(&o.ObjectMeta)
		}
	}
	return nil
}

// annotationLastApplied is kubectl's copy of the object in itself.
const annotationLastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// custom reads an object of a custom kind. With an error the object is what
// stands in for it, or nil.
func (r reader) custom(u *unstructured.Unstructured) (metav1.Object, error) {
	unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
	unstructured.RemoveNestedField(u.Object, "metadata", "annotations", annotationLastApplied)
	obj := r.kind.New()
	meta, spec, status := parts(obj)
	if spec == nil {
		return obj, decode(u.Object, obj)
	}
	if err := decode(u.Object["metadata"], meta); err != nil {
		return nil, err
	}
	// Written by controllers, read leniently: a newer one must not invalidate
	// the object.
	_, _ = decodeProto(u.Object["status"], status, true)
	data, err := decodeProto(u.Object["spec"], spec, false)
	if err == nil {
		source.MarkEmpty(obj, data)
		return obj, nil
	}
	if !closed(spec, u.Object["spec"]) {
		return nil, err
	}
	return obj, err
}

// parts returns the parts of an object of an Istio kind, whose spec and
// status are protobuf messages; nil for others.
func parts(obj metav1.Object) (meta *metav1.ObjectMeta, spec, status proto.Message) {
	switch o := obj.(type) {
	case *networkingv1.WorkloadEntry:
		return &o.ObjectMeta, &o.Spec, &o.Status
	case *networkingv1.ServiceEntry:
		return &o.ObjectMeta, &o.Spec, &o.Status
	case *securityv1.AuthorizationPolicy:
		return &o.ObjectMeta, &o.Spec, &o.Status
	case *securityv1.PeerAuthentication:
		return &o.ObjectMeta, &o.Spec, &o.Status
	}
	return nil, nil, nil
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
	if err = (protojson.UnmarshalOptions{DiscardUnknown: lenient}).Unmarshal(data, into); err != nil {
		// protobuf separates the words of its errors by either kind of space, by chance.
		return nil, errors.New("spec: " + strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: "))
	}
	return data, nil
}

// closed turns the spec of a policy that cannot be read into the strictest
// one for the same workloads, so that a policy of a newer version does not
// open what it was made to protect. It tells whether it could.
func closed(spec proto.Message, from any) bool {
	fields, ok := from.(map[string]any)
	if !ok {
		return false
	}
	fields = maps.Clone(fields)
	proto.Reset(spec)
	switch s := spec.(type) {
	case *apisecurity.AuthorizationPolicy:
		delete(fields, "rules")
		if _, err := decodeProto(fields, s, false); err != nil {
			return false
		}
		switch s.Action {
		case apisecurity.AuthorizationPolicy_ALLOW:
			return true // with no rule it allows nothing
		case apisecurity.AuthorizationPolicy_DENY:
			s.Rules = []*apisecurity.Rule{{}}
			return true
		}
	case *apisecurity.PeerAuthentication:
		delete(fields, "mtls")
		delete(fields, "portLevelMtls")
		if _, err := decodeProto(fields, s, false); err != nil {
			return false
		}
		s.Mtls = &apisecurity.PeerAuthentication_MutualTLS{Mode: apisecurity.PeerAuthentication_MutualTLS_STRICT}
		return true
	}
	return false
}
