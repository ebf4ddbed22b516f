package meshconfig

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// visibility is the field that limits who sees ServiceEntries. Like all fields
// of the message it may be written as it is called in the protobuf.
const (
	visibility      = "serviceEntryVisibility"
	visibilityProto = "service_entry_visibility"
)

// Scope is who can see a ServiceEntry.
type Scope string

// The scopes. A scope that is not given is Public.
const (
	Public    Scope = "PUBLIC"
	Namespace Scope = "NAMESPACE" // clients of its own namespace
	None      Scope = "NONE"      // nobody: it is as if it had not been written
)

// Visibility is what the administrator of the mesh lets the ServiceEntries of
// a namespace be, by the labels of the namespace: the first policy of which all
// rules match decides, else the default. A nil one says nothing.
type Visibility struct {
	otherwise Scope
	policies  []visibilityPolicy
}

// visibilityPolicy is one policy. Without rules it is for every namespace.
type visibilityPolicy struct {
	scope     Scope
	selectors []labels.Selector // of the rules
}

// Of returns the scope of the entries of a namespace with these labels.
func (v *Visibility) Of(namespace map[string]string) Scope {
	if v == nil {
		return Public
	}
	for _, p := range v.policies {
		if p.matches(labels.Set(namespace)) {
			return p.scope
		}
	}
	return v.otherwise
}

func (p visibilityPolicy) matches(namespace labels.Set) bool {
	for _, s := range p.selectors {
		if !s.Matches(namespace) {
			return false
		}
	}
	return true
}

// meansVisibility reports whether somebody meant to limit visibility by a name,
// rightly written or not.
func meansVisibility(name string) bool {
	return strings.EqualFold(strings.ReplaceAll(name, "_", ""), visibility)
}

// restrict takes the visibility over from a field of text. What is not
// understood in it to the last is an error: to pass over a field or a rule
// could show what its author meant to hide.
func (c *Config) restrict(name string, value, text []byte) (err error) {
	if name != visibility && name != visibilityProto {
		return fmt.Errorf("there is no such field; it is called %s", visibility)
	}
	if c.ServiceEntryVisibility != nil {
		return fmt.Errorf("there is %s as well; keep one of them", visibility)
	}
	if _, err := yaml.YAMLToJSONStrict(text); err != nil { // what is there twice
		return err
	}
	if bytes.Equal(value, []byte("null")) {
		return nil
	}
	var v meshv1alpha1.ServiceEntryVisibility
	if err := protojson.Unmarshal(value, &v); err != nil {
		return err
	}
	c.ServiceEntryVisibility, err = compile(&v)
	return err
}

// compile checks, and prepares Of. That sidecars are to follow as well
// (applyToSidecars) says nothing to a mesh without them.
func compile(v *meshv1alpha1.ServiceEntryVisibility) (*Visibility, error) {
	var out Visibility
	var err error
	if out.otherwise, err = scope(v.GetDefaultVisibility()); err != nil {
		return nil, fmt.Errorf("defaultVisibility: %w", err)
	}
	for i, policy := range v.GetPolicies() {
		at := fmt.Sprintf("policies[%d]", i)
		var p visibilityPolicy
		if p.scope, err = scope(policy.GetVisibility()); err != nil {
			return nil, fmt.Errorf("%s.visibility: %w", at, err)
		}
		for j, rule := range policy.GetMatchingRules() {
			s, err := selector(rule.GetNamespaceSelector())
			if err != nil {
				return nil, fmt.Errorf("%s.matchingRules[%d].namespaceSelector: %w", at, j, err)
			}
			p.selectors = append(p.selectors, s)
		}
		out.policies = append(out.policies, p)
	}
	return &out, nil
}

func selector(of *meshv1alpha1.LabelSelector) (labels.Selector, error) {
	if of == nil {
		return nil, errors.New("it is missing, and other rules are not known here")
	}
	s := metav1.LabelSelector{MatchLabels: of.GetMatchLabels()}
	for _, e := range of.GetMatchExpressions() {
		s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{
			Key: e.GetKey(), Operator: metav1.LabelSelectorOperator(e.GetOperator()), Values: e.GetValues(),
		})
	}
	return metav1.LabelSelectorAsSelector(&s)
}

func scope(v meshv1alpha1.ServiceEntryVisibility_Visibility) (Scope, error) {
	switch v {
	case meshv1alpha1.ServiceEntryVisibility_VISIBILITY_UNSPECIFIED, meshv1alpha1.ServiceEntryVisibility_PUBLIC:
		return Public, nil
	case meshv1alpha1.ServiceEntryVisibility_NAMESPACE:
		return Namespace, nil
	case meshv1alpha1.ServiceEntryVisibility_NONE:
		return None, nil
	}
	return "", fmt.Errorf("%d is none of PUBLIC, NAMESPACE, NONE", v)
}
