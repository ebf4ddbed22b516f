package source

import (
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	apisecurity "istio.io/api/security/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// markEmptyRules keeps the empty lists that a policy's rules were written with.
// A decoded object cannot tell an empty list from an absent one, and they mean
// opposite things: `from: []` is no source at all, while a rule without `from`
// is every source. Each empty list (or null) gets one element without content,
// which no client can match; the translation and the webhook report it. Lists
// of exceptions (notPrincipals, …) stay empty: they except nothing.
//
// spec is the JSON of the object's spec.
func markEmptyRules(obj metav1.Object, spec []byte) {
	p, ok := obj.(*securityv1.AuthorizationPolicy)
	if !ok || len(p.Spec.Rules) == 0 {
		return
	}
	var raw struct {
		Rules []map[string]any `json:"rules"`
	}
	if json.Unmarshal(spec, &raw) != nil || len(raw.Rules) != len(p.Spec.Rules) {
		// It was decoded, so this is no policy that anybody wrote.
		p.Spec.Rules = unreadable(p.Spec.Rules)
		return
	}
	for i, r := range p.Spec.Rules {
		markEmpty(r.ProtoReflect(), raw.Rules[i])
	}
}

// unreadable returns as many rules whose source is empty: they never allow.
func unreadable(rules []*apisecurity.Rule) []*apisecurity.Rule {
	out := make([]*apisecurity.Rule, len(rules))
	for i := range out {
		out[i] = &apisecurity.Rule{From: []*apisecurity.Rule_From{{}}}
	}
	return out
}

// markEmpty compares a message with the JSON that it was read from.
func markEmpty(m protoreflect.Message, raw map[string]any) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		v, written := raw[f.JSONName()]
		if !written {
			v, written = raw[f.TextName()] // the reader takes either name
		}
		switch {
		case !written:
		case f.IsList():
			markList(m, f, v)
		case f.Message() != nil && m.Has(f):
			if inner, ok := v.(map[string]any); ok {
				markEmpty(m.Get(f).Message(), inner)
			}
		}
	}
}

func markList(m protoreflect.Message, f protoreflect.FieldDescriptor, v any) {
	raw, _ := v.([]any) // nil when it is null
	if len(raw) == 0 {
		if !strings.HasPrefix(f.JSONName(), "not") {
			list := m.Mutable(f).List()
			list.Append(list.NewElement())
		}
		return
	}
	if f.Message() == nil {
		return
	}
	list := m.Get(f).List()
	for i := range min(list.Len(), len(raw)) {
		if inner, ok := raw[i].(map[string]any); ok {
			markEmpty(list.Get(i).Message(), inner)
		}
	}
}
