// Package node is the role of the node agent: it decides which pods of its node
// are in the mesh, redirects their traffic to the node proxy, hands their
// network namespaces over to it, and takes all of that back.
//
// The order of the steps is chosen so that a live pod loses no connection and
// leaks none. A pod joins: the proxy serves its namespace and says so; the
// rules become active; the pod is announced, and only then do peers send
// tunnels to it. A pod leaves: it is no longer announced; after a while nothing
// new is captured; when what was captured has ended, or has had its time, the
// proxy stops and the namespace is restored. A pod that the mesh believes to be
// enrolled, and a pod that has not started yet, fail closed instead: their rules
// are written first, whether there is a proxy or not.
//
// What is true is what the kernel says. The annotation on a pod is an
// announcement to others, and never a reason to believe that rules are in place.
package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

// Pod is what the agent knows of a pod of its node.
type Pod struct {
	UID                             string
	StaticUID                       string // of a static pod: its UID on its node
	Name, Namespace, ServiceAccount string
	Labels, Annotations             map[string]string
	IPs                             []netip.Addr // none before the pod has a network
	ProbePorts                      []uint16     // where the kubelet connects to: probes, lifecycle hooks
	HostNetwork                     bool
	Terminal                        bool // succeeded or failed: it will not run again
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// uids are the names that the node has for the pod. A static pod is known there
// by another than in the API.
func (p Pod) uids() []string {
	if p.StaticUID != "" {
		return []string{p.UID, p.StaticUID}
	}
	return []string{p.UID}
}

// probedAt are the addresses at which the kubelet connects to the pod.
func (p Pod) probedAt() []netip.Addr {
	if len(p.ProbePorts) == 0 {
		return nil
	}
	return p.IPs
}

// announced reports whether the mesh has been told that the pod is enrolled.
func (p Pod) announced() bool {
	return p.Annotations[wellknown.AnnotationRedirection] == wellknown.RedirectionEnabled
}

// Policy says which pods are in the mesh.
type Policy struct {
	Selectors         []Selector
	ExcludeNamespaces []string
	Discovery         Discovery
}

// Selector chooses pods by their own labels and by their namespace's; both have
// to match. The empty selector matches all.
type Selector struct {
	PodSelector       Labels `json:"podSelector"`
	NamespaceSelector Labels `json:"namespaceSelector"`
}

// Labels is a Kubernetes label selector.
type Labels struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Expression      `json:"matchExpressions,omitempty"`
}

// Expression is one requirement of a label selector.
type Expression struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"` // In, NotIn, Exists or DoesNotExist
	Values   []string `json:"values,omitempty"`
}

// DefaultSelectors enrol what is labelled so: the pod itself, or its namespace
// when the pod does not say otherwise.
func DefaultSelectors() []Selector {
	ambient := map[string]string{wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient}
	return []Selector{
		{PodSelector: Labels{MatchLabels: ambient}},
		{
			PodSelector: Labels{MatchExpressions: []Expression{{
				Key: wellknown.LabelDataplaneMode, Operator: "NotIn", Values: []string{wellknown.DataplaneModeNone},
			}}},
			NamespaceSelector: Labels{MatchLabels: ambient},
		},
	}
}

// ParseSelectors reads a YAML list of selectors.
func ParseSelectors(text []byte) ([]Selector, error) {
	var list []Selector
	if err := yaml.UnmarshalStrict(text, &list); err != nil {
		return nil, fmt.Errorf("enablement selectors: %w", err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("enablement selectors: the list is empty, and no pod would ever be enrolled")
	}
	for i, s := range list {
		for _, e := range slices.Concat(s.PodSelector.MatchExpressions, s.NamespaceSelector.MatchExpressions) {
			if err := e.validate(); err != nil {
				return nil, fmt.Errorf("enablement selector %d: %w", i+1, err)
			}
		}
	}
	return list, nil
}

func (e Expression) validate() error {
	needsValues := e.Operator == "In" || e.Operator == "NotIn"
	switch {
	case e.Key == "":
		return fmt.Errorf("an expression has no key")
	case !needsValues && e.Operator != "Exists" && e.Operator != "DoesNotExist":
		return fmt.Errorf("operator %q of %s is none of In, NotIn, Exists, DoesNotExist", e.Operator, e.Key)
	case needsValues != (len(e.Values) > 0):
		return fmt.Errorf("%s %s with %d values", e.Key, e.Operator, len(e.Values))
	}
	return nil
}

// Matches reports whether the selector chooses something with these labels.
func (l Labels) Matches(labels map[string]string) bool {
	for k, want := range l.MatchLabels {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	for _, e := range l.MatchExpressions {
		got, ok := labels[e.Key]
		in := ok && slices.Contains(e.Values, got)
		matches := false
		switch e.Operator {
		case "In":
			matches = in
		case "NotIn":
			matches = !in // also when there is no such label
		case "Exists":
			matches = ok
		case "DoesNotExist":
			matches = !ok
		}
		if !matches {
			return false
		}
	}
	return true
}

// Enrols decides whether a pod belongs into the mesh, and says why not.
func (p Policy) Enrols(pod Pod, namespaceLabels map[string]string) (yes bool, why string) {
	switch {
	case pod.Terminal:
		return false, "the pod has ended"
	case pod.HostNetwork:
		return false, "the pod is in the host's network"
	case slices.Contains(p.ExcludeNamespaces, pod.Namespace):
		return false, "the namespace is excluded"
	case pod.Annotations[wellknown.AnnotationSidecarStatus] != "":
		return false, "the pod has a sidecar"
	}
	for _, s := range p.Selectors {
		if !s.PodSelector.Matches(pod.Labels) || !s.NamespaceSelector.Matches(namespaceLabels) {
			continue
		}
		if !p.Discovery.Sees(pod.Namespace, namespaceLabels) {
			return false, whyUnseen
		}
		return true, ""
	}
	return false, "no selector matches"
}

// Redirection is the rule set for a pod: the node's, with the wishes of its namespace
// and its own. The node's probe sources reach the ports that the pod is probed at, and
// no other.
func Redirection(base nft.Config, pod Pod, namespaceLabels map[string]string) nft.Config {
	cfg := base
	cfg.Probes = nil
	if len(pod.ProbePorts) > 0 {
		for _, p := range base.Probes {
			p.Ports = pod.ProbePorts
			cfg.Probes = append(cfg.Probes, p)
		}
	}
	cfg.BypassInbound = pod.Annotations[wellknown.AnnotationBypassInbound] == "true"
	for _, wish := range []string{namespaceLabels[wellknown.LabelDNSCapture], pod.Annotations[wellknown.AnnotationDNSCapture]} {
		switch wish {
		case "true":
			cfg.CaptureDNS = true
		case "false":
			cfg.CaptureDNS = false
		}
	}
	cfg.VirtualInterfaces, _ = pod.interfaces()
	return cfg
}

const (
	// maxInterfaces is how many interfaces a pod may name: more than a pod that
	// runs virtual machines has, and few enough for a rule each.
	maxInterfaces = 64
	// maxInterfaceName is the kernel's bound (IFNAMSIZ) without the final zero.
	maxInterfaceName = 15
)

// interfaces are those whose traffic is that of programs of the pod.
func (p Pod) interfaces() ([]string, error) {
	text := p.Annotations[wellknown.AnnotationRerouteInterfaces]
	if len(text) > maxInterfaces*(maxInterfaceName+len(", ")) {
		return nil, fmt.Errorf("annotation %s has %d bytes: at most %d interfaces can be named", wellknown.AnnotationRerouteInterfaces, len(text), maxInterfaces)
	}
	var names []string
	for name := range strings.SplitSeq(text, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "":
		case len(name) > maxInterfaceName:
			return nil, fmt.Errorf("annotation %s: %q is longer than the name of an interface can be (%d bytes)", wellknown.AnnotationRerouteInterfaces, name, maxInterfaceName)
		case len(names) == maxInterfaces:
			return nil, fmt.Errorf("annotation %s names more than %d interfaces", wellknown.AnnotationRerouteInterfaces, maxInterfaces)
		default:
			names = append(names, name)
		}
	}
	return names, nil
}

// check reports what of a pod's own wishes cannot be done.
func (p Pod) check() error {
	if _, err := p.interfaces(); err != nil {
		return &wishError{err}
	}
	return nil
}

// wishError is about an annotation, which only the pod's owner can correct.
type wishError struct{ err error }

func (e *wishError) Error() string { return e.err.Error() + "; correct the annotation" }
func (e *wishError) Unwrap() error { return e.err }
