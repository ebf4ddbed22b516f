package meshconfig

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
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
	DefaultVisibility Scope              `json:"defaultVisibility"`
	Policies          []VisibilityPolicy `json:"policies"`
}

// VisibilityPolicy is one policy. Without rules it is for every namespace.
type VisibilityPolicy struct {
	Visibility    Scope       `json:"visibility"`
	MatchingRules []MatchRule `json:"matchingRules"`

	selectors []labels.Selector // of the rules
}

// MatchRule is one rule.
type MatchRule struct {
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector"`
}

// Of returns the scope of the entries of a namespace with these labels.
func (v *Visibility) Of(namespace map[string]string) Scope {
	if v == nil {
		return Public
	}
	for i := range v.Policies {
		if v.Policies[i].matches(labels.Set(namespace)) {
			return v.Policies[i].Visibility
		}
	}
	return v.DefaultVisibility
}

func (p *VisibilityPolicy) matches(namespace labels.Set) bool {
	for _, s := range p.selectors {
		if !s.Matches(namespace) {
			return false
		}
	}
	return true
}

// compile checks, and prepares Of. What it does not understand is an error:
// to pass over a rule could show what its author meant to hide.
func (v *Visibility) compile() error {
	if err := v.DefaultVisibility.complete(); err != nil {
		return fmt.Errorf("defaultVisibility: %w", err)
	}
	for i := range v.Policies {
		p := &v.Policies[i]
		at := fmt.Sprintf("policies[%d]", i)
		if err := p.Visibility.complete(); err != nil {
			return fmt.Errorf("%s.visibility: %w", at, err)
		}
		for j, rule := range p.MatchingRules {
			at := fmt.Sprintf("%s.matchingRules[%d]", at, j)
			if rule.NamespaceSelector == nil {
				return fmt.Errorf("%s: there is no namespaceSelector, and other rules are not known here", at)
			}
			s, err := metav1.LabelSelectorAsSelector(rule.NamespaceSelector)
			if err != nil {
				return fmt.Errorf("%s.namespaceSelector: %w", at, err)
			}
			p.selectors = append(p.selectors, s)
		}
	}
	return nil
}

func (s *Scope) complete() error {
	switch *s {
	case "", "VISIBILITY_UNSPECIFIED":
		*s = Public
	case Public, Namespace, None:
	default:
		return fmt.Errorf("%q is none of PUBLIC, NAMESPACE, NONE", *s)
	}
	return nil
}
